"""The one redaction: what must not reach a log, a database, a report, a page or an error.

URLs lose user info and the values of query keys; header values are never passed through at all.
Free text (an error body, an exception) loses what looks like a key or a credential in a URL.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

MASK = "***"

_IN_TEXT = (
    # scheme://user:password@host
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@]+@"), rf"\1{MASK}@"),
    # Authorization: Bearer abc, api-key: abc, "api_key": "abc", token=abc
    (
        re.compile(
            r"(?i)((?:authorization|proxy-authorization|api[-_]?key|x-api-key|access[-_]?token|"
            r"secret|password|signature|sig|token|key)[\"']?\s*[:=]\s*[\"']?)"
            r"((?:bearer|basic)\s+)?[^\s\"',;&}]{4,}"
        ),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}"), rf"\1 {MASK}"),
    # Keys with a well-known prefix, wherever they stand.
    (re.compile(r"\b(?:sk|pk|rk|gsk|hf|xai|key|ghp|gho)[-_][A-Za-z0-9_-]{8,}"), MASK),
    (re.compile(r"\bAKIA[0-9A-Z]{12,}"), MASK),
)


def redact_url(url: str) -> str:
    """``url`` without user info, query values and fragment; no URL at all is redacted as text."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return redact_text(url)
    user = f"{MASK}@" if "@" in parts.netloc else ""
    query = urlencode(
        [(name, MASK) for name, _ in parse_qsl(parts.query, keep_blank_values=True)], safe="*"
    )
    return urlunsplit((parts.scheme, user + host, parts.path, query, ""))


def redact_text(text: str, secrets: tuple[str, ...] = ()) -> str:
    """``text`` without the given secrets and without what looks like one."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text

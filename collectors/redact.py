"""The one redaction: what must not reach a log, a database, a report, a page or an error.

URLs lose user info and the values of query keys; header values are never passed through at all.
Free text (an error body, an exception) loses what looks like a key or a credential in a URL. Where
it cannot be told what is secret, too much is masked rather than too little. A server may say much,
and of any shape: each pattern takes time in proportion to the text.
"""

from __future__ import annotations

import re
from urllib.parse import quote

MASK = "***"
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::\d*)?")  # and perhaps its port
_SHORTEST_SECRET = 4  # masking every "1" would hide the message and no secret

_IN_TEXT = (
    # User info of a URL, and of an address without a scheme
    (re.compile(r"(://)[^/\s]+@"), rf"\1{MASK}@"),
    (
        re.compile(
            r"(?<![^\s/@])(?=[^\s/@]+@[\w\[])"  # where a word with an @ begins, looked at once
            r"([^\s/@]*?(?<![\w.+-]))[\w.+-]+:[^\s/@]+@"
        ),
        rf"\1{MASK}@",
    ),
    # Authorization: anything, up to the end of its line or quote
    (
        re.compile(r"(?i)\b((?:proxy-)?authorization[\\\"']*\s*[:=]\s*[\\\"']*)[^\r\n\"'\\]+"),
        rf"\1{MASK}",
    ),
    # api-key: abc, "api_key": "abc", token=abc
    (
        re.compile(
            r"(?i)((?:api[-_]?key|access[-_]?token|secret|password|passwd|signature|sig|token|"
            r"key|cookie)[\\\"']*\s*[:=]\s*[\\\"']*)((?:bearer|basic)\s+)?[^\s\"',;&}\\]{4,}"
        ),
        rf"\1\2{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}"), rf"\1 {MASK}"),
    # Keys with a well-known prefix, wherever they stand, and JSON web tokens.
    (
        re.compile(
            r"\b(?:sk|pk|rk|gsk|hf|xai|key|ghp|gho|nvapi|r8|fw)[-_][A-Za-z0-9_-]{8,}"
            r"|\b(?:AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}|eyJ[\w.-]{12,})"
        ),
        MASK,
    ),
)


def redact_url(url: str) -> str:
    """``url`` without user info, query values and fragment; what is no URL is redacted as text."""
    address, _, query = url.partition("#")[0].partition("?")
    scheme, slashes, rest = address.partition("//") if "//" in address else ("", "", address)
    authority, slash, path = rest.partition("/")
    _, at, host = authority.rpartition("@")
    if not at and "@" in url and not _HOST.fullmatch(host):
        return MASK  # "user:pass/word@host" is cut in the wrong place
    shown = f"{scheme}{slashes}{f'{MASK}@' if at else ''}{host}{slash}{path}"
    if query:
        shown += "?" + "&".join(_without_value(part) for part in query.split("&"))
    return redact_text(shown)


def _without_value(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}={MASK}" if equals else MASK


def redact_text(text: str, secrets: tuple[str, ...] = ()) -> str:
    """``text`` without the given secrets and without what looks like one."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, MASK).replace(quote(secret, safe=""), MASK)
    for pattern, replacement in _IN_TEXT:
        text = pattern.sub(replacement, text)
    return text

"""How long a server that refuses asks its clients to wait.

Recorded, never obeyed: a wait inside a schedule would hide the refusal in the next request's time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from the response on, ``None`` where none were named or they cannot be read.

    ``retry-after-ms`` is the finer one and wins. A date counts from the server's own clock, its
    ``Date`` header, where that is there. Source: RFC 9110, 10.2.3; the former is Azure's.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    text = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    until = _seconds(text)
    if until is None:
        return None
    said_at = _seconds(headers.get("date", ""))
    return max(0.0, until - (time.time() if said_at is None else said_at))


def _seconds(date: str) -> float | None:
    """Wall-clock seconds of an HTTP date."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None

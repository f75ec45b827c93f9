"""Just enough HTTP/1.1 for the metronome: requests in, pre-rendered bytes out.

Pure. A request's body is read by its Content-Length; a chunked one is refused, since none of the
clients this is a yardstick for sends one. Anything that is not understood closes the connection
after an answer that says why.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
JSON = "application/json"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class RawHttpError(Exception):
    """The bytes are no request that can be read; the connection cannot go on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Request line and headers (names in lower case), and how many bytes of body follow."""

    method: str
    target: str
    headers: dict[str, str]
    body_bytes: int

    @property
    def keeps_alive(self) -> bool:
        """The client means to use the connection again."""
        return self.headers.get("connection", "").lower() != "close"


def take_head(buffer: bytearray) -> Head | None:
    """Take one head off the front of a buffer; None if it is not complete yet.

    Raises:
        RawHttpError: it is malformed or too large.
    """
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > MAX_HEAD_BYTES:
            raise RawHttpError(431, "The head of the request is too large.")
        return None
    lines = buffer[:end].decode("latin-1").split("\r\n")
    del buffer[: end + 4]
    method, _, rest = lines[0].partition(" ")
    target, _, version = rest.rpartition(" ")
    if not target or not version.startswith("HTTP/1."):
        raise RawHttpError(400, "This is not an HTTP/1.1 request.")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise RawHttpError(400, "A header has no colon.")
        headers[name.strip().lower()] = value.strip()
    if version == "HTTP/1.0":
        headers["connection"] = "close"
    return Head(method=method, target=target, headers=headers, body_bytes=_body_bytes(headers))


def _body_bytes(headers: dict[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise RawHttpError(411, "A request needs a Content-Length here.")
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise RawHttpError(400, "Content-Length is not a number.")
    if int(length) > MAX_BODY_BYTES:
        raise RawHttpError(413, "The body of the request is too large.")
    return int(length)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; empty data gives nothing (an empty chunk would end the body)."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def stream_head(content_type: str, *, keep_alive: bool) -> bytes:
    """Status line and headers of a chunked answer."""
    return _head(200, content_type, "transfer-encoding: chunked", keep_alive=keep_alive)


def response(
    status: int, body: bytes, content_type: str = JSON, *, keep_alive: bool = True
) -> bytes:
    """A whole answer."""
    length = f"content-length: {len(body)}"
    return _head(status, content_type, length, keep_alive=keep_alive) + body


def _head(status: int, content_type: str, framing: str, *, keep_alive: bool) -> bytes:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    close = "" if keep_alive else "connection: close\r\n"
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ndate: {date}\r\n"
        f"server: streamgauge-metronome\r\ncontent-type: {content_type}\r\nvary: Origin\r\n"
        f"{framing}\r\n{close}\r\n"
    ).encode()

"""One HTTP request and the way to answer it, over ASGI and a little below."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl

from reference_server.runner import AbandonedError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = "application/json"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds


@lru_cache(maxsize=4096)
def _chunk_head(size: int) -> bytes:
    """What comes before so many bytes of a chunked body."""
    return b"%x\r\n" % size


class Call:
    """One HTTP request and the way to answer it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: list[tuple[str, str]] = parse_qsl(scope["query_string"].decode("latin-1"))
        self.headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        self.receive = receive
        self._client: tuple[str, int] | None = scope.get("client")
        self._send = send
        # Filled by the protocol (serve.py) as the request comes in, so not to be read before: when
        # its last byte was read, and the transport. Other ASGI servers leave it empty, and then
        # the instant is a little late.
        self._state: dict[str, Any] = scope.get("state", {})
        self._transport: asyncio.WriteTransport | None = None

    @property
    def is_local(self) -> bool:
        """It comes from this machine."""
        try:
            return self._client is not None and ip_address(self._client[0]).is_loopback
        except ValueError:
            return False

    async def read(self) -> tuple[bytes, float]:
        """The body, and the CLOCK_MONOTONIC instant at which its last byte was read.

        Raises:
            AbandonedError: the client left before its end.
        """
        body = bytearray()
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise AbandonedError
            body += message.get("body", b"")
            if not message.get("more_body", False):
                self._transport = self._state.get("transport")
                return bytes(body), self._state.get("read_at", time.monotonic())

    async def begin(
        self,
        content_type: str,
        length: int | None = None,
        status: int = 200,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send status line and headers; without a length the body is chunked."""
        ours = [(b"content-type", content_type.encode()), (b"vary", b"Origin"), *headers]
        if length is not None:
            ours.insert(0, (b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": ours})

    async def write(self, body: bytes, *, last: bool) -> float:
        """Send (a part of) the body; the instant at which the write returned."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        return time.monotonic()

    @property
    def writes_now(self) -> bool:
        """`write_now` can be used."""
        return self._transport is not None

    def write_now(self, body: bytes) -> float:
        """Send a part of a chunked body past the HTTP server, which would do no more with it.

        It is written before this returns, not by a task that must be woken first. A client that
        reads too slowly has all of it kept for it.

        Returns:
            The instant at which the write returned.
        """
        transport = self._transport
        if body and transport is not None and not transport.is_closing():
            transport.write(_chunk_head(len(body)) + body + b"\r\n")
        return time.monotonic()

    async def reply(
        self,
        body: bytes,
        content_type: str = JSON,
        status: int = 200,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> float:
        """Send a whole answer; the instant at which the write returned."""
        await self.begin(content_type, len(body), status, headers)
        return await self.write(body, last=True)

    async def pause(self, seconds: float) -> None:
        """Wait, but only as long as the client does.

        Raises:
            AbandonedError: it left meanwhile.
        """
        try:
            async with asyncio.timeout(seconds):
                while (await self.receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return
        raise AbandonedError

    async def hang_up(self, *, reset: bool = False) -> None:
        """Break off the connection, and wait until it is; the client may have done so already.

        Args:
            reset: with a RST, as of a process that was killed; otherwise as of one that ended.
        """
        if self._transport is None:
            return
        if reset:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()
        while (await self.receive())["type"] != "http.disconnect":
            pass

    @property
    def held_back(self) -> bool:
        """The kernel has not taken all that was written, because the client reads too slowly."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

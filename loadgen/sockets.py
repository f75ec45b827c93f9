"""Sockets for httpx's engine that wait on gevent's hub, whether or not Python was patched.

A :class:`Line` opens them; what it opened last tells when its last bytes came, and how often any
did. Reads are sized to one frame each (see :mod:`loadgen.backlog`): this engine is not for speed,
and so each event has its own stamp however late it is read.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import gevent
import httpcore
from gevent import monkey
from gevent import socket as cooperative

from loadgen.backlog import PEEK_BYTES, frame_bytes
from loadgen.errors import words_of
from loadgen.stamps import ANCILLARY_BYTES, KernelStamps
from loadgen.tls import READ_BYTES, MemoryTls

FAIR_S = 0.01  # who sends faster than can be read keeps the others waiting no longer than this

_poll = monkey.get_original("select", "poll")


class TlsError(httpcore.ConnectError):
    """The peers did not agree on TLS; its text is the reason."""


class Stream(httpcore.NetworkStream):
    """A connection as its reader sees it.

    Attributes:
        arrivals: how often something came; frames of one segment came together.
        at: CLOCK_MONOTONIC seconds at which the last of it came.
        delay_s: how long before it was read that was; ``None`` where the kernel did not say.
        ended: the peer closed.
    """

    def __init__(self, line: Line) -> None:
        self.arrivals = 0
        self.at = time.monotonic()
        self.delay_s: float | None = None
        self.ended = False
        self._encrypted = False
        self._line = line
        line.stream = self

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002  # the engine's seam; limits are the caller's
    ) -> Stream:
        """Speak TLS from here on."""
        self._encrypted = True
        return _TlsStream(self._line, self, ssl_context, server_hostname or "")


class Line(httpcore.NetworkBackend):
    """Opens the sockets of one connection after another.

    Args:
        stamps: tells when something came.

    Attributes:
        stream: what was opened last, its outermost layer; ``None`` before anything was.
    """

    def __init__(self, stamps: KernelStamps) -> None:
        self.stamps = stamps
        self.stream: Stream | None = None

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # as above
        local_address: str | None = None,  # noqa: ARG002  # never asked for
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> Stream:
        """A connected socket; each address is tried in turn.

        Raises:
            httpcore.ConnectError: no address answers.
        """
        try:
            sock = cooperative.create_connection((host, port))
        except OSError as error:
            raise httpcore.ConnectError(words_of(error)) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _SocketStream(self, sock)


class _SocketStream(Stream):
    def __init__(self, line: Line, sock: Any) -> None:
        super().__init__(line)
        self._sock = sock
        self._stamped = line.stamps.enable(sock)
        self._stamp: Any = None
        self._drained_at = self.at
        self._loop = gevent.get_hub().loop

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        if time.time() - self._loop.now() > FAIR_S:  # wall clock, as of the loop's latest turn
            gevent.sleep(1e-6)  # 0 would come back without a turn of the loop
        try:
            size = min(self._next_frame_bytes() or max_bytes, max_bytes)
            data, stamp, _, _ = self._sock.recvmsg(size, ANCILLARY_BYTES)
        except OSError as error:
            raise httpcore.ReadError(words_of(error)) from error
        at, self.delay_s, now = self._line.stamps.arrival(stamp, self._drained_at)
        if len(data) < size:
            self._drained_at = now
        if data and (not stamp or stamp != self._stamp):
            self.arrivals += 1
            self.at = max(self.at, at)
        self._stamp = stamp
        self.ended = not data
        return bytes(data)

    def _next_frame_bytes(self) -> int | None:
        """Waits until something is there."""
        if not self._stamped:
            return None
        start = self._sock.recv(PEEK_BYTES, socket.MSG_PEEK)
        return frame_bytes(start, tls=self._encrypted)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._drained_at = time.monotonic()
        try:
            self._sock.sendall(buffer)
        except OSError as error:
            raise httpcore.WriteError(words_of(error)) from error

    def close(self) -> None:
        self._sock.close()

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":
            return None
        if self._sock.fileno() < 0:
            return True  # closed, which the engine asks in this way
        poller = _poll()
        poller.register(self._sock.fileno(), select.POLLIN)
        return bool(poller.poll(0))


class _TlsStream(Stream):
    def __init__(self, line: Line, inner: Stream, context: ssl.SSLContext, host: str) -> None:
        super().__init__(line)
        self._inner = inner
        self._tls = MemoryTls(context, host)
        try:
            self._tls.shake_hands(inner.write, lambda: inner.read(READ_BYTES))
        except BaseException as error:
            inner.close()
            if isinstance(error, ssl.SSLError):
                raise TlsError(words_of(error)) from error
            if isinstance(error, httpcore.NetworkError):
                raise httpcore.ConnectError(str(error)) from error
            raise

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        plain = b""
        while not plain and not self.ended:
            data = self._inner.read(max_bytes)
            self.ended = not data
            if data:
                plain = self._decrypted(data)
        self.at, self.delay_s = self._inner.at, self._inner.delay_s
        if plain:
            self.arrivals = self._inner.arrivals
        return plain

    def _decrypted(self, data: bytes) -> bytes:
        try:
            plain, self.ended = self._tls.decrypt(data)
        except ssl.SSLError as error:
            # Whom our certificate does not please says so once we have sent (TLS 1.3).
            kind = httpcore.ReadError if self.arrivals else TlsError
            raise kind(words_of(error)) from error
        return plain

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        try:
            data = self._tls.encrypt(buffer) if buffer else b""
        except ssl.SSLError as error:
            raise httpcore.WriteError(words_of(error)) from error
        self._inner.write(data)

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._tls.ssl
        if info == "is_readable" and self.ended:
            return True
        return self._inner.get_extra_info(info)

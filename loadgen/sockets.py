"""Sockets for httpx's engine that wait on gevent's hub, whether or not Python was patched.

A :class:`Line` opens them; what it opened last tells when it was read last, and how often.
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

from loadgen.errors import words_of
from loadgen.tls import READ_BYTES, MemoryTls

FAIR_S = 0.01  # who sends faster than can be read keeps the others waiting no longer than this

_poll = monkey.get_original("select", "poll")


class TlsError(httpcore.ConnectError):
    """The peers did not agree on TLS; its text is the reason."""


class Stream(httpcore.NetworkStream):
    """A connection as its reader sees it.

    Attributes:
        reads: how many reads brought something.
        read_at: CLOCK_MONOTONIC seconds at which the last read returned.
        ended: the peer closed.
    """

    def __init__(self, line: Line) -> None:
        self.reads = 0
        self.read_at = time.monotonic()
        self.ended = False
        self._line = line
        line.stream = self

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002  # the engine's seam; limits are the caller's
    ) -> Stream:
        """Speak TLS from here on."""
        return _TlsStream(self._line, self, ssl_context, server_hostname or "")


class Line(httpcore.NetworkBackend):
    """Opens the sockets of one connection after another.

    Attributes:
        stream: what was opened last, its outermost layer; ``None`` before anything was.
    """

    def __init__(self) -> None:
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
        self._loop = gevent.get_hub().loop

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        if time.time() - self._loop.now() > FAIR_S:  # wall clock, as of the loop's latest turn
            gevent.sleep(0)
        try:
            data: bytes = self._sock.recv(max_bytes)
        except OSError as error:
            raise httpcore.ReadError(words_of(error)) from error
        self.read_at = time.monotonic()
        self.reads += bool(data)
        self.ended = not data
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
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
            self.read_at = self._inner.read_at
            self.ended = not data
            if data:
                plain = self._decrypted(data)
        self.reads += bool(plain)
        return plain

    def _decrypted(self, data: bytes) -> bytes:
        try:
            plain, self.ended = self._tls.decrypt(data)
        except ssl.SSLError as error:
            # Whom our certificate does not please says so once we have sent (TLS 1.3).
            kind = httpcore.ReadError if self.reads else TlsError
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

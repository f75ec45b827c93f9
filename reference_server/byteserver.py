"""A server that plays bytes: whatever a server might send, exactly when and how it would.

A test of a client says "after 300 ms these bytes, after 20 more those, then a reset", and nothing
here understands what the bytes mean. The rules:

- Each write is one ``send`` with Nagle off, at its own instant after the request was read; a real
  pause lies between two writes, so that the client sees two reads.
- The n-th request is answered by the n-th play, on whichever connection it comes; the last play is
  repeated. Or a function chooses by the request.
- What was received is kept: every request's head and body, the number of connections, and on which
  of them the client left first.

Threads and blocking sockets: the order of things is the order of the code.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from reference_server import rawhttp
from reference_server.errors import SetupError

_READ_BYTES = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds
_STOP_TIMEOUT_S = 5.0
_SHORT_S = 0.05  # a pause that need not end when the server is stopped


class Then(StrEnum):
    """What follows the last write of a play."""

    KEEP = "keep"  # the connection is there for the next request
    CLOSE = "close"  # an orderly end
    RESET = "reset"  # a RST, as of a process that was killed
    HOLD = "hold"  # silence, until the client leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """The answer to one request.

    Attributes:
        writes: milliseconds after the request was read, and the bytes written then.
        then: what follows.
    """

    writes: tuple[tuple[float, bytes], ...] = ()
    then: Then = Then.KEEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request as it came, and on which connection, counted from 0."""

    connection: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class ByteServer:
    """Listens on a free port of 127.0.0.1 while its block lasts.

    Args:
        plays: answers in the order of the requests.
        choose: the answer to a request, instead of their order.
        tls: speak TLS, with this context's certificate.
        reads_bodies: wait for whole requests; otherwise their bodies stay in the kernel.
        greeting: bytes for whoever connects, before anything is read.
        port: where to listen; 0 is any free port.
        remembers: keep what was received and who left; not for a server that answers for hours.

    Attributes:
        requests: everything received so far, where it is remembered.
        connections: connections accepted so far, TLS handshakes that failed included.
    """

    def __init__(
        self,
        *plays: Play,
        choose: Callable[[Received], Play] | None = None,
        tls: ssl.SSLContext | None = None,
        reads_bodies: bool = True,
        greeting: bytes = b"",
        port: int = 0,
        remembers: bool = True,
    ) -> None:
        self.requests: list[Received] = []
        self.connections = 0
        self._plays = plays
        self._choose = choose or self._in_turn
        self._turns = count()
        self._tls = tls
        self._reads_bodies = reads_bodies
        self._greeting = greeting
        self._remembers = remembers
        self._left: SimpleQueue[int] = SimpleQueue()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.port: int = self._listener.getsockname()[1]

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        """Begin to accept connections."""
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drop every connection and stop."""
        self._stopping.set()
        self.stop_listening()
        self.hang_up()
        for thread in self._threads:
            thread.join(_STOP_TIMEOUT_S)

    def stop_listening(self) -> None:
        """Refuse connections from now on; those that are open stay."""
        _hang_up(self._listener)  # wakes the thread that accepts
        self._listener.close()

    def hang_up(self) -> None:
        """End every open connection, in whatever state it is, in an orderly way."""
        with self._lock:
            for sock in self._open:
                _hang_up(sock)

    def client_left(self, timeout_s: float = 5.0) -> int | None:
        """The next connection that the client was first to leave; ``None`` if none is in time."""
        try:
            return self._left.get(timeout=timeout_s)
        except Empty:
            return None

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads = [known for known in self._threads if known.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # told to stop
            number, self.connections = self.connections, self.connections + 1
            self._start(self._serve, sock, number)

    def _serve(self, plain: socket.socket, number: int) -> None:
        sock = plain
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls.wrap_socket(plain, server_side=True)
            with self._lock:
                self._open.add(sock)
            if self._stopping.is_set():
                return
            if self._converse(sock, number):
                self._note_leaving(number)
        except (OSError, rawhttp.RawHttpError):  # a reset, a refused handshake, no request
            self._note_leaving(number)
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()
            plain.close()

    def _converse(self, sock: socket.socket, number: int) -> bool:
        """Answer request after request; True where the client was first to leave."""
        sock.sendall(self._greeting)
        buffer = bytearray()
        while (head := _read_head(sock, buffer)) is not None:
            request = Received(
                connection=number,
                method=head.method,
                path=head.target,
                headers=head.headers,
                body=_read_body(sock, buffer, head.body_bytes) if self._reads_bodies else b"",
            )
            if self._remembers:
                self.requests.append(request)
            play = self._choose(request)
            self._play(sock, play)
            match play.then:
                case Then.KEEP:
                    continue
                case Then.HOLD:
                    while sock.recv(_READ_BYTES):
                        pass
                    return True
                case Then.RESET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                case Then.CLOSE if isinstance(sock, ssl.SSLSocket):
                    sock.unwrap()  # says goodbye, and waits for the client to leave
                case Then.CLOSE:
                    pass
            return False
        return True

    def _note_leaving(self, number: int) -> None:
        if self._remembers:
            self._left.put(number)

    def _play(self, sock: socket.socket, play: Play) -> None:
        began = time.monotonic()
        for at_ms, data in play.writes:
            pause_s = began + at_ms / 1000 - time.monotonic()
            if 0 < pause_s < _SHORT_S:  # a third of the cost
                time.sleep(pause_s)
            elif pause_s > 0 and self._stopping.wait(pause_s):
                return
            sock.sendall(data)

    def _in_turn(self, _: Received) -> Play:
        return self._plays[min(next(self._turns), len(self._plays) - 1)]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on: connections to it are refused."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def self_signed_context(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context with a certificate made on the spot, and the certificate's file.

    Raises:
        SetupError: this machine has no openssl program.
    """
    if shutil.which("openssl") is None:
        raise SetupError("Making a certificate needs the openssl program; install openssl.")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    options = (
        "-x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj /CN=localhost "
        "-addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    )
    subprocess.run(
        ["openssl", "req", *options.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
        timeout=30,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def _hang_up(sock: socket.socket) -> None:
    """Wake the thread that reads or writes ``sock``; it closes it."""
    with contextlib.suppress(OSError):  # it may be gone already
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, which may wait


def _read_head(sock: socket.socket, buffer: bytearray) -> rawhttp.Head | None:
    """The next request's head; ``None`` where the client left instead."""
    while (head := rawhttp.take_head(buffer)) is None:
        data = sock.recv(_READ_BYTES)
        if not data:
            return None
        buffer += data
    return head


def _read_body(sock: socket.socket, buffer: bytearray, size: int) -> bytes:
    while len(buffer) < size:
        data = sock.recv(_READ_BYTES)
        if not data:
            raise ConnectionAbortedError("the client left within its request")
        buffer += data
    body = bytes(buffer[:size])
    del buffer[:size]
    return body

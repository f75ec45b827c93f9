"""The other end of a socket, in the same thread: reads end where its pieces do, again and again."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gevent
from gevent import socket as cooperative

from loadgen.target import Target
from reference_server import rawhttp
from reference_server.byteserver import Then

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, zero seconds
_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Played:
    """The answer to one request: its pieces, perhaps without end, and what follows."""

    pieces: Iterable[bytes]
    then: Then = Then.KEEP


class Peer:
    """Answers each request with the next of its plays, on whichever connection it comes.

    Attributes:
        plays: what is still to be played.
    """

    def __init__(self) -> None:
        self.plays: list[Played] = []
        self._playing = 0
        self._errors: list[BaseException] = []
        self._listener = cooperative.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.target = Target("127.0.0.1", self._listener.getsockname()[1], False, "")
        self._greenlets = [gevent.spawn(self._accept)]

    def close(self) -> None:
        """Leave every connection."""
        gevent.killall(self._greenlets)
        self._listener.close()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Fail where a callback of the hub did: nobody else would hear of it."""
        hub = gevent.get_hub()
        usual = hub.handle_error
        hub.handle_error = lambda _context, _type, error, _trace: self._errors.append(error)
        try:
            yield
        finally:
            hub.handle_error = usual
            errors, self._errors = self._errors, []
            if errors:
                raise errors[0]

    def finish_playing(self) -> None:
        """Wait until what was begun has been sent, or its reader has gone."""
        while self._playing:
            gevent.sleep(0)

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            self._greenlets = [g for g in self._greenlets if not g.dead]
            self._greenlets.append(gevent.spawn(self._serve, sock))

    def _serve(self, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray()
        try:
            while self._take_request(sock, buffer) and self.plays:
                play = self.plays.pop(0)
                self._play(sock, play)
                if play.then is Then.RESET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                if play.then is not Then.KEEP:
                    return
        except OSError:  # the reader has gone
            pass
        finally:
            sock.close()

    def _play(self, sock: Any, play: Played) -> None:
        self._playing += 1
        try:
            for piece in play.pieces:
                sock.sendall(piece)
                gevent.sleep(0)
        finally:
            self._playing -= 1

    def _take_request(self, sock: Any, buffer: bytearray) -> bool:
        while (head := rawhttp.take_head(buffer)) is None:
            data = sock.recv(_READ_BYTES)
            if not data:
                return False
            buffer += data
        while len(buffer) < head.body_bytes:
            buffer += sock.recv(_READ_BYTES)
        del buffer[: head.body_bytes]
        return True

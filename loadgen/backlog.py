"""Reading late without losing when each event came.

A read has one stamp, that of its last segment. A process that keeps up finds one event in a socket
and the stamp is that event's. One that was away (a long task on the loop, a core lost to a
neighbour) finds several, and a read of all would give the earlier ones the time of the last. So
after an absence reads are sized to one frame each: its head is looked at without taking it, and
exactly the frame is read. That costs one more system call an event, so it is done only then.

What is read how never changes what is decoded, only how finely it is stamped.
"""

from __future__ import annotations

from array import array

PEEK_BYTES = 1024
AWAY_S = 2e-3
CATCH_UP_S = 0.25  # at most; whoever was idle for minutes has little to catch up
_TLS_HEAD_BYTES = 5
_TLS_TYPES = frozenset({20, 21, 22, 23})  # RFC 8446, 5.1; 23 is application data
_MAX_CHUNK_DIGITS = 8


class Backlog:
    """Whether more than one event may be waiting in a socket, for all sockets of a process.

    It may after the loop was away for longer than `AWAY_S`: nothing was read meanwhile, or what was
    read had waited that long. For as long again the loop is taken to be catching up.

    Attributes:
        state: when something was last read, until when the loop is catching up (both monotonic
            seconds), `AWAY_S` and `CATCH_UP_S`; shared with :mod:`loadgen.fastlane`.
    """

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = array("d", [0.0, 0.0, AWAY_S, CATCH_UP_S])

    def likely(self, now: float) -> bool:
        """Ask before each read, at ``now`` (monotonic seconds)."""
        state = self.state
        away_s = now - state[0]
        state[0] = now
        if away_s > AWAY_S:
            self.late(now, away_s)
        return now < state[1]

    def late(self, now: float, by_s: float) -> None:
        """At ``now`` the loop, or what it read, was late by so much (more than `AWAY_S`)."""
        self.state[1] = now + min(by_s, CATCH_UP_S)


def frame_bytes(start: bytes, *, tls: bool) -> int | None:
    """Length of the frame that ``start`` begins: a TLS record, a response head, a chunk, an event.

    Args:
        start: what lies at the front of the socket, some of it.
        tls: whether the connection is encrypted.

    Returns:
        ``None`` where no frame can be told, since ``start`` is too short or lies inside one.
    """
    if tls:
        if len(start) < _TLS_HEAD_BYTES or start[0] not in _TLS_TYPES:
            return None
        return _TLS_HEAD_BYTES + int.from_bytes(start[3:5], "big")
    if start.startswith(b"HTTP/"):
        return _through(start, b"\r\n\r\n")
    digits, line_end, _ = start.partition(b"\r\n")
    declared = declared_bytes(digits) if line_end else None
    if declared is not None:
        return len(digits) + declared + 4
    return _through(start, b"\n\n")


def declared_bytes(digits: bytes) -> int | None:
    """The size of a chunk as its head says it, ``None`` where that says none."""
    if len(digits) > _MAX_CHUNK_DIGITS or not digits.isalnum():  # -7 is a number, too
        return None
    try:
        return int(digits, 16)
    except ValueError:
        return None


def _through(start: bytes, mark: bytes) -> int | None:
    at = start.find(mark)
    return None if at < 0 else at + len(mark)

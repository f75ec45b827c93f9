"""When bytes arrived at this machine, rather than when Python got round to reading them.

Linux stamps each received segment with the wall clock (SO_TIMESTAMPNS). Right after a read both
clocks are taken: age = wall - stamp, arrival = monotonic - age. An age that is negative, or longer
than the time since this socket was last drained, cannot be true (a clock was stepped): the read's
own time stands in and the case is counted. A read that carries several segments has the stamp of
the last one.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass

_TIMESPEC = struct.Struct("@ll")
# Python has no name for it; the value is that of every Linux but those on PA-RISC and SPARC.
SO_TIMESTAMPNS = 35
_SOL_SOCKET = int(socket.SOL_SOCKET)  # the enum member's comparison is a Python call away
_unpack = _TIMESPEC.unpack_from
ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)


@dataclass(slots=True)
class StampCounts:
    """How a process came by its arrival times: kernel stamps, the clock, refused stamps."""

    kernel: int = 0
    clock: int = 0
    refused: int = 0

    @property
    def kind(self) -> str | None:
        """Either "kernel", "clock", "mixed", or ``None`` where nothing was read."""
        if not self.kernel:
            return "clock" if self.clock + self.refused else None
        share = (self.clock + self.refused) / (self.kernel + self.clock + self.refused)
        return "kernel" if share < 0.01 else "mixed"


class KernelStamps:
    """Arrival instants for the sockets of one process.

    The kernel switches stamping on lazily: the first packets after the very first socket that asks
    for it may carry none. One such socket is therefore opened here and kept.
    """

    def __init__(self) -> None:
        self.counts = StampCounts()
        self._keeper = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.enabled = self.enable(self._keeper)

    def close(self) -> None:
        """Let the kernel stop stamping, once no other socket asks for it."""
        self._keeper.close()

    @staticmethod
    def enable(sock: socket.socket) -> bool:
        """Ask the kernel to stamp what ``sock`` receives; False where it cannot."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        except OSError:
            return False
        return True

    def arrival(
        self,
        ancillary: list[tuple[int, int, bytes]],
        drained_at: float,
    ) -> tuple[float, float | None, float]:
        """Call right after ``recvmsg``.

        Args:
            ancillary: what ``recvmsg`` returned.
            drained_at: CLOCK_MONOTONIC at which this socket was last known to be empty.

        Returns:
            The arrival on CLOCK_MONOTONIC in seconds, how long before this call that was (``None``
            where the clock had to stand in for the kernel), and this call's own instant.
        """
        wall_ns = time.time_ns()
        now = time.monotonic()
        for level, kind, payload in ancillary:
            if kind == SO_TIMESTAMPNS and level == _SOL_SOCKET:
                seconds, nanoseconds = _unpack(payload)
                age_s = (wall_ns - (seconds * 1_000_000_000 + nanoseconds)) * 1e-9
                if 0.0 <= age_s <= now - drained_at:
                    self.counts.kernel += 1
                    return now - age_s, age_s, now
                self.counts.refused += 1
                return now, None, now
        self.counts.clock += 1
        return now, None, now

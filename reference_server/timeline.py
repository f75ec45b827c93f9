"""The engine laid on a clock: which step lasts from when to when, and who came in between.

Pure: instants come in as arguments. The engine's time follows from the arrivals alone; however
late the process is woken, a step begins where the one before it ended, and a request takes part
from the first step that begins after it was read. So a busy machine makes tokens late (and the
truth log says by how much), but never changes the schedule they are late for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reference_server.engine import Engine, Sequence, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A step that has ended, and when; its tokens are due at ``ended_at``."""

    began_at: float
    ended_at: float
    step: Step


@dataclass(slots=True)
class Timeline:
    """An engine in time. Instants are absolute seconds of one monotonic clock."""

    engine: Engine
    _under_way: Tick | None = field(default=None, init=False)  # its end lies ahead
    _ended: list[Tick] = field(default_factory=list, init=False)
    _free_at: float = field(default=float("-inf"), init=False)  # end of the last step that ended

    @property
    def due_at(self) -> float | None:
        """When the step under way ends; None if the engine is idle."""
        return self._under_way.ended_at if self._under_way else None

    @property
    def running(self) -> int:
        """Sequences in the step under way."""
        return self._under_way.step.running if self._under_way else 0

    @property
    def waiting(self) -> int:
        """Sequences that wait for a step to take them in."""
        return self.engine.waiting

    @property
    def kv_usage_ratio(self) -> float:
        """Share of the KV cache in use."""
        return self._under_way.step.kv_usage_ratio if self._under_way else 0.0

    def arrive(self, sequence: Sequence, at: float) -> bool:
        """A sequence was read at that instant; False if the queue is full.

        Told of late, it cannot take part in steps that have begun in the meantime.
        """
        self._catch_up(at)
        taken = self.engine.submit(sequence)
        if self._under_way is None:
            self._begin(max(at, self._free_at))
        return taken

    def leave(self, sequence_id: str | int) -> None:
        """A sequence is no longer wanted."""
        self.engine.abort(sequence_id)

    def advance(self, now: float) -> list[Tick]:
        """The steps that have ended by now and were not told of yet, in order."""
        self._catch_up(now)
        ended, self._ended = self._ended, []
        return ended

    def _catch_up(self, now: float) -> None:
        while self._under_way is not None and self._under_way.ended_at <= now:
            self._ended.append(self._under_way)
            self._free_at = self._under_way.ended_at
            self._begin(self._free_at)

    def _begin(self, at: float) -> None:
        if self.engine.idle:
            self._under_way = None
            return
        step = self.engine.step()
        self._under_way = Tick(began_at=at, ended_at=at + step.duration_s, step=step)

"""One engine in virtual time: what happened to each request, and when, without waiting.

The rules are those of `timeline.py`, which keeps an engine in real time: a step begins where the
one before it ended, and takes in what came before that. Steps that are all alike are done at once.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate

from reference_server.engine.batch import Run
from reference_server.engine.config import EngineConfig
from reference_server.engine.scheduler import Done, Engine
from reference_server.engine.sequence import FS, Sequence
from reference_server.engine.snapshot import Tally


class Fate(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    CACHED = "cached"  # answered by the response cache
    REFUSED = "refused"  # the queue was full
    LEFT = "left"  # whoever asked gave up


@dataclass(slots=True, eq=False)
class Served:
    """One request and what became of it. Instants are femtoseconds of virtual time; -1: never.

    Attributes:
        sequence: what was asked for.
        arrived_fs: it was sent.
        fate: how it ended.
        replica: which one had it; -1: none.
        admitted_fs: it left the queue, for the first time.
        first_fs: end of the step that yielded its first token.
        done_fs: end of the step that yielded its last; it was given up; it was refused.
        tokens: made until then, of all answers together, those of a step under way included.
        cached_tokens: of its prompt, found in the prefix cache.
        preemptions: how often it lost its place.
        instants: for each answer the ends of the steps that yielded tokens, in seconds; of one that
            was kept when it came, whole. Empty unless asked for.
        left: answers that are not complete.
    """

    sequence: Sequence
    arrived_fs: int
    fate: Fate = Fate.FINISHED
    replica: int = -1
    admitted_fs: int = -1
    first_fs: int = -1
    done_fs: int = -1
    tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    instants: list[array[float]] = field(default_factory=list)
    left: int = 0

    @property
    def ttft_s(self) -> float | None:
        """Sent to first token; None without one."""
        return (self.first_fs - self.arrived_fs) / FS if self.first_fs >= 0 else None

    @property
    def e2e_s(self) -> float:
        """Sent to the end."""
        return (self.done_fs - self.arrived_fs) / FS

    @property
    def queue_s(self) -> float | None:
        """Sent to admitted; None if it never was."""
        return (self.admitted_fs - self.arrived_fs) / FS if self.admitted_fs >= 0 else None


class Replica:
    """An engine that is told what comes in the order of time.

    Args:
        config: the machine.
        number: which one it is.
        instants: keep the instant of every token.
        singly: do every step for itself, for comparison.
        counts: keep a tally.

    Attributes:
        number: the same.
        engine: the engine.
        next_fs: nothing that anyone outside could notice happens before; None: it is idle.
        tally: what it has done so far, where one is kept.
    """

    def __init__(
        self,
        config: EngineConfig,
        number: int = 0,
        *,
        instants: bool = False,
        singly: bool = False,
        counts: bool = False,
    ) -> None:
        self.number = number
        self.engine = Engine(config)
        self.next_fs: int | None = None
        self.tally = Tally()
        self._counts = counts
        self._begin_fs = 0  # of the next step
        self._alike = 0  # steps to come that are alike, as long as nothing comes
        self._served: dict[str | int, Served] = {}
        self._singly = singly
        self._ends = _Ends() if instants else None

    def submit(self, served: Served, at_fs: int) -> list[Served]:
        """A request comes. Returns those that ended by steps begun until then.

        Raises:
            SettingsError: it would not fit even alone.
        """
        ended = self._catch_up(at_fs)
        if self.engine.idle:
            self._begin_fs = max(self._begin_fs, at_fs)
        sequence = served.sequence
        served.replica = self.number
        if self.engine.submit(sequence):
            served.left = sequence.answers
            self._served[sequence.id] = served
            if self._ends:
                served.instants = [array("d") for _ in range(sequence.answers)]
        else:
            served.fate, served.done_fs = Fate.REFUSED, at_fs
            ended.append(served)
        self._look_ahead()
        return ended

    def leave(self, served: Served, at_fs: int) -> list[Served]:
        """A request is given up, unless it has ended. Returns those that ended until then."""
        ended = self._catch_up(at_fs)
        if self._served.pop(served.sequence.id, None) is served:
            served.tokens += sum(run.made for run in self.engine.abort(served.sequence.id))
            served.fate, served.done_fs = Fate.LEFT, at_fs
            ended.append(served)
            if self._ends:
                self._ends.give_up(served, at_fs)
        self._look_ahead()
        return ended

    def go_on(self) -> list[Served]:
        """Do the steps that end at `next_fs`, or the one that begins there. Returns who ended."""
        ended = self._do(self._alike)
        self._look_ahead()
        return ended

    def catch_up(self, at_fs: int) -> list[Served] | None:
        """Do all steps that begin until then, since somebody looks.

        Returns:
            Those that ended; None where `next_fs` stays as it is, since the next steps are alike.
        """
        if self._begin_fs > at_fs:
            return None
        if self._alike:
            steps = self.engine.begun(at_fs - self._begin_fs, self._alike)
            if steps < self._alike:
                self._do(steps)
                self._alike -= steps
                return None
        ended = self._catch_up(at_fs)
        self._look_ahead()
        return ended

    def _catch_up(self, at_fs: int) -> list[Served]:
        """Do all steps that begin until then."""
        ended: list[Served] = []
        while not self.engine.idle and self._begin_fs <= at_fs:
            if self._alike:
                self._alike = self.engine.begun(at_fs - self._begin_fs, self._alike)
            ended += self._do(self._alike)
            self._alike = 0 if self._singly else self.engine.alike()
        return ended

    def _look_ahead(self) -> None:
        """Find out how far the next steps are alike, and so when to look again."""
        if self.engine.idle:
            self.next_fs = None
            return
        self._alike = 0 if self._singly else self.engine.alike()
        self.next_fs = self._begin_fs + (self.engine.takes(self._alike) if self._alike else 0)

    def _do(self, alike: int) -> list[Served]:
        """Do so many steps that are alike, or one that is not."""
        began_fs, engine = self._begin_fs, self.engine
        each_fs = engine.each_takes(alike) if self._ends and alike else ()
        done = engine.leap(alike) if alike else engine.advance()
        if self._counts:
            self.tally.add(done)
        self._begin_fs = ended_fs = began_fs + done.duration_fs
        if self._ends:
            self._ends.add(began_fs, each_fs or (done.duration_fs,))
            self._ends.note(done, self._served)
        for run in done.admitted:
            served = self._served[run.sequence.id]
            if served.admitted_fs < 0:
                served.admitted_fs = began_fs
                served.cached_tokens = run.cached
        for run in done.preempted:
            self._served[run.sequence.id].preemptions += 1
        for run in done.started:
            served = self._served[run.sequence.id]
            if served.first_fs < 0:
                served.first_fs = ended_fs
        finished = (self._finish(run, ended_fs) for run in done.finished)
        return [served for served in finished if served]

    def _finish(self, run: Run, at_fs: int) -> Served | None:
        """One answer is complete; the request, if it was the last."""
        served = self._served[run.sequence.id]
        served.left -= 1
        served.tokens += run.length
        if served.left:
            return None
        del self._served[run.sequence.id]
        served.done_fs = at_fs
        return served


class _Ends:
    """The ends of a replica's steps, as far back as somebody has not taken them yet."""

    def __init__(self) -> None:
        self._at_s = array("d")
        self._base = 0  # number of the step that the array begins with
        self._since: dict[Run, int] = {}  # those who decode, and from which step on

    def add(self, began_fs: int, each_fs: Iterable[int]) -> None:
        """Some more steps, one after the other."""
        ends = accumulate(each_fs, initial=began_fs)
        next(ends)
        self._at_s.extend(end / FS for end in ends)

    def note(self, done: Done, served: dict[str | int, Served]) -> None:
        """Give those who lost their place or are complete the instants of their tokens."""
        now = self._base + len(self._at_s)
        for run in done.preempted:
            self._give(run, served, now - done.steps)
        for run in done.started:
            self._since[run] = now
            served[run.sequence.id].instants[run.answer].append(self._at_s[-1])
        for run in done.finished:
            self._give(run, served, now)
        if len(self._at_s) > 100_000:
            gone = min(self._since.values(), default=now) - self._base
            del self._at_s[:gone]
            self._base += gone

    def give_up(self, served: Served, at_fs: int) -> None:
        """Give a request that was given up the instants of its tokens until then."""
        end = self._base + len(self._at_s)
        for run in [run for run in self._since if run.sequence is served.sequence]:
            self._give(run, {served.sequence.id: served}, end)
        for instants in served.instants:  # those of a step under way are never seen
            del instants[bisect_right(instants, at_fs / FS) :]

    def _give(self, run: Run, served: dict[str | int, Served], end: int) -> None:
        since = self._since.pop(run, end)
        instants = self._at_s[since - self._base : end - self._base]
        served[run.sequence.id].instants[run.answer].extend(instants)

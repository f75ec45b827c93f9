"""Many engines in virtual time, behind a router and perhaps a cache of answers.

The same engine that runs behind HTTP, without waiting: cost follows events (a request comes, a
prompt is computed, an answer is complete), not tokens, and memory does not grow with the number of
requests, since each is handed out when it has ended and then forgotten.

Events are taken in the order of time. Those of one instant are taken in the order in which they
were known, what comes from outside last.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from reference_server.engine.config import EngineConfig
from reference_server.engine.replica import Fate, Replica, Served
from reference_server.engine.responses import Prompt, ResponseCache, ResponseCacheConfig
from reference_server.engine.routing import Routing, router_of
from reference_server.engine.sequence import FS, Sequence
from reference_server.engine.snapshot import Snapshot
from reference_server.errors import SettingsError

NOBODY = Prompt()
_ROUNDING_FS = FS // 10**9  # so far a number of seconds may be off after weeks


class Arrival(NamedTuple):
    """A request that comes at an instant.

    Attributes:
        at_s: when, in seconds.
        sequence: what is asked for.
        leaves_at_s: when it is given up, if it has not ended; None: never.
        prompt: what the response cache knows its prompt by.
    """

    at_s: float
    sequence: Sequence
    leaves_at_s: float | None = None
    prompt: Prompt = NOBODY


class _Waking(NamedTuple):
    """A replica is to be looked at."""

    replica: Replica


class _Leaving(NamedTuple):
    """A request is given up."""

    served: Served


class _Entering(NamedTuple):
    """A request has been looked up in the response cache in vain, or found there."""

    served: Served


class _Looking(NamedTuple):
    """A snapshot is due."""


_Event = _Waking | _Leaving | _Entering | _Looking | Served


class Fleet:
    """Replicas of one kind.

    Args:
        config: what each is.
        replicas: how many.
        routing: how requests are spread over them.
        responses: a cache of answers in front; None: there is none.
        instants: keep the instant of every token (see `Served.instants`).
        singly: do every step for itself, for comparison.
        look_every_s: take a snapshot so often, but for idle times; None: never.

    Attributes:
        snapshots: those taken; whoever keeps them empties this.
    """

    def __init__(
        self,
        config: EngineConfig,
        replicas: int = 1,
        *,
        routing: Routing = Routing.LEAST_LOADED,
        responses: ResponseCacheConfig | None = None,
        instants: bool = False,
        singly: bool = False,
        look_every_s: float | None = None,
    ) -> None:
        if replicas < 1:
            raise SettingsError(f"A fleet has at least one replica, got {replicas}.")
        if look_every_s is not None and look_every_s <= 0:
            raise SettingsError(f"Snapshots lie more than 0 s apart, got {look_every_s:g}.")
        self.config = config
        self.replicas = [
            Replica(
                config, number, instants=instants, singly=singly, counts=look_every_s is not None
            )
            for number in range(replicas)
        ]
        self.responses = ResponseCache(responses) if responses else None
        self._instants = instants
        self._router = router_of(routing)
        self._in_flight = [0] * replicas
        self._events: list[tuple[int, int, _Event]] = []
        self._numbers = count()
        self._wakings = [-1] * replicas  # number of the event that is to wake each
        self._prompts: dict[str | int, Prompt] = {}  # of those under way, where answers are kept
        self._now_fs = 0
        self.snapshots: list[Snapshot] = []
        self._every_fs = 0 if look_every_s is None else round(look_every_s * FS)
        self._looks = False  # a look is on the calendar
        self._finished = self._refused = 0

    def serve(self, arrivals: Iterable[Arrival]) -> Iterator[Served]:
        """Serve requests that come whatever happens, in the order of time.

        Yields:
            Each request when it has ended, in that order.

        Raises:
            SettingsError: a request would not fit even alone, or comes before the one before it.
        """
        for arrival in arrivals:
            yield from self.advance(round(arrival.at_s * FS))
            self.submit(arrival)
        yield from self.advance(None)

    def submit(self, arrival: Arrival) -> Served:
        """A request comes. All that was to happen before must have been told by `advance`.

        Raises:
            SettingsError: it would not fit even alone, or it comes too late.
        """
        at_fs = round(arrival.at_s * FS)
        if at_fs < self._now_fs - _ROUNDING_FS:
            raise SettingsError(
                f"Requests must come in the order of time, got one at {arrival.at_s:g} s after "
                f"{self._now_fs / FS:g} s."
            )
        sequence = arrival.sequence
        self.config.check(sequence)
        self._now_fs = at_fs = max(at_fs, self._now_fs)
        if self._every_fs and not self._looks:
            self._looks = True
            self._expect(-(-at_fs // self._every_fs) * self._every_fs, _Looking())
        served = Served(sequence, at_fs)
        if self.responses is None:
            self._enter(served, at_fs)
        else:
            self._prompts[sequence.id] = arrival.prompt
            lookup_fs = round(self.responses.config.lookup_s * FS)
            if lookup_fs:
                self._expect(at_fs + lookup_fs, _Entering(served))
            else:
                self._look_up(served, at_fs)
        if arrival.leaves_at_s is not None:
            self._expect(max(round(arrival.leaves_at_s * FS), at_fs), _Leaving(served))
        return served

    def advance(self, until_fs: int | None) -> Iterator[Served]:
        """Let time pass until an instant; None: until nothing is left to happen.

        Yields:
            Each request that has ended by then, in that order.
        """
        events = self._events
        while events and (until_fs is None or events[0][0] <= until_fs):
            at_fs, number, event = heappop(events)
            self._now_fs = at_fs
            match event:
                case Served():
                    self._settle(event)
                    yield event
                case _Waking(replica):
                    if self._wakings[replica.number] == number:
                        self._watch(replica, replica.go_on())
                case _Entering(served):
                    if served.done_fs < 0:
                        self._look_up(served, at_fs)
                case _Leaving(served):
                    self._leave(served, at_fs)
                case _Looking():
                    self._look(at_fs)
        if until_fs is not None:
            self._now_fs = until_fs

    def _look(self, at_fs: int) -> None:
        """Take a snapshot, and look again unless every request has ended."""
        for replica in self.replicas:
            ended = None if replica.next_fs is None else replica.catch_up(at_fs)
            if ended is not None:
                self._watch(replica, ended)
        engines = [replica.engine for replica in self.replicas]
        tallies = [replica.tally for replica in self.replicas]
        self.snapshots.append(
            Snapshot(
                at_s=at_fs / FS,
                running=sum(engine.running for engine in engines),
                waiting=sum(engine.waiting for engine in engines),
                kv_cache_ratio=sum(engine.kv_usage_ratio for engine in engines) / len(engines),
                preemptions=sum(tally.preemptions for tally in tallies),
                queried_tokens=sum(tally.queried_tokens for tally in tallies),
                found_tokens=sum(tally.found_tokens for tally in tallies),
                prompt_tokens=sum(tally.prompt_tokens for tally in tallies),
                generated_tokens=sum(tally.generated_tokens for tally in tallies),
                drafted_tokens=sum(tally.drafted_tokens for tally in tallies),
                accepted_tokens=sum(tally.accepted_tokens for tally in tallies),
                finished=self._finished,
                refused=self._refused,
            )
        )
        self._looks = any(self._in_flight) or bool(self._prompts)
        if self._looks:
            self._expect(at_fs + self._every_fs, _Looking())

    def _look_up(self, served: Served, at_fs: int) -> None:
        """Answer from the response cache, or else pass on."""
        assert self.responses is not None
        tokens = self.responses.find(self._prompts[served.sequence.id])
        if tokens is None:
            self._enter(served, at_fs)
            return
        served.fate, served.tokens = Fate.CACHED, tokens
        served.first_fs = served.done_fs = at_fs + round(self.responses.config.hit_s * FS)
        if self._instants:
            served.instants = [array("d", [served.done_fs / FS])]
        self._expect(served.done_fs, served)

    def _enter(self, served: Served, at_fs: int) -> None:
        """Send a request to a replica."""
        number = self._router.choose(served.sequence, self._in_flight)
        self._in_flight[number] += 1
        replica = self.replicas[number]
        self._watch(replica, replica.submit(served, at_fs))

    def _leave(self, served: Served, at_fs: int) -> None:
        """Whoever asked gives up; too late if the step that ends the request has begun."""
        if served.done_fs >= 0:
            return
        if served.replica < 0:  # it is still being looked up
            served.fate, served.done_fs = Fate.LEFT, at_fs
            self._expect(at_fs, served)
            return
        replica = self.replicas[served.replica]
        self._watch(replica, replica.leave(served, at_fs))

    def _settle(self, served: Served) -> None:
        """A request has ended: the router and the response cache learn of it."""
        if served.replica >= 0:
            self._in_flight[served.replica] -= 1
            self._finished += served.fate is Fate.FINISHED
            self._refused += served.fate is Fate.REFUSED
        if self.responses is not None:
            prompt = self._prompts.pop(served.sequence.id)
            if served.fate is Fate.FINISHED:
                self.responses.keep(prompt, served.tokens)

    def _watch(self, replica: Replica, ended: list[Served]) -> None:
        """Put on the calendar what a replica has done, and when to look at it again."""
        for served in ended:
            self._expect(served.done_fs, served)
        if replica.next_fs is not None:
            self._wakings[replica.number] = self._expect(replica.next_fs, _Waking(replica))

    def _expect(self, at_fs: int, event: _Event) -> int:
        number = next(self._numbers)
        heappush(self._events, (at_fs, number, event))
        return number

"""Which of several replicas gets a request. All a router knows is what it sent and what came back.

- `RoundRobin`: one after the other.
- `LeastLoaded`: the one with the fewest requests in flight; of equals, the next in turn.
- `PrefixAware`: the one that was last sent the longest beginning of this prompt, so that it is
  likely to find it in its prefix cache; unless that one has many more in flight than another, or
  nobody was: then the least loaded. (The idea of SGLang's cache-aware router, which keeps a tree
  of what it sent; here it is the keys of a prompt's spans.)
"""

from __future__ import annotations

from collections import OrderedDict
from enum import StrEnum
from typing import Protocol

from reference_server.engine.kvcache import links
from reference_server.engine.sequence import Sequence


class Routing(StrEnum):
    """The ways to choose."""

    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    PREFIX_AWARE = "prefix-aware"


class Router(Protocol):
    """Chooses a replica for each request."""

    def choose(self, sequence: Sequence, in_flight: list[int]) -> int:
        """The number of the replica, given how many requests each has in flight."""
        ...


def router_of(routing: Routing) -> Router:
    """A router of that kind."""
    match routing:
        case Routing.ROUND_ROBIN:
            return RoundRobin()
        case Routing.LEAST_LOADED:
            return LeastLoaded()
        case Routing.PREFIX_AWARE:
            return PrefixAware()


class RoundRobin:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, sequence: Sequence, in_flight: list[int]) -> int:  # noqa: ARG002  # as `Router`
        """See `Router`."""
        chosen = self._next
        self._next = (chosen + 1) % len(in_flight)
        return chosen


class LeastLoaded:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, sequence: Sequence, in_flight: list[int]) -> int:  # noqa: ARG002  # as `Router`
        """See `Router`."""
        least = min(in_flight)
        try:
            chosen = in_flight.index(least, self._next)
        except ValueError:
            chosen = in_flight.index(least)
        self._next = chosen + 1
        return chosen


class PrefixAware:
    """See the module's docstring.

    Args:
        slack: requests that the replica may have in flight beyond the least loaded one.
        memory: beginnings remembered; those sent longest ago are forgotten.
    """

    def __init__(self, slack: int = 16, memory: int = 100_000) -> None:
        self._slack = slack
        self._memory = memory
        self._sent: OrderedDict[int, int] = OrderedDict()  # key of a beginning: replica
        self._otherwise = LeastLoaded()

    def choose(self, sequence: Sequence, in_flight: list[int]) -> int:
        """See `Router`."""
        keys = [link.key for link in links(sequence.spans, 1)]
        known = next((key for key in reversed(keys) if key in self._sent), None)
        chosen = self._sent[known] if known is not None else -1
        if known is None or in_flight[chosen] > min(in_flight) + self._slack:
            chosen = self._otherwise.choose(sequence, in_flight)
        for key in keys:
            self._sent[key] = chosen
            self._sent.move_to_end(key)
        while len(self._sent) > self._memory:
            self._sent.popitem(last=False)
        return chosen

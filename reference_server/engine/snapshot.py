"""What a fleet looks like at an instant, as a scrape of all its replicas would tell.

The same things that `metrics.py` puts on the page of a server in real time; counts are of all that
happened until then, and never fall.
"""

from __future__ import annotations

from typing import NamedTuple

from reference_server.engine.scheduler import Done


class Snapshot(NamedTuple):
    """A fleet at an instant. Steps that have begun by then are counted as done.

    Attributes:
        at_s: when, in seconds.
        running: sequences in the batches.
        waiting: sequences in the queues.
        kv_cache_ratio: share of the KV caches in use, their mean.
        preemptions: how often a sequence had to give up its place.
        queried_tokens: of prompts, looked up in the prefix caches.
        found_tokens: of these, found there.
        prompt_tokens: of prompts, computed or found.
        generated_tokens: made.
        drafted_tokens: drafted.
        accepted_tokens: of these, accepted.
        finished: requests that ended well, by a replica.
        refused: requests for which the queue was full.
    """

    at_s: float
    running: int
    waiting: int
    kv_cache_ratio: float
    preemptions: int
    queried_tokens: int
    found_tokens: int
    prompt_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    finished: int
    refused: int


class Tally:
    """What one replica has done so far; the attributes are those of `Snapshot`."""

    __slots__ = (
        "accepted_tokens",
        "drafted_tokens",
        "found_tokens",
        "generated_tokens",
        "preemptions",
        "prompt_tokens",
        "queried_tokens",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    preemptions: int
    queried_tokens: int
    found_tokens: int
    prompt_tokens: int
    generated_tokens: int
    drafted_tokens: int
    accepted_tokens: int

    def add(self, done: Done) -> None:
        """Count a step, or many alike."""
        self.generated_tokens += done.gained + len(done.started)
        if done.drafted:
            self.drafted_tokens += done.drafted
            self.accepted_tokens += done.accepted
        if done.prompt_tokens:
            self.prompt_tokens += done.prompt_tokens + done.hits
            self.queried_tokens += done.queries
            self.found_tokens += done.hits
        if done.preempted:
            self.preemptions += len(done.preempted)

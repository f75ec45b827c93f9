"""What goes into the engine and what comes out of it.

**What a prompt is made of.** The prefix cache must know which prompts begin alike, not what they
say. A prompt is therefore a row of *spans*: an id and a number of tokens. A span's tokens follow
from its id and from nothing else, so that two prompts are alike as far as their spans are. A
system prompt that many share is a span with one id; what a user alone has written has an id of its
own. An answer's tokens have an id too (`answer`), by which the next turn's prompt can hold it.

**Time** is counted in whole femtoseconds (`FS`), because sums of whole numbers do not depend on
their order: a hundred steps taken at once end at the same instant as a hundred taken singly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

FS: Final = 10**15  # femtoseconds a second


class Span(NamedTuple):
    """Tokens that follow from an id."""

    id: int
    tokens: int


@dataclass(slots=True, eq=False)
class Sequence:
    """One request for answers.

    Attributes:
        id: its name; no other under way may have it.
        prompt_tokens: length of the prompt, at least 1.
        output_tokens: length of the answer, at least 1.
        others: lengths of further answers to the same prompt, each at least 1.
        spans: what the prompt is made of, `prompt_tokens` together; empty: nothing it shares with
            any other prompt.
        answer: id of the (first) answer's tokens; None: no later prompt holds them.
        seed: which of the drafted tokens are accepted follows from it.
        priority: the lower, the more urgent; without meaning where who came first comes first.
    """

    id: str | int
    prompt_tokens: int
    output_tokens: int
    others: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    answer: int | None = None
    seed: int = 0
    priority: int = 0

    @property
    def answers(self) -> int:
        """How many answers to the one prompt."""
        return 1 + len(self.others)

    @property
    def total_tokens(self) -> int:
        """Tokens of all answers together."""
        return self.output_tokens + sum(self.others)


class Emitted(NamedTuple):
    """What one answer got out of a step.

    Attributes:
        id: of its sequence.
        tokens: how many.
        finished: they were the last.
        answer: which of the sequence's answers, from 0.
    """

    id: str | int
    tokens: int
    finished: bool
    answer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the engine.

    Attributes:
        duration_fs: how long it takes; its tokens are there at its end.
        tokens: who gets tokens: first those that decoded, then those whose prompt was done.
        admitted: ids of the sequences that left the queue at its start, resumed ones included.
        cached: for each of these, how many of its tokens were found in the prefix cache.
        preempted: ids of those that had to give up their place in the cache; as they resume
            they are admitted again.
        prefill_tokens: prompt tokens computed, and tokens computed again after a preemption.
        cache_queries: tokens of the admitted that were looked up in the prefix cache.
        cache_hits: of these, found there.
        drafted: tokens drafted for those that decoded.
        accepted: of these, accepted.
        running: sequences in the batch.
        kv_usage_ratio: share of the KV cache in use at its end, before anyone leaves.
    """

    duration_fs: int
    tokens: list[Emitted]
    admitted: list[str | int]
    cached: list[int] = field(default_factory=list)
    preempted: list[str | int] = field(default_factory=list)
    prefill_tokens: int
    cache_queries: int = 0
    cache_hits: int = 0
    drafted: int = 0
    accepted: int = 0
    running: int
    kv_usage_ratio: float

    @property
    def duration_s(self) -> float:
        """How long it takes, in seconds."""
        return self.duration_fs / FS

"""The sequences that decode, as sums: what the next so many steps read and need.

While the same sequences decode and nothing else happens, each step follows from the one before.
Without drafts every sequence gains one token a step, so that the tokens read are an arithmetic
series, and blocks are needed in a cycle as long as a block (`Steady`). With drafts every sequence
gains as many tokens as are accepted; its path is drawn when it begins to decode, from its seed
alone, and what all paths add up to is kept for each step to come (`Drafted`).

Neither does any work for a sequence that merely goes on. Steps are numbered from 0; a sequence's
own count begins at the step in which it first decodes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from random import Random
from typing import Protocol

from reference_server.engine.config import EngineConfig
from reference_server.engine.kvcache import Holding, Link
from reference_server.engine.sequence import Sequence


@dataclass(slots=True, eq=False)
class Run:
    """One answer of a sequence on its way through the engine.

    Attributes:
        sequence: what is asked for.
        length: tokens of this answer.
        answer: which of its answers, from 0.
        places: sequences it stands for: all answers until the prompt is computed, then one.
        arrived: its sequence's place in the order in which they came.
        number: its place in the order of admission; -1: it waits.
        made: tokens made before it last began to decode, that of its prompt's end included.
        goal: tokens to be in the cache before it can (again) decode.
        computed: of these, in the cache.
        cached: of these, found there when it was last admitted.
        first_step: in which it first decodes; -1: it does not yet.
        path: tokens made by the end of each step from there on, where tokens are drafted.
        last_step: after so many steps of the engine it is finished.
        swapped: tokens whose KV cache lies in the host's memory.
        holding: its blocks; while it decodes only those it shares are counted here.
        text: its prompt as the prefix cache knows it.
        own: id of its answer's tokens.
    """

    sequence: Sequence
    length: int
    answer: int = 0
    places: int = 1
    arrived: int = 0
    number: int = -1
    made: int = 0
    goal: int = 0
    computed: int = 0
    cached: int = 0
    first_step: int = -1
    path: list[int] = field(default_factory=list)
    last_step: int = -1
    swapped: int = 0
    holding: Holding = field(default_factory=Holding)
    text: list[Link] = field(default_factory=list)
    own: int = 0

    @property
    def urgency(self) -> tuple[int, int, int]:
        """By which runs are ordered where priorities count, the most urgent first."""
        return self.sequence.priority, self.arrived, self.answer

    @property
    def decodes(self) -> bool:
        """Its prompt is done."""
        return self.first_step >= 0


class Batch(Protocol):
    """What the engine asks of the sequences that decode.

    Attributes:
        size: how many they are.
        kv_tokens: tokens they attend to in the next step, together.
    """

    size: int
    kv_tokens: int

    def add(self, run: Run, step: int) -> None:
        """One more decodes from that step on: fills in its first and last step."""
        ...

    def drop(self, run: Run, step: int) -> None:
        """One decodes no more; that step would have been its next."""
        ...

    def advance(self, steps: int) -> None:
        """So many steps were done."""
        ...

    def read(self, steps: int) -> int:
        """Tokens attended to in the next so many steps, all together."""
        ...

    def reads(self, steps: int) -> Iterable[int]:
        """The same, step by step."""
        ...

    def needed(self, step: int, steps: int) -> int:
        """Blocks needed in so many steps from that one on, the next."""
        ...

    def made(self, run: Run, step: int) -> int:
        """Tokens a sequence made while decoding, before that step."""
        ...

    def blocks(self, run: Run, step: int) -> int:
        """Blocks a sequence holds before that step."""
        ...


def batch_of(config: EngineConfig) -> Batch:
    """An empty batch."""
    return Drafted(config) if config.speculation else Steady(config.block_tokens)


class Steady:
    """Every sequence gains one token a step."""

    def __init__(self, block_tokens: int) -> None:
        self.size = 0
        self.kv_tokens = 0
        self._block = block_tokens
        self._due = [0] * block_tokens  # sequences that need a block in steps of that remainder

    def add(self, run: Run, step: int) -> None:
        """See `Batch`."""
        run.first_step = step
        run.last_step = step + run.length - run.made
        self.size += 1
        self.kv_tokens += run.goal + 1
        self._due[(step - run.goal) % self._block] += 1

    def drop(self, run: Run, step: int) -> None:
        """See `Batch`."""
        self.size -= 1
        self.kv_tokens -= run.goal + 1 + step - run.first_step
        self._due[(run.first_step - run.goal) % self._block] -= 1
        run.first_step = -1

    def advance(self, steps: int) -> None:
        """See `Batch`."""
        self.kv_tokens += steps * self.size

    def read(self, steps: int) -> int:
        """See `Batch`."""
        return steps * self.kv_tokens + self.size * (steps * (steps - 1) // 2)

    def reads(self, steps: int) -> Iterable[int]:
        """See `Batch`."""
        if not self.size:
            return repeat(0, steps)
        return range(self.kv_tokens, self.kv_tokens + steps * self.size, self.size)

    def needed(self, step: int, steps: int) -> int:
        """See `Batch`."""
        cycles, rest = divmod(steps, self._block)
        begin = step % self._block
        beyond = begin + rest - self._block
        blocks = cycles * self.size + sum(self._due[begin : begin + rest])
        return blocks + sum(self._due[:beyond]) if beyond > 0 else blocks

    def made(self, run: Run, step: int) -> int:
        """See `Batch`."""
        return step - run.first_step

    def blocks(self, run: Run, step: int) -> int:
        """See `Batch`."""
        return -(-(run.goal + step - run.first_step) // self._block)


class Drafted:
    """Every sequence gains the tokens that are accepted, and one more."""

    def __init__(self, config: EngineConfig) -> None:
        assert config.speculation is not None
        self.size = 0
        self.kv_tokens = 0
        self._block = config.block_tokens
        self._drafts = config.drafts
        # Chance that at least so many are accepted, the rarest first.
        ratio = config.speculation.acceptance_ratio
        self._chances = [ratio**count for count in range(config.drafts, 0, -1)]
        self._base = 0  # number of the step that the lists begin with
        self._now = 0  # number of the next step
        self._gains: list[int] = []  # tokens gained in each step to come
        self._blocks: list[int] = []  # blocks needed in each

    def draw(self, run: Run) -> list[int]:
        """Tokens made by the end of each step, until the answer is complete."""
        left = run.length - run.made
        # Seeded anew at each beginning, by what it begins with.
        draw = Random(hash((run.sequence.seed, run.answer, run.made))).random
        path, made, most = [], 0, self._drafts + 1
        while made < left:
            # So many chances lie at or below the draw: so many drafts are rejected.
            made = min(made + most - bisect_right(self._chances, draw()), left)
            path.append(made)
        return path

    def add(self, run: Run, step: int) -> None:
        """See `Batch`."""
        run.first_step = step
        run.path = self.draw(run)
        run.last_step = step + len(run.path)
        if not self.size:
            self._base = self._now = step
        self.size += 1
        self.kv_tokens += run.goal + 1
        self._count(run, step, 1)

    def drop(self, run: Run, step: int) -> None:
        """See `Batch`."""
        self.size -= 1
        self.kv_tokens -= run.goal + 1 + self.made(run, step)
        self._count(run, step, -1)
        if not self.size:
            self._gains.clear()
            self._blocks.clear()
        run.first_step = -1
        run.path = []

    def advance(self, steps: int) -> None:
        """See `Batch`."""
        begin = self._now - self._base
        self.kv_tokens += sum(self._gains[begin : begin + steps])
        self._now += steps
        if self._now - self._base > 4096:
            del self._gains[: self._now - self._base], self._blocks[: self._now - self._base]
            self._base = self._now

    def read(self, steps: int) -> int:
        """See `Batch`."""
        return sum(self.reads(steps))

    def reads(self, steps: int) -> Iterable[int]:
        """See `Batch`."""
        if not steps:
            return ()
        begin = self._now - self._base
        return accumulate(self._gains[begin : begin + steps - 1], initial=self.kv_tokens)

    def needed(self, step: int, steps: int) -> int:
        """See `Batch`."""
        return sum(self._blocks[step - self._base : step - self._base + steps])

    def made(self, run: Run, step: int) -> int:
        """See `Batch`."""
        return run.path[step - run.first_step - 1] if step > run.first_step else 0

    def blocks(self, run: Run, step: int) -> int:
        """See `Batch`."""
        if step == run.first_step:
            return -(-run.goal // self._block)
        return self._held(run.goal + self.made(run, step - 1))

    def _held(self, tokens: int) -> int:
        """Blocks held in a step that begins with so many tokens in the cache."""
        return -(-(tokens + 1 + self._drafts) // self._block)

    def _count(self, run: Run, step: int, sign: int) -> None:
        """Add what is left of a sequence's path to the sums, or take it away."""
        at = step - self._base
        left = len(run.path) - (step - run.first_step)
        missing = at + left - len(self._gains)
        if missing > 0:
            self._gains += [0] * missing
            self._blocks += [0] * missing
        held, before = self.blocks(run, step), self.made(run, step)
        for made in run.path[step - run.first_step :]:
            needs = self._held(run.goal + before)
            self._gains[at] += sign * (made - before)
            self._blocks[at] += sign * (needs - held)
            held, before, at = needs, made, at + 1

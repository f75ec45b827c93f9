"""What an engine is set to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from reference_server.engine.cost import LinearCost, StepCost
from reference_server.engine.sequence import Sequence
from reference_server.errors import SettingsError


class Preemption(StrEnum):
    """What becomes of the KV cache of a sequence that must give up its place."""

    RECOMPUTE = "recompute"  # it is dropped, and computed again on return
    SWAP = "swap"  # it is moved to the host's memory, and back on return


class Scheduling(StrEnum):
    """Who comes first, where not all can."""

    FCFS = "fcfs"  # in the order they came; the last admitted gives way
    PRIORITY = "priority"  # the most urgent, of these who came first; the least urgent gives way


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Tokens are drafted cheaply, and a step verifies them all.

    Attributes:
        draft_tokens: so many a step and sequence.
        acceptance_ratio: chance that a drafted token is accepted where those before it were. A
            step yields the accepted ones and one more, (1 - a^(k + 1)) / (1 - a) on average
            (Leviathan et al., arXiv 2211.17192, equation 1).
    """

    draft_tokens: int = 3
    acceptance_ratio: float = 0.7

    def __post_init__(self) -> None:
        if self.draft_tokens < 1:
            raise SettingsError(
                f"Speculation drafts at least one token a step, got {self.draft_tokens}."
            )
        if not 0 <= self.acceptance_ratio <= 1:
            raise SettingsError(
                f"The acceptance ratio must lie between 0 and 1, got {self.acceptance_ratio:g}."
            )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Size and speed of the simulated machine.

    Attributes:
        max_num_seqs: sequences that run at once.
        max_queued: sequences that may wait beyond those a free place is ready for; one more is
            refused. None: any number.
        max_batched_tokens: tokens computed in one step: decode, drafts and prefill together.
        kv_cache_tokens: tokens the KV cache holds; what is not a whole block is lost.
        block_tokens: tokens a block of the KV cache holds.
        prefix_caching: blocks are kept after use, and found by prompts that begin alike.
        preemption: what becomes of a preempted sequence's KV cache.
        scheduling: who comes first.
        speculation: drafting; None: each step yields one token a sequence.
        cost: what a step takes.
    """

    max_num_seqs: int = 32
    max_queued: int | None = None
    max_batched_tokens: int = 2048
    kv_cache_tokens: int = 65_536
    block_tokens: int = 16
    prefix_caching: bool = False
    preemption: Preemption = Preemption.RECOMPUTE
    scheduling: Scheduling = Scheduling.FCFS
    speculation: Speculation | None = None
    cost: StepCost = field(default_factory=LinearCost)

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.kv_cache_tokens < 1 or self.block_tokens < 1:
            raise SettingsError(
                "The engine needs room for at least one sequence, one token, and one token a "
                f"block, got {self.max_num_seqs} sequences, {self.kv_cache_tokens} tokens and "
                f"blocks of {self.block_tokens}."
            )
        if self.max_batched_tokens < self.max_num_seqs * (1 + self.drafts):
            drafts = f", each with {self.drafts} drafted tokens" if self.drafts else ""
            raise SettingsError(
                f"The engine's token budget ({self.max_batched_tokens} a step) must be at least "
                f"the number of sequences that run ({self.max_num_seqs}{drafts})."
            )
        if self.max_queued is not None and self.max_queued < 0:
            raise SettingsError(f"The queue's length must be at least 0, got {self.max_queued}.")
        if self.blocks < 1:
            raise SettingsError(
                f"A KV cache of {self.kv_cache_tokens} tokens holds no block of "
                f"{self.block_tokens}."
            )

    @cached_property
    def drafts(self) -> int:
        """Tokens drafted a step and sequence."""
        return self.speculation.draft_tokens if self.speculation else 0

    @cached_property
    def blocks(self) -> int:
        """Blocks of the KV cache."""
        return self.kv_cache_tokens // self.block_tokens

    @property
    def longest(self) -> int:
        """Tokens that a sequence can have at most, prompt and answer together."""
        return self.blocks * self.block_tokens - self.drafts

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_tokens)

    def check(self, sequence: Sequence) -> None:
        """See whether a sequence can run at all.

        Raises:
            SettingsError: it would not fit even alone.
        """
        prompt_tokens, answers = sequence.prompt_tokens, sequence.answers
        tokens = prompt_tokens + max(sequence.output_tokens, *sequence.others, 0)
        # Drafted tokens need room of their own; several answers begin with copies of a block.
        needed = self.blocks_for(tokens + self.drafts)
        forked = self.blocks_for(prompt_tokens) + answers - 1
        if max(needed, forked) > self.blocks:
            raise SettingsError(
                f"A sequence of {tokens} tokens cannot fit into a KV cache of "
                f"{self.kv_cache_tokens}."
            )
        if answers > self.max_num_seqs:
            raise SettingsError(
                f"{answers} answers at once are more than the {self.max_num_seqs} sequences that "
                "may run."
            )

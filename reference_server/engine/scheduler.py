"""The engine of the simulator: continuous batching, without I/O and without a clock.

Sequences go in, steps come out, and each step says how long it took and whose tokens it made; the
same sequences in the same order give the same steps. The rules, after vLLM's scheduler:

- At most `max_num_seqs` sequences run; the others wait in the order they came, none overtaking.
- A sequence is admitted when the KV cache has room for its prompt and its whole answer, so that
  none is ever preempted. (vLLM admits earlier and preempts; a later engine may.)
- A step decodes one token for every running sequence whose prompt is done, and spends what is left
  of the token budget on prompts, oldest first, in chunks if need be. The step that ends a
  prompt yields that sequence's first token.
- A step takes

      decode_base + decode_per_sequence x D + decode_per_kv_token x K      if D > 0
    + prefill_base + prefill_per_token x P                                 if P > 0

  where D sequences decode, attending to K tokens in the KV cache, and P prompt tokens are computed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from reference_server.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Size and speed of the simulated machine.

    The defaults answer a lone request of 200 prompt tokens after 60 ms and then every 8 ms; with
    32 running, a decode step takes some 20 ms, and a 33rd request waits.

    Attributes:
        max_num_seqs: sequences that run at once.
        max_queued: sequences that may wait beyond those a free place is ready for; one more is
            refused. None: any number.
        max_batched_tokens: tokens computed in one step, decode and prefill together.
        kv_cache_tokens: tokens the KV cache holds.
        prefill_base_s: cost of a step that computes prompt tokens at all.
        prefill_per_token_s: cost of each prompt token.
        decode_base_s: cost of a step that decodes at all.
        decode_per_sequence_s: cost of each sequence that decodes.
        decode_per_kv_token_s: cost of each token those sequences attend to.
    """

    max_num_seqs: int = 32
    max_queued: int | None = None
    max_batched_tokens: int = 2048
    kv_cache_tokens: int = 65_536
    prefill_base_s: float = 0.020
    prefill_per_token_s: float = 0.0002
    decode_base_s: float = 0.0075
    decode_per_sequence_s: float = 0.0003
    decode_per_kv_token_s: float = 0.35e-6

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1 or self.kv_cache_tokens < 1:
            raise SettingsError(
                "The engine needs room for at least one sequence and one token, got "
                f"{self.max_num_seqs} sequences and {self.kv_cache_tokens} tokens."
            )
        if self.max_batched_tokens < self.max_num_seqs:
            raise SettingsError(
                f"The engine's token budget ({self.max_batched_tokens} a step) must be at least "
                f"the number of sequences that run ({self.max_num_seqs})."
            )
        if self.max_queued is not None and self.max_queued < 0:
            raise SettingsError(f"The queue's length must be at least 0, got {self.max_queued}.")
        costs = (
            self.prefill_base_s,
            self.prefill_per_token_s,
            self.decode_base_s,
            self.decode_per_sequence_s,
            self.decode_per_kv_token_s,
        )
        if min(costs) < 0 or max(costs[:2]) <= 0 or max(costs[2:]) <= 0:
            raise SettingsError(
                "A prefill step and a decode step must each take some time, and no cost may be "
                "negative."
            )

    def prefill_s(self, tokens: int) -> float:
        """What computing so many prompt tokens adds to a step."""
        return self.prefill_base_s + self.prefill_per_token_s * tokens if tokens else 0.0

    def decode_s(self, sequences: int, kv_tokens: int) -> float:
        """What one token for each of so many sequences adds to a step."""
        if not sequences:
            return 0.0
        return (
            self.decode_base_s
            + self.decode_per_sequence_s * sequences
            + self.decode_per_kv_token_s * kv_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    """One answer to be made: at least one prompt token, at least one token of output."""

    id: str
    prompt_tokens: int
    output_tokens: int


class Emitted(NamedTuple):
    """What one sequence got out of a step."""

    id: str
    tokens: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the engine.

    Attributes:
        duration_s: how long it takes; its tokens are there at its end.
        tokens: who gets tokens: first those that decoded, then those whose prompt was done.
        admitted: ids of the sequences that left the queue at its start.
        prefill_tokens: prompt tokens computed.
        running: sequences in the batch.
        kv_usage_ratio: share of the KV cache in use at its end, before anyone leaves.
    """

    duration_s: float
    tokens: list[Emitted]
    admitted: list[str]
    prefill_tokens: int
    running: int
    kv_usage_ratio: float


@dataclass(slots=True)
class _Running:
    """A sequence in the batch."""

    sequence: Sequence
    prefilled: int = 0
    generated: int = 0

    @property
    def prompt_left(self) -> int:
        return self.sequence.prompt_tokens - self.prefilled

    @property
    def kv_tokens(self) -> int:
        return self.prefilled + self.generated


@dataclass(slots=True)
class Engine:
    """Sequences in, steps out (see the module's docstring)."""

    config: EngineConfig = field(default_factory=EngineConfig)
    _waiting: deque[Sequence] = field(default_factory=deque, init=False)
    _running: dict[str, _Running] = field(default_factory=dict, init=False)
    _reserved: int = field(default=0, init=False)  # tokens of KV cache promised to those running

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits: a step would do nothing."""
        return not self._running and not self._waiting

    def submit(self, sequence: Sequence) -> bool:
        """Queue a sequence; False if the queue is full, and nothing has changed then.

        Raises:
            SettingsError: it would not fit into the KV cache even alone.
        """
        needed = sequence.prompt_tokens + sequence.output_tokens
        if needed > self.config.kv_cache_tokens:
            raise SettingsError(
                f"A sequence of {needed} tokens cannot fit into a KV cache of "
                f"{self.config.kv_cache_tokens}."
            )
        if self.config.max_queued is not None:
            free = self.config.max_num_seqs - self.running  # so many leave the queue next step
            if self.waiting >= self.config.max_queued + free:
                return False
        self._waiting.append(sequence)
        return True

    def abort(self, sequence_id: str) -> None:
        """Forget a sequence, wherever it is; one that is not there is no error."""
        running = self._running.pop(sequence_id, None)
        if running is not None:
            self._release(running)
            return
        self._waiting = deque(s for s in self._waiting if s.id != sequence_id)

    def step(self) -> Step:
        """Do one step. What is submitted while it lasts takes part in the next one."""
        admitted = self._admit()
        decoding = [running for running in self._running.values() if not running.prompt_left]
        kv_tokens = sum(running.kv_tokens for running in decoding)
        prefill_tokens, first = self._prefill(self.config.max_batched_tokens - len(decoding))
        duration_s = self.config.decode_s(len(decoding), kv_tokens)
        duration_s += self.config.prefill_s(prefill_tokens)
        in_cache = sum(running.kv_tokens for running in self._running.values())
        batch = self.running
        emitted = [self._emit(running) for running in decoding + first]
        return Step(
            duration_s=duration_s,
            tokens=emitted,
            admitted=admitted,
            prefill_tokens=prefill_tokens,
            running=batch,
            kv_usage_ratio=in_cache / self.config.kv_cache_tokens,
        )

    def _has_room(self, needed: int) -> bool:
        return (
            self.running < self.config.max_num_seqs
            and self._reserved + needed <= self.config.kv_cache_tokens
        )

    def _admit(self) -> list[str]:
        admitted = []
        while self._waiting:
            sequence = self._waiting[0]
            needed = sequence.prompt_tokens + sequence.output_tokens
            if not self._has_room(needed):
                break
            self._waiting.popleft()
            self._reserved += needed
            self._running[sequence.id] = _Running(sequence)
            admitted.append(sequence.id)
        return admitted

    def _prefill(self, budget: int) -> tuple[int, list[_Running]]:
        """Spend the budget on prompts: tokens computed, and the sequences whose prompt is done."""
        spent, done = 0, []
        for running in self._running.values():
            if not running.prompt_left or spent >= budget:
                continue
            chunk = min(running.prompt_left, budget - spent)
            running.prefilled += chunk
            spent += chunk
            if not running.prompt_left:
                done.append(running)
        return spent, done

    def _emit(self, running: _Running) -> Emitted:
        running.generated += 1
        sequence = running.sequence
        finished = running.generated == sequence.output_tokens
        if finished:
            self._release(self._running.pop(sequence.id))
        return Emitted(sequence.id, 1, finished)

    def _release(self, running: _Running) -> None:
        self._reserved -= running.sequence.prompt_tokens + running.sequence.output_tokens

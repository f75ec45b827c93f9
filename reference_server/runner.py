"""The simulated engine in real time: one task that hands every token over when it is due.

All on one asyncio loop. Whoever serves a request submits a sequence and reads its tokens from the
`Answer`; each token carries the instant it was due, so that the writer can log its lateness.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from reference_server.ask import Ask
from reference_server.engine import Emitted, Engine, Sequence
from reference_server.errors import RefusedError
from reference_server.metrics import Metrics
from reference_server.timeline import Tick, Timeline


class Token(NamedTuple):
    """One token of an answer: when it was due, and how many there are with it."""

    due_at: float
    so_far: int
    finished: bool


class AbandonedError(Exception):
    """Nobody wants the answer any more: the client left, or the server stops."""


@dataclass(slots=True, eq=False)
class Answer:
    """One sequence under way. Instants are the engine's; None: not yet."""

    sequence: Sequence
    read_at: float
    max_tokens: int
    finish_reason: str
    admitted_at: float | None = None
    first_at: float | None = None
    last_at: float | None = None
    generated: int = 0
    _tokens: asyncio.Queue[Token | None] = field(default_factory=asyncio.Queue)

    async def tokens(self) -> AsyncIterator[Token]:
        """The tokens as they become due.

        Raises:
            AbandonedError: the answer was abandoned before its end.
        """
        while True:
            token = await self._tokens.get()
            if token is None:
                raise AbandonedError
            yield token
            if token.finished:
                return

    def hand(self, token: Token) -> None:
        """Give the reader one more token."""
        self._tokens.put_nowait(token)

    def abandon(self) -> None:
        """Tell the reader to give up, after what it was handed already."""
        self._tokens.put_nowait(None)


class Runner:
    """Steps an engine on its schedule.

    Args:
        engine: the engine, idle.
        metrics: where it is told of.
    """

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._timeline = Timeline(engine)
        self._metrics = metrics
        self._answers: dict[str | int, Answer] = {}
        self._numbers = count()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()  # its clock is CLOCK_MONOTONIC
        while True:
            due_at = self._timeline.due_at
            if due_at is None:
                self._woken.clear()
                await self._woken.wait()
            else:
                await asyncio.sleep(due_at - loop.time())
            for tick in self._timeline.advance(loop.time()):
                self._deliver(tick)

    def submit(self, ask: Ask, output_tokens: int, finish_reason: str, read_at: float) -> Answer:
        """Start an answer.

        Args:
            ask: what was asked for.
            output_tokens: how long the answer will be, at least 1.
            finish_reason: why it ends there.
            read_at: when its request was read.

        Raises:
            RefusedError: the queue is full.
        """
        # Numbered, since a client may use its own id twice.
        sequence = Sequence(
            id=next(self._numbers),
            prompt_tokens=ask.prompt_tokens,
            output_tokens=output_tokens,
        )
        if not self._timeline.arrive(sequence, read_at):
            self._metrics.rejections.add(1, "max_num_queued_reqs")
            raise RefusedError(
                503,
                "The engine is currently busy and cannot accept new requests. "
                "Please try again later.",
                "Service Unavailable",
            )
        answer = Answer(sequence, read_at, ask.max_tokens, finish_reason)
        self._answers[sequence.id] = answer
        self._woken.set()
        return answer

    def abort(self, answer: Answer) -> None:
        """Stop making an answer; harmless if it has ended."""
        if self._answers.pop(answer.sequence.id, None) is not None:
            self._timeline.leave(answer.sequence.id)

    def close(self) -> None:
        """Give up every answer under way: the server stops."""
        for answer in list(self._answers.values()):
            self.abort(answer)
            answer.abandon()

    def page(self) -> bytes:
        """The ``/metrics`` page as of now."""
        metrics, timeline = self._metrics, self._timeline
        metrics.running.value = timeline.running
        metrics.waiting.value = metrics.waiting_for_capacity.value = timeline.waiting
        metrics.kv_usage.value = timeline.kv_usage_ratio
        return metrics.page()

    def _deliver(self, tick: Tick) -> None:
        step = tick.step
        for admitted in step.admitted:
            answer = self._answers.get(admitted)
            if answer is not None and answer.admitted_at is None:  # else it was preempted
                answer.admitted_at = tick.began_at
        for emitted in step.tokens:
            answer = self._answers.get(emitted.id)
            if answer is not None:
                self._hand_over(answer, emitted, tick.ended_at)
        generated = sum(emitted.tokens for emitted in step.tokens)
        metrics = self._metrics
        metrics.prompt_tokens.add(step.prefill_tokens)
        metrics.generation_tokens.add(generated)
        metrics.step_tokens.observe(step.prefill_tokens + generated)
        metrics.preemptions.add(len(step.preempted))

    def _hand_over(self, answer: Answer, emitted: Emitted, at: float) -> None:
        if answer.last_at is None:
            answer.first_at = at
            self._metrics.ttft_s.observe(at - answer.read_at)
        else:
            self._metrics.itl_s.observe(at - answer.last_at)
        answer.last_at = at
        answer.generated += emitted.tokens
        answer.hand(Token(at, answer.generated, emitted.finished))
        if emitted.finished:
            del self._answers[emitted.id]
            self._count(answer)

    def _count(self, answer: Answer) -> None:
        """Note a request that has ended."""
        metrics, read, admitted = self._metrics, answer.read_at, answer.admitted_at
        first, last = answer.first_at, answer.last_at
        assert admitted is not None
        assert first is not None
        assert last is not None
        metrics.finished.add(1, answer.finish_reason)
        metrics.request_prompt_tokens.observe(answer.sequence.prompt_tokens)
        metrics.request_generation_tokens.observe(answer.generated)
        metrics.request_max_tokens.observe(answer.max_tokens)
        metrics.queue_s.observe(admitted - read)
        metrics.prefill_s.observe(first - admitted)
        metrics.decode_s.observe(last - first)
        metrics.inference_s.observe(last - admitted)
        metrics.e2e_s.observe(last - read)
        if answer.generated > 1:
            metrics.tpot_s.observe((last - first) / (answer.generated - 1))

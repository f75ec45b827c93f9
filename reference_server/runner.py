"""The simulated engines in real time: one task that hands every token over when it is due.

All on one asyncio loop. Whoever serves a request submits a sequence and reads its tokens from the
`Answer`; each token carries the instant it was due, so that the writer can log its lateness.
Several engines stand behind a router, each on a timeline of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import NamedTuple

from reference_server.ask import Ask
from reference_server.engine import Emitted, Engine, Sequence, Span
from reference_server.engine.routing import Routing, router_of
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
class Siblings:
    """The answers to one prompt, as far as they count as one request.

    Attributes:
        number: how many.
        ended: of these, so many are complete.
        longest: tokens of the longest that is.
    """

    number: int = 1
    ended: int = 0
    longest: int = 0


@dataclass(slots=True, eq=False)
class Answer:
    """One sequence under way. Instants are the engine's; None: not yet.

    Attributes:
        sequence: as the engine has it.
        read_at: its request was read.
        max_tokens: as asked for.
        finish_reason: why it will end.
        siblings: all answers to its prompt.
        replica: number of the engine that makes it.
        admitted_at: it left the queue, for the first time.
        cached_tokens: of its prompt, found in the prefix cache then.
        first_at: its first token was due.
        last_at: its last token so far was due.
        generated: tokens so far.
        preemptions: how often it lost its place.
        listener: told when each token was due and how many there are with it, the moment it is, but
            for the last one, which `tokens` has; None: all wait to be read.
    """

    sequence: Sequence
    read_at: float
    max_tokens: int
    finish_reason: str
    siblings: Siblings = field(default_factory=Siblings)
    replica: int = 0
    admitted_at: float | None = None
    cached_tokens: int | None = None
    first_at: float | None = None
    last_at: float | None = None
    generated: int = 0
    preemptions: int = 0
    listener: Callable[[float, int], None] | None = None
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

    def hand(self, due_at: float, tokens: int, *, finished: bool) -> None:
        """Give the reader so many tokens more."""
        self.generated += tokens
        if self.listener is None or finished:
            self._tokens.put_nowait(Token(due_at, self.generated, finished))
        else:
            self.listener(due_at, self.generated)

    def listen(self, listener: Callable[[float, int], None]) -> None:
        """Have tokens taken from now on; not yet, if there are some that wait to be read."""
        if self._tokens.empty():
            self.listener = listener

    def abandon(self) -> None:
        """Tell the reader to give up, after what it was handed already."""
        self._tokens.put_nowait(None)


class Runner:
    """Steps engines on their schedules.

    Args:
        engines: idle ones, all alike; or just one.
        metrics: where they are told of.
        routing: how requests are spread over them.
    """

    def __init__(
        self,
        engines: Engine | list[Engine],
        metrics: Metrics,
        routing: Routing = Routing.LEAST_LOADED,
    ) -> None:
        engines = [engines] if isinstance(engines, Engine) else engines
        self._prefix_caching = engines[0].config.prefix_caching
        self._timelines = [Timeline(engine) for engine in engines]
        self._router = router_of(routing)
        self._in_flight = [0] * len(engines)
        self._metrics = metrics
        self._answers: dict[str | int, Answer] = {}
        self._numbers = count()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled."""
        loop = asyncio.get_running_loop()  # its clock is CLOCK_MONOTONIC
        while True:
            due = [t.due_at for t in self._timelines if t.due_at is not None]
            if not due:
                self._woken.clear()
                await self._woken.wait()
            else:
                await self._sleep(min(due) - loop.time())
            now = loop.time()
            ticks = [tick for timeline in self._timelines for tick in timeline.advance(now)]
            for tick in sorted(ticks, key=attrgetter("ended_at")):
                self._deliver(tick)

    def submit(
        self,
        ask: Ask,
        output_tokens: int,
        finish_reason: str,
        read_at: float,
        *,
        answer_id: int | None = None,
        siblings: Siblings | None = None,
    ) -> Answer:
        """Start an answer.

        Args:
            ask: what was asked for.
            output_tokens: how long the answer will be, at least 1.
            finish_reason: why it ends there.
            read_at: when its request was read.
            answer_id: what the answer's tokens follow from (see `Span`), so that a later prompt
                that holds it finds it in the prefix cache.
            siblings: what the answers to its prompt share; None: it is the only one.

        Raises:
            RefusedError: the queue is full.
        """
        spans = ask.prompt.spans if self._prefix_caching else ()
        # Numbered, since a client may use its own id twice.
        sequence = Sequence(
            id=next(self._numbers),
            prompt_tokens=ask.prompt_tokens,
            output_tokens=output_tokens,
            spans=tuple(Span(*row) for row in spans),
            answer=answer_id,
            seed=ask.seed,
            priority=ask.priority,
        )
        replica = self._router.choose(sequence, self._in_flight)
        if not self._timelines[replica].arrive(sequence, read_at):
            self._metrics.rejections.add(1, "max_num_queued_reqs")
            raise RefusedError(
                503,
                "The engine is currently busy and cannot accept new requests. "
                "Please try again later.",
                "Service Unavailable",
            )
        answer = Answer(
            sequence, read_at, ask.max_tokens, finish_reason, siblings or Siblings(), replica
        )
        self._answers[sequence.id] = answer
        self._in_flight[replica] += 1
        self._woken.set()
        return answer

    def abort(self, answer: Answer) -> None:
        """Stop making an answer; harmless if it has ended."""
        if self._forget(answer):
            self._timelines[answer.replica].leave(answer.sequence.id)

    def close(self) -> None:
        """Give up every answer under way: the server stops."""
        for answer in list(self._answers.values()):
            self.abort(answer)
            answer.abandon()

    def page(self) -> bytes:
        """The ``/metrics`` page as of now; of several engines sums, and the mean cache."""
        metrics, timelines = self._metrics, self._timelines
        metrics.running.value = sum(timeline.running for timeline in timelines)
        waiting = sum(timeline.waiting for timeline in timelines)
        metrics.waiting.value = metrics.waiting_for_capacity.value = waiting
        used = sum(timeline.kv_usage_ratio for timeline in timelines)
        metrics.kv_usage.value = used / len(timelines)
        return metrics.page()

    async def _sleep(self, seconds: float) -> None:
        """Wait so long, or, where there are several engines, until a request comes.

        It may begin a step that ends before all others; a lone engine's next step begins later.
        """
        if len(self._timelines) == 1:
            await asyncio.sleep(seconds)
            return
        self._woken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    def _forget(self, answer: Answer) -> bool:
        """Take an answer off the books; False if it is not on them."""
        if self._answers.pop(answer.sequence.id, None) is None:
            return False
        self._in_flight[answer.replica] -= 1
        return True

    def _deliver(self, tick: Tick) -> None:
        step = tick.step
        for name, cached in zip(step.admitted, step.cached, strict=True):
            answer = self._answers.get(name)
            if answer is not None and answer.admitted_at is None:  # else it was preempted
                answer.admitted_at = tick.began_at
                answer.cached_tokens = cached
        for name in step.preempted:
            if name in self._answers:
                self._answers[name].preemptions += 1
        self._hand_over(step.tokens, tick.ended_at)
        self._metrics.count_step(step)

    def _hand_over(self, tokens: list[Emitted], at: float) -> None:
        """Give the readers of a step's tokens theirs: the inner loop of this server."""
        answers = self._answers
        gaps: dict[float, int] = {}  # how many tokens came so long after the one before
        for name, fresh, finished, _ in tokens:
            answer = answers.get(name)
            if answer is None:
                continue
            if answer.last_at is None:
                answer.first_at = at
                self._metrics.ttft_s.observe(at - answer.read_at)
            else:
                gap_s = at - answer.last_at
                gaps[gap_s] = gaps.get(gap_s, 0) + 1
            answer.last_at = at
            answer.hand(at, fresh, finished=finished)
            if finished:
                self._forget(answer)
                self._count(answer)
        for gap_s, times in gaps.items():
            self._metrics.itl_s.observe(gap_s, times)

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
        siblings = answer.siblings
        siblings.ended += 1
        siblings.longest = max(siblings.longest, answer.generated)
        if siblings.ended == siblings.number:
            metrics.request_longest.observe(siblings.longest)
            metrics.request_n.observe(siblings.number)
        metrics.request_preemptions.observe(answer.preemptions)
        computed = answer.sequence.prompt_tokens - (answer.cached_tokens or 0)
        metrics.request_computed_tokens.observe(computed)
        metrics.queue_s.observe(admitted - read)
        metrics.prefill_s.observe(first - admitted)
        metrics.decode_s.observe(last - first)
        metrics.inference_s.observe(last - admitted)
        metrics.e2e_s.observe(last - read)
        if answer.generated > 1:
            metrics.tpot_s.observe((last - first) / (answer.generated - 1))

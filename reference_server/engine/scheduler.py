"""The engine of the simulator: continuous batching, without I/O and without a clock.

Sequences go in, steps come out, and each step says how long it took and whose tokens it made; the
same sequences in the same order give the same steps. The rules, after vLLM's V1 scheduler
(vllm/v1/core/sched/scheduler.py):

- Every sequence whose prompt is done decodes in every step, and gains one token, or with drafts
  as many as are accepted and one more. If the KV cache has no block for them all, the sequences
  admitted last are preempted one by one, until it has.
- What is left of the token budget is spent on prompts: first on the one that has begun, then on
  those that wait, in the order they came, none overtaking. A prompt longer than what is left is
  computed in chunks. The step that ends a prompt yields that sequence's first token.
- A sequence is admitted when a place is free and the KV cache has room for its whole prompt (vLLM's
  `scheduler_reserve_full_isl`), which it gets at once; for the answer it takes block after block.
  What the prefix cache has of the prompt is not computed again, but for the last token.
- A preempted sequence waits before all others; its prompt is then prompt and answer so far. No
  sequence is admitted in a step that preempts.
- Where priorities count (`Scheduling.PRIORITY`), the most urgent of those that wait is admitted
  first, and the least urgent of those that run is preempted, as vLLM does it; of equals the one
  that came last. One that waits takes no running one's place, however urgent it is.
- Several answers to one prompt share its whole blocks from the step that ends it on; until then
  they count as one sequence that takes several places.

`step` does one step. `leap` does many at once, as long as all are alike: the same sequences decode,
none finishes before the last of them, no prompt is computed, every block needed is there. It costs
as much as a step, and yields the same (tests compare them).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from operator import attrgetter

from reference_server.engine.batch import Batch, Run, batch_of
from reference_server.engine.config import EngineConfig, Preemption, Scheduling
from reference_server.engine.cost import NO_PROMPTS, Prompts
from reference_server.engine.kvcache import Found, KvCache, Link, links
from reference_server.engine.sequence import FS, Emitted, Sequence, Span, Step


@dataclass(slots=True)
class Done:
    """What happened in a step, or in many alike.

    Attributes:
        duration_fs: how long it took.
        steps: how many.
        admitted: runs that left the queue at its beginning.
        preempted: runs that lost their place at its beginning, the last admitted first.
        started: runs whose prompt ended, further answers included; each got a token by that.
        finished: runs that are complete.
        prompt_tokens: tokens computed of prompts, and again after a preemption.
        queries: tokens of the admitted that were looked up in the prefix cache.
        hits: of these, found there.
        drafted: tokens drafted.
        accepted: of these, accepted.
        gained: tokens made by those that decoded.
    """

    duration_fs: int = 0
    steps: int = 1
    admitted: list[Run] = field(default_factory=list)
    preempted: list[Run] = field(default_factory=list)
    started: list[Run] = field(default_factory=list)
    finished: list[Run] = field(default_factory=list)
    prompt_tokens: int = 0
    queries: int = 0
    hits: int = 0
    drafted: int = 0
    accepted: int = 0
    gained: int = 0


@dataclass(slots=True)
class _Plan:
    """One step, as scheduled.

    Attributes:
        done: what is known of it.
        budget: tokens that may still be computed.
        parts, pairs, context: of prompts (see `Prompts`).
        swapped: tokens whose KV cache is moved, out or in.
        ended: runs whose prompt ends in it.
    """

    done: Done
    budget: int = 0
    parts: int = 0
    pairs: int = 0
    context: int = 0
    swapped: int = 0
    ended: list[Run] = field(default_factory=list)


class Engine:
    """Sequences in, steps out (see the module's docstring).

    Args:
        config: size and speed of the machine.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self._kv = KvCache(self.config.blocks, keep=self.config.prefix_caching)
        self._batch: Batch = batch_of(self.config)
        self._by_priority = self.config.scheduling is Scheduling.PRIORITY
        self._waiting: deque[Run] = deque()
        self._running: dict[int, Run] = {}  # by number, so in the order of admission
        self._places = 0  # sequences that those stand for
        self._partial: Run | None = None  # its prompt has begun, and not ended
        self._at = 0  # number of the next step
        self._admissions = 0
        self._arrivals = 0
        self._unnamed = 0  # spans that nobody gave an id
        self._ends: list[tuple[int, int, Run]] = []  # a heap: after which step a run is complete
        self._lines: dict[int, tuple[int, int]] = {}  # base and slope in fs, by sequences
        self._by_id: dict[str | int, list[Run]] = {}

    @property
    def running(self) -> int:
        """Sequences in the batch."""
        return self._places

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits: there is no step to do."""
        return not self._running and not self._waiting

    @property
    def kv_usage_ratio(self) -> float:
        """Share of the KV cache in use."""
        return 1 - self._kv.free / self._kv.blocks

    def submit(self, sequence: Sequence) -> bool:
        """Queue a sequence; False if the queue is full, and nothing has changed then.

        Raises:
            SettingsError: it would not fit even alone.
        """
        config = self.config
        config.check(sequence)
        if config.max_queued is not None:
            free = config.max_num_seqs - self._places  # so many leave the queue next step
            if len(self._waiting) >= config.max_queued + free:
                return False
        run = Run(
            sequence,
            sequence.output_tokens,
            places=sequence.answers,
            arrived=self._arrivals,
            goal=sequence.prompt_tokens,
        )
        self._arrivals += 1
        if config.prefix_caching:
            # A prompt of which nothing is said is like no other.
            spans = sequence.spans or (Span(self._name(), sequence.prompt_tokens),)
            run.text = links(spans, config.block_tokens)
            run.own = self._name() if sequence.answer is None else sequence.answer
        if self._by_priority:
            insort(self._waiting, run, key=attrgetter("urgency"))
        else:
            self._waiting.append(run)
        self._by_id[sequence.id] = [run]
        return True

    def abort(self, sequence_id: str | int) -> list[Run]:
        """Forget a sequence, wherever it is; empty if it is not there, which is no error.

        Returns:
            Its answers that were not complete.
        """
        runs = self._by_id.pop(sequence_id, [])
        for run in runs:
            if run.number < 0:
                self._waiting.remove(run)
            else:
                del self._running[run.number]
                self._vacate(run)
        return runs

    def step(self) -> Step:
        """Do one step; not when idle. What is submitted meanwhile takes part in the next one."""
        plan = self._plan()
        running, kv_usage_ratio = self.running, self.kv_usage_ratio
        tokens = self._emitted()
        done = self._carry_out(plan)
        tokens += [_first(run) for run in done.started]
        return Step(
            duration_fs=done.duration_fs,
            tokens=tokens,
            admitted=[run.sequence.id for run in done.admitted],
            cached=[run.cached for run in done.admitted],
            preempted=[run.sequence.id for run in done.preempted],
            prefill_tokens=done.prompt_tokens,
            cache_queries=done.queries,
            cache_hits=done.hits,
            drafted=done.drafted,
            accepted=done.accepted,
            running=running,
            kv_usage_ratio=kv_usage_ratio,
        )

    def advance(self) -> Done:
        """Do one step, as `step` does, without telling of each token."""
        return self._carry_out(self._plan())

    def alike(self) -> int:
        """How many steps to come are all alike, so that `leap` can do them; 0: the next is not."""
        if self._partial or not self._batch.size:
            return 0
        if self._waiting and self._room_for(self._waiting[0]):
            return 0
        most = self._next_end() - self._at
        free, needed, at = self._kv.free, self._batch.needed, self._at
        if needed(at, most) <= free:
            return most
        return bisect_right(range(1, most), free, key=lambda steps: needed(at, steps))

    def takes(self, steps: int) -> int:
        """Femtoseconds that so many steps take, which must be alike."""
        base_fs, per_kv_token_fs = self._line(self._batch.size)
        return base_fs * steps + per_kv_token_fs * self._batch.read(steps)

    def each_takes(self, steps: int) -> list[int]:
        """Femtoseconds that each of so many steps takes, which must be alike."""
        base_fs, per_kv_token_fs = self._line(self._batch.size)
        return [base_fs + per_kv_token_fs * kv_tokens for kv_tokens in self._batch.reads(steps)]

    def begun(self, within_fs: int, most: int) -> int:
        """How many of the next steps, all alike, have begun after so long: at least one."""
        if self.takes(most - 1) <= within_fs:
            return most
        return bisect_right(range(most), within_fs, key=self.takes)

    def leap(self, steps: int) -> Done:
        """Do so many steps at once, at least one, which must be alike."""
        self._kv.take(self._batch.needed(self._at, steps))
        done = Done(self.takes(steps), steps)
        self._decode(done)
        return done

    def _plan(self) -> _Plan:
        """Schedule one step: who gets blocks, and who computes what."""
        plan = _Plan(Done())
        batch, at = self._batch, self._at
        while batch.needed(at, 1) > self._kv.free:
            self._preempt(plan)
        self._kv.take(batch.needed(at, 1))
        plan.budget = self.config.max_batched_tokens - batch.size * (1 + self.config.drafts)
        if self._partial:
            self._compute(self._partial, plan)
        if not plan.done.preempted:
            while self._waiting and plan.budget and (room := self._room_for(self._waiting[0])):
                self._admit(*room, plan)
        return plan

    def _carry_out(self, plan: _Plan) -> Done:
        """Do what was scheduled."""
        done = plan.done
        batch = self._batch
        if plan.parts:
            prompts = Prompts(plan.parts, done.prompt_tokens, plan.pairs, plan.context)
            base_fs, per_kv_token_fs = self._line_with(batch.size, prompts)
        else:
            base_fs, per_kv_token_fs = self._line(batch.size)
        done.duration_fs = base_fs + per_kv_token_fs * batch.kv_tokens
        if plan.swapped:
            done.duration_fs += round(self.config.cost.swap_s(plan.swapped) * FS)
        self._decode(done)
        for run in plan.ended:
            self._start(run, done)
        return done

    def _decode(self, done: Done) -> None:
        """The decoding sequences' part of a step, or of many alike."""
        batch = self._batch
        size, kv_tokens = batch.size, batch.kv_tokens
        batch.advance(done.steps)
        self._at += done.steps
        done.gained = batch.kv_tokens - kv_tokens
        if self.config.drafts:
            done.drafted = size * done.steps * self.config.drafts
            done.accepted = done.gained - size * done.steps
        while self._next_end() == self._at:
            run = heappop(self._ends)[2]
            self._finish(run, done)

    def _start(self, run: Run, done: Done) -> None:
        """A prompt is done: every answer to it has its next token."""
        run.made += 1
        runs = [run] if run.places == 1 else [run, *self._fork(run)]
        for each in runs:
            done.started.append(each)
            if each.made == each.length:
                self._finish(each, done)
            else:
                self._batch.add(each, self._at)
                heappush(self._ends, (each.last_step, each.number, each))

    def _fork(self, run: Run) -> list[Run]:
        """The other answers to a prompt, which share what was computed."""
        sequence = run.sequence
        others = [
            Run(
                sequence,
                length,
                answer,
                arrived=run.arrived,
                made=1,
                goal=run.goal,
                text=run.text,
                own=hash((run.own, answer)),
            )
            for answer, length in enumerate(sequence.others, start=1)
        ]
        run.places = 1
        whole, rest = divmod(run.goal, self.config.block_tokens)
        self._kv.fork(run.holding, [other.holding for other in others], whole, int(rest > 0))
        for other in others:
            self._number(other)
        self._by_id[sequence.id] += others
        return others

    def _finish(self, run: Run, done: Done) -> None:
        done.finished.append(run)
        del self._running[run.number]
        self._vacate(run)
        runs = self._by_id[run.sequence.id]
        runs.remove(run)
        if not runs:
            del self._by_id[run.sequence.id]

    def _room_for(self, run: Run) -> tuple[Run, Found, int] | None:
        """What a run finds in the cache and needs besides; None if it cannot be admitted now."""
        config = self.config
        if self._places + run.places > config.max_num_seqs:
            return None
        found = self._kv.find(self._text(run, run.made))
        fresh = config.blocks_for(run.goal) - found.blocks
        if run.goal % config.block_tokens:
            fresh += run.places - 1  # each answer will go on writing in a copy of the last block
        return (run, found, fresh) if fresh <= self._kv.free - found.idle else None

    def _admit(self, run: Run, found: Found, fresh: int, plan: _Plan) -> None:
        """Take the first of the queue into the batch, and begin with its prompt."""
        self._waiting.popleft()
        self._places += run.places
        self._number(run)
        self._kv.hold(run.holding, self._text(run, run.made), found, fresh)
        cached = min(found.blocks * self.config.block_tokens, run.goal - 1)
        run.cached = cached
        run.computed = max(cached, run.swapped)
        plan.swapped += run.computed - cached
        run.swapped = 0
        plan.done.admitted.append(run)
        if self.config.prefix_caching:
            plan.done.queries += run.goal
            plan.done.hits += cached
        self._compute(run, plan)

    def _compute(self, run: Run, plan: _Plan) -> None:
        """Spend the budget on one prompt, as far as it reaches."""
        tokens = min(run.goal - run.computed, plan.budget)
        plan.budget -= tokens
        plan.parts += 1
        plan.pairs += tokens * run.computed + tokens * (tokens + 1) // 2
        plan.context += run.computed
        plan.done.prompt_tokens += tokens
        run.computed += tokens
        self._publish(run, run.made, run.computed)
        self._partial = run if run.computed < run.goal else None
        if not self._partial:
            plan.ended.append(run)

    def _preempt(self, plan: _Plan) -> None:
        """Send the sequence admitted last, or the least urgent one, back to the queue."""
        if self._by_priority:
            run = max(self._running.values(), key=attrgetter("urgency"))
            del self._running[run.number]
        else:
            _, run = self._running.popitem()
        in_cache = self._vacate(run)
        if self.config.preemption is Preemption.SWAP:
            run.swapped = in_cache
            plan.swapped += in_cache
        run.goal = run.sequence.prompt_tokens + run.made
        if self._by_priority:
            insort(self._waiting, run, key=attrgetter("urgency"))
        else:
            self._waiting.appendleft(run)
        plan.done.preempted.append(run)

    def _vacate(self, run: Run) -> int:
        """Take a run out of the batch and its blocks from it; its tokens that were in the cache."""
        in_cache = run.computed
        if run.decodes:
            made = self._batch.made(run, self._at)
            in_cache = run.goal + made
            run.made += made
            run.holding.private = self._batch.blocks(run, self._at) - run.holding.shared
            self._batch.drop(run, self._at)
        self._publish(run, run.made, in_cache)
        self._kv.release(run.holding)
        self._places -= run.places
        run.number, run.computed = -1, 0
        if self._partial is run:
            self._partial = None
        return in_cache

    def _publish(self, run: Run, made: int, in_cache: int) -> None:
        if self.config.prefix_caching:
            whole = in_cache // self.config.block_tokens
            self._kv.publish(run.holding, self._text(run, made), whole)

    def _text(self, run: Run, made: int) -> list[Link]:
        """A run's text as the prefix cache knows it: its prompt, and its answer so far."""
        if not made or not run.text:
            return run.text
        prompt, block = run.sequence.prompt_tokens, self.config.block_tokens
        key = hash((run.text[-1].key, prompt, run.own))
        return [*run.text, Link(key, prompt // block, (prompt + made) // block)]

    def _number(self, run: Run) -> None:
        run.number = self._admissions
        self._admissions += 1
        self._running[run.number] = run

    def _name(self) -> int:
        """An id of a span that no other has."""
        self._unnamed -= 1
        return self._unnamed

    def _next_end(self) -> int:
        """Number of the step by whose beginning the next run is complete; -1 if none decodes."""
        ends = self._ends
        while ends:
            step, number, run = ends[0]
            if run.number == number:
                return step
            heappop(ends)  # it was preempted or aborted
        return -1

    def _line(self, decodes: int) -> tuple[int, int]:
        """Base and slope of the time of a step that does nothing but decode, in femtoseconds."""
        known = self._lines.get(decodes)
        if known is None:
            known = self._lines[decodes] = self._line_with(decodes, NO_PROMPTS)
        return known

    def _line_with(self, decodes: int, prompts: Prompts) -> tuple[int, int]:
        line = self.config.cost.line(decodes, prompts, self.config.drafts)
        return round(line.base_s * FS), round(line.per_kv_token_s * FS)

    def _emitted(self) -> list[Emitted]:
        """What those that decode get out of the next step."""
        runs = [run for run in self._running.values() if run.first_step >= 0]
        begin, end = self._at, self._at + 1
        if not self.config.drafts:  # a server in real time does this for every token
            return [Emitted(run.sequence.id, 1, end == run.last_step, run.answer) for run in runs]
        made = self._batch.made
        return [
            Emitted(
                run.sequence.id,
                made(run, end) - made(run, begin),
                end == run.last_step,
                run.answer,
            )
            for run in runs
        ]


def _first(run: Run) -> Emitted:
    """What a run gets out of the step that ends its prompt."""
    return Emitted(run.sequence.id, 1, run.made == run.length, run.answer)

"""The engine: what no load may break, and what a lone request takes to the last digit."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from reference_server.engine import (
    Engine,
    EngineConfig,
    Preemption,
    RooflineCost,
    Scheduling,
    Sequence,
    Span,
    Speculation,
    Step,
)
from reference_server.engine.cost import Prompts
from reference_server.engine.hardware import DEVICES
from reference_server.engine.models import MODELS
from reference_server.engine.sequence import FS
from reference_server.errors import SettingsError
from tests.reference_server.engine.naive import Happened, NaiveEngine
from tests.reference_server.engine.workloads import COST, Event, configs, loads, play

SLOWLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sequence(name: str | int, prompt: int, output: int, **more: Any) -> Sequence:
    return Sequence(id=name, prompt_tokens=prompt, output_tokens=output, **more)


def drain(engine: Engine, limit: int = 10_000) -> list[Step]:
    """All steps until nothing is left to do."""
    steps = []
    while not engine.idle:
        steps.append(engine.step())
        assert len(steps) < limit, "the engine does not come to an end"
    return steps


def told(step: Step | Happened) -> list[Any]:
    """What a step says of itself, either engine's."""
    if isinstance(step, Happened):
        names = [name for name, _ in step.admitted], [name for name, _ in step.preempted]
        return [step.duration_fs, *names, step.tokens, step.prefilled, step.hits]
    tokens = [(e.id, e.answer, e.tokens, e.finished) for e in step.tokens]
    names = step.admitted, step.preempted
    return [step.duration_fs, *names, tokens, step.prefill_tokens, step.cache_hits]


@SLOWLY
@given(configs(), loads())
def test_every_step_is_that_of_the_engine_written_out(
    config: EngineConfig, load: list[Event]
) -> None:
    """Counting blocks and tokens in sums gives what visiting each block and token gives."""
    counted = play(Engine(config), load)
    visited = play(NaiveEngine(config), load)

    for (began_fs, step), (began_there_fs, there) in zip(counted, visited, strict=True):
        assert began_fs == began_there_fs
        assert told(step) == told(there)
        assert step.kv_usage_ratio == pytest.approx(1 - there.free / config.blocks)


def audit(engine: Engine) -> None:
    """Every block is free, private to one sequence, or shared and counted once."""
    runs = list(engine._running.values())
    shared = {stretch for run in runs for stretch in run.holding.stretches}
    private = 0
    for run in runs:
        holding = run.holding
        blocks = engine._batch.blocks(run, engine._at) if run.decodes else holding.blocks
        private += blocks - holding.shared
        assert blocks >= holding.shared >= 0
    for stretch in shared:
        assert stretch.users == sum(stretch in run.holding.stretches for run in runs)
    used = private + sum(stretch.blocks for stretch in shared)
    assert engine._kv.free + used == engine.config.blocks
    assert (
        engine._kv.free
        >= engine._kv._idle_blocks
        == sum(stretch.blocks for stretch in engine._kv._idle.values())
    )
    assert all(not stretch.users for stretch in engine._kv._idle.values())


class EngineMachine(RuleBasedStateMachine):
    """An engine to which anything may happen at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, Sequence] = {}
        self.got: Counter[tuple[Any, int]] = Counter()
        self.left: set[int] = set()

    @initialize(config=configs())
    def make(self, config: EngineConfig) -> None:
        self.engine = Engine(config)

    @rule(prompt=st.integers(1, 40), shared=st.integers(0, 3), output=st.integers(1, 18),
          answers=st.integers(1, 3))  # fmt: skip
    def submit(self, prompt: int, shared: int, output: int, answers: int) -> None:
        spans = (Span(shared, 8), Span(100 + len(self.asked), prompt))
        name = len(self.asked)
        others = (output,) * (answers - 1)
        asked = sequence(name, 8 + prompt, output, others=others, spans=spans)
        assert self.engine.submit(asked)
        self.asked[name] = asked

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        if self.engine.abort(name):
            self.left.add(name)

    @precondition(lambda self: not self.engine.idle)
    @rule()
    def step(self) -> None:
        self.take(self.engine.step())

    @precondition(lambda self: self.engine.alike())
    @rule(share=st.floats(0, 1))
    def leap(self, share: float) -> None:
        """Leaping tells of no tokens, so every one is taken in single steps of a copy."""
        steps = max(1, round(share * self.engine.alike()))
        copy = deepcopy(self.engine)
        done = self.engine.leap(steps)
        singly = [copy.step() for _ in range(steps)]
        assert done.duration_fs == sum(step.duration_fs for step in singly)
        assert done.gained == sum(e.tokens for step in singly for e in step.tokens)
        for step in singly:
            self.take(step)

    def take(self, step: Step) -> None:
        config = self.engine.config
        assert step.running <= config.max_num_seqs
        assert 0 <= step.kv_usage_ratio <= 1
        assert step.duration_fs > 0
        for emitted in step.tokens:
            assert emitted.id not in self.left
            self.got[emitted.id, emitted.answer] += emitted.tokens
            asked = self.asked[int(emitted.id)].output_tokens
            assert emitted.finished == (self.got[emitted.id, emitted.answer] == asked)
            assert self.got[emitted.id, emitted.answer] <= asked

    @invariant()
    def no_block_is_leaked_or_shared_wrongly(self) -> None:
        if hasattr(self, "engine"):
            audit(self.engine)

    def teardown(self) -> None:
        """Nobody starves: everyone not aborted gets all tokens, and all blocks come back."""
        if not hasattr(self, "engine"):
            return
        for step in drain(self.engine):
            self.take(step)
        audit(self.engine)
        assert self.engine._kv.free == self.engine.config.blocks
        for name, asked in self.asked.items():
            for answer in range(asked.answers):
                if name not in self.left:
                    assert self.got[name, answer] == asked.output_tokens


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(SLOWLY, max_examples=60, stateful_step_count=40)


def test_the_urgent_come_first_and_the_others_give_way() -> None:
    """One place: by priority, of equals by arrival. A tight cache: the least urgent leaves it."""
    by_priority = EngineConfig(
        max_num_seqs=3,
        kv_cache_tokens=48,
        block_tokens=16,
        cost=COST,
        scheduling=Scheduling.PRIORITY,
    )
    one_place = Engine(replace(by_priority, max_num_seqs=1))
    for name, priority in [("a", 1), ("b", 0), ("c", -5), ("d", 0)]:
        assert one_place.submit(sequence(name, 4, 2, priority=priority))
    admitted: list[Any] = []
    while not one_place.idle:
        admitted += one_place.step().admitted

    tight = Engine(by_priority)
    for name, priority in [("least", 2), ("most", -2), ("between", 0)]:
        assert tight.submit(sequence(name, 15, 20, priority=priority))
    preempted: list[Any] = []
    finished: list[Any] = []
    while not tight.idle:
        step = tight.step()
        preempted += step.preempted
        finished += [emitted.id for emitted in step.tokens if emitted.finished]

    assert admitted == ["c", "b", "d", "a"]
    assert preempted[0] == "least"
    assert "most" not in preempted
    assert finished == ["most", "between", "least"]


@SLOWLY
@given(configs(scheduling=Scheduling.FCFS), loads(answers=1))
def test_the_queue_is_first_come_first_served(config: EngineConfig, load: list[Event]) -> None:
    """Nobody overtakes, however well a later one would fit; but one preempted goes first."""
    admitted = [name for _, step in play(Engine(config), load) for name in step.admitted]
    first_time = list(dict.fromkeys(admitted))

    assert first_time == sorted(first_time)


@given(configs(), loads())
@SLOWLY
def test_no_step_computes_more_than_the_budget(config: EngineConfig, load: list[Event]) -> None:
    """Decoding, drafts and prompts together."""
    for _, step in play(Engine(config), load):
        decoded = step.drafted // config.drafts if config.drafts else 0
        if not config.drafts:
            # Those whose prompt ended emit too, without having decoded.
            decoded = sum(e.tokens for e in step.tokens) if not step.prefill_tokens else 0
        assert decoded * (1 + config.drafts) + step.prefill_tokens <= config.max_batched_tokens


@given(configs(speculation=None), st.integers(1, 40), st.integers(1, 20))
def test_a_lone_request_takes_what_the_formula_says(
    config: EngineConfig, prompt: int, output: int
) -> None:
    """Chunks of prefill, then decode steps that attend to one token more each time."""
    engine = Engine(config)
    engine.submit(sequence("a", prompt, output))
    took_s = sum(step.duration_s for step in drain(engine))

    chunks = -(-prompt // config.max_batched_tokens)
    prefill_s = chunks * COST.prefill_base_s + prompt * COST.prefill_per_token_s
    decodes = output - 1
    attended = decodes * prompt + decodes * output // 2  # prompt + 1 ... prompt + decodes
    decode_s = decodes * (COST.decode_base_s + COST.decode_per_sequence_s)
    decode_s += attended * COST.decode_per_kv_token_s
    assert took_s == pytest.approx(prefill_s + decode_s, rel=1e-9)


def test_a_lone_request_on_a_gpu_takes_what_the_formula_says() -> None:
    """Llama 8B on an H200: 5,000 prompt tokens in three chunks, then 99 steps."""
    cost = RooflineCost(model=MODELS["llama-3.1-8b"], device=DEVICES["h200"])
    engine = Engine(EngineConfig(cost=cost))
    engine.submit(sequence("a", 5000, 100))
    took_s = sum(step.duration_s for step in drain(engine))

    chunks = [(2048, 0), (2048, 2048), (904, 4096)]
    prefill_s = sum(
        cost.line(0, Prompts(1, n, n * before + n * (n + 1) // 2, before)).base_s
        for n, before in chunks
    )
    decode_s = sum(cost.line(1).at(kv_tokens) for kv_tokens in range(5001, 5100))
    assert took_s == pytest.approx(prefill_s + decode_s, rel=1e-9)


def test_load_bends_latency() -> None:
    """With twice as many requests as places, the second half waits for the first."""
    engine = Engine(EngineConfig(max_num_seqs=16))
    for number in range(32):
        engine.submit(sequence(number, 200, 50))
    now, first_at, done_at = 0.0, {}, {}
    for step in drain(engine):
        now += step.duration_s
        for emitted in step.tokens:
            first_at.setdefault(emitted.id, now)
            if emitted.finished:
                done_at[emitted.id] = now

    alone_s = engine.config.cost.line(0, Prompts(1, 200)).base_s
    assert first_at[0] > 5 * alone_s, "prompts that come together share the token budget"
    assert first_at[16] > done_at[0] > 10 * alone_s, "the 17th waits until a place is free"


def test_a_full_queue_refuses() -> None:
    """One may start, one may wait, the third is refused, and nothing changes by that."""
    engine = Engine(EngineConfig(max_num_seqs=1, max_queued=1))
    sequences = [sequence(name, 1, 5) for name in "abc"]

    assert [engine.submit(asked) for asked in sequences] == [True, True, False]
    engine.step()
    assert engine.waiting == 1
    assert not engine.submit(sequences[2]), "one runs, one waits"


TIGHT = EngineConfig(max_num_seqs=4, kv_cache_tokens=64, block_tokens=4, cost=COST)


def test_a_cache_that_runs_out_preempts_the_last_admitted() -> None:
    """Two of 20 + 30 tokens do not fit into 64: the second gives way, waits, and ends later."""
    engine = Engine(TIGHT)
    for name in "ab":
        engine.submit(sequence(name, 20, 30))
    steps = drain(engine)

    assert [name for step in steps for name in step.preempted] == ["b"]
    finished = [e.id for step in steps for e in step.tokens if e.finished]
    assert finished == ["a", "b"]
    again = next(i for i, step in enumerate(steps) if step.preempted)
    assert [name for step in steps[again:] for name in step.admitted] == ["b"]


@pytest.mark.parametrize("preemption", Preemption)
def test_what_a_return_costs(preemption: Preemption) -> None:
    """Recomputed: prompt and answer so far. Swapped: out, in, and one token to go on with."""
    engine = Engine(replace(TIGHT, preemption=preemption))
    for name in "ab":
        engine.submit(sequence(name, 20, 30))
    steps = drain(engine)
    out = next(step for step in steps if step.preempted)
    back = next(step for step in reversed(steps) if step.admitted)
    # Both had made 13 tokens when all 16 blocks held 4; 32 of b's tokens were in the cache.
    if preemption is Preemption.SWAP:
        assert back.prefill_tokens == 1
        assert out.duration_s == pytest.approx(COST.line(1).at(33) + COST.swap_s(32))
        assert back.duration_s == pytest.approx(
            COST.line(0, Prompts(1, 1)).base_s + COST.swap_s(32)
        )
    else:
        assert back.prefill_tokens == 33
        assert out.duration_s == pytest.approx(COST.line(1).at(33))


def test_a_prompt_that_begins_alike_is_found() -> None:
    """The second of two prompts with 64 tokens in common computes only its own 10."""
    config = EngineConfig(prefix_caching=True, cost=COST)
    engine = Engine(config)
    for number in range(2):
        spans = (Span(7, 64), Span(100 + number, 10))
        engine.submit(sequence(number, 74, 1, spans=spans))
        (step,) = drain(engine)

    assert (step.cache_queries, step.cache_hits, step.prefill_tokens) == (74, 64, 10)


def test_the_next_turn_finds_the_answer() -> None:
    """Prompt and answer of the first turn are found, but for the answer's last token's block."""
    config = EngineConfig(prefix_caching=True, cost=COST, block_tokens=1)
    engine = Engine(config)
    first = (Span(1, 30),)
    engine.submit(sequence("a", 30, 20, spans=first, answer=2))
    drain(engine)
    engine.submit(sequence("b", 60, 1, spans=(*first, Span(2, 20), Span(3, 10))))
    (step,) = drain(engine)

    assert step.cache_hits == 49


def test_a_prompt_found_whole_still_computes_its_last_token() -> None:
    """Something has to be computed for the first token to come from."""
    engine = Engine(EngineConfig(prefix_caching=True, cost=COST))
    for name in "ab":
        engine.submit(sequence(name, 32, 1, spans=(Span(1, 32),)))
        (step,) = drain(engine)

    assert (step.cache_hits, step.prefill_tokens) == (31, 1)


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    """Three prompts fill the cache; the fourth costs the oldest its last blocks first."""
    config = EngineConfig(prefix_caching=True, cost=COST, kv_cache_tokens=24, block_tokens=1)
    engine = Engine(config)

    def ask(span: int) -> int:
        engine.submit(sequence("x", 8, 1, spans=(Span(span, 8),)))
        (step,) = drain(engine)
        return step.cache_hits

    assert [ask(span) for span in (1, 2, 3)] == [0, 0, 0]
    assert ask(1) == 7  # found whole, and used again
    engine.submit(sequence("y", 3, 1, spans=(Span(4, 3),)))
    drain(engine)
    assert ask(2) == 5  # the oldest by now, and three blocks were needed
    assert ask(1) == 7


def test_answers_share_their_prompts_blocks() -> None:
    """Four answers to 40 tokens: ten blocks once, and what each answer needs of its own."""
    config = EngineConfig(cost=COST, block_tokens=4, kv_cache_tokens=400)
    engine = Engine(config)
    engine.submit(sequence("a", 40, 3, others=(3, 3, 3)))
    steps = drain(engine)

    assert [step.running for step in steps] == [4, 4, 4]
    assert [round(step.kv_usage_ratio * 100) for step in steps] == [10, 14, 14]
    assert Counter(e.answer for step in steps for e in step.tokens) == dict.fromkeys(range(4), 3)


def test_answers_may_differ_in_length() -> None:
    """One, five and three tokens; the request is there until the last is complete."""
    engine = Engine(EngineConfig(cost=COST))
    engine.submit(sequence("a", 40, 1, others=(5, 3)))
    steps = drain(engine)

    assert Counter(e.answer for step in steps for e in step.tokens) == {0: 1, 1: 5, 2: 3}
    assert [step.running for step in steps] == [3, 2, 2, 1, 1]


def test_answers_write_into_copies_of_the_last_block() -> None:
    """42 tokens leave a block half full: every answer goes on in a copy of it."""
    config = EngineConfig(cost=COST, block_tokens=4, kv_cache_tokens=400)
    engine = Engine(config)
    engine.submit(sequence("a", 42, 3, others=(3, 3, 3)))
    steps = drain(engine)

    assert [round(step.kv_usage_ratio * 100) for step in steps] == [14, 14, 14]


def test_drafts_make_several_tokens_a_step() -> None:
    """All four accepted: five tokens a step. None accepted: one, as without drafts."""
    for ratio, expected in ((1.0, [1, 5, 5, 5, 4]), (0.0, [1] * 20)):
        speculation = Speculation(draft_tokens=4, acceptance_ratio=ratio)
        engine = Engine(EngineConfig(cost=COST, speculation=speculation))
        engine.submit(sequence("a", 10, 20))
        steps = drain(engine)
        assert [e.tokens for step in steps for e in step.tokens] == expected


def test_as_many_drafts_are_accepted_as_the_ratio_says() -> None:
    """(1 - a^(k+1)) / (1 - a) tokens a step on average: 2.533 for k = 3, a = 0.7."""
    config = EngineConfig(cost=COST, speculation=Speculation(), kv_cache_tokens=100_000)
    engine = Engine(config)
    engine.submit(sequence("a", 1, 20_000, seed=5))
    steps = drain(engine)[1:]

    mean = sum(e.tokens for step in steps for e in step.tokens) / len(steps)
    assert mean == pytest.approx((1 - 0.7**4) / 0.3, rel=0.02)
    assert sum(s.accepted for s in steps) == pytest.approx(1.533 * len(steps), rel=0.03)
    assert {step.drafted for step in steps} == {3}


def test_the_seed_decides_what_is_accepted() -> None:
    """The same seed, whatever runs beside it; another seed, another path."""

    def path(seed: int, others: int) -> list[int]:
        engine = Engine(EngineConfig(cost=COST, speculation=Speculation()))
        for number in range(others):
            engine.submit(sequence(number, 5, 30, seed=90 + number))
        engine.submit(sequence("a", 10, 60, seed=seed))
        return [e.tokens for step in drain(engine) for e in step.tokens if e.id == "a"]

    assert path(1, 0) == path(1, 3) != path(2, 0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_num_seqs": 0}, "at least one sequence"),
        ({"max_num_seqs": 64, "max_batched_tokens": 63}, "token budget"),
        ({"max_num_seqs": 64, "max_batched_tokens": 255, "speculation": Speculation()}, "drafted"),
        ({"max_queued": -1}, "at least 0"),
        ({"kv_cache_tokens": 15}, "no block of 16"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    """An engine that could stand still for ever is not built."""
    with pytest.raises(SettingsError, match=says):
        EngineConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"draft_tokens": 0}, "at least one token"), ({"acceptance_ratio": 1.1}, "between 0 and 1")],
)
def test_speculation_that_makes_no_sense_is_refused(wrong: dict[str, Any], says: str) -> None:
    """In one sentence."""
    with pytest.raises(SettingsError, match=says):
        Speculation(**wrong)


def test_a_sequence_that_can_never_run_is_refused() -> None:
    """It would block the queue for ever."""
    engine = Engine(EngineConfig(kv_cache_tokens=16, max_num_seqs=2))
    with pytest.raises(SettingsError, match="17 tokens cannot fit"):
        engine.submit(sequence("a", 16, 1))
    with pytest.raises(SettingsError, match="3 answers at once are more than the 2"):
        Engine(EngineConfig(max_num_seqs=2)).submit(sequence("a", 1, 1, others=(1, 1)))


def test_what_is_not_there_can_be_aborted() -> None:
    """And nothing happens."""
    assert not Engine().abort("nobody")


def test_time_is_counted_in_femtoseconds() -> None:
    """Seconds are what is left of them."""
    engine = Engine()
    engine.submit(sequence("a", 200, 1))
    (step,) = drain(engine)

    assert step.duration_fs == round(0.060 * FS)
    assert step.duration_s == pytest.approx(0.060)

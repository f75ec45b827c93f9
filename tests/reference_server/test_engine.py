"""The engine: what no load may break, and what a lone request takes to the last digit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.engine import Engine, EngineConfig, Sequence, Step
from reference_server.errors import SettingsError

CONFIGS = st.builds(
    EngineConfig,
    max_num_seqs=st.integers(1, 5),
    max_batched_tokens=st.integers(5, 40),
    kv_cache_tokens=st.integers(60, 200),
)
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 20))  # prompt, output: fit into 60 tokens


def drain(engine: Engine, limit: int = 100_000) -> list[Step]:
    """All steps until nothing is left to do."""
    steps = []
    while not engine.idle:
        steps.append(engine.step())
        assert len(steps) < limit, "the engine does not come to an end"
    return steps


def submit_all(engine: Engine, sizes: list[tuple[int, int]]) -> None:
    for number, (prompt, output) in enumerate(sizes):
        assert engine.submit(Sequence(id=str(number), prompt_tokens=prompt, output_tokens=output))


@given(CONFIGS, st.lists(SIZES, max_size=30))
def test_every_sequence_gets_exactly_its_tokens(
    config: EngineConfig, sizes: list[tuple[int, int]]
) -> None:
    """None is lost or starved: each gets as many tokens as asked, the last one marked."""
    engine = Engine(config)
    submit_all(engine, sizes)
    got: dict[str, int] = {}
    finished = []
    for step in drain(engine):
        for emitted in step.tokens:
            got[emitted.id] = got.get(emitted.id, 0) + emitted.tokens
            if emitted.finished:
                finished.append(emitted.id)

    assert got == {str(number): output for number, (_, output) in enumerate(sizes)}
    assert sorted(finished) == sorted(got)


@given(CONFIGS, st.lists(SIZES, min_size=1, max_size=30))
def test_no_step_exceeds_what_the_machine_has(
    config: EngineConfig, sizes: list[tuple[int, int]]
) -> None:
    """Places, token budget and KV cache hold in every step, and every step takes time."""
    engine = Engine(config)
    submit_all(engine, sizes)
    for step in drain(engine):
        assert step.running <= config.max_num_seqs
        assert step.kv_usage_ratio <= 1
        # A sequence that has just ended its prompt emits too, without having decoded.
        decoded = len(step.tokens) if not step.prefill_tokens else 0
        assert step.prefill_tokens + decoded <= config.max_batched_tokens
        assert step.duration_s > 0


@given(CONFIGS, st.lists(SIZES, max_size=30))
def test_the_queue_is_first_come_first_served(
    config: EngineConfig, sizes: list[tuple[int, int]]
) -> None:
    """Nobody overtakes, however well a later one would fit."""
    engine = Engine(config)
    submit_all(engine, sizes)
    admitted = [int(name) for step in drain(engine) for name in step.admitted]

    assert admitted == list(range(len(sizes)))


@given(CONFIGS, st.lists(SIZES, min_size=1, max_size=12), st.data())
def test_an_aborted_sequence_costs_the_others_nothing(
    config: EngineConfig, sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Aborted anywhere on its way, it gets no more tokens, and all the others get theirs."""
    engine = Engine(config)
    submit_all(engine, sizes)
    victim = str(data.draw(st.integers(0, len(sizes) - 1)))
    before = [engine.step() for _ in range(data.draw(st.integers(0, 10))) if not engine.idle]
    engine.abort(victim)
    after = drain(engine)

    assert all(emitted.id != victim for step in after for emitted in step.tokens)
    finished = {e.id for step in before + after for e in step.tokens if e.finished}
    assert finished | {victim} == {str(number) for number in range(len(sizes))}


@given(CONFIGS, st.integers(1, 40), st.integers(1, 20))
def test_a_lone_request_takes_what_the_formula_says(
    config: EngineConfig, prompt: int, output: int
) -> None:
    """Chunks of prefill, then decode steps that attend to one token more each time."""
    engine = Engine(config)
    submit_all(engine, [(prompt, output)])
    took = sum(step.duration_s for step in drain(engine))

    chunks = -(-prompt // config.max_batched_tokens)
    prefill_s = chunks * config.prefill_base_s + prompt * config.prefill_per_token_s
    decodes = output - 1
    attended = decodes * prompt + decodes * output // 2  # prompt + 1 ... prompt + decodes
    decode_s = decodes * (config.decode_base_s + config.decode_per_sequence_s)
    decode_s += attended * config.decode_per_kv_token_s
    assert took == pytest.approx(prefill_s + decode_s)


def test_the_defaults_are_those_of_the_documentation() -> None:
    """200 prompt tokens alone take 60 ms, a decode step alone 8 ms, with 32 running 20 ms."""
    config = EngineConfig()

    assert config.prefill_s(200) == pytest.approx(0.060)
    assert config.decode_s(1, 250) == pytest.approx(0.008, abs=0.0002)
    assert config.decode_s(32, 32 * 250) == pytest.approx(0.020, abs=0.0005)


def test_load_bends_latency() -> None:
    """With twice as many requests as places, the second half waits for the first."""
    engine = Engine(EngineConfig(max_num_seqs=16))
    submit_all(engine, [(200, 50)] * 32)
    now, first_at, done_at = 0.0, {}, {}
    for step in drain(engine):
        now += step.duration_s
        for emitted in step.tokens:
            first_at.setdefault(emitted.id, now)
            if emitted.finished:
                done_at[emitted.id] = now

    alone_s = engine.config.prefill_s(200)
    assert first_at["0"] > 5 * alone_s, "prompts that come together share the token budget"
    assert first_at["16"] > done_at["0"] > 10 * alone_s, "the 17th waits until a place is free"


def test_a_full_queue_refuses() -> None:
    """One may start, one may wait, the third is refused, and nothing changes by that."""
    engine = Engine(EngineConfig(max_num_seqs=1, max_queued=1))
    sequences = [Sequence(id=name, prompt_tokens=1, output_tokens=5) for name in "abc"]

    assert [engine.submit(sequence) for sequence in sequences] == [True, True, False]
    engine.step()
    assert engine.waiting == 1
    assert not engine.submit(sequences[2]), "one runs, one waits"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_num_seqs": 0}, "at least one sequence"),
        ({"max_num_seqs": 64, "max_batched_tokens": 63}, "token budget"),
        ({"max_queued": -1}, "at least 0"),
        ({"decode_base_s": -0.001}, "negative"),
        ({"prefill_base_s": 0.0, "prefill_per_token_s": 0.0}, "take some time"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], says: str) -> None:
    """An engine that could stand still for ever is not built."""
    with pytest.raises(SettingsError, match=says):
        EngineConfig(**wrong)


def test_a_sequence_larger_than_the_cache_is_refused() -> None:
    """It would block the queue for ever."""
    engine = Engine(EngineConfig(kv_cache_tokens=10))
    with pytest.raises(SettingsError, match="11 tokens cannot fit"):
        engine.submit(Sequence(id="a", prompt_tokens=10, output_tokens=1))

"""The engine on a clock: the schedule follows from the arrivals, not from who was late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.engine import Engine, EngineConfig, LinearCost, Sequence
from reference_server.timeline import Timeline

COST = LinearCost(
    prefill_base_s=1.0,
    prefill_per_token_s=0.0,
    decode_base_s=2.0,
    decode_per_sequence_s=0.0,
    decode_per_kv_token_s=0.0,
)
CONFIG = EngineConfig(max_num_seqs=2, cost=COST)


def sequence(name: str, output: int) -> Sequence:
    return Sequence(id=name, prompt_tokens=1, output_tokens=output)


def instants(timeline: Timeline, now: float) -> list[tuple[float, list[str | int]]]:
    return [(t.ended_at, [e.id for e in t.step.tokens]) for t in timeline.advance(now)]


def test_a_request_joins_at_the_first_step_that_begins_after_it_was_read() -> None:
    """Read while another decodes, it takes part in the next step, not in the one under way."""
    timeline = Timeline(Engine(CONFIG))
    timeline.arrive(sequence("a", 3), 10.0)
    timeline.arrive(sequence("b", 1), 11.5)

    # 10-11 a's prompt; 11-13 a decodes; 13-16 a decodes (2 s) beside b's prompt (1 s)
    assert instants(timeline, 20.0) == [(11.0, ["a"]), (13.0, ["a"]), (16.0, ["a", "b"])]
    assert timeline.due_at is None


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), min_size=1, max_size=12),
    st.lists(st.integers(0, 200), max_size=20),
)
def test_how_often_the_process_is_woken_changes_nothing(
    arrivals: list[tuple[int, int]], wakes: list[int]
) -> None:
    """The same arrivals give the same instants, whether looked at never, seldom or often."""
    arrivals = sorted(arrivals)
    seldom, often = Timeline(Engine(CONFIG)), Timeline(Engine(CONFIG))
    seen = []
    for number, (at, output) in enumerate(arrivals):
        seldom.arrive(sequence(str(number), output), at)
        for wake in sorted(w for w in wakes if w <= at):
            seen += instants(often, wake)
        often.arrive(sequence(str(number), output), at)
    seen += instants(often, 1e6)

    assert seen == instants(seldom, 1e6)


def test_a_request_told_of_late_does_not_make_steps_overlap() -> None:
    """The engine was busy until 11; a request read at 10.5 and told of at 12 begins at 11."""
    timeline = Timeline(Engine(CONFIG))
    timeline.arrive(sequence("a", 1), 10.0)
    assert instants(timeline, 12.0) == [(11.0, ["a"])]
    timeline.arrive(sequence("b", 1), 10.5)

    assert timeline.due_at == pytest.approx(12.0)


def test_gauges_tell_of_the_step_under_way() -> None:
    """Running counts those in the batch now, also in the step in which they finish."""
    timeline = Timeline(Engine(CONFIG))
    for name in "abc":
        timeline.arrive(sequence(name, 1), 10.0)
    # a came first and has the engine to itself; b and c came when its step had begun
    assert (timeline.running, timeline.waiting) == (1, 2)
    timeline.advance(11.0)
    assert (timeline.running, timeline.waiting) == (2, 0)
    timeline.advance(12.0)
    assert (timeline.running, timeline.waiting, timeline.kv_usage_ratio) == (0, 0, 0.0)


def test_a_sequence_that_left_makes_room() -> None:
    """Aborting the only one ends the engine's work with the step under way."""
    timeline = Timeline(Engine(CONFIG))
    timeline.arrive(sequence("a", 100), 10.0)
    timeline.leave("a")

    assert len(timeline.advance(1e6)) == 1
    assert timeline.due_at is None

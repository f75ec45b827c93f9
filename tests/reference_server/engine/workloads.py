"""Random machines and loads for the tests of the engine, and how they are played."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import strategies as st

from reference_server.engine import (
    EngineConfig,
    LinearCost,
    Preemption,
    Scheduling,
    Sequence,
    Span,
    Speculation,
)
from reference_server.engine.sequence import FS

COST = LinearCost(
    prefill_base_s=0.0031,
    prefill_per_token_s=0.00017,
    decode_base_s=0.0053,
    decode_per_sequence_s=0.00037,
    decode_per_kv_token_s=1.9e-5,
    swap_per_token_s=3.3e-5,
)
# A span's length follows from its id, so that equal spans are equal as a whole.
_SHARED = {1: 8, 2: 16, 3: 5, 4: 13}
_PAUSE_S = 1000.0  # after which all that came before has ended


class Event(NamedTuple):
    """A sequence comes, or is given up."""

    at_fs: int
    sequence: Sequence
    leaves: bool = False


@st.composite
def configs(draw: st.DrawFn, **fixed: Any) -> EngineConfig:
    """Small machines, some so tight that preemption is the rule."""
    speculation = st.builds(
        Speculation,
        draft_tokens=st.integers(1, 4),
        acceptance_ratio=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    )
    settings: dict[str, Any] = {
        "max_num_seqs": draw(st.integers(3, 7)),
        "max_batched_tokens": draw(st.integers(35, 80)),
        "kv_cache_tokens": draw(st.integers(96, 260)),
        "block_tokens": draw(st.sampled_from([1, 2, 4, 5, 8, 16])),
        "prefix_caching": draw(st.booleans()),
        "preemption": draw(st.sampled_from(Preemption)),
        "scheduling": draw(st.sampled_from(Scheduling)),
        "speculation": draw(st.none() | speculation),
        "cost": COST,
    }
    return EngineConfig(**settings | fixed)


@st.composite
def loads(draw: st.DrawFn, *, most: int = 12, answers: int = 3) -> list[Event]:
    """Requests that share beginnings, some with several answers, some given up; then next turns."""
    events: list[Event] = []
    texts: list[tuple[Span, ...]] = [()]
    number, at_s = 0, 0.0
    for turn in range(draw(st.integers(1, 2))):
        said = []
        for _ in range(draw(st.integers(1, most))):
            sequence = _sequence(draw, number, draw(st.sampled_from(texts)), answers)
            said.append((*sequence.spans, Span(5000 + number, sequence.output_tokens)))
            at_s += draw(st.sampled_from([0.0, 0.0, 0.001, 0.0173, 0.1, 0.7]))
            events.append(Event(round(at_s * FS), sequence))
            if draw(st.integers(0, 5)) == 0:
                patience_s = draw(st.sampled_from([0.0, 0.004, 0.05, 0.3]))
                events.append(Event(round((at_s + patience_s) * FS), sequence, leaves=True))
            number += 1
        texts += said
        at_s = (turn + 1) * _PAUSE_S
    return sorted(events, key=lambda event: event.at_fs)


def _sequence(draw: st.DrawFn, number: int, begin: tuple[Span, ...], answers: int) -> Sequence:
    shared = draw(st.lists(st.sampled_from(sorted(_SHARED)), max_size=2))
    spans = [*begin, *(Span(name, _SHARED[name]) for name in shared)]
    if sum(span.tokens for span in spans) > 36:
        spans = []
    own = draw(st.integers(0 if spans else 1, 12))
    if own:
        spans.append(Span(1000 + number, own))
    return Sequence(
        id=number,
        prompt_tokens=sum(span.tokens for span in spans),
        output_tokens=draw(st.integers(1, 18)),
        others=tuple(draw(st.lists(st.integers(1, 18), max_size=answers - 1))),
        spans=tuple(spans),
        answer=5000 + number,
        seed=draw(st.integers(0, 9)),
        priority=draw(st.integers(-1, 1)),
    )


def play(engine: Any, events: list[Event]) -> Iterator[tuple[int, Any]]:
    """The begin of each step and the step, as a machine does them when such events come.

    A step takes in what came before its beginning; where nothing is to be done, the next event
    begins one.
    """
    begin_fs, left = 0, list(events)
    while left or not engine.idle:
        while left and (engine.idle or left[0].at_fs < begin_fs):
            event = left.pop(0)
            if engine.idle:
                begin_fs = max(begin_fs, event.at_fs)
            if event.leaves:
                engine.abort(event.sequence.id)
            else:
                engine.submit(event.sequence)
        if not engine.idle:
            step = engine.step()
            yield begin_fs, step
            begin_fs += step.duration_fs

"""What is read out of every kind of answer, however its bytes are cut."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.records import RequestRecord
from loadgen.sse import SseDecoder
from tests.loadgen.api_cases import API_CASES
from tests.loadgen.cases import (
    CASES,
    Case,
    Writes,
    all_in_one,
    one_byte_a_write,
    random_cuts,
)
from tests.loadgen.playing import play

COALESCED = frozenset({"coalesced", "first_coalesced"})
EARLY = frozenset({"early_head", "early_event"})
TIMED = COALESCED | EARLY  # flags that depend on when bytes came
ALL = (*CASES, *API_CASES)
SMALL = [c for c in ALL if sum(len(data) for _, data in c.writes) < 100_000]

each_case = pytest.mark.parametrize("case", ALL, ids=lambda c: c.name)


def milliseconds(seconds: float | None) -> float | None:
    """Rounded to a microsecond: instants are sums of floats."""
    return None if seconds is None else round(seconds * 1000, 3)


def expect_reading(record: RequestRecord, case: Case) -> None:
    """Everything a case says that does not depend on when its bytes came."""
    assert (record.outcome, record.detail) == (case.outcome, case.detail)
    assert record.output_events == case.events
    assert (record.output_tokens, record.token_source) == (case.tokens, case.source)
    assert case.input_tokens is None or record.input_tokens == case.input_tokens
    assert record.cached_input_tokens == case.cached_tokens
    assert record.reasoning_tokens == case.reasoning_tokens
    assert record.first_event_tokens == case.first_event_tokens
    assert record.finish_reasons == case.finish
    assert frozenset(record.flags) - TIMED == case.flags - TIMED


@each_case
def test_as_written(case: Case) -> None:
    """Figures, counts, outcome and flags are what the case says."""
    record = play(case)

    expect_reading(record, case)
    assert frozenset(record.flags) - EARLY == case.flags
    assert milliseconds(record.ttft_s) == case.ttft_ms
    ttfa_ms = case.ttft_ms if case.ttfa_ms is None else case.ttfa_ms
    assert milliseconds(record.ttfa_s) == (None if ttfa_ms == -1 else ttfa_ms)
    if case.tpot_ms is not None:
        assert milliseconds(record.tpot_s) == case.tpot_ms
    if case.done_ms is not None:
        assert record.done_at_s is not None
        assert record.sent_at_s is not None
        assert milliseconds(record.done_at_s - record.sent_at_s) == case.done_ms


@each_case
def test_all_in_one_write(case: Case) -> None:
    """One read changes instants and nothing else; output that shared it is called coalesced."""
    record = play(case, all_in_one(case.writes))

    expect_reading(record, case)
    assert frozenset(record.flags) & COALESCED == (COALESCED if case.events.total > 1 else set())
    assert record.coalesced_events == max(0, case.events.total - 1)


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_one_byte_a_write(case: Case) -> None:
    """Nothing depends on where a read ends, not even inside a line end or a character."""
    expect_reading(play(case, one_byte_a_write(case.writes)), case)


@each_case
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_cuts(case: Case, seed: int) -> None:
    """Nor does it for pieces of any length."""
    expect_reading(play(case, random_cuts(case.writes, seed)), case)


@settings(deadline=None)
@given(st.sampled_from(SMALL), st.integers(min_value=0))
def test_any_cut_gives_the_same_reading(case: Case, seed: int) -> None:
    """For any cutting of any case, only instants differ."""
    expect_reading(play(case, random_cuts(case.writes, seed)), case)


@pytest.mark.parametrize("cut", [all_in_one, one_byte_a_write, lambda w: random_cuts(w, 4)])
@pytest.mark.parametrize("case", [c for c in CASES if c.texts], ids=lambda c: c.name)
def test_text_is_exact(case: Case, cut: object) -> None:
    """Every character of every choice comes out as it was sent, by choice and in order."""
    assert callable(cut)
    texts: dict[int, str] = defaultdict(str)
    for payload in decoded(cut(case.writes)):
        for choice in payload.get("choices") or ():
            texts[choice["index"]] += choice["delta"].get("content") or ""

    assert tuple(texts[i] for i in sorted(texts)) == case.texts


def decoded(writes: Writes) -> list[dict[str, object]]:
    """The JSON payloads of a stream."""
    decoder = SseDecoder()
    events = [event for _, data in writes for event in decoder.feed(data)] + decoder.finish()
    return [orjson.loads(data) for _, data in events if data != b"[DONE]"]


def test_names_are_unique_and_no_case_is_missing() -> None:
    """The table is whole: numbers 01 to 49, each once."""
    assert [int(c.name[:2]) for c in CASES] == list(range(1, 50))
    assert len({c.name for c in ALL}) == len(ALL)


def test_a_reading_can_be_wrong() -> None:
    """The comparison above does compare."""
    record = play(CASES[0])
    with pytest.raises(AssertionError):
        expect_reading(record, replace(CASES[0], tokens=3))

"""What passes by a portion at a time gives what holding and sorting everything would give."""

from __future__ import annotations

import math
import tempfile
import tracemalloc
from array import array
from collections.abc import Collection, Iterable
from fractions import Fraction
from itertools import accumulate
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collectors import gaps, pooled, stats
from collectors.errors import StoreError
from collectors.estimates import SEED, Percentile, blocks_of
from collectors.figures import measure
from collectors.gaps import Gaps, GapsBuilder
from collectors.latency import itl_sample
from collectors.pooled import PooledSample
from collectors.records import FAILED, Outcome, RequestRecord
from collectors.stats import Numbers
from collectors.table import RequestTable
from collectors.tokens import tokens_in_bins
from tests.collectors.builders import columns_of, make_request, make_run, make_table
from tests.collectors.streams import small_portions, streams

_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
QUANTILES = (0.0, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)


class _Straightforward:
    """The gaps of some requests as arrays, sorted: what the figures are defined by."""

    def __init__(self, records: list[RequestRecord]) -> None:
        at_most: list[float] = []
        at_least: list[float] = []
        sizes = []
        self.served = []
        for record in sorted(records, key=lambda r: (r.due_at_s, r.seq)):
            own = list(record.gaps_s or ())
            extra = []
            if record.first_token_at_s is not None and record.last_token_at_s is not None:
                if record.outcome in FAILED:
                    extra = [math.inf]
                elif record.outcome is Outcome.UNFINISHED and record.ended_at_s is not None:
                    extra = [record.ended_at_s - record.last_token_at_s]
            at_most += own + [math.inf] * len(extra)
            at_least += own + extra
            sizes.append(len(own) + len(extra))
            self.served += own if record.outcome is Outcome.OK else []
        self.sizes, self.at_most = np.array(sizes), np.array(at_most)
        self.at_least = np.array(at_least)

    def inflation(self, value: float) -> float:
        """D, from marks of every gap."""
        marks: Numbers = self.at_most > value
        if not marks.any():
            marks = self.at_most >= value
        kept = self.sizes[self.sizes > 0]
        if len(kept) < stats.BATCHES:
            return len(marks) / len(kept)
        if marks.all() or not marks.any():
            return 1.0
        ends = np.cumsum(kept)
        beyond = np.array([marks[end - n : end].sum() for n, end in zip(kept, ends, strict=True)])
        drawn = stats.block_resample(beyond.astype(float), kept.astype(float), seed=SEED)
        share, blocks = marks.mean(), blocks_of(len(kept))
        variance = float(np.var(drawn)) * blocks / (blocks - 1)
        return max(1.0, variance * len(marks) / (share * (1 - share)))


def _same(found: stats.Ordered, expected: list[float] | Numbers) -> None:
    ordered = np.sort(np.array(expected, np.float32))
    assert [float(found[i]) for i in range(len(found))] == ordered.tolist()
    for limit in (0.0, 0.1, 0.25, 0.250000001, 0.5, 1.75, math.inf):
        for side in _SIDES:
            assert found.searchsorted(limit, side=side) == ordered.searchsorted(limit, side)


@settings(max_examples=20)
@given(streams(most=30), st.sampled_from(["a", "b", "any"]), st.floats(0, 10), st.floats(5, 20))
def test_pooled_gaps_are_those_of_the_records(
    records: list[RequestRecord], task: str, start_s: float, end_s: float
) -> None:
    """Of any window and task: every value, rank, D, mean, as from arrays of everything, sorted."""
    with small_portions():
        table = RequestTable.from_records(records).due_between(start_s, end_s)
        if task != "any":
            table = table.select(table.task.where(lambda name: name == task))
        sample = itl_sample(table)
    kept = [r for r in records if start_s <= r.due_at_s <= end_s and task in (r.task, "any")]
    if not any(record.gaps_s for record in kept):
        assert sample is None
        return
    assert sample is not None
    expected = _Straightforward(kept)
    with small_portions():
        assert len(sample) == len(expected.at_most)
        assert sample.requests == np.count_nonzero(expected.sizes)
        _same(sample.ordered, expected.at_most)
        _same(sample.ordered_at_least, expected.at_least)
        _same(sample.ordered_served, expected.served)
        for value in {*expected.at_most.tolist()}:
            assert sample.inflation(value) == expected.inflation(value)
        mean = sample.mean()
    assert (mean is None) is (not expected.served)
    if mean is not None:
        assert mean.n == len(expected.served)
        assert mean.value == pytest.approx(np.mean(expected.served))


def test_dependence_is_that_of_whole_requests() -> None:
    """D of 60 requests, some broken and some open, at every value: as from marks of all gaps."""
    rng = np.random.default_rng(5)
    outcomes = [Outcome.OK, Outcome.OK, Outcome.OK, Outcome.RESET, Outcome.OK, Outcome.UNFINISHED]
    records = [
        make_request(
            i,
            i / 2,
            outcome=outcomes[i % 6],
            gaps_s=(rng.integers(0, 9, rng.integers(0, 5)) / 64 + i // 20).tolist(),
        )
        for i in range(60)
    ]
    expected = _Straightforward(records)
    with small_portions():
        sample = itl_sample(make_table(records))
        assert sample is not None
        found = {value: sample.inflation(value) for value in expected.at_most.tolist()}

    assert found == {value: expected.inflation(value) for value in found}
    assert max(found.values()) > 2


@settings(max_examples=40)
@given(
    st.lists(
        st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, math.inf, 1e-45]),
        min_size=1,
    ),
    st.floats(allow_nan=False),
)
@example([0.1], 0.1)
def test_counting_bits_is_sorting(values: list[float], limit: float) -> None:
    """Floats of every size and sign come out in order, and a limit between two of them fits in."""
    with small_portions():
        ordered = _sample([values]).ordered
        _same(ordered, values)
        ranks = [ordered.searchsorted(limit, side=side) for side in _SIDES]

    assert ranks == [np.sort(np.array(values, np.float32)).searchsorted(limit, s) for s in _SIDES]


def test_many_gaps_are_counted_and_few_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run takes the long way, with its own number of bits, and gives what sorting gives."""
    monkeypatch.setattr(pooled, "SORTED", 2**16)
    monkeypatch.setattr(gaps, "PORTION", 2**16)
    rng = np.random.default_rng(3)
    values = rng.lognormal(-4, 1, (3000, 100)).astype(np.float32)
    found = _sample(values)
    ordered = np.sort(values, axis=None)

    assert isinstance(found.ordered, pooled.Ranked)
    assert isinstance(_sample(values[:100]).ordered, np.ndarray)
    for q in QUANTILES:
        assert Percentile.of(found, q).value == stats.percentile(ordered, q)
    assert found.ordered[-1] == ordered[-1]


@settings(max_examples=40)
@given(streams(most=8), st.integers(0, 3), st.data())
def test_tokens_are_counted_event_by_event(
    records: list[RequestRecord], doublings: int, data: st.DataObject
) -> None:
    """Each bin has the tokens of the events in it, on edges too, gaps kept or not."""
    ends = [float(at_s) for record in records for at_s in _events_at_s(record) if at_s]
    bins = 2**doublings  # so that edges are exact
    edges = np.linspace(0.0, data.draw(st.sampled_from([16.0, *ends])), bins + 1)
    with small_portions():
        found = tokens_in_bins(make_table(records), edges)
    told = [record for record in records if record.output_tokens]
    if not told:
        assert found is None
        return
    expected = np.zeros(bins)
    for record in told:
        at_s = _events_at_s(record)
        counts = np.histogram(np.array([float(t) for t in at_s]), edges)[0]
        expected += counts * (record.output_tokens or 0) / max(1, len(at_s))

    assert found == pytest.approx(expected)


def _events_at_s(record: RequestRecord) -> list[Fraction]:
    """When each output event came: by the gaps, or evenly from first to last."""
    end = record.ended_at_s if record.felt_end_at_s is None else record.felt_end_at_s
    if end is None:
        return []
    first = Fraction(end if record.first_token_at_s is None else record.first_token_at_s)
    if record.gaps_s:
        return list(accumulate(map(Fraction, record.gaps_s), initial=first))
    n = max(1, record.output_events.total)
    return [first + (Fraction(end) - first) * i / max(1, n - 1) for i in range(n)]


@settings(max_examples=20)
@given(streams(most=12), st.data())
def test_a_span_of_requests_is_what_a_mask_finds(
    records: list[RequestRecord], data: st.DataObject
) -> None:
    """The window, which copies nothing, has the columns of a table of those requests alone."""
    instants = st.sampled_from([0.0, 20.0, *(record.due_at_s for record in records)])
    start_s, end_s = data.draw(instants), data.draw(instants)
    with small_portions():
        table = make_table(records)
        inside = [r for r in records if start_s <= r.due_at_s <= end_s]
        expected = columns_of(make_table(inside))
        mask = (table.due_at_s >= start_s) & (table.due_at_s <= end_s)

        assert columns_of(table.due_between(start_s, end_s)) == expected
        assert columns_of(table.select(mask)) == expected


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 4), max_size=12).flatmap(
        lambda counts: st.tuples(st.just(counts), st.lists(st.integers(0, max(0, len(counts) - 1))))
    )
)
def test_gaps_are_read_in_any_order(case: tuple[list[int], list[int]]) -> None:
    """Requests in any order, left out or repeated, have their own gaps, of a file or of memory."""
    counts, rows = case
    own = [[float(10 * i + j) for j in range(n)] for i, n in enumerate(counts)]
    rows = rows if counts else []
    expected = [gap for row in rows for gap in own[row]]

    assert _gaps(own)[np.array(rows, np.int64)].whole().tolist() == expected
    with small_portions():
        chosen = _gaps(own)[np.array(rows, np.int64)]
        portions = list(chosen.portions())
    assert [gap for _, gaps in portions for gap in gaps.tolist()] == expected
    assert [i for own_rows, _ in portions for i in range(len(rows))[own_rows]] == [
        *range(len(rows))
    ]


def test_memory_does_not_grow_with_the_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the gaps (8 MB for 0.8) take less than one MB more to measure."""
    monkeypatch.setattr(gaps, "IN_MEMORY", 2**16)
    monkeypatch.setattr(gaps, "PORTION", 2**16)
    monkeypatch.setattr(pooled, "SORTED", 2**16)

    def peak_bytes(each: int) -> int:
        records = [
            make_request(i, i / 40, gaps_s=own, output_tokens=each + 1)
            for i, own in enumerate([array("f", [0.01] * each)] * 2000)
        ]
        table = make_table(records)
        tracemalloc.start()
        measure(make_run(stopped_at_s=50.0), table, [])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(1000) - peak_bytes(100) < 1_000_000


def test_no_room_for_the_gaps_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or missing folder for temporary files ends in one sentence that says what to do."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    monkeypatch.setattr(gaps, "IN_MEMORY", 2)

    with pytest.raises(StoreError, match=r"/nowhere \(No such file.*\); set TMPDIR"):
        _gaps([[1.0, 2.0, 3.0]])


def _gaps(values: Iterable[npt.ArrayLike]) -> Gaps:
    builder = GapsBuilder()
    builder.extend(np.asarray(own, "<f4").tobytes() for own in values)
    return builder.build()


def _sample(values: Collection[npt.ArrayLike]) -> PooledSample:
    """Of requests that succeeded, with these gaps."""
    none = np.zeros(len(values), np.bool_)
    return PooledSample(_gaps(values), is_ok=~none, broken=none, had_s=np.full(len(values), np.nan))

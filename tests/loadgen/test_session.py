"""How a load process hands on what it recorded."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.batches import MAX_FRAME_BYTES, Batch, pack
from collectors.records import Outcome, RequestRecord
from collectors.samples import Sample
from loadgen import client
from loadgen.session import MAX_BATCH_GAPS, MAX_BATCH_RECORDS, LoadSession, portions
from tests.collectors.examples import a_record
from tests.loadgen.cases import C, Case, D, F
from tests.loadgen.playing import play


def record(gaps: int) -> RequestRecord:
    """An answer of that many events and one."""
    return RequestRecord(
        run_id="r",
        worker="w",
        seq=0,
        outcome=Outcome.OK,
        due_at_s=0.0,
        gaps_s=array("f", bytes(4 * gaps)),
    )


@pytest.mark.parametrize(
    ("gaps", "sizes"),
    [
        ([], [0]),
        ([5], [1]),
        ([0] * (2 * MAX_BATCH_RECORDS), [MAX_BATCH_RECORDS] * 2),
        ([1] * (MAX_BATCH_RECORDS + 1), [MAX_BATCH_RECORDS, 1]),
        ([MAX_BATCH_GAPS] * 3, [1, 1, 1]),
        ([MAX_BATCH_GAPS // 2] * 5, [2, 2, 1]),
        ([1, MAX_BATCH_GAPS, 1, 1], [1, 1, 2]),
    ],
)
def test_a_batch_is_never_too_much(gaps: list[int], sizes: list[int]) -> None:
    """Neither by records nor by the gaps of long answers that end together."""
    records = [record(n) for n in gaps]
    batches = list(portions(records))

    assert [len(batch) for batch in batches] == sizes
    assert [r for batch in batches for r in batch] == records


def test_the_largest_batch_is_taken_by_the_recorder() -> None:
    """Half of what it takes in one message is the feed's limit."""
    batch = Batch(worker="w", sequence=0, at_s=1.0, records=[record(MAX_BATCH_GAPS)])

    assert len(pack(batch)) < MAX_FRAME_BYTES // 2


def test_the_gaps_of_an_endless_answer_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not kept is said; all the rest of its record is there."""
    case = Case(name="long", writes=((1, C("a") * 7 + F() + D),), ttft_ms=1)
    kept = play(case)
    monkeypatch.setattr(client, "MAX_GAPS", 5)
    shed = play(case)

    assert kept.gaps_s is not None
    assert len(kept.gaps_s) == 6
    assert shed.gaps_s is None
    assert shed.output_events == kept.output_events


def a_session(delivered: list[Batch]) -> LoadSession:
    """A session without users, whose transport needs three steps to look at what is open."""
    session = object.__new__(LoadSession)
    session._records, session._steps, session._sequence = [], iter(()), 0
    session._worker, session._began_at = "local", 0.0
    session._on_batch = lambda records: None
    session._deliver = delivered.append
    session._client = SimpleNamespace(open={}, counting={})  # type: ignore[assignment]  # plays it
    session._transport = SimpleNamespace(settle=lambda: iter([None] * 3))  # type: ignore[assignment]
    session._samples = lambda at_s: [Sample(at_s, "local", "open", 0.0)]  # type: ignore[method-assign]
    return session


@given(st.integers(0, 7), st.integers(0, 2 * MAX_BATCH_RECORDS))
def test_what_was_being_handed_on_when_the_run_ended_is_not_lost(steps: int, count: int) -> None:
    """Wherever the regular handing on was cut: every record is delivered once, in order."""
    delivered: list[Batch] = []
    session = a_session(delivered)
    session._records = [a_record(seq=seq) for seq in range(count)]
    session._steps = session._hand_on()
    for _ in range(steps):
        next(session._steps, None)
    session._records.append(a_record(seq=count))
    session.flush()

    assert [r.seq for batch in delivered for r in batch.records] == list(range(count + 1))
    assert [batch.sequence for batch in delivered] == list(range(len(delivered)))
    assert sum(len(batch.samples) for batch in delivered) == 2  # none twice

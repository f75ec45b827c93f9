"""How a run is going, and how that is told."""

from __future__ import annotations

import fcntl
import os

import orjson
import pytest

from collectors.records import Outcome, RequestRecord
from loadgen.progress import RATE_OVER_S, Progress, ProgressPipe, Snapshot

BEGAN_AT = 50.0


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = BEGAN_AT

    def __call__(self) -> float:
        """Now."""
        return self.now


def record(
    outcome: Outcome = Outcome.OK, *, ttft_s: float | None = 0.2, tokens: int | None = 10
) -> RequestRecord:
    """A request that was sent at 1 s."""
    first_s = None if ttft_s is None else 1.0 + ttft_s
    return RequestRecord(
        run_id="run",
        seq=0,
        outcome=outcome,
        due_at_s=1.0,
        sent_at_s=1.0,
        first_token_at_s=first_s,
        last_token_at_s=first_s,
        output_tokens=tokens,
    )


@pytest.fixture
def clock() -> Clock:
    """Stands at the beginning of the run."""
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> Progress:
    """Of a run that just began."""
    return Progress("run", BEGAN_AT, clock)


def test_at_first_nothing_is_known(progress: Progress) -> None:
    """Counts are 0, figures are not."""
    assert progress.snapshot() == Snapshot(
        run_id="run",
        elapsed_s=0.0,
        running=0,
        done=0,
        failed=0,
        output_tokens_per_s=None,
        ttft_p95_s=None,
        ttft_n=0,
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_failed_is_what_the_report_calls_failed(progress: Progress, outcome: Outcome) -> None:
    """Neither a request that the end of the run cut nor one cut on purpose."""
    progress.take("w0", [record(outcome)], 0)
    snapshot = progress.snapshot()
    neutral = {Outcome.OK, Outcome.UNFINISHED, Outcome.NOT_SENT, Outcome.CANCELLED}

    assert snapshot.done == (outcome is Outcome.OK)
    assert snapshot.failed == (outcome not in neutral)


def test_running_is_the_sum_over_workers_as_last_told(progress: Progress) -> None:
    """A worker's new number replaces its old one."""
    progress.take("w0", [], 5)
    progress.take("w1", [], 3)
    progress.take("w0", [], 1)

    assert progress.snapshot().running == 4


def test_the_token_rate_is_that_of_the_last_seconds(progress: Progress, clock: Clock) -> None:
    """Even where nothing came since."""
    clock.now += 20.0
    progress.take("w0", [record(tokens=50)], 0)
    clock.now += RATE_OVER_S - 1.0
    progress.take("w0", [record(tokens=50), record(tokens=None)], 0)
    assert progress.snapshot().output_tokens_per_s == pytest.approx(100 / RATE_OVER_S)

    clock.now += 2.0
    assert progress.snapshot().output_tokens_per_s == pytest.approx(50 / RATE_OVER_S)
    clock.now += RATE_OVER_S
    assert progress.snapshot().output_tokens_per_s is None


def test_a_young_run_is_not_divided_by_seconds_it_did_not_have(
    progress: Progress, clock: Clock
) -> None:
    """Its first second counts as one."""
    clock.now += 1.0
    progress.take("w0", [record(tokens=50)], 0)

    assert progress.snapshot().output_tokens_per_s == pytest.approx(50)


def test_ttft_is_of_served_requests_with_their_number(progress: Progress) -> None:
    """A failed or unstreamed one has none."""
    records = [record(ttft_s=0.1)] * 19 + [record(ttft_s=0.5)] * 2
    progress.take("w0", [*records, record(ttft_s=None), record(Outcome.RESET, ttft_s=9.0)], 0)
    snapshot = progress.snapshot()

    assert snapshot.ttft_n == 21
    assert snapshot.ttft_p95_s == pytest.approx(0.5, rel=1e-2)


# -- the pipe ----------------------------------------------------------------------------------


def test_a_line_is_an_event_with_its_fields(progress: Progress) -> None:
    """As JSON, one a line."""
    reading, writing = os.pipe()
    pipe = ProgressPipe(writing)
    pipe.write("begun", run_id="run")
    pipe.write("progress", progress.snapshot())
    pipe.close()
    with os.fdopen(reading, "rb") as reader:
        first, second = map(orjson.loads, reader)

    assert first == {"event": "begun", "run_id": "run"}
    assert (second["event"], second["running"], second["ttft_p95_s"]) == ("progress", 0, None)


def test_a_reader_that_does_not_read_stops_nothing() -> None:
    """Lines that find no room are dropped whole."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    pipe = ProgressPipe(writing)
    for number in range(1000):
        pipe.write("progress", number=number)
    pipe.close()
    with os.fdopen(reading, "rb") as reader:
        numbers = [orjson.loads(line)["number"] for line in reader]

    assert not pipe.broken
    assert numbers == list(range(len(numbers)))
    assert 0 < len(numbers) < 1000


def test_a_reader_that_is_gone_is_noticed() -> None:
    """So that the run can end with whoever asked for it."""
    reading, writing = os.pipe()
    os.close(reading)
    pipe = ProgressPipe(writing)
    pipe.write("progress")
    pipe.close()

    assert pipe.broken

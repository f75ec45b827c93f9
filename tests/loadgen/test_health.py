"""How well a load process kept up."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.health import PROBE_S, LoopHealth, Usage, read_usage


class Clock:
    """A clock that sleeping moves on, by more than asked where told so."""

    def __init__(self, *late_s: float) -> None:
        self.now = 100.0
        self.late_s = list(late_s)

    def __call__(self) -> float:
        """Now."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move on; the last probe kills the greenlet."""
        if not self.late_s:
            raise KeyboardInterrupt
        self.now += seconds + self.late_s.pop(0)


def probed(*late_s: float) -> LoopHealth:
    """The health of a loop that woke so late, probe by probe."""
    clock = Clock(*late_s)
    health = LoopHealth(clock.sleep, clock)
    with pytest.raises(KeyboardInterrupt):
        health.run()
    return health


def test_lag_is_how_much_later_than_asked_it_woke() -> None:
    """The sleep itself is no lag."""
    report = probed(0.0, 0.002, 0.25, 0.0).report()

    assert report.loop_lag_max_s == pytest.approx(0.25)
    assert report.loop_lag_p99_s == pytest.approx(0.25, rel=1e-3)
    assert PROBE_S == 0.05


def test_waking_early_is_no_negative_lag() -> None:
    """Timers may be a little early."""
    assert probed(-0.01).report().loop_lag_max_s == 0.0


def test_p99_is_of_all_probes() -> None:
    """One late wake-up in a thousand is not in it."""
    report = probed(*[0.001] * 999, 5.0).report()

    assert report.loop_lag_p99_s == pytest.approx(0.001, rel=1e-2)
    assert report.loop_lag_max_s == pytest.approx(5.0)


def test_the_recent_maximum_is_taken_once() -> None:
    """Each batch of records carries its own."""
    health = probed(0.001, 0.003)

    assert health.take_recent_max_s() == pytest.approx(0.003)
    assert health.take_recent_max_s() == 0.0
    assert health.report().loop_lag_max_s == pytest.approx(0.003)


def test_nothing_probed_is_nothing_known() -> None:
    """Not a lag of zero."""
    report = LoopHealth(lambda _: None, lambda: 100.0).report()

    assert (report.loop_lag_p99_s, report.loop_lag_max_s) == (None, None)
    assert (report.cpu_ratio, report.run_queue_wait_ratio) == (None, None)
    assert report.run_queue_wait_p99_s is None


def read_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None) -> Usage:
    """Usage as that page of /proc tells it."""
    page = tmp_path / "schedstat"
    if text is not None:
        page.write_text(text)
    monkeypatch.setattr("loadgen.health._SCHEDSTAT", page)
    return read_usage()


def test_time_spent_waiting_for_a_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nanoseconds in the second field, turns in the third."""
    usage = read_from(monkeypatch, tmp_path, "8000000000 2500000000 42\n")

    assert (usage.waited_s, usage.turns) == (2.5, 42)
    assert usage.cpu_s > 0


@pytest.mark.parametrize("text", [None, "", "1 2", "a b c", "0 0 0 0"])
def test_a_kernel_that_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    """Is not a kernel without waiting."""
    assert read_from(monkeypatch, tmp_path, text)[1:] == (None, None)


def test_waiting_is_told_as_a_share_of_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And per turn, at each probe."""
    read_from(monkeypatch, tmp_path, "0 1000000000 10\n")
    clock = Clock()
    health = LoopHealth(clock.sleep, clock)
    clock.now += 10.0
    health.note(0.0, read_from(monkeypatch, tmp_path, "0 2000000000 20\n"))
    report = health.report()

    assert report.run_queue_wait_ratio == pytest.approx(0.1)
    assert report.run_queue_wait_p99_s == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    "usage", [Usage(1.0, None, None), Usage(1.0, 2.0, None), Usage(1.0, 2.0, 0)]
)
def test_probes_without_waiting_times_count_none(usage: Usage) -> None:
    """Absent is not zero."""
    health = LoopHealth(lambda _: None, lambda: 100.0)
    health._last = usage
    health.note(0.0, usage)

    assert health.report().run_queue_wait_p99_s is None


def test_on_this_machine_the_kernel_tells() -> None:
    """The page is there on every Linux we run on."""
    usage = read_usage()

    assert usage.waited_s is not None
    assert usage.turns

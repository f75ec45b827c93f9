"""How telemetry sources are asked."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from itertools import count

import pytest

from collectors import poll
from collectors.errors import NoDataError
from collectors.host import HostCollector
from collectors.poll import Poller, Reading
from collectors.samples import Sample


class Source:
    """A collector that does what a function says."""

    facts: Mapping[str, str] = {"gpu:0": "a card"}

    def __init__(self, name: str, *does: object) -> None:
        self.name = name
        self._does = iter(does)

    def collect(self) -> Iterator[Reading]:
        for what in next(self._does):  # type: ignore[attr-defined]  # each is a list
            if isinstance(what, Exception):
                raise what
            yield what, 0.5, "gpu:0"


def ticking() -> Poller:
    """A poller for which a second passes each time it looks at the clock."""
    clock = count()
    return Poller([], lambda: float(next(clock)))


def test_a_source_is_read_and_so_is_how_that_went() -> None:
    """Readings carry the instant at which they were asked for; success and duration follow."""
    poller = ticking()
    source = Source("gpu", ["gpu_busy_ratio", "gpu_power_watts"])
    assert list(poller.poll(source)) == [
        Sample(0.0, "gpu:0", "gpu_busy_ratio", 0.5),
        Sample(0.0, "gpu:0", "gpu_power_watts", 0.5),
        Sample(0.0, "gpu", "collector_success", 1.0),
        Sample(0.0, "gpu", "collector_duration_seconds", 1.0),
    ]
    assert poller.facts == {"gpu:0": "a card"}


def test_a_source_that_fails_half_way_leaves_only_its_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failing source has no readings of that moment, is complained of once, and is asked on."""
    failing = ["gpu_busy_ratio", OSError("driver")]
    source, poller = Source("gpu", failing, failing, ["gpu_busy_ratio"]), ticking()
    rounds = [[(s.name, s.value) for s in poller.poll(source)][:-1] for _ in range(3)]
    assert rounds == [
        [("collector_success", 0.0)],
        [("collector_success", 0.0)],
        [("gpu_busy_ratio", 0.5), ("collector_success", 1.0)],
    ]
    assert caplog.text.count("collector gpu failed") == 1


def test_an_absent_source_is_a_note_and_is_not_asked_again() -> None:
    """A source that does not exist here says so in a sentence, once, and its thread ends."""
    poller = Poller([Source("gpu", [NoDataError("no GPU seen here")])], lambda: 0.0, 0.0)
    poller.start()
    poller._threads[0].join(10)
    assert not poller._threads[0].is_alive()
    assert poller.notes == ["no GPU seen here"]
    assert poller.drain() == []


def test_a_source_that_hangs_costs_only_its_own_readings() -> None:
    """While one driver's call does not return, the readings of another source go on."""
    called, release = threading.Event(), threading.Event()

    class Hanging(Source):
        def collect(self) -> Iterator[Reading]:
            called.set()
            release.wait()
            yield "gpu_busy_ratio", 0.5, "gpu:0"

    read = threading.Semaphore(0)

    class Quick(Source):
        def collect(self) -> Iterator[Reading]:
            read.release()
            yield "host_cpu_ratio", 0.5, "host:a"

    poller = Poller([Hanging("gpu"), Quick("host:a")], lambda: 0.0, 0.001)
    poller.start()
    assert called.wait(10)
    assert all(read.acquire(timeout=10) for _ in range(3))
    assert {sample.source for sample in poller.drain()} == {"host:a"}
    release.set()
    poller.stop()
    assert "gpu_busy_ratio" in {sample.name for sample in poller.drain()}


def test_readings_nobody_fetches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the recorder cannot write, the oldest readings go."""
    monkeypatch.setattr(poll, "MAX_KEPT", 2)
    poller = ticking()
    poller._kept.extend(Sample(float(i), "a", "b", 1.0) for i in range(5))
    assert [sample.at_s for sample in poller.drain()] == [3.0, 4.0]


def test_this_host_has_readings() -> None:
    """The real host tells its CPU as a ratio and its memory in bytes, under its own name."""
    readings = {name: value for name, value, source in HostCollector().collect()}
    assert 0 <= readings["host_cpu_ratio"] <= 1
    assert 0 < readings["host_memory_used_bytes"] < readings["host_memory_total_bytes"]
    assert all(source.startswith("host:") for _, _, source in HostCollector().collect())

"""How well this load process kept up: loop lag, CPU, time spent waiting for a core.

A client that is late measures itself. These figures go beside every run's latencies and decide
whether the run may be judged at all.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hdrh.histogram import HdrHistogram

PROBE_S = 0.05
_SCHEDSTAT = Path("/proc/self/schedstat")


class Usage(NamedTuple):
    """Seconds on a core, seconds ready to run but waiting for one, and turns on a core.

    The last two are ``None`` where the kernel does not tell.
    """

    cpu_s: float
    waited_s: float | None
    turns: int | None


def read_usage() -> Usage:
    """Of this process so far. Source of the last two: /proc/self/schedstat, fields 2 and 3.

    schedstat is that of the main thread, which is where gevent's loop runs.
    """
    times = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = times.ru_utime + times.ru_stime
    try:
        _, waited_ns, turns = map(int, _SCHEDSTAT.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return Usage(cpu_s, None, None)
    return Usage(cpu_s, waited_ns * 1e-9, turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """Health of one load process since its run began; ``None`` is not observed.

    ``run_queue_wait_p99_s`` is over probes: seconds the loop waited for a core, a turn on average.
    """

    loop_lag_p99_s: float | None
    loop_lag_max_s: float | None
    cpu_s: float
    cpu_ratio: float | None
    run_queue_wait_ratio: float | None
    run_queue_wait_p99_s: float | None


class LoopHealth:
    """Probes the event loop: sleeps, and notes how much later than asked it woke.

    Args:
        sleep: cooperative sleep, seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sleep: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        self._lag_us = HdrHistogram(1, 600_000_000, 3)
        self._wait_us = HdrHistogram(1, 600_000_000, 3)
        self._max_s = 0.0
        self._recent_max_s = 0.0
        self._began = clock()
        self._usage = self._last = read_usage()

    def run(self) -> None:
        """Probe until the greenlet is killed."""
        while True:
            due = self._clock() + PROBE_S
            self._sleep(PROBE_S)
            self.note(max(0.0, self._clock() - due), read_usage())

    def note(self, lag_s: float, usage: Usage) -> None:
        """Take one probe: the lag of its wake-up, and this process's usage right after it."""
        self._lag_us.record_value(max(1, int(lag_s * 1e6)))
        self._max_s = max(self._max_s, lag_s)
        self._recent_max_s = max(self._recent_max_s, lag_s)
        last, self._last = self._last, usage
        if usage.waited_s is None or last.waited_s is None or not usage.turns or not last.turns:
            return
        wait_s = (usage.waited_s - last.waited_s) / max(1, usage.turns - last.turns)
        self._wait_us.record_value(max(1, int(wait_s * 1e6)))

    def take_recent_max_s(self) -> float:
        """The worst lag since the last call."""
        recent, self._recent_max_s = self._recent_max_s, 0.0
        return recent

    @property
    def cpu_s(self) -> float:
        """Seconds on a core so far, as of the last probe."""
        return self._last.cpu_s - self._usage.cpu_s

    def report(self) -> HealthReport:
        """Health so far; some milliseconds of work."""
        usage, wall_s = read_usage(), self._clock() - self._began
        probes = self._lag_us.get_total_count()
        waited = None
        if usage.waited_s is not None and self._usage.waited_s is not None and wall_s > 0:
            waited = (usage.waited_s - self._usage.waited_s) / wall_s
        return HealthReport(
            loop_lag_p99_s=_p99_s(self._lag_us),
            loop_lag_max_s=self._max_s if probes else None,
            cpu_s=usage.cpu_s - self._usage.cpu_s,
            cpu_ratio=(usage.cpu_s - self._usage.cpu_s) / wall_s if wall_s > 0 else None,
            run_queue_wait_ratio=waited,
            run_queue_wait_p99_s=_p99_s(self._wait_us),
        )


def _p99_s(histogram_us: HdrHistogram) -> float | None:
    """p99 of a histogram of microseconds, in seconds; ``None`` where it is empty."""
    if not histogram_us.get_total_count():
        return None
    return float(histogram_us.get_value_at_percentile(99)) * 1e-6

"""Ask every telemetry source once a second, and say how that went.

A source that fails, or hangs, costs its own readings and nobody else's. Its success and its
duration are data like the rest: a gap in a chart can then be told from a quiet GPU (the idea is
that of Prometheus's node_exporter). A source that does not exist here says so once and is not asked
again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from collectors.errors import NoDataError
from collectors.samples import Sample

POLL_EVERY_S = 1.0
STOP_WITHIN_S = 1.0
MAX_KEPT = 200_000
"""Readings kept for a reader that does not come; the oldest go first."""

Reading = tuple[str, float, str]
"""Name (its unit at the end), value, source."""

log = logging.getLogger("streamgauge.poll")


class Collector(Protocol):
    """Anything that can be sampled: a GPU, a host, a /metrics page.

    Attributes:
        name: source of the readings about the collector itself.
        facts: what it found once and for all, e.g. the name of each GPU; for the run's versions.
    """

    name: str

    @property
    def facts(self) -> Mapping[str, str]:
        """What does not change; complete after the first :meth:`collect`."""
        ...

    def collect(self) -> Iterable[Reading]:
        """The readings of this moment; one that is not to be had is left out.

        Raises:
            NoDataError: the source does not exist here.
        """
        ...


class Poller:
    """Polls each collector in a thread of its own, since a driver's call may take its time.

    Args:
        collectors: the sources.
        now: seconds since the run began.
        every_s: time from one reading to the next.
    """

    def __init__(
        self,
        collectors: Iterable[Collector],
        now: Callable[[], float],
        every_s: float = POLL_EVERY_S,
    ) -> None:
        self.notes: list[str] = []
        """A sentence for each source that does not exist here."""
        self.facts: dict[str, str] = {}
        self._now = now
        self._every_s = every_s
        self._kept: deque[Sample] = deque(maxlen=MAX_KEPT)
        self._stopping = threading.Event()
        self._complained: set[str] = set()
        self._threads = [
            threading.Thread(target=self._run, args=(collector,), name=collector.name, daemon=True)
            for collector in collectors
        ]

    def start(self) -> None:
        """Begin to poll."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Poll no more; waits a second for calls that are under way, and not for one that hangs."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout=STOP_WITHIN_S)

    def drain(self) -> list[Sample]:
        """The readings since the last call."""
        return [self._kept.popleft() for _ in range(len(self._kept))]

    def poll(self, collector: Collector) -> Iterator[Sample]:
        """The collector's readings of now, and after them two about the collector itself.

        Raises:
            NoDataError: its source does not exist here.
        """
        began_at_s, success = self._now(), 0.0
        readings: list[Reading] = []
        try:
            # Drawn up before any is handed on, so that a half-read source leaves nothing.
            readings = list(collector.collect())
            success = 1.0
            self.facts.update(collector.facts)
        except NoDataError:
            raise
        except Exception:
            if collector.name not in self._complained:  # each second would fill the terminal
                self._complained.add(collector.name)
                log.exception("collector %s failed", collector.name)
        for name, value, source in readings:
            yield Sample(began_at_s, source, name, value)
        took_s = self._now() - began_at_s
        yield Sample(began_at_s, collector.name, "collector_success", success)
        yield Sample(began_at_s, collector.name, "collector_duration_seconds", took_s)

    def _run(self, collector: Collector) -> None:
        due = time.monotonic()
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            try:
                self._kept.extend(list(self.poll(collector)))
            except NoDataError as reason:
                self.notes.append(str(reason))
                return
            # A turn that took too long is followed by the next one, not by a volley.
            due = max(due + self._every_s, time.monotonic())

"""How a run is going, from the records as they come in."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import orjson
from hdrh.histogram import HdrHistogram

from collectors.records import FAILED, Outcome, RequestRecord

RATE_OVER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One look at a run in progress; ``None`` is not known yet."""

    run_id: str
    elapsed_s: float
    running: int
    done: int
    failed: int
    output_tokens_per_s: float | None
    ttft_p95_s: float | None
    ttft_n: int


class Progress:
    """Counts what has been recorded so far; TTFT p95 is over served requests."""

    def __init__(
        self, run_id: str, began_at: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run_id = run_id
        self._began_at = began_at
        self._clock = clock
        self._running: dict[str, int] = {}
        self._done = self._failed = 0
        self._ttft_us = HdrHistogram(1, 3_600_000_000, 3)
        self._tokens: deque[tuple[float, int]] = deque()

    def take(self, worker: str, records: list[RequestRecord], running: int) -> None:
        """What one worker's batch says."""
        self._running[worker] = running
        now = self._clock()
        tokens = 0
        for record in records:
            ok = record.outcome is Outcome.OK
            self._done += ok
            self._failed += record.outcome in FAILED
            tokens += record.output_tokens or 0
            if ok and record.ttft_s is not None:
                self._ttft_us.record_value(max(1, int(record.ttft_s * 1e6)))
        self._tokens.append((now, tokens))
        self._forget(now)

    def snapshot(self) -> Snapshot:
        """The run as it stands."""
        now = self._clock()
        self._forget(now)
        n = self._ttft_us.get_total_count()
        span_s = min(RATE_OVER_S, now - self._began_at)
        tokens = sum(count for _, count in self._tokens)
        return Snapshot(
            run_id=self._run_id,
            elapsed_s=now - self._began_at,
            running=sum(self._running.values()),
            done=self._done,
            failed=self._failed,
            output_tokens_per_s=tokens / span_s if tokens and span_s > 0 else None,
            ttft_p95_s=self._ttft_us.get_value_at_percentile(95) * 1e-6 if n else None,
            ttft_n=n,
        )

    def _forget(self, now: float) -> None:
        while self._tokens and self._tokens[0][0] < now - RATE_OVER_S:
            self._tokens.popleft()


class ProgressPipe:
    """Writes snapshots as JSON lines to a file descriptor that a parent process reads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.broken = False
        os.set_blocking(fd, False)  # a parent that does not read must not stop the load

    def write(self, event: str, snapshot: Snapshot | None = None, **fields: object) -> None:
        """One line: ``event``, the snapshot's fields and ``fields``."""
        line = {"event": event, **(asdict(snapshot) if snapshot else {}), **fields}
        try:
            os.write(self._fd, orjson.dumps(line) + b"\n")
        except BlockingIOError:
            pass  # a snapshot nobody has room for is worth nothing a moment later
        except OSError:
            self.broken = True

    def close(self) -> None:
        """Close the descriptor."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

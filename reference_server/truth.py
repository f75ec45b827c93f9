"""The truth log: when the server really did what a client claims to have seen.

The yardstick for measuring a client, so it keeps three rules. Instants are absolute seconds of
CLOCK_MONOTONIC, which every process of the machine shares; one pair of clocks, taken when the log
was opened, leads to wall-clock time. A token's instant is the *return* of the write that handed
its last byte to the kernel. And the server's own lateness, actual minus scheduled, stands beside
every request, so that a client is not blamed for a slow source.
"""

from __future__ import annotations

import json
import math
import time
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from operator import sub

from reference_server.errors import RefusedError

DEFAULT_CAPACITY = 100_000


class TruthOutcome(StrEnum):
    """How a request ended, seen from the server."""

    FINISHED = "finished"
    CLIENT_LEFT = "client_left"
    BROKEN = "broken"  # by a fault that was asked for
    REFUSED = "refused"  # likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthRecord:
    """What the server did for one request. ``*_at`` are absolute CLOCK_MONOTONIC seconds.

    Attributes:
        id: the client's X-Request-Id, else the one made up for it.
        read_at: the last byte of the request was read.
        first_token_at: return of the write that carried the first token; None if there was none.
        last_token_at: the same of the last token.
        first_scheduled_at: when the first token was to be written; None before any was written.
        last_scheduled_at: the same of the last token written.
        first_lateness_s: first token, actual minus scheduled.
        lateness_max_s: the largest over all tokens written.
        lateness_p99_s: nearest-rank p99 over all tokens written.
        tokens: tokens written (all of them in one write where the reply was not streamed).
        held_back: tokens the kernel did not take at once, because the client read too slowly.
        streamed: whether the reply was streamed.
        fault: what was done to it on purpose, such as ``stall:2s``; None: nothing.
    """

    id: str
    outcome: TruthOutcome
    streamed: bool
    read_at: float
    first_token_at: float | None
    last_token_at: float | None
    first_scheduled_at: float | None
    last_scheduled_at: float | None
    first_lateness_s: float | None
    lateness_max_s: float | None
    lateness_p99_s: float | None
    tokens: int
    held_back: int
    fault: str | None = None


class OpenTruth:
    """A request under way, whose two arrays go together: one entry a write.

    Servers append to them directly: to ``scheduled_at`` when a token is handed over, to
    ``written_at`` when the kernel has taken it. Until it has, the first is longer than the second.
    """

    __slots__ = (
        "fault",
        "held_back",
        "id",
        "lateness_s",
        "read_at",
        "scheduled_at",
        "streamed",
        "tokens",
        "written_at",
    )

    def __init__(self, request_id: str, read_at: float, *, streamed: bool) -> None:
        self.id = request_id
        self.read_at = read_at
        self.streamed = streamed
        self.scheduled_at = array("d")
        self.written_at = array("d")
        self.held_back = 0
        self.tokens: int | None = None  # None: one a write
        self.fault: str | None = None
        self.lateness_s: list[float] = []  # once it is closed: of each write, in ascending order

    def close(self, outcome: TruthOutcome) -> TruthRecord:
        """The record of this request, once nothing more will be written."""
        written, scheduled = self.written_at, self.scheduled_at
        self.lateness_s = ordered = sorted(map(sub, written, scheduled))
        count = len(ordered)
        return TruthRecord(
            id=self.id,
            outcome=outcome,
            streamed=self.streamed,
            read_at=self.read_at,
            first_token_at=written[0] if count else None,
            last_token_at=written[-1] if count else None,
            first_scheduled_at=scheduled[0] if count else None,
            last_scheduled_at=scheduled[count - 1] if count else None,
            first_lateness_s=written[0] - scheduled[0] if count else None,
            lateness_max_s=ordered[-1] if count else None,
            lateness_p99_s=ordered[math.ceil(0.99 * count) - 1] if count else None,
            tokens=count if self.tokens is None or not count else self.tokens,
            held_back=self.held_back,
            fault=self.fault,
        )


class TruthLog:
    """The last requests a server has ended, in a ring of bounded size.

    Args:
        capacity: requests kept; older ones fall out.
        keep_tokens: of so many of the last requests, every token's instant is kept too.
    """

    def __init__(self, capacity: int = DEFAULT_CAPACITY, keep_tokens: int = 0) -> None:
        self.clock = clock_pair()
        self._records: deque[TruthRecord] = deque(maxlen=capacity)
        self._token_at: deque[array[float]] = deque(maxlen=min(keep_tokens, capacity))

    def __len__(self) -> int:
        return len(self._records)

    def add(self, request: OpenTruth, outcome: TruthOutcome) -> TruthRecord:
        """File a request that has ended."""
        record = request.close(outcome)
        self._records.append(record)
        self._token_at.append(request.written_at)
        return record

    def clear(self) -> None:
        """Forget every request; the clocks stay."""
        self._records.clear()
        self._token_at.clear()

    def to_json(self, *, since: float | None = None, request_id: str | None = None) -> bytes:
        """The log as ``GET /truth`` answers it, oldest end first.

        Args:
            since: only requests read at or after this instant (CLOCK_MONOTONIC seconds).
            request_id: only requests of that id.
        """
        without_tokens = len(self._records) - len(self._token_at)
        requests = []
        for index, record in enumerate(self._records):
            if since is not None and record.read_at < since:
                continue
            if request_id is not None and record.id != request_id:
                continue
            row = asdict(record)
            if index >= without_tokens:
                row["token_at"] = list(self._token_at[index - without_tokens])
            requests.append(row)
        return json.dumps({"clock": self.clock, "requests": requests}).encode()

    def answer(self, query: Iterable[tuple[str, str]]) -> bytes:
        """The log for a query string's pairs (``since``, ``id``).

        Raises:
            RefusedError: ``since`` is not a number.
        """
        asked = dict(query)
        try:
            since = float(asked["since"]) if "since" in asked else None
        except ValueError as error:
            raise RefusedError(
                400, "since must be seconds of CLOCK_MONOTONIC.", "BadRequestError", "since"
            ) from error
        return self.to_json(since=since, request_id=asked.get("id"))


def clock_pair() -> dict[str, float]:
    """The monotonic and the wall clock at one instant: the tightest of a few readings."""
    readings = []
    for _ in range(5):
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        readings.append((after - before, before + (after - before) / 2, wall))
    _, monotonic_s, realtime_s = min(readings)
    return {"monotonic_s": monotonic_s, "realtime_s": realtime_s}

"""One load process's part in one run: the client, what it recorded and when that is handed on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import gevent
from hdrh.histogram import HdrHistogram

from collectors.batches import Batch, OpenRequest
from collectors.records import RequestRecord
from collectors.samples import Sample
from loadgen.client import MAX_GAPS, Ask, Client, OpenAsk, now
from loadgen.counting import TokenCounter
from loadgen.fingerprint import Fingerprints
from loadgen.health import LoopHealth
from loadgen.options import Settings
from loadgen.prompts import PromptMaker
from loadgen.transports import make_transport

FLUSH_S = 0.5
STEP_S = 0.002  # between two steps of handing on, so that what came meanwhile is read
MAX_BATCH_RECORDS = 64  # what takes well under a millisecond to pack
OPEN_AT_ONCE = 128
MAX_BATCH_GAPS = MAX_GAPS  # half of what a recorder takes at once
COUNTS_S = 5.0  # how long the end of a run waits for tokens that are counted here
GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What every load process must know of the run; travels from Locust's master to its workers.

    Attributes:
        began_mono_s: CLOCK_MONOTONIC at instant 0 on the machine named by ``boot_id``.
        dialect: what the keeper of the run saw of the endpoint, see :meth:`Dialect.spec`.
        requests: how many this process may ask; ``None`` for no limit.
        ramp_s: seconds over which this process spreads the first requests of its users.
        salt: the key of the database's hashes, a secret; ``None`` for no fingerprints.
    """

    run_id: str
    scenario: str
    model: str
    dialect: dict[str, Any]
    seed: int
    began_mono_s: float
    began_wall_s: float
    boot_id: str | None
    requests: int | None = None
    ramp_s: float = 0.0
    salt: bytes | None = field(default=None, repr=False)

    def began_at(self, boot_id: str | None) -> float:
        """Instant 0 on this machine's CLOCK_MONOTONIC.

        Elsewhere than on the machine that keeps the run, the wall clocks have to agree.
        """
        if self.boot_id is not None and boot_id == self.boot_id:
            return self.began_mono_s
        return time.monotonic() - (time.time() - self.began_wall_s)


class LoadSession:
    """Asks on behalf of this process's users, and hands batches of records to ``deliver``.

    Args:
        settings: the options of this process, model included.
        info: the run.
        worker: this process's name within the run.
        began_at: instant 0 on CLOCK_MONOTONIC.
        deliver: takes each batch; must not block.
        on_record: told of each record as it is made.
        on_batch: told of the same records a batch at a time, before they are delivered.
        on_spent: told once when the last request allowed became due.
        on_failure: told of an exception of ours that nobody waits for.
    """

    def __init__(
        self,
        settings: Settings,
        info: RunInfo,
        *,
        worker: str,
        began_at: float,
        deliver: Callable[[Batch], None],
        on_record: Callable[[RequestRecord], None],
        on_batch: Callable[[list[RequestRecord]], None],
        on_spent: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.settings = settings
        self.info = info
        self.prompts = PromptMaker(info.seed, worker)
        self.random = random.Random(f"{info.seed}/{worker}/pauses")
        self.stopping = False
        self._users = 0  # at work, asking or thinking
        self._user_s = 0.0  # what they were at work until the last one came or went
        self._users_since = now()
        self._worker = worker
        self._began_at = began_at
        self._deliver = deliver
        self._on_record = on_record
        self._on_batch = on_batch
        self._on_spent = on_spent
        self._on_failure = on_failure
        self._records: list[RequestRecord] = []
        self._steps: Iterator[None] = iter(())
        self._sequence = 0
        self._phase = self.random.random()  # each worker's users fall between those of the others
        self._transport = make_transport(settings)
        self._health = LoopHealth(gevent.sleep)
        self._read_delay_us = HdrHistogram(1, 600_000_000, 3)
        self._events = self._coalesced = 0
        self._counter = None if settings.tokenizer is None else TokenCounter(settings.tokenizer)
        self._client = Client(
            self._transport,
            settings.endpoint,
            settings.limits,
            run_id=info.run_id,
            scenario=info.scenario,
            worker=worker,
            began_at=began_at,
            emit=self._take,
            fingerprints=None if info.salt is None else Fingerprints(info.salt),
            counter=self._counter,
        )
        self._greenlets = [gevent.spawn(self._health.run), gevent.spawn(self._flush_regularly)]

    def next_user_phase_s(self) -> float:
        """When, within the ramp, the next user starts: evenly spread, never all in one instant."""
        self._phase = (self._phase + GOLDEN) % 1.0
        return self._phase * self.info.ramp_s

    def note_user(self, change: int) -> None:
        """A user came to work (1) or went (-1)."""
        self._user_s = self._user_seconds()
        self._users_since = now()
        self._users += change

    def _user_seconds(self) -> float:
        """How long users have been at work so far, all of them together."""
        return self._user_s + self._users * (now() - self._users_since)

    def may_ask(self) -> bool:
        """Whether one more request may become due."""
        limit = self.info.requests
        return not self.stopping and (limit is None or self._client.asked < limit)

    def ask(
        self, ask: Ask, due_at: float, *, is_cut: Callable[[BaseException], bool]
    ) -> RequestRecord:
        """Send one request and wait for its end; see :meth:`loadgen.client.Client.ask`."""
        if self.info.requests is not None and self._client.asked + 1 >= self.info.requests:
            gevent.spawn(self._on_spent)
        return self._client.ask(ask, due_at, is_cut=is_cut)

    def close(self) -> dict[str, Any]:
        """Hand on what is left and stop; the health of this process, as the run keeps it."""
        gevent.killall(self._greenlets)
        if self._counter is not None:
            self._counter.close(COUNTS_S)
        self.flush()
        self._transport.close()
        return self.client_health()

    def client_health(self) -> dict[str, Any]:
        """Figures that say how far this process's stamps can be trusted."""
        delays = self._read_delay_us.get_total_count()
        p99_us = self._read_delay_us.get_value_at_percentile(99) if delays else None
        return {
            "stamp": self._transport.stamp,
            "fast_lane": self._transport.has_lane,
            "read_delay_p99_s": p99_us * 1e-6 if p99_us is not None else None,
            "coalesced_ratio": self._coalesced / self._events if self._events else None,
            "output_events": self._events,
            "tokenizer": None if self._counter is None else self._counter.report(),
            **asdict(self._health.report()),
        }

    def flush(self) -> None:
        """Hand on the records so far, the requests still open, and this process's health."""
        for steps in (self._steps, self._hand_on()):  # what was begun goes first
            for _ in steps:
                pass

    def _hand_on(self) -> Iterator[None]:
        """What :meth:`flush` does, in steps that are short enough not to delay reads."""
        records, self._records = self._records, []
        self._on_batch(records)
        yield
        opened: list[OpenRequest] = []
        for _ in self._look_at_open(opened):
            yield
        samples = self._samples(now() - self._began_at)
        for portion in portions(records):
            batch = Batch(
                worker=self._worker,
                sequence=self._sequence,
                at_s=now() - self._began_at,
                records=portion,
                open=opened,
                samples=samples,
            )
            self._sequence += 1
            samples = []
            self._deliver(batch)
            yield

    def _take(self, record: RequestRecord) -> None:
        self._records.append(record)
        self._events += record.output_events.total
        self._coalesced += record.coalesced_events
        if record.read_delay_s is not None:
            self._read_delay_us.record_value(max(1, int(record.read_delay_s * 1e6)))
        self._on_record(record)

    def _flush_regularly(self) -> None:
        while True:
            gevent.sleep(FLUSH_S)
            self._steps = self._hand_on()
            try:
                for _ in self._steps:
                    gevent.sleep(STEP_S)
            except Exception as error:  # noqa: BLE001 the next may work, and this one is told
                self._on_failure(error)

    def _look_at_open(self, found: list[OpenRequest]) -> Iterator[None]:
        """Add what is open to ``found``, in steps. What ends meanwhile is open still."""
        waiting = list((self._client.open | self._client.counting).items())
        yield from self._transport.settle()
        for start in range(0, len(waiting), OPEN_AT_ONCE):
            found += self._as_open(waiting[start : start + OPEN_AT_ONCE])
            yield

    def _as_open(self, waiting: list[tuple[int, OpenAsk]]) -> list[OpenRequest]:
        began_at = self._began_at

        def instant(at: float | None) -> float | None:
            return None if at is None else at - began_at

        return [
            OpenRequest(
                seq=seq,
                due_at_s=o.due_at - began_at,
                sent_at_s=instant(o.exchange.sent_at),
                first_byte_at_s=instant(o.exchange.head_at),
                first_token_at_s=instant(o.reply.first_output_at),
                first_answer_at_s=instant(o.reply.first_answer_at),
                last_token_at_s=instant(o.reply.last_output_at),
                task=o.ask.task,
            )
            for seq, o in waiting
        ]

    def _samples(self, at_s: float) -> list[Sample]:
        source = f"worker:{self._worker}"
        values = {
            "client_loop_lag_seconds": self._health.take_recent_max_s(),
            "client_cpu_seconds_total": self._health.cpu_s,
            "client_open_requests": len(self._client.open),
            "client_user_seconds_total": self._user_seconds(),
        }
        return [Sample(at_s, source, name, float(value)) for name, value in values.items()]


def portions(records: Iterable[RequestRecord]) -> Iterator[list[RequestRecord]]:
    """Records by the batch, at least one, which may be empty: it also tells what is open.

    Many long answers that end together, as at the end of a run, would be too much for one.
    """
    portion: list[RequestRecord] = []
    gaps = 0
    for record in records:
        more = len(record.gaps_s or ())
        if portion and (len(portion) == MAX_BATCH_RECORDS or gaps + more > MAX_BATCH_GAPS):
            yield portion
            portion, gaps = [], 0
        portion.append(record)
        gaps += more
    yield portion


def worst_health(workers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One client health for the run: the worst of each figure over its load processes."""

    def worst(key: str) -> float | None:
        return max((w[key] for w in workers.values() if w.get(key) is not None), default=None)

    stamps = {w.get("stamp") for w in workers.values()} - {None}
    events = sum(w.get("output_events") or 0 for w in workers.values())
    coalesced = sum(
        (w.get("coalesced_ratio") or 0) * (w.get("output_events") or 0) for w in workers.values()
    )
    return {
        "stamp": stamps.pop() if len(stamps) == 1 else ("mixed" if stamps else None),
        "fast_lane": all(w.get("fast_lane") for w in workers.values()) if workers else None,
        "loop_lag_p99_s": worst("loop_lag_p99_s"),
        "loop_lag_max_s": worst("loop_lag_max_s"),
        "read_delay_p99_s": worst("read_delay_p99_s"),
        "run_queue_wait_ratio": worst("run_queue_wait_ratio"),
        "run_queue_wait_p99_s": worst("run_queue_wait_p99_s"),
        "cpu_ratio": worst("cpu_ratio"),
        "cpu_s": sum(w.get("cpu_s") or 0.0 for w in workers.values()),
        "coalesced_ratio": coalesced / events if events else None,
        "tokenizer": _counted([w["tokenizer"] for w in workers.values() if w.get("tokenizer")]),
        "workers": workers,
    }


def _counted(reports: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What all processes counted; ``None`` where none did."""
    if not reports:
        return None
    sums = {key: sum(r[key] for r in reports) for key in ("counted", "given_up", "cpu_s")}
    return {**sums, "lag_max_s": max(r["lag_max_s"] for r in reports)}

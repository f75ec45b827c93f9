"""A run in virtual time, recorded like any other: the same database, report, check and pages."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise

from collectors.batches import Batch
from collectors.records import Outcome, OutputEvents, RequestRecord, TokenSource
from collectors.runs import Run, RunStatus
from collectors.samples import Sample
from collectors.store import Store
from reference_server.engine.replica import Fate, Served
from reference_server.engine.sequence import FS
from reference_server.engine.snapshot import Snapshot

_WORKER = "simulator"
_BATCH = 1000
_SOURCE = "server:simulator"
_READINGS = {
    "server_running_requests": "running",
    "server_waiting_requests": "waiting",
    "server_kv_cache_ratio": "kv_cache_ratio",
    "server_preemptions": "preemptions",
    "server_prefix_queried_tokens": "queried_tokens",
    "server_prefix_found_tokens": "found_tokens",
    "server_prompt_tokens": "prompt_tokens",
    "server_generated_tokens": "generated_tokens",
    "server_drafted_tokens": "drafted_tokens",
    "server_accepted_tokens": "accepted_tokens",
    "server_finished_requests": "finished",
    "server_refused_requests": "refused",
}
_OUTCOMES = {
    Fate.FINISHED: Outcome.OK,
    Fate.CACHED: Outcome.OK,
    Fate.REFUSED: Outcome.OVERLOADED,
    Fate.LEFT: Outcome.TIMEOUT,
}


def record_run(
    store: Store,
    run: Run,
    served: Iterable[Served],
    told: Callable[[int], None],
    *,
    caching: bool,
    snapshots: list[Snapshot],
    answers_kept: bool = False,
) -> int:
    """Keep a run and its requests as they end; the number of requests.

    Args:
        store: where.
        run: as it begins; it is complete once this returns, and interrupted if it raises.
        served: its requests, in the order they end.
        told: called with the number of requests so far, now and then.
        caching: whether a prompt's cached tokens are known.
        snapshots: of the fleet, which fill up meanwhile; emptied.
        answers_kept: whether a cache of answers stands in front.
    """
    store.create_run(run)
    requests, last_due_s, ended_s = iter(served), 0.0, 0.0
    count, batches, status = 0, 0, RunStatus.INTERRUPTED
    try:
        while batch := list(islice(requests, _BATCH)):
            records = [
                record_of(each, run, caching=caching, answers_kept=answers_kept) for each in batch
            ]
            ended_s = batch[-1].done_fs / FS
            last_due_s = max(last_due_s, *(record.due_at_s for record in records))
            store.add_batch(run.id, _batch(batches, ended_s, records, snapshots))
            count, batches = count + len(batch), batches + 1
            told(count)
        store.add_batch(run.id, _batch(batches, ended_s, [], snapshots))
        status = RunStatus.COMPLETE
    finally:
        stopped_s = last_due_s if run.duration_s is None else run.duration_s
        store.update_run(
            run.id,
            status=status,
            stopped_at_s=stopped_s,
            ended_at_s=max(ended_s, stopped_s),
            heartbeat_wall_s=time.time(),
        )
    return count


def _batch(
    number: int, at_s: float, records: list[RequestRecord], snapshots: list[Snapshot]
) -> Batch:
    """Records and snapshots, as a load process and a scraper would have sent them."""
    samples = [sample for snapshot in snapshots for sample in samples_of(snapshot)]
    snapshots.clear()
    return Batch(worker=_WORKER, sequence=number, at_s=at_s, records=records, samples=samples)


def samples_of(snapshot: Snapshot) -> Iterator[Sample]:
    """The readings of a fleet; counts are of all since the run began."""
    for name, field in _READINGS.items():
        yield Sample(snapshot.at_s, _SOURCE, name, float(getattr(snapshot, field)))


def record_of(
    served: Served, run: Run, *, caching: bool, answers_kept: bool = False
) -> RequestRecord:
    """What a client would have recorded of a request, had its clock and its network no error.

    An answer that was kept comes as one event.
    """
    sequence = served.sequence
    due_at_s, ended_at_s = served.arrived_fs / FS, served.done_fs / FS
    first_at_s = served.first_fs / FS if 0 <= served.first_fs <= served.done_fs else None
    whole = served.fate in {Fate.FINISHED, Fate.CACHED}
    kept = served.fate is Fate.CACHED
    gaps = _gaps(served)
    last_at_s = ended_at_s if whole else None
    if not whole and gaps is not None and first_at_s is not None:
        last_at_s = first_at_s + sum(gaps)
    return RequestRecord(
        run_id=run.id,
        seq=int(sequence.id),
        worker=_WORKER,
        scenario=run.scenario,
        tier="urgent" if sequence.priority < 0 else None,
        model=run.model,
        api=run.api,
        outcome=_OUTCOMES[served.fate],
        detail="total" if served.fate is Fate.LEFT else None,
        http_status=503 if served.fate is Fate.REFUSED else 200 if first_at_s is not None else None,
        flags=("gateway_cache",) if kept else (),
        due_at_s=due_at_s,
        sent_at_s=due_at_s,
        first_byte_at_s=first_at_s,
        first_token_at_s=first_at_s,
        first_answer_at_s=first_at_s,
        last_token_at_s=last_at_s,
        done_at_s=None if served.fate is Fate.LEFT else ended_at_s,
        ended_at_s=ended_at_s,
        input_tokens=sequence.prompt_tokens if whole else None,
        cached_input_tokens=served.cached_tokens if whole and caching and not kept else None,
        cache_status=("hit" if kept else "miss") if whole and answers_kept else None,
        output_tokens=served.tokens if whole else None,
        token_source=TokenSource.USAGE if whole else None,
        first_event_tokens=(served.tokens if kept else 1) if whole else None,
        asked_output_tokens=sequence.output_tokens,
        output_events=OutputEvents(answer=_events(served)),
        finish_reasons=("length",) if whole else (),
        gaps_s=gaps,
    )


def _events(served: Served) -> int:
    """Events with tokens: one a step that yielded some, if its instants were kept."""
    if served.fate is Fate.CACHED:
        return 1
    return len(served.instants[0]) if served.instants else served.tokens


def _gaps(served: Served) -> array[float] | None:
    if not served.instants:
        return None
    return array("f", (after - before for before, after in pairwise(served.instants[0])))

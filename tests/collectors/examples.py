"""Runs and requests for tests: valid ones, with what matters to the test said by the test."""

from __future__ import annotations

from array import array
from typing import Any

from hypothesis import strategies as st

from collectors.batches import Batch, OpenRequest
from collectors.records import Outcome, OutputEvents, RequestRecord, TokenSource
from collectors.runs import Run
from collectors.samples import Sample

RUN_ID = "01m7z6c6ytq5kdw9"


def a_run(**said: Any) -> Run:
    """A run that began at wall clock 1,000 s."""
    values = {
        "id": RUN_ID,
        "name": "evening",
        "scenario": "chat",
        "target": "http://endpoint",
        "began_wall_s": 1000.0,
        "began_mono_s": 50.0,
    }
    return Run(**values | said)


def a_record(seq: int, **said: Any) -> RequestRecord:
    """A good request, due at ``seq`` seconds."""
    values = {
        "run_id": RUN_ID,
        "seq": seq,
        "outcome": Outcome.OK,
        "due_at_s": float(seq),
        "sent_at_s": seq + 0.001,
        "first_token_at_s": seq + 0.05,
        "last_token_at_s": seq + 0.25,
        "done_at_s": seq + 0.26,
        "ended_at_s": seq + 0.26,
        "output_tokens": 3,
        "token_source": TokenSource.USAGE,
        "output_events": OutputEvents(answer=3),
        "finish_reasons": ("stop",),
        "gaps_s": array("f", [0.125, 0.075]),
    }
    return RequestRecord(**values | said)


def a_batch(sequence: int, seqs: range, worker: str = "local", **said: Any) -> Batch:
    """A batch of good requests with the given numbers."""
    records = [a_record(seq, worker=worker) for seq in seqs]
    values = {"worker": worker, "sequence": sequence, "at_s": float(sequence), "records": records}
    return Batch(**values | said)


_instants = st.floats(0, 1e6)
_counts = st.none() | st.integers(0, 2**53)
_words = st.none() | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
_gaps = st.none() | st.lists(st.floats(0, 100, width=32), max_size=5).map(lambda g: array("f", g))

_hashes = st.binary(min_size=16, max_size=16).map(bytes.hex)


@st.composite
def records(draw: st.DrawFn, worker: str = "local") -> RequestRecord:
    """Any record of the worker: whatever may be absent is absent at times."""
    instants = sorted(draw(st.lists(_instants, min_size=5, max_size=5)))
    names = ("sent_at_s", "first_byte_at_s", "first_token_at_s", "last_token_at_s")
    reached = draw(st.integers(0, len(names)))
    return RequestRecord(
        run_id=RUN_ID,
        worker=worker,
        seq=draw(st.integers(0, 2**31 - 1)),
        attempt=draw(st.integers(0, 3)),
        outcome=draw(st.sampled_from(Outcome)),
        due_at_s=instants[0],
        **dict(zip(names[:reached], instants[1:], strict=False)),  # type: ignore[arg-type]  # floats
        flags=tuple(draw(st.lists(st.sampled_from(["coalesced", "no_done"]), unique=True))),
        finish_reasons=tuple(draw(st.lists(st.text("abc", max_size=3), max_size=2))),
        token_source=draw(st.none() | st.sampled_from(TokenSource)),
        output_events=draw(
            st.builds(OutputEvents, answer=st.integers(0, 9), tool=st.integers(0, 9))
        ),
        gaps_s=draw(_gaps),
        **{
            name: draw(_words)
            for name in ("scenario", "task", "tier", "session", "model", "detail")
        },  # type: ignore[arg-type]  # text
        **{
            name: draw(_counts)
            for name in (
                "input_tokens",
                "output_tokens",
                "asked_output_tokens",
                "cache_write_input_tokens",
                "audio_input_tokens",
                "audio_output_tokens",
            )
        },  # type: ignore[arg-type]  # counts
        http_status=draw(st.none() | st.integers(100, 599)),
        quality=draw(st.none() | st.floats(0, 1)),
        http_version=draw(st.none() | st.sampled_from(["1.0", "1.1", "2"])),
        server_cost_usd=draw(st.none() | st.floats(0, 100)),
        retry_after_s=draw(st.none() | st.floats(0, 1e6)),
        cache_status=draw(st.none() | st.sampled_from(["hit", "miss"])),
        prompt_hash=draw(st.none() | _hashes),
        prompt_sketch=draw(st.none() | st.integers(0, 2**64 - 1)),
        answer_hash=draw(st.none() | _hashes),
        answer_chain=draw(st.none() | st.binary(max_size=12)),
    )


_opens = st.builds(
    OpenRequest,
    seq=st.integers(0, 2**31),
    due_at_s=_instants,
    attempt=st.integers(0, 9),
    sent_at_s=st.none() | _instants,
    first_byte_at_s=st.none() | _instants,
    first_token_at_s=st.none() | _instants,
    first_answer_at_s=st.none() | _instants,
    last_token_at_s=st.none() | _instants,
    task=_words,
)
_samples = st.builds(
    Sample, at_s=_instants, source=st.text(), name=st.text(), value=st.floats(allow_nan=False)
)
batches = st.builds(
    Batch,
    worker=st.just("local"),
    sequence=st.integers(0, 2**31 - 1),
    at_s=_instants,
    records=st.lists(records(), max_size=4),
    open=st.lists(_opens, max_size=3),
    samples=st.lists(_samples, max_size=3),
)
"""Any batch of the worker "local"."""

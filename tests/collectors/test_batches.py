"""Batches and their bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.batches import (
    MAX_FRAME_BYTES,
    Batch,
    Frames,
    framed,
    pack,
    peek,
    unpack,
    without_gaps,
)
from collectors.errors import BatchError
from tests.collectors.examples import a_batch, a_record, batches


@given(batches)
def test_a_batch_survives_its_bytes(batch: Batch) -> None:
    """Unpacking what was packed gives the same batch, whatever is absent from it."""
    assert unpack(pack(batch)) == batch


@given(batches)
def test_shedding_gaps_costs_only_the_gaps(batch: Batch) -> None:
    """Without its gaps a batch says the same about everything else, however often they are shed."""
    shed = unpack(without_gaps(without_gaps(pack(batch))))
    records = [replace(r, gaps_s=None) if r.gaps_s else r for r in batch.records]
    assert shed == replace(batch, records=records)


@given(batches)
def test_the_head_is_readable_on_its_own(batch: Batch) -> None:
    """The head of packed bytes names worker, sequence and the number of records."""
    assert peek(pack(batch)) == (batch.worker, batch.sequence, len(batch.records))


@given(st.binary())
def test_garbage_is_refused(garbage: bytes) -> None:
    """Bytes that are no batch raise BatchError and nothing else."""
    with pytest.raises(BatchError):
        unpack(garbage)


@given(batches, st.data())
def test_damage_is_refused_or_read(batch: Batch, data: st.DataObject) -> None:
    """A batch with one byte changed or its end cut off never raises anything but BatchError."""
    packed = bytearray(pack(batch))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)))
    try:
        unpack(bytes(packed[:cut]))
    except BatchError:
        return


@given(st.lists(st.binary(max_size=40)), st.data())
def test_any_cutting_of_a_stream_gives_the_same_messages(
    messages: list[bytes], data: st.DataObject
) -> None:
    """However a stream is cut into reads, the messages come out whole and in order."""
    stream = b"".join(map(framed, messages))
    frames, out = Frames(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        out += frames.feed(stream[:size])
        stream = stream[size:]
    assert out == messages


def test_a_length_beyond_reason_is_refused() -> None:
    """Neither side takes a message over the bound: a foreign writer cannot fill the memory."""
    with pytest.raises(BatchError):
        list(Frames().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big")))
    with pytest.raises(BatchError):
        framed(bytes(MAX_FRAME_BYTES + 1))


def test_records_of_another_worker_are_our_bug() -> None:
    """A batch is of one worker, since (worker, seq) is what keeps requests apart."""
    with pytest.raises(BatchError, match="several"):
        pack(a_batch(0, range(2), records=[a_record(0, worker="other")]))


def test_a_count_beyond_64_bits_is_our_bug() -> None:
    """A number that cannot be written is a BatchError that names the batch."""
    with pytest.raises(BatchError, match="local/0"):
        pack(a_batch(0, range(0), records=[a_record(0, output_tokens=2**70)]))


def test_half_a_character_does_not_cost_the_batch() -> None:
    """An error text with half a surrogate pair is kept with a question mark in its place."""
    batch = a_batch(0, range(0), records=[a_record(0, detail="oh \ud800 no")])
    assert unpack(pack(batch)).records[0].detail == "oh ? no"

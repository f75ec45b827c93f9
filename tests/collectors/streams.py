"""Random streamed requests, and portions so small that a handful of them is a long run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import strategies as st

from collectors import gaps, pooled
from collectors.records import Outcome, RequestRecord
from tests.collectors.builders import make_request

_OUTCOMES = (Outcome.OK,) * 6 + (
    Outcome.RESET,
    Outcome.UNFINISHED,
    Outcome.CANCELLED,
    Outcome.NOT_SENT,
    Outcome.RATE_LIMITED,
)


def _seconds(most: int) -> st.SearchStrategy[float]:
    """Multiples of 1/64 s, which sums of floats hold exactly."""
    return st.integers(0, 64 * most).map(lambda n: n / 64)


@st.composite
def streamed(draw: st.DrawFn, seq: int = 0) -> RequestRecord:
    """A request due within 20 s that ended somehow, with gaps kept or not, tokens told or not."""
    outcome = draw(st.sampled_from(_OUTCOMES))
    began = outcome is not Outcome.RATE_LIMITED and draw(st.integers(0, 5)) > 0
    own = draw(st.lists(_seconds(2), max_size=6)) if began else []
    changes: dict[str, Any] = {"output_tokens": draw(st.none() | st.integers(0, 9))}
    if not draw(st.integers(0, 3)):
        changes["gaps_s"] = None
    make = partial(
        make_request,
        seq,
        draw(_seconds(20)),
        outcome=outcome,
        ttft_s=draw(_seconds(3)) if began else None,
        gaps_s=own,
        task=draw(st.sampled_from(["a", "b", None])),
        flags=draw(st.sampled_from([(), ("coalesced",), ("no_done", "coalesced")])),
        lag_s=draw(st.sampled_from([0.0, 0.25])),
    )
    ended_at_s = make().ended_at_s
    if outcome is Outcome.UNFINISHED and ended_at_s is not None:
        changes["ended_at_s"] = ended_at_s + draw(_seconds(1))
    return make(**changes)


@st.composite
def streams(draw: st.DrawFn, most: int = 30) -> list[RequestRecord]:
    """Some of them."""
    return [draw(streamed(seq)) for seq in range(draw(st.integers(0, most)))]


@contextmanager
def small_portions() -> Iterator[None]:
    """Gaps go to a file from the third on, are read about five at a time, and never sorted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaps, "IN_MEMORY", 2)
        patch.setattr(gaps, "PORTION", 5)
        patch.setattr(gaps, "_REQUESTS", 4)
        patch.setattr(gaps, "_HOLE", 1)
        patch.setattr(pooled, "SORTED", 0)
        patch.setattr(pooled, "_LOW", 16)
        yield

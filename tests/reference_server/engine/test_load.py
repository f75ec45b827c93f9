"""Loads for a fleet: when requests come, how long they are, who waits for whom."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.engine import EngineConfig, LinearCost
from reference_server.engine.fleet import Fleet
from reference_server.engine.load import (
    MOST_BITS_REWORDED,
    Lengths,
    Load,
    closed_loop,
    instants,
    open_loop,
)
from reference_server.engine.sequence import FS
from reference_server.errors import SettingsError

COST = LinearCost(
    prefill_base_s=0.25,
    prefill_per_token_s=0.0,
    decode_base_s=0.25,
    decode_per_sequence_s=0.0,
    decode_per_kv_token_s=0.0,
)
SHORT = Load(input_tokens=Lengths(10, 10), output_tokens=Lengths(4, 4))  # a second, alone


def gaps(burstiness: float, count: int = 20_000) -> list[float]:
    found = list(islice(instants(10.0, burstiness, 3), count))
    return [after - before for before, after in pairwise(found)]


@pytest.mark.parametrize(("burstiness", "variation"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_gaps_have_the_mean_and_the_spread_asked_for(burstiness: float, variation: float) -> None:
    """Ten a second; deviation over mean is 1 / sqrt(burstiness), that of a gamma distribution."""
    found = gaps(burstiness)
    mean = sum(found) / len(found)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in found) / len(found))

    assert mean == pytest.approx(0.1, rel=0.03)
    assert deviation / mean == pytest.approx(variation, rel=0.05)


def test_constant_arrivals_are_exactly_apart() -> None:
    """The hundredth does not drift."""
    assert list(islice(instants(3.0, math.inf, 0), 100))[99] == 33.0


@given(st.integers(0, 5), st.integers(1, 9), st.integers(0, 3))
def test_a_request_is_as_long_as_its_parts(seed: int, shared_prompts: int, shared: int) -> None:
    """Lengths within their ranges, the shared beginning among so many; the seed decides."""
    load = Load(
        input_tokens=Lengths(5, 9),
        output_tokens=Lengths(2, 3),
        shared_tokens=shared * 7,
        shared_prompts=shared_prompts,
        seed=seed,
    )
    found = [asked.sequence for asked in islice(load.requests(), 40)]
    for sequence in found:
        assert sum(span.tokens for span in sequence.spans) == sequence.prompt_tokens
        assert 5 <= sequence.prompt_tokens - shared * 7 <= 9
        assert 2 <= sequence.output_tokens <= 3
        assert sequence.prompt_tokens <= load.longest.prompt_tokens
    beginnings = {sequence.spans[0].id for sequence in found if shared}
    assert len(beginnings) <= shared_prompts
    again = [asked.sequence for asked in islice(load.requests(), 40)]
    assert [s.spans for s in again] == [s.spans for s in found]


def test_questions_are_asked_again_word_for_word_or_in_other_words() -> None:
    """Ten questions: equal prompts have equal keys, tokens and lengths; half are near one."""
    load = Load(
        input_tokens=Lengths(5, 99),
        output_tokens=Lengths(2, 99),
        shared_tokens=8,
        shared_prompts=3,
        distinct_prompts=10,
        reworded_ratio=0.5,
        seed=4,
    )
    found = list(islice(load.requests(), 1000))
    own = [asked.sequence.spans[-1].id for asked in found]
    asked_as_is = [asked for asked, text in zip(found, own, strict=True) if text < 10]
    reworded = [asked for asked, text in zip(found, own, strict=True) if text >= 10]
    sketches = {asked.prompt.sketch for asked in asked_as_is}
    nearest = [
        min(((asked.prompt.sketch or 0) ^ (other or 0)).bit_count() for other in sketches)
        for asked in reworded
    ]

    assert len({(asked.prompt, asked.sequence.spans) for asked in asked_as_is}) == 10
    assert len({(a.prompt, a.sequence.output_tokens) for a in asked_as_is}) == 10
    assert 440 < len(reworded) < 560
    assert len({asked.prompt.key for asked in reworded}) == len(reworded)
    assert set(nearest) == set(range(1, MOST_BITS_REWORDED + 1))


def test_an_open_loop_ends_by_number_or_by_time() -> None:
    """Whichever comes first."""

    def count(requests: int | None, duration_s: float | None) -> int:
        at_s = instants(2.0, math.inf, 0)
        return len(list(open_loop(SHORT, at_s, requests=requests, duration_s=duration_s)))

    assert (count(7, None), count(None, 3.0), count(7, 3.0), count(3, 3.0)) == (7, 6, 6, 3)


def test_users_ask_again_when_they_have_thought() -> None:
    """One user, a second an answer, half a second of thinking: due every 1.5 s."""
    fleet = Fleet(EngineConfig(cost=COST))
    ended = list(
        closed_loop(fleet, SHORT, users=1, think_s=0.5, ramp_s=0.0, requests=4, duration_s=None)
    )

    assert [served.arrived_fs / FS for served in ended] == [0.0, 1.5, 3.0, 4.5]
    assert [served.e2e_s for served in ended] == [1.0] * 4


def test_no_user_has_two_requests_under_way() -> None:
    """Twenty users on four places: never more than twenty, and all asked for are served."""
    fleet = Fleet(EngineConfig(cost=COST, max_num_seqs=4), 2)
    most, ended = 0, 0
    for _ in closed_loop(
        fleet, SHORT, users=20, think_s=0.0, ramp_s=2.0, requests=200, duration_s=None
    ):
        ended += 1
        most = max(most, sum(fleet._in_flight))
    assert ended == 200
    assert most < 20


def test_users_who_lose_patience_ask_again() -> None:
    """Given up after 0.6 s of a second: the user's next request is due then."""
    fleet = Fleet(EngineConfig(cost=COST))
    hasty = Load(input_tokens=Lengths(10, 10), output_tokens=Lengths(4, 4), patience_s=0.6)
    ended = list(
        closed_loop(fleet, hasty, users=1, think_s=0.0, ramp_s=0.0, requests=None, duration_s=2.0)
    )

    # The step under way when a request is given up goes on to its end.
    assert [round(served.e2e_s, 9) for served in ended] == [0.6] * 4


@pytest.mark.parametrize("wrong", ["", "x", "0", "9-5", "5-", "-5", "1.5"])
def test_lengths_that_are_none_are_refused(wrong: str) -> None:
    """With how they are written; `5-` is 5."""
    if wrong == "5-":
        assert Lengths.read(wrong) == (5, 5)
        return
    with pytest.raises(SettingsError, match="100-900"):
        Lengths.read(wrong)

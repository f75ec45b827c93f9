"""Flags that need to know when things came, or what was asked for."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.records import Outcome, RequestRecord
from loadgen.client import API_PATHS, Ask
from loadgen.flags import EARLY_RATIO, EARLY_S, Length, asked_length, is_early, is_fewer
from tests.loadgen.api_cases import API_CASES
from tests.loadgen.cases import CASES, C, D, F, R, U, Writes
from tests.loadgen.playing import DUE_AT, PlayedTransport, make_client, play

BY_NAME = {case.name: case for case in (*CASES, *API_CASES)}


def early(name: str) -> set[str]:
    """Which of the early flags a case's record carries."""
    return {flag for flag in play(BY_NAME[name]).flags if flag.startswith("early_")}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("21-role-early", {"early_head", "early_event"}),
        ("23-role-in-content", set()),  # the head came with the first token
        ("48-responses", {"early_head", "early_event"}),
        ("49-messages", {"early_head", "early_event"}),
        ("45-err-first", set()),  # no output to be before
        ("46-json-200", set()),
    ],
)
def test_what_came_long_before_the_first_output_is_flagged(name: str, expected: set[str]) -> None:
    """The head, and an event without output, which others take for the first token."""
    assert early(name) == expected


@pytest.mark.parametrize(
    ("at_ms", "output_ms", "flagged"),
    [
        (40, 541, True),  # uvicorn's head and first body byte, as measured
        (0, 541, True),
        (541, 541, False),
        (538, 541, False),  # sent with the first token
        (488, 541, False),  # nearly all of the time lay before the head
        (486, 541, True),
        (0, 9, False),  # what is so short may be the network
        (0, 11, True),
        (600, 541, False),
    ],
)
def test_early_is_more_than_10_ms_and_a_tenth_of_the_time_to_the_output(
    at_ms: int, output_ms: int, flagged: bool
) -> None:
    """Both, so that neither a quick server nor a slow one is flagged for nothing."""
    assert is_early(at_ms / 1000, output_ms / 1000, 0.0) is flagged


@pytest.mark.parametrize("at", [(None, 1.0, 0.0), (0.0, None, 0.0), (0.0, 1.0, None)])
def test_what_was_not_seen_is_not_early(at: tuple[float | None, ...]) -> None:
    """No head, no output, nothing sent."""
    assert is_early(*at) is False


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0.01, 100))
def test_early_leaves_time_for_what_matters(head: float, more: float, factor: float) -> None:
    """Whatever is flagged left more than the threshold; later heads are flagged only if earlier."""
    output = head + more
    if is_early(head, output, 0.0):
        assert more > EARLY_S
        assert more > EARLY_RATIO * output
        assert is_early(head / (1 + factor), output, 0.0)


# -- lengths -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, Length()),
        ({"max_tokens": 9}, Length(limit=9)),
        ({"max_completion_tokens": 9, "max_tokens": 5}, Length(limit=9)),
        ({"max_output_tokens": 9}, Length(limit=9)),
        ({"n_predict": 9}, Length(limit=9)),
        ({"max_tokens": 9, "ignore_eos": True}, Length(limit=9, least=9)),
        ({"max_tokens": 9, "ignore_eos": False}, Length(limit=9)),
        ({"max_tokens": 9, "nvext": {"ignore_eos": True}}, Length(limit=9, least=9)),
        ({"max_tokens": 9, "min_tokens": 4}, Length(limit=9, least=4)),
        ({"max_tokens": 9, "min_tokens": 4, "ignore_eos": True}, Length(limit=9, least=9)),
        ({"min_tokens": 4}, Length(least=4)),
        ({"ignore_eos": True}, Length()),  # as long as the server's own limit, which nobody told
        ({"max_tokens": 9, "min_tokens": 0}, Length(limit=9)),
        ({"max_tokens": 9, "min_tokens": 4, "n": 3}, Length(choices=3, limit=27, least=12)),
        ({"max_tokens": "9", "min_tokens": True, "n": 1.5, "nvext": 7}, Length()),
        ({"max_tokens": 2**53, "n": 2**53}, Length()),
    ],
)
def test_how_long_an_answer_was_asked_to_be(body: dict[str, Any], expected: Length) -> None:
    """From the fields that are sent, whoever added them."""
    assert asked_length("chat", body) == expected


@pytest.mark.parametrize("api", sorted(set(API_PATHS) - {"chat", "completions"}))
def test_choices_are_one_where_an_api_knows_no_more(api: str) -> None:
    """Such a field is ignored there, and multiplies nothing."""
    assert asked_length(api, {"max_tokens": 9, "n": 3}) == Length(limit=9)


@pytest.mark.parametrize(
    ("came", "least", "flagged"),
    [(9, 9, False), (8, 9, True), (10, 9, False), (None, 9, False), (8, None, False)],
)
def test_fewer_than_asked_takes_two_known_counts(
    came: int | None, least: int | None, flagged: bool
) -> None:
    """An unknown count is no small one."""
    assert is_fewer(came, least) is flagged


def answered(tail: bytes, **extra: Any) -> RequestRecord:
    """The record of a request with further fields, answered with two pieces and a tail."""
    writes: Writes = ((5, R), (300, C("aa")), (320, C("bb")), (340, tail))
    client = make_client(PlayedTransport(BY_NAME["01-plain"], writes), [])
    return client.ask(Ask(task="t", prompt="hi", max_tokens=9, extra=extra), DUE_AT)


@pytest.mark.parametrize(
    ("tail", "extra", "flagged"),
    [
        (F("length") + U(7, 9) + D, {"ignore_eos": True}, False),
        (F() + U(7, 2) + D, {"ignore_eos": True}, True),
        (F() + U(7, 2) + D, {"min_tokens": 4}, True),
        (F() + U(7, 2) + D, {"min_tokens": 2}, False),
        (F() + U(7, 2) + D, {}, False),
        (F() + D, {"ignore_eos": True}, False),  # nobody knows how many came
    ],
)
def test_an_answer_shorter_than_it_was_made_to_be_is_flagged(
    tail: bytes, extra: dict[str, Any], flagged: bool
) -> None:
    """A server that takes such a field and ignores it does other work than was asked for."""
    record = answered(tail, **extra)

    assert record.outcome is Outcome.OK
    assert ("fewer_tokens" in record.flags) is flagged
    assert record.asked_output_tokens == 9


def test_a_failed_answer_is_short_for_its_own_reason() -> None:
    """Only an ok one is flagged."""
    record = answered(U(7, 2), ignore_eos=True)

    assert record.outcome is Outcome.TRUNCATED
    assert "fewer_tokens" not in record.flags


def test_the_limit_recorded_is_the_one_that_was_sent() -> None:
    """Whoever set it, times the answers asked for."""
    client = make_client(PlayedTransport(BY_NAME["01-plain"], BY_NAME["01-plain"].writes), [])
    ask = Ask(task="t", prompt="hi", max_tokens=9, extra=orjson.loads('{"max_tokens": 5, "n": 2}'))

    assert client.ask(ask, DUE_AT).asked_output_tokens == 10

"""What an answer says, token by token."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.script import (
    TOKENS_BEFORE_CALL,
    Function,
    Kind,
    Piece,
    Speech,
    until_stop,
    write_script,
)
from reference_server.text import words


def told(pieces: list[Piece], kind: Kind) -> str:
    return "".join(piece.shown for piece in pieces if piece.kind is kind)


def test_a_plain_answer_is_its_words() -> None:
    """As many as asked for, one a token."""
    script = write_script(Speech(seed=5, max_tokens=9))

    assert [piece.shown for piece in script.pieces] == list(islice(words(5), 9))
    assert (script.length, script.finish_reason, script.reasoning_tokens) == (9, "length", 0)


@given(st.lists(st.sampled_from(["a", "b", "ab", " "]), min_size=1), st.data())
def test_a_text_ends_before_its_first_stop_string(tokens: list[str], data: st.DataObject) -> None:
    """All before it is shown, nothing of it is, and nothing that might have begun it too early."""
    stop = data.draw(st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
    pieces, reason = until_stop(tokens, stop)
    text = "".join(tokens)
    found = [at for word in stop if (at := text.find(word)) >= 0]
    shown = "".join(piece.shown for piece in pieces)

    assert [piece.token for piece in pieces] == tokens[: len(pieces)]
    assert (reason is None) == (not found)
    if reason is None:
        assert shown == text
    else:
        # The first stop string to be complete ends it, which need not be the first to begin.
        read = "".join(tokens[: len(pieces)])
        assert reason in read
        assert not any(word in "".join(tokens[: len(pieces) - 1]) for word in stop)
        assert shown == read[: min(read.find(word) for word in stop if word in read)]
    so_far = 0
    for number, piece in enumerate(pieces[:-1], start=1):
        so_far += len(piece.shown)
        assert so_far <= max(0, len("".join(tokens[:number])) - max(map(len, stop)) + 1)


def test_a_stop_string_does_not_end_an_answer_before_its_least_length() -> None:
    """``min_tokens`` holds."""
    pieces, reason = until_stop(["a", "b", "a", "b"], ["b"], min_tokens=3)

    assert (len(pieces), reason) == (4, "b")
    assert "".join(piece.shown for piece in pieces) == "aba"


def test_half_of_an_answer_is_reasoning_where_it_is_asked_for() -> None:
    """First the thoughts, then the text."""
    script = write_script(Speech(seed=1, max_tokens=7, reasons=True))
    kinds = [piece.kind for piece in script.pieces]

    assert kinds == [Kind.REASONING] * 3 + [Kind.TEXT] * 4
    assert script.reasoning_tokens == 3


def test_reasoning_that_is_not_shown_is_generated_all_the_same() -> None:
    """Its tokens count and take their time, but nothing is told of them."""
    script = write_script(Speech(seed=1, max_tokens=6, reasons=True, shows_reasoning=False))
    pieces = list(script.pieces)

    assert [piece.kind for piece in pieces[:3]] == [Kind.HELD] * 3
    assert script.reasoning_tokens == 3


@pytest.mark.parametrize("length", [5, 6, 40])
def test_a_tool_call_is_a_name_and_arguments_that_are_json(length: int) -> None:
    """Spun out to the length asked for."""
    function = Function(name="weather", argument='ci"ty')
    script = write_script(Speech(seed=1, max_tokens=length, function=function))
    pieces = list(script.pieces)

    assert len(pieces) == script.length == length
    assert [piece.kind for piece in pieces[: TOKENS_BEFORE_CALL - 1]] == [Kind.HELD] * 3
    assert told(pieces, Kind.NAME) == "weather"
    assert list(json.loads(told(pieces, Kind.ARGUMENTS))) == ['ci"ty']
    assert script.finish_reason == "tool_calls"


@pytest.mark.parametrize("length", [1, 3, 4])
def test_a_tool_call_that_is_cut_finishes_by_length(length: int) -> None:
    """It is not told as one."""
    function = Function(name="weather", argument="city")
    script = write_script(Speech(seed=1, max_tokens=length, function=function))

    assert (script.finish_reason, told(list(script.pieces), Kind.ARGUMENTS)) == ("length", "")

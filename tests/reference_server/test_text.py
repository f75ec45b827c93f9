"""The stand-in for a tokenizer and a model."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.text import WORDS, answer_length, count_tokens, tokenize, words


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("  \n", 0), ("four", 1), ("fiver", 2), ("a b  c", 3), ("internationally so", 5)],
)
def test_a_token_is_up_to_four_characters_without_a_blank(text: str, tokens: int) -> None:
    """The rule as stated, by hand."""
    assert count_tokens(text) == tokens
    assert len(tokenize(text)) == tokens


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_an_answer_counts_the_same_when_it_comes_back_as_a_prompt(seed: int, length: int) -> None:
    """So that a second turn's prompt is as long as the first turn's answer made it."""
    assert count_tokens("".join(islice(words(seed), length))) == length


def test_the_same_seed_gives_the_same_answer() -> None:
    """And another seed another one."""
    first, again, other = (list(islice(words(seed), 50)) for seed in (1, 1, 2))

    assert first == again
    assert first != other


def test_every_word_is_one_token() -> None:
    """The list of words keeps the rule that answers rest on."""
    assert {count_tokens(word) for word in WORDS} == {1}
    assert len(set(WORDS)) == len(WORDS)


@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(0, 200), st.floats(0.001, 0.999))
def test_an_answer_ends_within_its_bounds(
    seed: int, max_tokens: int, min_tokens: int, chance: float
) -> None:
    """Not before ``min_tokens``, not after ``max_tokens``; `length` says that it was cut."""
    min_tokens = min(min_tokens, max_tokens)
    length, reason = answer_length(seed, max_tokens, min_tokens, chance)

    assert max(min_tokens, 1) <= length <= max_tokens
    assert reason == "stop" or length == max_tokens


def test_without_a_chance_to_end_an_answer_is_as_long_as_asked() -> None:
    """The default: length control is exact."""
    assert answer_length(1, 77, 0, 0.0) == (77, "length")


def test_the_mean_length_is_one_over_the_chance() -> None:
    """The geometric distribution it claims to follow: of 4,000 answers within four errors."""
    lengths = [answer_length(seed, 10_000, 0, 0.05)[0] for seed in range(4000)]

    assert sum(lengths) / len(lengths) == pytest.approx(20, abs=4 * 19.5 / 4000**0.5)

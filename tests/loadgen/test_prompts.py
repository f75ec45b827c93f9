"""Synthetic prompts."""

from __future__ import annotations

import pytest

from loadgen.prompts import WORDS, PromptMaker, prompts_hash


def make(seed: int, stream: str, count: int = 20, tokens: int = 30) -> list[str]:
    """The first prompts of a worker."""
    maker = PromptMaker(seed, stream)
    return [maker.make(tokens) for _ in range(count)]


def test_a_seed_gives_the_same_prompts_in_the_same_order() -> None:
    """So that two runs ask the same."""
    assert make(7, "w0") == make(7, "w0")


@pytest.mark.parametrize("other", [(8, "w0"), (7, "w1")])
def test_another_seed_or_worker_asks_something_else(other: tuple[int, str]) -> None:
    """No two workers of a run share a prompt."""
    assert not set(make(7, "w0")) & set(make(*other))


def test_prompts_differ_from_their_first_words_on() -> None:
    """A prefix cache cannot answer for them."""
    starts = {" ".join(prompt.split()[:8]) for prompt in make(7, "w0", count=1000)}

    assert len(starts) == 1000


@pytest.mark.parametrize(("tokens", "words"), [(1, 1), (2, 2), (200, 200), (0, 1), (-5, 1)])
def test_a_prompt_has_a_word_for_a_token(tokens: int, words: int) -> None:
    """And at least one."""
    assert len(PromptMaker(1, "w0").make(tokens).split()) == words


def test_the_words_are_short_and_plain() -> None:
    """Longer or odder ones would be several tokens; a word that stood twice would come twice."""
    assert len(set(WORDS)) == len(WORDS) > 150
    assert all(word.isascii() and word.isalpha() and len(word) <= 9 for word in WORDS)
    assert [word for word in WORDS if word != word.lower()] in ([], ["I"])


def test_equal_hashes_mean_equal_prompts() -> None:
    """Everything that shapes a prompt shapes the hash."""
    base = prompts_hash(7, "chat", 200)

    assert prompts_hash(7, "chat", 200) == base
    others = {
        prompts_hash(8, "chat", 200),
        prompts_hash(7, "rag", 200),
        prompts_hash(7, "chat", 201),
    }
    assert len(others | {base, prompts_hash(7, "chat", None)}) == 5

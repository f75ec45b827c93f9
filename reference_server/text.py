"""A stand-in for a tokenizer and a model: how text is counted, and what is answered.

The rule, stated so that a client's counts can be checked: a token is a run of at most four
characters without a blank in it. A chat adds four tokens a message and three for the opening of
the answer. Answers are made of words of at most four letters, one token each, so that an answer
sent back in the next turn counts the same as when it was generated.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

TOKENS_PER_MESSAGE = 4
TOKENS_OF_OPENING = 3
VOCABULARY = 32_000  # ids of /tokenize lie below this

_WORD_LIST = """
the of and to in is it you that he was for on are with as they be at one have this from or had by
hot but some what out if when your all how each she time said use an many then them so her make
like him into has look two more see way no part than been who its now find long down day did get
come made may over new take only work know year live me back give most very just form help line
turn much mean old same tell boy want show also play well such here why ask went men read need land
home us move try kind hand high air
"""
WORDS = tuple(_WORD_LIST.split())
PIECES = tuple(f" {word}" for word in WORDS)

_WORDS_AT_ONCE = 32  # drawn one by one they cost three times as much
_PIECE = re.compile(r"\S{1,4}")


def count_tokens(text: str) -> int:
    """Tokens in a text, by the rule above."""
    return len(_PIECE.findall(text))


def token_strings(text: str) -> list[str]:
    """The tokens of a text, as text."""
    return _PIECE.findall(text)


def tokenize(text: str) -> list[int]:
    """Made-up but stable ids, one for each token of a text."""
    return [token_id(piece) for piece in _PIECE.findall(text)]


@lru_cache(maxsize=4096)
def token_id(piece: str) -> int:
    """The id of one token; a blank before it does not count."""
    return zlib.crc32(piece.strip().encode(errors="replace")) % VOCABULARY


def answer_id(text: str) -> int:
    """What the tokens of an answer follow from, as an answer and as part of a later prompt."""
    return zlib.crc32(text.encode(errors="replace"))


def detokenize(ids: Sequence[int]) -> str:
    """A text of so many tokens: an answer's words as they were, others as words of that list.

    The text of other tokens is lost, since ids are made up one way only.
    """
    return " ".join(_WORD_OF_ID.get(i, WORDS[i % len(WORDS)]) for i in ids)


@lru_cache(maxsize=4096)
def alternatives(piece: str, number: int) -> tuple[tuple[str, float], ...]:
    """So many tokens that might have come, ``piece`` first, each with a logarithm of probability.

    Made up: they follow from the token, and each is at most half as likely as the one before it.
    """
    first = zlib.crc32(piece.encode(errors="replace"))
    value = round(-0.01 - first % 1000 / 1000, 3)
    others = (PIECES[(first + step) % len(PIECES)] for step in range(number))
    rows = [(piece, value)]
    for place, other in enumerate((word for word in others if word != piece), start=1):
        rows.append((other, round(value - 0.7 * place, 3)))
    return tuple(rows[:number])


def words(seed: int) -> Iterator[str]:
    """An endless answer, one token at a time; the same seed gives the same words."""
    rng = random.Random(seed)
    yield rng.choice(WORDS)
    while True:
        yield from rng.choices(PIECES, k=_WORDS_AT_ONCE)


def answer_length(
    seed: int, max_tokens: int, min_tokens: int, eos_probability: float
) -> tuple[int, str]:
    """How long an answer becomes, and why it ends there (``length`` or ``stop``).

    Args:
        seed: the same seed gives the same length.
        max_tokens: it ends here at the latest.
        min_tokens: it does not end of itself before.
        eos_probability: chance of ending after each token from there on, 0 to 1 (1 excluded).
    """
    if eos_probability <= 0:
        return max_tokens, "length"
    chance = 1.0 - random.Random(seed).random()  # in (0, 1]
    further = 1 + int(math.log(chance) / math.log1p(-eos_probability))  # geometric, at least 1
    length = max(min_tokens - 1, 0) + further
    return (length, "stop") if length <= max_tokens else (max_tokens, "length")


_WORD_OF_ID = {token_id(word): word for word in WORDS}

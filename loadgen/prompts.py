"""Synthetic prompts of a wanted length, seeded.

No tokenizer is needed: they are common short English words, which the tokenizers in use today
encode as about one token each. The wanted length counts the user's text; chat templates add some
tokens of their own. The length delivered is what the server's ``usage`` says, and the report shows
that.
"""

from __future__ import annotations

import hashlib
import random

# Frequent words that are one token each in common byte-pair vocabularies.
WORDS = tuple(
    """the of and to in is you that it he was for on are as with his they at be this have from or
    one had by word but not what all were we when your can said there use an each which she do how
    their if will up other about out many then them these so some her would make like him into time
    has look two more write go see number no way could people my than first water been call who oil
    its now find long down day did get come made may part over new sound take only little work know
    place year live me back give most very after thing our just name good sentence man think say
    great where help through much before line right too mean old any same tell boy follow came want
    show also around form three small set put end does another well large must big even such because
    turn here why ask went men read need land different home us move try kind hand picture again
    change off play spell air away animal house point page letter mother answer found study still
    learn should world""".split()  # noqa: SIM905  # two hundred quoted words read worse
)
TOKENS_PER_WORD = 1.0
_WORD_OF_BYTE = [WORDS[byte * len(WORDS) // 256] for byte in range(256)]


class PromptMaker:
    """Makes prompts; the same seed and stream give the same prompts in the same order.

    Every prompt differs from its first words on, so that a prefix cache cannot answer for it.

    Args:
        seed: of the run.
        stream: distinguishes workers, so that no two of them ask the same.
    """

    def __init__(self, seed: int, stream: str) -> None:
        self._random = random.Random(f"{seed}/{stream}")

    def make(self, tokens: int) -> str:
        """A prompt of about ``tokens`` tokens."""
        words = max(1, round(tokens / TOKENS_PER_WORD))
        drawn = self._random.randbytes(words)  # a tenth of the cost of drawing word by word
        return " ".join(map(_WORD_OF_BYTE.__getitem__, drawn))


def prompts_hash(seed: int, scenario: str, input_tokens: int | None) -> str:
    """Identifies the prompts of a run: equal hashes mean equal prompts."""
    text = f"synthetic/2 {scenario} {seed} {input_tokens} {TOKENS_PER_WORD}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Fingerprints of prompts and answers: what was the same, without a word of what it was. Pure.

All of them are keyed with the database's salt (32 random bytes). Within one database equal texts
have equal fingerprints; between two, and for who has the figures but not the salt, they say nothing
of the text.

- A *hash* tells whether two texts are equal: BLAKE2b with a key (RFC 7693), 16 bytes.
- A *sketch* tells how alike two prompts are: SimHash. Source: Charikar, "Similarity Estimation
  Techniques from Rounding Algorithms", STOC 2002; on shingles and with 64 bits as in Manku, Jain,
  Das Sarma, "Detecting Near-Duplicates for Web Crawling", WWW 2007.
- A *chain* tells how far two answers agree: each link hashes a block and the link before it.

No text leaves this module. In memory it keeps prompts that may be asked again, and single words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

HASH_BYTES = 16
BLOCK_BYTES = 64
"""How much of an answer one link of its chain covers: some 15 tokens of English."""

LINK_BYTES = 4
MAX_LINKS = 4096
"""What an answer says beyond 256 KiB is in its hash alone."""

SKETCH_BITS = 64
MAX_SKETCHED = 4096
"""Characters of a prompt that its sketch looks at; of a longer one, so many in eight pieces."""

Prompt = str | Sequence[Mapping[str, Any]]
"""Text, or the list of messages."""

_PIECES = 8
_MAX_WORDS = 8192  # values kept
_MAX_PROMPTS_CHARS = 1 << 20
_VALUE_BYTES = SKETCH_BITS // 8
_NO_VALUES = np.empty((2, 0), np.uint64)


class Fingerprints:
    """Takes the fingerprints of one database.

    Args:
        salt: its key, 16 to 64 bytes.
    """

    def __init__(self, salt: bytes) -> None:
        self._salt = salt
        self._numbers: dict[str, int] = {}  # of words, in the order they were learnt
        self._values = _NO_VALUES  # in that order; a row for firsts of a pair, one for seconds
        self._link = blake2b(key=salt, digest_size=HASH_BYTES, person=b"link")
        self._prompts: dict[str | bytes, tuple[str, int | None]] = {}
        self._prompts_chars = 0

    def prompt(self, prompt: Prompt) -> tuple[str, int | None]:
        """Hash (32 hex digits) and sketch (unsigned, 64 bits) of a prompt.

        One message of a user is the same prompt as its bare text. What is asked beside the prompt
        (tools, a system text in a field of its own) does not count. A prompt without text has no
        sketch.
        """
        canonical = _canonical(prompt)
        known = self._prompts.get(canonical)
        if known is None:
            known = self._hash(canonical), self._sketch("\n".join(_texts(prompt)))
            self._prompts_chars += len(canonical)
            if self._prompts_chars > _MAX_PROMPTS_CHARS:
                self._prompts.clear()
                self._prompts_chars = len(canonical)
            self._prompts[canonical] = known
        return known

    def answer(self) -> AnswerChain:
        """A chain for one answer."""
        return AnswerChain(self._salt, self._link)

    def _hash(self, canonical: str | bytes) -> str:
        kind, data = b"messages", canonical
        if isinstance(data, str):
            kind, data = b"text", _encoded(data)
        return blake2b(data, key=self._salt, digest_size=HASH_BYTES, person=kind).hexdigest()

    def _sketch(self, text: str) -> int | None:
        """SimHash over pairs of neighbouring words, the last one paired with the end.

        Each word has two random values (tabulation hashing); a pair's is one of the first's xor the
        other of the second's. A bit of the sketch is what most pairs have there.
        """
        words = [*_words(_sampled(text)), ""]
        if len(words) == 1:
            return None
        try:
            numbers = self._numbered(words)
        except KeyError:
            self._learn(words)
            numbers = self._numbered(words)
        firsts, seconds = self._values
        pairs = firsts[numbers[:-1]] ^ seconds[numbers[1:]]
        bits = np.unpackbits(pairs.view(np.uint8).reshape(-1, _VALUE_BYTES), axis=1)
        votes = bits.sum(axis=0, dtype=np.uint16)  # of no more pairs than a sketch looks at
        return int.from_bytes(np.packbits(votes > len(pairs) // 2).tobytes(), "big")

    def _numbered(self, words: list[str]) -> npt.NDArray[np.intp]:
        return np.fromiter(map(self._numbers.__getitem__, words), np.intp, len(words))

    def _learn(self, words: list[str]) -> None:
        if len(self._numbers) > _MAX_WORDS:
            self._numbers.clear()
            self._values = _NO_VALUES
        new = [word for word in dict.fromkeys(words) if word not in self._numbers]
        self._numbers.update((word, n) for n, word in enumerate(new, len(self._numbers)))
        digests = b"".join(self._value(word) for word in new)
        values = np.frombuffer(digests, np.uint64).reshape(-1, 2)
        self._values = np.hstack((self._values, values.T))

    def _value(self, word: str) -> bytes:
        """Two random values of a word: as the first of a pair, and as the second."""
        return blake2b(
            _encoded(word), key=self._salt, digest_size=2 * _VALUE_BYTES, person=b"word"
        ).digest()


class AnswerChain:
    """Follows what an answer says, piece by piece; how it was cut makes no difference.

    The kinds of text (see the constants of :mod:`loadgen.reply`) are told apart: where the kind
    changes, a mark that no text can hold goes into what is hashed. Memory is bounded: a few pieces
    and less than a block.
    """

    __slots__ = ("_kind", "_last", "_link", "_links", "_pieces", "_rest", "_salt")

    _MAX_PIECES = 64
    _LONG = 4096

    def __init__(self, salt: bytes, link: Any = None) -> None:
        self._salt = salt
        # A hash that has taken its parameters; copying it costs a third of making one.
        self._link = link or blake2b(key=salt, digest_size=HASH_BYTES, person=b"link")
        self._kind = 0
        self._pieces: list[str] = []
        self._rest = b""  # less than a block
        self._last = b""  # the last link in full
        self._links = bytearray()

    def add(self, kind: int, text: str) -> None:
        """Go on with ``text``, which is of that kind (1 to 255)."""
        pieces = self._pieces
        if kind != self._kind:
            self._fold()
            self._rest += b"\xff%c" % kind  # 0xff begins no character of UTF-8
            self._kind = kind
            pieces = self._pieces
        pieces.append(text)
        if len(pieces) >= self._MAX_PIECES or len(text) > self._LONG:
            self._fold()

    def _fold(self) -> None:
        """Turn the pieces into links."""
        data = self._rest + _encoded("".join(self._pieces))
        self._pieces = []
        whole = len(data) - len(data) % BLOCK_BYTES
        for start in range(0, whole, BLOCK_BYTES):
            link = self._link.copy()
            link.update(self._last + data[start : start + BLOCK_BYTES])
            self._last = link.digest()
            if len(self._links) < MAX_LINKS * LINK_BYTES:
                self._links += self._last[:LINK_BYTES]
        self._rest = data[whole:]

    def result(self) -> tuple[str | None, bytes | None]:
        """Hash of all that was said (32 hex digits), and the links, one a whole block.

        Both are ``None`` where nothing was said; the links of less than a block are ``b""``.
        """
        self._fold()
        if not self._kind:
            return None, None
        whole = blake2b(
            self._last + self._rest, key=self._salt, digest_size=HASH_BYTES, person=b"answer"
        )
        return whole.hexdigest(), bytes(self._links)


def common_prefix_bytes(one: bytes, other: bytes) -> int:
    """How many bytes two answers have in common from their beginning, in whole blocks.

    Args:
        one: the chain of an answer, as :meth:`AnswerChain.result` gives it.
        other: that of another one in the same database. Equal answers are told by their hashes:
            what comes after the last whole block is in no link.
    """
    blocks = min(len(one), len(other)) // LINK_BYTES
    same = 0
    while same < blocks and _link(one, same) == _link(other, same):
        same += 1
    return same * BLOCK_BYTES


def differing_bits(one: int, other: int) -> int:
    """How far apart two sketches are: 0 for equal prompts, about 32 for unrelated ones."""
    return (one ^ other).bit_count()


def _link(chain: bytes, number: int) -> bytes:
    return chain[number * LINK_BYTES : (number + 1) * LINK_BYTES]


def _canonical(prompt: Prompt) -> str | bytes:
    """Text as it is; messages as JSON with sorted keys."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], Mapping):
        text = prompt[0].get("content")
        if isinstance(text, str) and prompt[0] == {"role": "user", "content": text}:
            return text
    return orjson.dumps(prompt, option=orjson.OPT_SORT_KEYS)


def _texts(part: Any) -> Iterator[str]:
    """The words of a prompt, of a message or of a part of one, in order."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, Mapping):
        yield from _texts(part.get("content") or part.get("text"))
    elif isinstance(part, Sequence):
        for each in part:
            yield from _texts(each)


def _sampled(text: str) -> str:
    """The text, or evenly spaced pieces of it: long ones, so that they stand a small shift."""
    if len(text) <= MAX_SKETCHED:
        return text
    length = MAX_SKETCHED // _PIECES
    last = len(text) - length
    starts = (last * piece // (_PIECES - 1) for piece in range(_PIECES))
    return " ".join(text[start : start + length] for start in starts)


def _words(text: str) -> Sequence[str]:
    """What stands between blanks; single characters where a text has hardly any blanks."""
    words = text.split()
    return words if len(text) <= 32 * len(words) else text


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

"""What an answer says, kept while it comes so that its tokens can be counted. Pure."""

from __future__ import annotations

from io import StringIO
from typing import Protocol

MAX_SAID_CHARS = 4 * 1024 * 1024
"""What is kept of an answer; the tokens of a longer one stay unknown."""

_TEXT_CHARS = 512  # what a text takes beside its characters


class Listener(Protocol):
    """Follows what a choice says."""

    def add(self, kind: int, text: str) -> None:
        """Go on with ``text``, which is of that kind."""


class Said:
    """What an answer says.

    Each choice has texts of its own, and another one begins where the kind of text changes, since
    tokens do not reach across.
    """

    __slots__ = ("_left", "_texts")

    def __init__(self) -> None:
        self._texts: dict[int, list[tuple[int, StringIO]]] = {}
        self._left = MAX_SAID_CHARS

    def add(self, index: int, kind: int, text: str) -> None:
        """Go on with what a choice says, which is of that kind."""
        texts = self._texts.setdefault(index, [])
        if not texts or texts[-1][0] != kind:
            texts.append((kind, StringIO()))
            self._left -= _TEXT_CHARS
        texts[-1][1].write(text)
        self._left -= len(text)
        if self._left < 0:
            self._texts.clear()

    def texts(self) -> list[tuple[int, str]]:
        """Kind and text of all that was said; empty where nothing was, or too much."""
        if self._left < 0:
            return []
        return [(kind, text.getvalue()) for choice in self._texts.values() for kind, text in choice]


class Ear:
    """Hands what one choice says to those who follow it: its hash chain, and :class:`Said`."""

    __slots__ = ("_chain", "_index", "_said")

    def __init__(self, said: Said, index: int, chain: Listener | None = None) -> None:
        self._said = said
        self._index = index
        self._chain = chain

    def add(self, kind: int, text: str) -> None:
        """Go on with ``text``, which is of that kind."""
        if self._chain is not None:
            self._chain.add(kind, text)
        self._said.add(self._index, kind, text)

"""A column of words, of which a run has millions and few different ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Rows = slice | Bools | npt.NDArray[np.int64]
"""Which rows of a column: neighbours, those where a mask is True, or by their numbers."""

T = TypeVar("T", bound=Hashable)
U = TypeVar("U", bound=Hashable)


@dataclass(frozen=True, slots=True, eq=False)
class Words(Generic[T]):
    """A word a row, kept as a number; ``None`` is a word like any other.

    Attributes:
        codes: (n,), which of ``values`` each row has.
        values: the different words; some may not occur.
    """

    codes: npt.NDArray[np.int32]
    values: Sequence[T]

    @classmethod
    def of(cls, words: Iterable[T]) -> Words[T]:
        """The column of ``words``."""
        numbering: Numbering[T] = Numbering()
        return cls(numbering.codes(words), numbering.values)

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[T]:
        return (self.values[code] for code in self.codes)

    def __getitem__(self, rows: Rows) -> Words[T]:
        return Words(self.codes[rows], self.values)

    def where(self, test: Callable[[T], bool]) -> Bools:
        """Rows whose word passes ``test``, which is asked once a word."""
        passed = np.fromiter(map(test, self.values), np.bool_, len(self.values))
        return np.asarray(passed[self.codes])

    def renamed(self, name: Callable[[T], U]) -> Words[U]:
        """The same rows with other words."""
        return Words(self.codes, [name(word) for word in self.values])

    def counts(self) -> dict[T, int]:
        """How often each word occurs, those that do not left out."""
        found = np.bincount(self.codes, minlength=len(self.values)).tolist()
        return {word: n for word, n in zip(self.values, found, strict=True) if n}


class Numbering(Generic[T]):
    """Numbers for words, in the order they come; for a column that is read piece by piece."""

    def __init__(self) -> None:
        self._numbers: defaultdict[T, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__

    @property
    def values(self) -> tuple[T, ...]:
        """The words seen so far."""
        return tuple(self._numbers)

    def codes(self, words: Iterable[T]) -> npt.NDArray[np.int32]:
        """The number of each of ``words``."""
        return np.fromiter(map(self._numbers.__getitem__, words), np.int32)

"""All requests of a run from the database into numpy columns, without a Python object for each.

Apart from the store so that the recorder, which only writes, starts without numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import sqlalchemy as sa

from collectors.gaps import GapsBuilder
from collectors.schema import EVENT_KINDS, requests
from collectors.table import NUMERIC, TEXT, Floats, RequestTable, absent
from collectors.words import Numbering, Words

_CHUNK = 2_000  # rows held as Python objects at a time; more is slower (garbage collection)
_TIES = ("seq", "attempt")  # what tells requests due in the same instant apart, after the worker
_NUMBERS = (*NUMERIC, "output_events", *_TIES)
_WORDS = (*(name for name in TEXT if name != "worker"), "worker_key", "flags")


def read_table(
    connection: sa.Connection, run_key: int, workers: Mapping[int, str], *, gaps: bool = True
) -> RequestTable:
    """The requests of the run ``run_key`` in due order; ``workers`` has names by key.

    Raises:
        StoreError: there is no room for the gaps.
    """
    numbers = {name: _Column() for name in _NUMBERS}
    numberings: dict[str, Numbering[Any]] = {name: Numbering() for name in _WORDS}
    codes = {name: [np.empty(0, np.int32)] for name in _WORDS}
    kept = GapsBuilder()
    with connection.execute(
        _query(run_key, gaps=gaps), execution_options={"yield_per": _CHUNK}
    ) as result:
        for rows in result.partitions():
            *columns, blobs = zip(*rows, strict=True)
            for name, values in zip((*_NUMBERS, *_WORDS), columns, strict=True):
                if name in numbers:
                    numbers[name].extend(values)
                else:
                    codes[name].append(numberings[name].codes(values))
            kept.extend(blobs)
    words: dict[str, Words[Any]] = {
        name: Words(np.concatenate(codes.pop(name)), numberings[name].values) for name in _WORDS
    }
    words["worker"] = words.pop("worker_key").renamed(lambda key: workers.get(key, ""))
    words["flags"] = words["flags"].renamed(lambda text: tuple(orjson.loads(text)))
    ties = [numbers.pop(name).build() for name in _TIES]
    built: dict[str, Any] = {name: column.build() for name, column in numbers.items()}
    return _settled(RequestTable(**built | words, gaps=kept.build()), *ties)


def _query(run_key: int, *, gaps: bool) -> sa.Select[Any]:
    """Numbers, words and gaps of the requests of a run, by due instant."""
    events = sum((requests.c[f"{kind}_events"] for kind in EVENT_KINDS), sa.literal(0))
    return (
        sa.select(
            *(events if name == "output_events" else requests.c[name] for name in _NUMBERS),
            *(
                sa.cast(requests.c.flags, sa.Text) if name == "flags" else requests.c[name]
                for name in _WORDS
            ),
            requests.c.gaps_s if gaps else sa.null(),
        )
        .where(requests.c.run_key == run_key)
        .order_by(requests.c.due_at_s)
    )


class _Column:
    """Numbers that are read piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[Floats] = [np.empty(0)]

    def extend(self, values: Sequence[float | None]) -> None:
        """Take ``values``, of which ``None`` becomes NaN."""
        is_absent = values.count(None) == len(values)
        self._pieces.append(absent(len(values)) if is_absent else np.array(values, np.float64))

    def build(self) -> Floats:
        """All that was taken, which is forgotten here."""
        pieces, self._pieces = self._pieces, []
        if all(piece.strides == (0,) for piece in pieces[1:]):
            return absent(sum(map(len, pieces)))
        return np.concatenate(pieces)


def _settled(table: RequestTable, seq: Floats, attempt: Floats) -> RequestTable:
    """``table`` with requests due in the same instant in the order of worker, number, attempt."""
    if not len(table):
        return table
    rank = np.argsort(np.argsort(np.array(table.worker.values, dtype=str)))
    # The last key is the first to sort by.
    order = np.lexsort((attempt, seq, rank[table.worker.codes], table.due_at_s))
    return table if np.array_equal(order, np.arange(len(order))) else table.select(order)

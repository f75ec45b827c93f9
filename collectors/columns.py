"""All requests of a run from the database into numpy columns, without a Python object for each.

Apart from the store so that the recorder, which only writes, starts without numpy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import sqlalchemy as sa

from collectors.gaps import GapsBuilder
from collectors.growing import Growing
from collectors.schema import EVENT_KINDS, requests
from collectors.table import NUMERIC, TEXT, Floats, RequestTable, absent
from collectors.words import Numbering, Words

_CHUNK = 500  # rows held as Python objects at a time; with long answers each is 100 kB of gaps
_TIES = ("seq", "attempt")  # what tells requests due in the same instant apart, after the worker
_NUMBERS = (*NUMERIC, "output_events", *_TIES)
_WORDS = (*(name for name in TEXT if name != "worker"), "worker_key", "flags")
_ALWAYS = frozenset({"due_at_s", "outcome", "worker_key", *_TIES})


def read_table(
    connection: sa.Connection,
    run_key: int,
    workers: Mapping[int, str],
    *,
    gaps: bool = True,
    only: Collection[str] | None = None,
) -> RequestTable:
    """The requests of the run ``run_key`` in due order.

    Args:
        connection: to read from.
        run_key: whose.
        workers: names by key.
        gaps: whether to read them.
        only: columns to read, beside those that every table needs; all by default. The others are
            as if nothing had been observed.

    Raises:
        StoreError: there is no room for the gaps.
    """
    names = [n for n in (*_NUMBERS, *_WORDS) if only is None or n in only or n in _ALWAYS]
    read: dict[str, Any] = {name: _Numbers() if name in _NUMBERS else _Words() for name in names}
    kept = GapsBuilder()
    query = _query(run_key, names, gaps=gaps)
    with connection.execute(query, execution_options={"yield_per": _CHUNK}) as result:
        for rows in result.partitions():
            *columns, blobs = zip(*rows, strict=True)
            for column, values in zip(read.values(), columns, strict=True):
                column.extend(values)
            kept.extend(blobs)
    gaps_s = kept.build()
    nothing = Words(np.zeros(len(gaps_s), np.int32), (None,))
    found: dict[str, Any] = {
        **dict.fromkeys(_NUMBERS, absent(len(gaps_s))),
        **dict.fromkeys(_WORDS, nothing),
        **{name: read.pop(name).build() for name in names},
    }
    ties = [found.pop(name) for name in _TIES]
    found["worker"] = found.pop("worker_key").renamed(lambda key: workers.get(key, ""))
    found["flags"] = found["flags"].renamed(lambda text: tuple(orjson.loads(text or "[]")))
    return _settled(RequestTable(**found, gaps=gaps_s), *ties)


def _query(run_key: int, names: Sequence[str], *, gaps: bool) -> sa.Select[Any]:
    """These columns and the gaps of the requests of a run, by due instant."""
    events = sum((requests.c[f"{kind}_events"] for kind in EVENT_KINDS), sa.literal(0))
    made = {"output_events": events, "flags": sa.cast(requests.c.flags, sa.Text)}
    return (
        sa.select(
            *(made[name] if name in made else requests.c[name] for name in names),
            requests.c.gaps_s if gaps else sa.null(),
        )
        .where(requests.c.run_key == run_key)
        .order_by(requests.c.due_at_s)
    )


class _Numbers:
    """A column of numbers that is read piece by piece."""

    def __init__(self) -> None:
        self._rows = 0
        self._kept = Growing(np.float64)

    def extend(self, values: Sequence[float | None]) -> None:
        """Take ``values``, of which ``None`` becomes NaN; nothing is kept before the first."""
        if len(self._kept) or values.count(None) < len(values):
            self._kept.extend(absent(self._rows - len(self._kept)))
            self._kept.extend(values)
        self._rows += len(values)

    def build(self) -> Floats:
        """All that was taken."""
        return self._kept.whole() if len(self._kept) else absent(self._rows)


class _Words:
    """A column of words that is read piece by piece."""

    def __init__(self) -> None:
        self._numbering: Numbering[str | int | None] = Numbering()
        self._kept = Growing(np.int32)

    def extend(self, values: Sequence[str | int | None]) -> None:
        """Take ``values``."""
        self._kept.extend(self._numbering.codes(values))

    def build(self) -> Words[str | int | None]:
        """All that was taken."""
        return Words(self._kept.whole(), self._numbering.values)


def _settled(table: RequestTable, seq: Floats, attempt: Floats) -> RequestTable:
    """``table`` with requests due in the same instant in the order of worker, number, attempt."""
    if not len(table):
        return table
    rank = np.argsort(np.argsort(np.array(table.worker.values, dtype=str)))
    # The last key is the first to sort by.
    order = np.lexsort((attempt, seq, rank[table.worker.codes], table.due_at_s))
    return table if np.array_equal(order, np.arange(len(order))) else table.select(order)

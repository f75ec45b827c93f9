"""All requests of a run from the database into numpy columns, without a Python object for each.

Apart from the store so that the recorder, which only writes, starts without numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa

from collectors.schema import EVENT_KINDS, requests
from collectors.table import NUMERIC, TEXT, Objects, RequestTable

_CHUNK = 2_000  # rows held as Python objects at a time; more is slower (garbage collection)
_NUMBERS = (*NUMERIC, "output_events", "worker_key", "seq", "attempt")
_OBJECTS = (*(name for name in TEXT if name != "worker"), "flags")


def read_table(
    connection: sa.Connection, run_key: int, workers: Mapping[int, str], *, gaps: bool = True
) -> RequestTable:
    """The requests of the run ``run_key`` in due order; ``workers`` has names by key."""
    columns, blobs = _read(connection, run_key, gaps=gaps)
    names = np.array([workers.get(key, "") for key in range(max(workers, default=0) + 1)], object)
    columns["worker"] = names[columns.pop("worker_key").astype(np.int64)]
    ties = columns.pop("attempt"), columns.pop("seq"), columns["worker"].astype(str)
    order = np.lexsort((*ties, columns["due_at_s"]))  # the last key is the first to sort by
    columns = {name: column[order] for name, column in columns.items()}
    sorted_blobs = [blobs[i] for i in order]
    return RequestTable(
        **columns,
        gaps_s=np.frombuffer(b"".join(sorted_blobs), dtype="<f4").astype(np.float32),
        gap_counts=np.array([len(blob) // 4 for blob in sorted_blobs], dtype=np.int64),
    )


def _read(
    connection: sa.Connection, run_key: int, *, gaps: bool
) -> tuple[dict[str, Any], list[bytes]]:
    """Columns by name, and the gaps of each request, in the order of the database."""
    events = sum((requests.c[f"{kind}_events"] for kind in EVENT_KINDS), sa.literal(0))
    query = sa.select(
        *(events if name == "output_events" else requests.c[name] for name in _NUMBERS),
        *(requests.c[name] for name in _OBJECTS),
        requests.c.gaps_s if gaps else sa.null(),
    ).where(requests.c.run_key == run_key)
    chunks: dict[str, list[Any]] = {name: [np.empty(0)] for name in _NUMBERS}
    chunks |= {name: [np.empty(0, object)] for name in _OBJECTS}
    blobs: list[bytes] = []
    with connection.execute(query, execution_options={"yield_per": _CHUNK}) as result:
        for rows in result.partitions():
            *values, gap_blobs = zip(*rows, strict=True)
            for name, column in zip((*_NUMBERS, *_OBJECTS), values, strict=True):
                if name in _NUMBERS:
                    chunks[name].append(np.array(column, dtype=np.float64))  # None becomes NaN
                else:
                    chunks[name].append(_objects(map(tuple, column) if name == "flags" else column))
            blobs.extend(blob or b"" for blob in gap_blobs)
    return {name: np.concatenate(parts) for name, parts in chunks.items()}, blobs


def _objects(values: Iterable[object]) -> Objects:
    """An object array of ``values``; numpy on its own would make a matrix of tuples."""
    listed = list(values)
    column = np.empty(len(listed), dtype=object)
    column[:] = listed
    return column

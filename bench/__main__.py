"""``make bench``: measure, print the tables, and with ``--write-doc`` keep them in docs.

Words after it choose tables: ``plain others stalls rates memory``; none is all of them.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import fidelity, memory
from bench.fidelity import Level, Row
from reference_server.byteserver import self_signed_context
from reference_server.errors import SetupError

DOC = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def main() -> None:
    """Measure what was asked for and print it."""
    chosen = [word for word in sys.argv[1:] if not word.startswith("-")] or list(TABLES)
    if unknown := set(chosen) - set(TABLES):
        sys.exit(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    with tempfile.TemporaryDirectory() as folder:
        tls_files = _tls_files(Path(folder))
        for name in chosen:
            text = f"{where()}\n\n{TABLES[name](tls_files)}\n"
            print(text, flush=True)
            if "--write-doc" in sys.argv:
                _keep(name, text)


def _plain(tls_files: tuple[Path, Path] | None) -> str:
    return fidelity.table(fidelity.PLAIN_COLUMNS, _measure(fidelity.PLAIN, tls_files))


def _others(tls_files: tuple[Path, Path] | None) -> str:
    levels = [level for level in fidelity.OTHERS if tls_files or not level.https]
    note = "" if tls_files else "\nLevels over https need the openssl program: left out."
    return fidelity.table(fidelity.OTHER_COLUMNS, _measure(levels, tls_files)) + note


def _stalls(_: tuple[Path, Path] | None) -> str:
    return fidelity.table(fidelity.STALL_COLUMNS, _measure(fidelity.STALLS, None))


def _rates(_: tuple[Path, Path] | None) -> str:
    rows = _measure(fidelity.RATES, None)
    best = fidelity.highest_rate(rows)
    found = (
        "No level kept its loop lag p99 within 5 ms with a source that was punctual."
        if best is None
        else f"Highest rate with loop lag p99 within 5 ms: {best[1].tokens_per_s:,.0f} tokens/s."
    )
    return f"{fidelity.table(fidelity.RATE_COLUMNS, rows)}\n\n{found}"


def _memory(_: tuple[Path, Path] | None) -> str:
    kib = memory.bytes_per_stream() / 1024
    return (
        f"{kib:.0f} KiB for each open stream of {memory.TOKENS:,} tokens "
        f"({memory.STREAMS} streams beside {memory.FEW}, resident size of the load process)."
    )


TABLES: dict[str, Callable[[tuple[Path, Path] | None], str]] = {
    "plain": _plain,
    "others": _others,
    "stalls": _stalls,
    "rates": _rates,
    "memory": _memory,
}


def _measure(levels: Iterable[Level], tls_files: tuple[Path, Path] | None) -> list[Row]:
    rows = []
    for level in levels:
        print(f"measuring {level.streams} streams, {level.client} ...", file=sys.stderr, flush=True)
        rows.append((level, fidelity.measure_level(level, tls_files)))
    return rows


def _tls_files(folder: Path) -> tuple[Path, Path] | None:
    """A certificate and its key, made on the spot; ``None`` where this machine cannot."""
    try:
        _, certificate = self_signed_context(folder)
    except SetupError:
        return None
    return certificate, certificate.with_name("key.pem")


def _keep(name: str, text: str) -> None:
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    page = DOC.read_text(encoding="utf-8")
    DOC.write_text(mark.sub(lambda m: f"{m[1]}{text}{m[2]}", page), encoding="utf-8")


def where() -> str:
    """Date and machine of a measurement, without its name."""
    realtime = fidelity.source_may_be_realtime()
    source = "in real time (SCHED_FIFO)" if realtime else "like the client"
    return (
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores "
        f"({platform.machine()}, Linux {platform.release().split('-')[0]}), "
        f"Python {platform.python_version()}, source and client on the same machine, "
        f"source scheduled {source}."
    )


if __name__ == "__main__":
    main()

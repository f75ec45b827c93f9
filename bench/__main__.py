"""``make bench``: measure, print the tables, and with ``--write-doc`` keep them in docs."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import sys
from pathlib import Path

from bench.fidelity import LEVELS, measure_level, source_may_be_realtime, table
from streamgauge.campaigns.calibrate import Fidelity

DOC = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
MARK = re.compile(r"(<!-- fidelity -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Measure every level and print the table."""
    levels: list[Fidelity] = []
    for streams in LEVELS:
        print(f"measuring {streams} streams ...", file=sys.stderr, flush=True)
        levels.append(measure_level(streams))
    text = f"{where()}\n\n{table(levels)}\n"
    print(text)
    if "--write-doc" in sys.argv:
        DOC.write_text(
            MARK.sub(lambda m: f"{m[1]}{text}{m[2]}", DOC.read_text(encoding="utf-8")),
            encoding="utf-8",
        )


def where() -> str:
    """Date and machine of a measurement, without its name."""
    source = "in real time (SCHED_FIFO)" if source_may_be_realtime() else "like the client"
    return (
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores "
        f"({platform.machine()}, Linux {platform.release().split('-')[0]}), "
        f"Python {platform.python_version()}, source and client on the same machine, "
        f"source scheduled {source}."
    )


main()

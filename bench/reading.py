r"""What it takes to read a recorded run: time and memory of report, check, dashboard and list.

    streamgauge simulate --gpu h200 --model llama-3.1-8b --gpus 64 --rate 400 --requests 1000000 \
      --db big.db
    python -m bench.reading big.db [scenarios/chat.sla.yaml]

Each is a process of its own, started after another has had the pages of the file in the cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SLA = Path(__file__).resolve().parent.parent / "scenarios" / "chat.sla.yaml"
_PAGE = """
import sys
from pathlib import Path
from collectors.store import Store
from dashboard.queries import study
with Store.open(sys.argv[1], read_only=True) as store:
    study(store, store.find_run("last"), Path(sys.argv[2]))
"""
"""All that the dashboard does before it lays out a run's page."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took.

    Attributes:
        took_s: from start to end.
        cpu_s: of it and the kernel on its behalf.
        peak_bytes: most memory it had resident.
    """

    took_s: float
    cpu_s: float
    peak_bytes: int


def main() -> None:
    """Measure the newest run of the database that is named, and print a table."""
    if len(sys.argv) not in {2, 3}:
        sys.exit(__doc__)
    db = sys.argv[1]
    sla = sys.argv[2] if len(sys.argv) == 3 else str(_SLA)
    streamgauge = ("-m", "streamgauge")
    commands = {
        "streamgauge runs --limit 1": (*streamgauge, "runs", "--limit", "1", "--db", db),
        "streamgauge report": (*streamgauge, "report", "last", "--db", db),
        "streamgauge check": (*streamgauge, "check", "last", "--sla", sla, "--db", db),
        "a page of the dashboard": ("-c", _PAGE, db, sla),
    }
    print("| what | s | s of CPU | MB at most |\n| --- | --- | --- | --- |")
    cost_of(commands["streamgauge report"])
    for name, arguments in commands.items():
        cost = cost_of(arguments)
        row = f"{cost.took_s:.1f} | {cost.cpu_s:.1f} | {cost.peak_bytes / 1e6:.0f}"
        print(f"| {name} | {row} |", flush=True)


def cost_of(arguments: Sequence[str]) -> Cost:
    """Run Python with these arguments, and see what it takes; its exit code is not looked at."""
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    peak_bytes = usage.ru_maxrss * 1024  # Linux tells kilobytes
    return Cost(time.monotonic() - began, usage.ru_utime + usage.ru_stime, peak_bytes)


if __name__ == "__main__":
    main()

"""``make fuzz``: fuzz each target in turn for its share of the time, and say what came of it."""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

from tests.fuzz.engine import Tally, fuzz, keep, play, target_of
from tests.fuzz.targets import TARGETS

FOUND = Path(".fuzz")


def main() -> int:
    """Exit code 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=TARGETS, help="this target alone")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="play one kept input again")
    options = parser.parse_args()
    if options.replay is not None:
        print(*play(target_of(options.replay), options.replay.read_bytes()), sep="\n")
        return 0
    names = [options.only] if options.only else list(TARGETS)
    print(f"seed {options.seed}, {options.seconds:g} s over {', '.join(names)}", flush=True)
    tallies = []
    for name in names:
        tallies.append(fuzz(name, options.seed, seconds=options.seconds / len(names)))
        tell(tallies[-1])
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return int(any(tally.failures for tally in tallies))


def tell(tally: Tally) -> None:
    """One line, and for each failure the file that holds it."""
    print(
        f"{tally.target}: {tally.cases:,} cases in {tally.seconds:.0f} s, "
        f"{len(tally.readings):,} different readings, slowest {tally.slowest_s * 1e3:.0f} ms, "
        f"{len(tally.failures)} failures",
        flush=True,
    )
    for kind, data in tally.failures.items():
        path = keep(tally.target, data, FOUND)
        print(f"  {kind}\n  play it again: python -m tests.fuzz --replay {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

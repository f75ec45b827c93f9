"""``make soak``: the whole tool, for long, against an endpoint that fails in every way.

``streamgauge run chat`` with its recorder, and beside it the source of faults. Afterwards every
request is held against what was played, and the memory, files and threads of both processes
against their own beginning. Exit code 1 where anything does not agree.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.soak_checks import Accounts, Trend, flat_kib_per_min, quarters, reckon, trend
from collectors.stats import percentile
from collectors.store import Store
from reference_server.byteserver import ByteServer
from reference_server.faults import FaultSource, Source

DOC = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
MARK = re.compile(r"(<!-- soak -->\n).*?(<!-- end -->)", re.DOTALL)
LIMIT_S = 2.0
RAMP_S = 2
SAMPLE_EVERY_S = 1.0
WARM_UP_RATIO = 0.2  # allocators, caches and pools fill first
WIND_DOWN_S = 10.0  # users leave, connections are closed
RSS, FILES, THREADS = "RSS", "file handles", "threads"
ROLES = {"load": " locust ", "recorder": "collectors.recorder"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One soak: how many streams, how long, and how long an answer is at most.

    Attributes:
        requests: an end before the duration's, ``None`` for none.
    """

    name: str
    users: int
    seconds: int
    tokens: int
    first_ms: float
    gap_ms: float
    requests: int | None = None
    seed: int = 1

    def words(self, url: str, db: str) -> list[str]:
        """The command that puts the load on."""
        words = [sys.executable, "-m", "streamgauge", "run", "chat", "--host", url, "--db", db]
        # Told apart where nothing comes at all, neither head nor output.
        words += [f"--timeout-head={LIMIT_S}", f"--timeout-first={1.2 * LIMIT_S}"]
        words += [f"--timeout-idle={LIMIT_S}", "--timeout-total=60"]
        words += ["--think-time=0", f"--seed={self.seed}"]
        words += [f"--users={self.users}", f"--duration={self.seconds}s", f"--ramp={RAMP_S}s"]
        words += ["--input-tokens=50", "--drain=20s", "--model=m", "--no-calibrate"]
        return words if self.requests is None else [*words, f"--requests={self.requests}"]

    def source(self) -> Source:
        """What answers are made of."""
        return Source(
            seed=self.seed,
            tokens=self.tokens,
            first_ms=self.first_ms,
            gap_ms=self.gap_ms,
            limit_ms=LIMIT_S * 1e3,
        )


@dataclass(slots=True)
class Samples:
    """What /proc said of a process, each second; memory in KiB."""

    at_s: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(
        default_factory=lambda: {RSS: [], FILES: [], THREADS: []}
    )

    def take(self, process: psutil.Process, at_s: float) -> None:
        """One more of each; a process that has just gone gives none."""
        try:
            with process.oneshot():
                seen = process.memory_info().rss / 1024, process.num_fds(), process.num_threads()
        except psutil.Error:
            return
        self.at_s.append(at_s)
        for name, value in zip(self.values, seen, strict=True):
            self.values[name].append(value)

    @property
    def steady(self) -> slice:
        """The samples that count: once it is warm, and before the end."""
        last_s = self.at_s[-1] - WIND_DOWN_S if self.at_s else 0.0
        end = sum(at_s <= last_s for at_s in self.at_s)
        return slice(int(end * WARM_UP_RATIO), end)

    def write(self, path: Path) -> None:
        """All of them as CSV, for a closer look."""
        lines = [",".join(("at_s", *self.values))]
        rows = zip(self.at_s, *self.values.values(), strict=True)
        lines += [",".join(f"{value:g}" for value in row) for row in rows]
        path.write_text("\n".join(lines) + "\n")

    def trend(self, name: str) -> Trend:
        """Of one of them."""
        return trend(self.at_s[self.steady], self.values[name][self.steady])

    def ends(self, name: str) -> tuple[float, float]:
        """At the beginning and at the end: medians of a twentieth of the samples."""
        values = self.values[name][self.steady]
        size = max(1, len(values) // 20)
        return _median(values[:size]), _median(values[-size:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """What one soak showed.

    Attributes:
        bytes_per_request: of the database.
        ttft_ms: p50 and p95 of plain answers, in the first quarter and in the last.
        exit_code: of ``streamgauge run``.
    """

    plan: Plan
    accounts: Accounts
    samples: dict[str, Samples]
    seconds: float
    bytes_per_request: float
    ttft_ms: tuple[tuple[float, float], tuple[float, float]]
    exit_code: int

    def faults(self) -> list[str]:
        """What is not as it should be, in words."""
        words = [f"streamgauge run ended with {self.exit_code}"] if self.exit_code else []
        if self.accounts.wrong_count:
            words.append(f"{self.accounts.wrong_count} records disagree with what was played")
        if not self.accounts.records:
            words.append("nothing was recorded")
        flat = flat_kib_per_min(self.accounts.records / (self.seconds / 60))
        for role, samples in self.samples.items():
            if not samples.trend(RSS).is_flat(flat):
                words.append(f"the memory of the {role} process grows")
            if not samples.trend(FILES).is_flat(0.0):
                words.append(f"the file handles of the {role} process grow")
        return words


def soak(plan: Plan, folder: Path) -> Soaked:
    """Put the load on, watch it, and hold what was recorded against what was played."""
    db = folder / f"{plan.name}.db"
    faults = FaultSource(plan.source())
    began = time.monotonic()
    with ByteServer(choose=faults.choose, remembers=False) as server:
        log = (folder / f"{plan.name}.txt").open("wb")
        with (
            log,
            subprocess.Popen(
                plan.words(server.url, str(db)), stdout=log, stderr=subprocess.STDOUT
            ) as run,
        ):
            samples = _watch(run)
    for role, seen in samples.items():
        seen.write(folder / f"{plan.name} {role}.csv")
    seconds = time.monotonic() - began
    with Store.open(str(db), read_only=True) as store:
        run_id = store.find_run("last").id
        accounts = reckon(store.records(run_id), faults.expected)
        first, last = quarters(store.records(run_id), faults.expected)
    files = (Path(f"{db}{end}") for end in ("", "-wal"))
    size = sum(path.stat().st_size for path in files if path.exists())
    return Soaked(
        plan=plan,
        accounts=accounts,
        samples=samples,
        seconds=seconds,
        bytes_per_request=size / max(1, accounts.records),
        ttft_ms=(_p50_p95(first), _p50_p95(last)),
        exit_code=run.returncode,
    )


def _watch(run: subprocess.Popen[bytes]) -> dict[str, Samples]:
    """Sample the two processes until the run has ended."""
    samples = {role: Samples() for role in ROLES}
    began = time.monotonic()
    while run.poll() is None:
        for role, process in _processes(run.pid).items():
            samples[role].take(process, time.monotonic() - began)
        time.sleep(SAMPLE_EVERY_S)
    return samples


def _processes(pid: int) -> dict[str, psutil.Process]:
    """The load process and the recorder, as far as they are there."""
    found = {}
    try:
        for child in psutil.Process(pid).children(recursive=True):
            command = " ".join(child.cmdline())
            found |= {role: child for role, word in ROLES.items() if word in command}
    except psutil.Error:  # one has gone meanwhile
        pass
    return found


def _median(values: Sequence[float]) -> float:
    return percentile(sorted(values), 0.5) if values else float("nan")


def _p50_p95(values: Sequence[float]) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    return percentile(values, 0.5) * 1e3, percentile(values, 0.95) * 1e3


# -- tables ----------------------------------------------------------------------------------------

HEAD = (
    *("soak", "streams", "minutes", "due", "one record each", "as played"),
    *("load RSS MiB, start and end", "load KiB/min [95 %]"),
    *("recorder RSS MiB", "recorder KiB/min [95 %]"),
    *("file handles, load and recorder", "threads", "database bytes a request"),
    "TTFT p50 / p95 ms, first and last quarter",
)


def row(soaked: Soaked) -> tuple[str, ...]:
    """One soak as a line of the table."""
    accounts, plan = soaked.accounts, soaked.plan
    load, recorder = (soaked.samples[role] for role in ROLES)
    return (
        *(plan.name, f"{plan.users}", f"{soaked.seconds / 60:.1f}", f"{accounts.records:,}"),
        "yes" if not any("record" in wrong for wrong in accounts.wrong) else "NO",
        f"{accounts.records - accounts.wrong_count:,}",
        *(_ends(load, RSS, 1024.0), _slope(load), _ends(recorder, RSS, 1024.0), _slope(recorder)),
        f"{_ends(load, FILES)}; {_ends(recorder, FILES)}",
        f"{_ends(load, THREADS)}; {_ends(recorder, THREADS)}",
        f"{soaked.bytes_per_request:,.0f}",
        "; ".join(f"{p50:.1f} / {p95:.1f}" for p50, p95 in soaked.ttft_ms),
    )


def _ends(samples: Samples, name: str, unit: float = 1.0) -> str:
    if not samples.at_s:
        return "-"
    digits = 0 if unit == 1.0 else 1
    return " → ".join(f"{value / unit:.{digits}f}" for value in samples.ends(name))


def _slope(samples: Samples) -> str:
    found = samples.trend(RSS)
    return f"{found.slope:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def confusion(soaked: Sequence[Soaked]) -> str:
    """How many requests of each played outcome were recorded as which."""
    counts = sum((s.accounts.outcomes for s in soaked), start=type(soaked[0].accounts.outcomes)())
    rows = [(played, recorded, f"{n:,}") for (played, recorded), n in sorted(counts.items())]
    return table([("played", "recorded", "requests"), *rows])


def played(soaked: Sequence[Soaked]) -> str:
    """What was played, and how often."""
    counts = sum((s.accounts.faults for s in soaked), start=type(soaked[0].accounts.faults)())
    return ", ".join(f"{name} {n:,}" for name, n in counts.most_common())


def text(soaked: Sequence[Soaked]) -> str:
    """Everything, as Markdown."""
    where = (
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}, "
        f"Linux {platform.release().split('-')[0]}), Python {platform.python_version()}, endpoint "
        f"and client on the same machine, seed {soaked[0].plan.seed}."
    )
    parts = [where, table([HEAD, *map(row, soaked)])]
    parts += [confusion(soaked), f"Played: {played(soaked)}."]
    for each in soaked:
        parts += [f"{each.plan.name}: {words}." for words in each.faults()]
        parts += [f"    {wrong}" for wrong in each.accounts.wrong[:10]]
    return "\n\n".join(parts)


def main() -> int:
    """Run both soaks, print the tables; exit code 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the long soak")
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--requests", type=int, default=100_000, help="of the one with short ones")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep the databases and logs here")
    parser.add_argument("--write-doc", action="store_true", help="keep the tables in docs")
    options = parser.parse_args()
    plans = [
        Plan(
            name="streams",
            users=options.users,
            seconds=max(1, round(options.minutes * 60)),
            tokens=60,
            first_ms=50.0,
            gap_ms=15.0,
            seed=options.seed,
        )
    ]
    if options.requests:
        plans.append(
            Plan(
                name="short answers",
                users=options.users,
                seconds=86_400,
                tokens=4,
                first_ms=20.0,
                gap_ms=2.0,
                requests=options.requests,
                seed=options.seed,
            )
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        soaked = []
        for plan in plans:
            print(f"soaking: {plan.name} ...", file=sys.stderr, flush=True)
            soaked.append(soak(plan, folder))
    shown = text(soaked)
    print(shown)
    if options.write_doc:
        DOC.write_text(MARK.sub(lambda m: f"{m[1]}{shown}\n{m[2]}", DOC.read_text()))
    return int(any(each.faults() for each in soaked))


if __name__ == "__main__":
    os.environ.pop("STREAMGAUGE_DB", None)
    sys.exit(main())

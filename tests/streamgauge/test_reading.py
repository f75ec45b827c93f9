"""The commands that read: runs, report, export, check, as a user calls them, over real SQLite."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from collectors.records import FIRST_COALESCED, Outcome
from collectors.runs import RunStatus
from tests.collectors.builders import make_request
from tests.collectors.revision_0001 import make_0001, written_by_hand
from tests.streamgauge.stored import ROOT, Ended, steady, store_run, streamgauge

HELD = "objectives:\n  ttft: p95 < 500 ms\n"
BROKEN = "objectives:\n  ttft: p95 < 120 ms\n"
OPEN = "objectives:\n  ttft: p99.9 < 500 ms\n"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: two complete ones called "twin", and one still going without requests."""
    path = tmp_path_factory.mktemp("db") / "runs.db"
    store_run(path, steady(), id="0run0000000000aa", name="twin")
    store_run(
        path,
        [*steady(200), make_request(900, 99.0, ttft_s=None, outcome=Outcome.TIMEOUT)],
        id="0run0000000000ab",
        name="twin",
        began_wall_s=1_700_000_500.0,
        warmup_s=None,
        notes=["no GPU seen here"],
    )
    store_run(
        path,
        [],
        id="1run0000000000ac",
        name="going",
        status=RunStatus.RUNNING,
        stopped_at_s=None,
        began_wall_s=1_700_001_000.0,
        heartbeat_wall_s=4e9,
    )
    return path


def _sla(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sla.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _sentence(ended: Ended) -> str:
    """The one sentence on standard error of a command that could not do it."""
    assert ended.code == 2, ended
    assert ended.out == ""
    (line,) = ended.err.strip().splitlines()
    return line


def test_runs_are_listed_newest_first(db: Path) -> None:
    """Id, name, status, n, TTFT p95 and error ratio; absent is a dash."""
    ended = streamgauge("runs", "--db", db)
    _, going, second, first = ended.out.splitlines()

    assert (ended.code, ended.err) == (0, "")
    assert going.split()[:2] == ["1run0000000000ac", "going"]
    assert going.endswith("-")
    assert "running" in going
    assert second.startswith("0run0000000000ab  twin")
    assert first.split()[-5:] == ["400", "195", "ms", "0", "%"]


def test_runs_are_listed_for_programs(db: Path) -> None:
    """JSON and CSV have base units, and --limit cuts the list."""
    listed = json.loads(streamgauge("runs", "--db", db, "--format", "json").out)
    rows = list(csv.DictReader(io.StringIO(streamgauge("runs", "--db", db, "--format", "csv").out)))

    assert [run["id"][-2:] for run in listed] == ["ac", "ab", "aa"]
    assert listed[0]["ttft_p95_s"] is None
    assert listed[2]["ttft_p95_s"] == pytest.approx(0.195, abs=0.001)
    assert rows[2]["n"] == "400"
    assert (
        len(json.loads(streamgauge("runs", "--db", db, "--format", "json", "--limit", 1).out)) == 1
    )


def test_a_report_is_shown(db: Path) -> None:
    """For people by default, and the same figures as JSON, Markdown and CSV."""
    text = streamgauge("report", "0run0000000000aa", "--db", db)
    report = json.loads(
        streamgauge("report", "0run0000000000aa", "--db", db, "--format", "json").out
    )
    page = streamgauge("report", "0run0000000000aa", "--db", db, "--format", "md").out
    rows = dict(
        csv.reader(
            io.StringIO(
                streamgauge("report", "0run0000000000aa", "--db", db, "--format", "csv").out
            )
        )
    )

    assert text.code == 0
    assert "TTFT from sent" in text.out
    assert "\x1b" not in text.out  # no terminal
    assert report["window"]["due"] == 400
    assert report["latency"]["ttft_s"]["p95"] == pytest.approx(0.195, abs=0.001)
    assert "| TTFT from sent |" in page
    assert rows["window.due"] == "400"


def test_last_is_the_newest_run(db: Path) -> None:
    """`last` and the beginning of an id mean a run; a run that is going says so."""
    going = streamgauge("report", "last", "--db", db)

    assert "(going): running" in going.out
    assert "still going" in going.out
    assert streamgauge("report", "1run", "--db", db).out == going.out


def test_a_report_with_an_sla_has_goodput_and_verdict(db: Path, tmp_path: Path) -> None:
    """The verdict stands below; the exit code stays 0, since judging is `check`'s."""
    sla = _sla(tmp_path, f"per_request:\n  ttft: < 150 ms\n{BROKEN}")
    ended = streamgauge("report", "0run0000000000aa", "--db", db, "--sla", sla)

    assert ended.code == 0
    assert "of what was due" in ended.out
    assert "Verdict: broken" in ended.out


def test_reports_in_html_come_later(db: Path) -> None:
    """Asked for too early, one sentence says what there is."""
    assert "come later" in streamgauge("report", "last", "--db", db, "--format", "html").err


@pytest.mark.parametrize(("text", "code"), [(HELD, 0), (BROKEN, 1), (OPEN, 3)])
def test_a_check_ends_with_its_code(db: Path, tmp_path: Path, text: str, code: int) -> None:
    """0 held, 1 broken, 3 cannot tell, and the same in the JSON."""
    sla = _sla(tmp_path, text)
    ended = streamgauge("check", "0run0000000000aa", "--db", db, "--sla", sla)
    told = streamgauge("check", "0run0000000000aa", "--db", db, "--sla", sla, "--format", "json")

    assert ended.code == told.code == json.loads(told.out)["exit_code"] == code
    assert f"(exit code {code})" in ended.out
    assert "ttft_from_sent p9" in ended.out


@pytest.fixture(scope="module")
def standings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same TTFTs of 100 ms three times: by a sound client, a late one and a starved one."""
    path = tmp_path_factory.mktemp("standings") / "runs.db"
    late = {"read_delay_s": 0.02, "flags": (FIRST_COALESCED,)}
    for number, (name, seen, client) in enumerate(
        (
            ("valid", {}, {}),
            ("degraded", late, {}),
            ("invalid", {}, {"run_queue_wait_ratio": 0.5}),
        )
    ):
        records = [make_request(i, i / 5, **seen) for i in range(500)]
        store_run(path, records, id=f"0run000000000{number:03}", name=name, client=client)
    return path


@pytest.mark.parametrize(
    ("run", "limit", "verdict", "code"),
    [
        ("valid", "115 ms", "held", 0),
        ("valid", "85 ms", "broken", 1),
        ("degraded", "115 ms", "inconclusive", 3),  # it may be off by 20 ms
        ("degraded", "85 ms", "inconclusive", 3),
        ("degraded", "130 ms", "held", 0),
        ("degraded", "70 ms", "broken", 1),
        ("invalid", "1 s", "invalid", 3),
        ("invalid", "1 ms", "invalid", 3),
    ],
)
def test_a_check_believes_a_run_as_far_as_it_can_be_believed(
    standings: Path, tmp_path: Path, run: str, limit: str, verdict: str, code: int
) -> None:
    """A late client widens the bounds, a starved one proves nothing; the standing is told."""
    sla = _sla(tmp_path, f"objectives:\n  ttft: p50 < {limit}\n")
    ended = streamgauge("check", run, "--sla", sla, "--db", standings)
    told = json.loads(
        streamgauge("check", run, "--sla", sla, "--db", standings, "--format", "json").out
    )

    assert ended.code == code, ended
    assert f"Verdict: {verdict} (exit code {code})" in ended.out
    assert f"The run is {run}:" in ended.out
    assert (told["verdict"], told["exit_code"]) == (verdict, code)
    assert told["validity"]["verdict"] == run
    assert bool(told["validity"]["reasons"]) is (run != "valid")


def test_a_check_writes_for_a_ci_summary(db: Path, tmp_path: Path) -> None:
    """As Markdown, table and all."""
    sla = _sla(tmp_path, HELD)
    ended = streamgauge("check", "0run0000000000aa", "--db", db, "--sla", sla, "--format", "md")

    assert ended.out.startswith("## SLA sla: held\n")
    assert "| objective | limit | measured | 95 % interval | n |" in ended.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("check", "going"), "still going"),
        (("check", "twin"), "means 2 runs (0run0000000000ab, 0run0000000000aa)"),
        (("check", "twn"), "did you mean twin?"),
        (("report", "nothing-like-it"), "There is no run 'nothing-like-it'"),
        (("export", "twn", "--to", "x.csv"), "did you mean twin?"),
    ],
)
def test_a_wrong_run_is_one_sentence(
    db: Path, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    """An unknown run, an ambiguous name, a run that is going: exit code 2 and what to do."""
    more = ("--sla", _sla(tmp_path, HELD)) if words[0] == "check" else ()

    assert sentence in _sentence(streamgauge(*words, *more, "--db", db, cwd=tmp_path))
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("command", ["runs", "report last", "export last --to x.csv", "check last"])
def test_a_missing_database_is_one_sentence(tmp_path: Path, command: str) -> None:
    """No command that reads makes a database: it says that there is none."""
    words = [*command.split(), "--db", "none.db"]
    if command.startswith("check"):
        words += ["--sla", str(_sla(tmp_path, HELD))]

    assert "none.db" in _sentence(streamgauge(*words, cwd=tmp_path))
    assert not (tmp_path / "none.db").exists()


def test_an_empty_run_cannot_be_judged(tmp_path: Path) -> None:
    """A run without any request in its window is exit code 2, not a pass."""
    store_run(tmp_path / "e.db", [])
    ended = streamgauge("check", "last", "--db", tmp_path / "e.db", "--sla", _sla(tmp_path, HELD))

    assert "no request in its window" in _sentence(ended)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("objectives:\n  tfft: p95 < 1 s\n", "unknown metric 'tfft'; perhaps ttft"),
        ("objectives:\n  ttft: p95 < 500\n", "a unit of time"),
        ("objectives:\n  goodput_per_s: > 5\n", "quote it"),
    ],
)
def test_a_wrong_sla_file_is_one_sentence(db: Path, tmp_path: Path, text: str, words: str) -> None:
    """File and line, what was found and what to write; noticed before the run is looked for."""
    sla = _sla(tmp_path, text)
    sentence = _sentence(streamgauge("check", "no-such-run", "--db", db, "--sla", sla))

    assert words in sentence
    assert f"{sla}:2:" in sentence


def test_a_missing_sla_file_is_one_sentence(db: Path, tmp_path: Path) -> None:
    """A file that is not there is named."""
    ended = streamgauge("check", "last", "--db", db, "--sla", tmp_path / "none.yaml")

    assert "There is no SLA file" in _sentence(ended)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_requests_are_exported(db: Path, tmp_path: Path, ending: str) -> None:
    """Every request of the run, those of the warm-up too, in the format of the ending."""
    path = tmp_path / f"run.{ending}"
    ended = streamgauge("export", "0run0000000000ab", "--to", path, "--db", db)

    assert (ended.code, ended.out) == (0, "")
    assert "201 requests" in ended.err
    if ending == "jsonl":
        assert len(path.read_text(encoding="utf-8").splitlines()) == 201
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_reading_changes_nothing(db: Path, tmp_path: Path) -> None:
    """A report and a check leave the database's bytes as they were."""
    with sqlite3.connect(db) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    before = db.read_bytes()
    streamgauge("report", "last", "--db", db)
    streamgauge("check", "0run0000000000aa", "--db", db, "--sla", _sla(tmp_path, HELD))

    assert db.read_bytes() == before


HEAVY = ("locust", "gevent", "streamlit", "pandas", "plotly", "pyarrow", "vllm")

# Runs the real command line in a clean interpreter, then says which heavy packages came along.
SPY = f"""
import sys
from streamgauge.cli import main
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words", ["check 0run0000000000aa --sla {sla}", "report last", "runs", "export last --to {out}"]
)
def test_reading_is_light(db: Path, tmp_path: Path, words: str) -> None:
    """`check` and its like import neither Locust, gevent, Streamlit, pandas nor Plotly."""
    told = words.format(sla=_sla(tmp_path, HELD), out=tmp_path / "x.jsonl").split()
    done = subprocess.run(
        [sys.executable, "-c", SPY, *told, "--db", str(db)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"


# The same with those packages impossible to import.
WALL = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))
from streamgauge.cli import main
main()
"""


def test_a_check_runs_where_they_are_missing(db: Path, tmp_path: Path) -> None:
    """With every heavy package out of reach `check` still judges."""
    sla = _sla(tmp_path, HELD)
    done = subprocess.run(
        [sys.executable, "-c", WALL, "check", "0run0000000000aa", "--sla", sla, "--db", db],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )

    assert done.returncode == 0, done.stderr
    assert "Verdict: held" in done.stdout


@pytest.mark.parametrize("told", [["runs"], ["report", "evening"], ["export"], ["check"]])
def test_a_database_of_an_older_streamgauge_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, told: list[str]
) -> None:
    """Whatever is asked first after an upgrade works, and says once what it did to the database."""
    rest = {
        "export": ["evening", "--to", tmp_path / "run.jsonl"],
        "check": ["evening", "--sla", _sla(tmp_path, "objectives:\n  error_ratio: < 90 %\n")],
    }
    db = make_0001(str(tmp_path / "runs.db"))
    ended = streamgauge(*told, *rest.get(told[0], ()), "--db", db)

    assert ended.code in {0, 3}, ended  # two requests are too few to judge
    assert [line.count("brought up to date") for line in caplog.messages] == [1]


def test_what_was_done_to_an_old_database_is_said_on_standard_error(tmp_path: Path) -> None:
    """Standard output stays what a program reads."""
    db = make_0001(str(tmp_path / "runs.db"))
    done = subprocess.run(
        [sys.executable, "-m", "streamgauge", "runs", "--format", "json", "--db", db],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )

    assert len(json.loads(done.stdout)) == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{db} was written by an older Streamgauge and has been brought")


def test_a_database_of_a_newer_streamgauge_is_refused(tmp_path: Path) -> None:
    """Nothing is read wrongly: one sentence that says what to upgrade."""
    newer = tmp_path / "runs.db"
    store_run(newer, [])
    with written_by_hand(str(newer)) as connection:
        connection.exec_driver_sql("UPDATE streamgauge_schema SET version_num = '9999'")

    sentence = _sentence(streamgauge("runs", "--db", newer))
    assert sentence.startswith(f"Error: {newer} was written by a newer Streamgauge (schema 9999")
    assert sentence.endswith("upgrade Streamgauge.")

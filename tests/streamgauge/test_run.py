"""``streamgauge run`` as a user runs it: real subprocesses against the metronome."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.errors import StoreError
from collectors.runs import RunStatus
from collectors.store import Store
from reference_server.process import SimProcess

PATIENCE_S = 60.0
QUICK = [
    "--users",
    "4",
    "--duration",
    "4s",
    "--think-time",
    "50ms",
    "--max-tokens",
    "20",
    "--no-calibrate",
]


@pytest.fixture(scope="module")
def metronome() -> Iterator[str]:
    """A quick source: TTFT 20 ms, gap 2 ms."""
    with SimProcess("--metronome", "--ttft", "20ms", "--itl", "2ms") as server:
        yield server.url


def streamgauge(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "streamgauge", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
    )


def sla_file(folder: Path, objective: str) -> Path:
    """An SLA file with one objective."""
    path = folder / "one.sla.yaml"
    path.write_text(f"sla: one\nobjectives:\n  {objective}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("objective", "code", "verdict"),
    [
        ("ttft: p50 < 2 s", 0, "held"),
        pytest.param("ttft: p50 < 1 ms", 1, "broken", marks=pytest.mark.slow),
        pytest.param("ttft: p99.9 < 2 s", 3, "inconclusive", marks=pytest.mark.slow),
    ],
)
def test_the_verdict_decides_the_exit_code(
    objective: str, code: int, verdict: str, metronome: str, tmp_path: Path
) -> None:
    """`run --sla` ends with 0 for held, 1 for broken, 3 for inconclusive, and says so."""
    db, sla = tmp_path / "runs.db", sla_file(tmp_path, objective)
    done = streamgauge(
        "run", "chat", "--host", metronome, *QUICK, "--db", str(db), "--sla", str(sla)
    )

    assert done.returncode == code, done.stdout + done.stderr
    assert verdict in done.stdout
    with Store.open(str(db)) as store:
        assert store.find_run("last").status is RunStatus.COMPLETE


def test_a_recorded_run_without_sla_is_0_and_shows_progress_in_plain_lines(
    metronome: str, tmp_path: Path
) -> None:
    """Without --sla a recorded run is 0; piped progress has no control characters."""
    db = tmp_path / "runs.db"
    done = streamgauge("run", "chat", "--host", metronome, *QUICK, "--db", str(db))

    assert done.returncode == 0, done.stderr
    assert "TTFT" in done.stdout
    assert "has begun" in done.stderr
    assert "TTFT p95" in done.stderr
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_is_told_and_keeps_this_machines_own_error(metronome: str, tmp_path: Path) -> None:
    """Before the load the client is measured against a known source; the run keeps the figures."""
    db = tmp_path / "runs.db"
    quick = [word for word in QUICK if word != "--no-calibrate"]
    done = streamgauge("run", "chat", "--host", metronome, *quick, "--db", str(db))

    assert done.returncode == 0, done.stderr
    with Store.open(str(db)) as store:
        calibration = store.find_run("last").client["calibration"]
    assert calibration["streams"] == 4
    assert calibration["requests"] > 4
    assert calibration["not_ok"] == 0
    if not calibration["source_limited"]:
        assert f"n={calibration['requests']}, 4 streams" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "caht", "--host", "URL"], "No scenario 'caht'; bundled are chat"),
        (["run", "./nothing.py", "--host", "URL"], "Scenario file './nothing.py' does not exist"),
        (["run", "chat", "--host", "URL", "--duration", "soon"], "--duration: expected"),
        (["run", "chat", "--host", "URL", "--sla", "none.yaml"], "none.yaml"),
        (["run", "chat", "--host", "URL", "--model", "nope"], "does not serve 'nope'"),
        (["run", "chat", "--host", "http://127.0.0.1:9"], "Cannot reach http://127.0.0.1:9"),
        (["run", "chat", "--host", "URL", "--temperature", "hot"], "--temperature: expected"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_no_database(
    words: list[str], sentence: str, metronome: str, tmp_path: Path
) -> None:
    """What cannot work is said in one sentence before anything is written."""
    words = [metronome if w == "URL" else w for w in words]
    done = streamgauge(*words, "--no-calibrate", "--db", str(tmp_path / "runs.db"), cwd=tmp_path)

    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1, done.stderr
    assert sentence in errors[0]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_run_and_is_the_exit_code(
    number: signal.Signals, code: int, metronome: str, tmp_path: Path
) -> None:
    """Ctrl-C or SIGTERM: the run is closed as interrupted, reported, and the code says why."""
    db = tmp_path / "runs.db"
    words = [
        "run",
        "chat",
        "--host",
        metronome,
        "--db",
        str(db),
        "--duration",
        "60s",
        "--no-calibrate",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "streamgauge", *words, "--users", "2", "--think-time", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not _recorded(db):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, err
    assert "interrupted" in out
    with Store.open(str(db)) as store:
        assert store.find_run("last").status is RunStatus.INTERRUPTED


def _recorded(db: Path) -> bool:
    try:
        with Store.open(str(db), read_only=True) as store:
            runs = store.runs()
            return bool(runs) and store.count(runs[0].id) > 5
    except StoreError:
        return False


@pytest.mark.parametrize("hidden", ["collectors", "sla"])
def test_a_folder_that_hides_a_package_of_ours_is_named(hidden: str, tmp_path: Path) -> None:
    """A user's own `collectors/` in the working folder is said in one sentence, exit code 2."""
    folder = tmp_path / hidden
    folder.mkdir()
    (folder / "__init__.py").touch()
    done = streamgauge("runs", cwd=tmp_path)

    assert done.returncode == 2
    assert f"Streamgauge's package '{hidden}' is hidden by {folder}" in done.stderr
    assert "Traceback" not in done.stderr


def test_locust_too_says_which_folder_hides_ours(tmp_path: Path) -> None:
    """Plain Locust on a scenario, started where `sla/` exists, ends with the same sentence."""
    (tmp_path / "sla").mkdir()
    (tmp_path / "sla" / "__init__.py").touch()
    scenario = Path(__file__).resolve().parents[2] / "scenarios" / "chat.py"
    (tmp_path / "locustfile.py").write_text(scenario.read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "locust", "--headless", "--host", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    assert f"Streamgauge's package 'sla' is hidden by {tmp_path / 'sla'}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_demo_ends_with_a_report_and_a_verdict(tmp_path: Path) -> None:
    """`streamgauge demo` prints the report and the verdict and leaves the run in the database."""
    db = tmp_path / "runs.db"
    done = streamgauge("demo", "--db", str(db))

    assert done.returncode == 0, done.stderr
    assert "TTFT from sent" in done.stdout
    assert "Verdict:" in done.stdout
    with Store.open(str(db)) as store:
        assert store.find_run("demo").status is RunStatus.COMPLETE


@pytest.mark.slow
def test_two_runs_of_several_processes_on_one_machine_do_not_meet(
    metronome: str, tmp_path: Path
) -> None:
    """Each has workers of its own: Locust's port is the same for all, ours is not."""
    command = [sys.executable, "-m", "streamgauge", "run", "chat", "--host", metronome]
    options = ["--users", "2", "--requests", "6", "--think-time", "0.1", "--no-calibrate"]
    dbs = [tmp_path / "one.db", tmp_path / "two.db"]
    runs = [
        subprocess.Popen(
            [*command, *options, "--processes", "2", "--db", str(db)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for db in dbs
    ]
    errors = [run.communicate(timeout=PATIENCE_S)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    for db in dbs:
        with Store.open(str(db)) as store:
            (found,) = store.runs()
            assert store.count(found.id) == 6
            assert set(found.client["workers"]) == {"w0", "w1"}

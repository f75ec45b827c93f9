"""Locust with our plugin, as users run it: real processes, real sockets, real SQLite."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from collectors.records import Outcome
from collectors.runs import RunStatus
from collectors.store import Store
from loadgen.options import OPTIONS
from reference_server.process import SimProcess
from tests.loadgen.locusts import (
    PATIENCE_S,
    SCENARIO,
    answers,
    final_rows,
    free_port,
    has_records,
    only_run,
    open_requests,
    run,
    start,
    truth_ids,
    wait_until,
)


@pytest.fixture(scope="module")
def metronome() -> Iterator[str]:
    """A quick source: TTFT 20 ms, gap 2 ms."""
    with SimProcess("--metronome", "--ttft", "20ms", "--itl", "2ms") as server:
        yield server.url


@pytest.fixture(scope="module")
def slow_metronome() -> Iterator[str]:
    """A source whose answers take half a minute, so that something is always open."""
    with SimProcess("--metronome", "--ttft", "50ms", "--itl", "300ms") as server:
        yield server.url


def test_a_headless_run_leaves_one_record_for_every_request_the_server_saw(
    metronome: str, tmp_path: Path
) -> None:
    """Every request in the server's truth log has exactly one record, and the run is complete."""
    db = tmp_path / "runs.db"
    done = run(metronome, db, "-u", "4", "-r", "4", "-t", "4s", "--think-time", "0.1")

    assert done.returncode == 0, done.stderr
    found = only_run(db)
    with Store.open(str(db)) as store:
        records = list(store.records(found.id))
    assert found.status is RunStatus.COMPLETE
    assert {f"{r.run_id}-{r.worker}-{r.seq}" for r in records} == truth_ids(metronome, found.id)
    assert {r.outcome for r in records} == {Outcome.OK}
    assert len({r.prompt_hash for r in records} - {None}) == len(records)  # no two prompts alike
    assert {r.http_version for r in records} == {"1.1"}
    assert found.scenario == "chat"
    assert found.users == 4
    assert found.duration_s == 4.0
    rows = {name: row.requests for name, row in final_rows(done.stderr).items()}
    assert rows["Aggregated"] == rows["E2E chat"] == rows["TTFT chat"] == len(records)
    assert rows["ITL chat (gaps)"] == sum(len(r.gaps_s or ()) for r in records)


@pytest.mark.slow
def test_the_clients_first_token_is_never_before_the_servers_schedule(
    metronome: str, tmp_path: Path
) -> None:
    """A TTFT is at least the true one: neither the response head nor the role chunk is a token."""
    db = tmp_path / "runs.db"
    done = run(metronome, db, "-u", "2", "-t", "3s", "--think-time", "0.05")

    assert done.returncode == 0, done.stderr
    found = only_run(db)
    truth = {r["id"]: r for r in httpx.get(f"{metronome}/truth").json()["requests"]}
    with Store.open(str(db)) as store:
        records = list(store.records(found.id))
    assert records
    for record in records:
        entry = truth[f"{record.run_id}-{record.worker}-{record.seq}"]
        assert record.first_token_at_s is not None
        assert record.sent_at_s is not None
        assert found.began_mono_s + record.sent_at_s <= entry["read_at"]
        assert found.began_mono_s + record.first_token_at_s >= entry["first_scheduled_at"]
        assert record.output_tokens == entry["tokens"]


@pytest.mark.slow
def test_failed_requests_are_failures_in_locust_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that refuses every request fails every request, in the records and in Aggregated."""
    monkeypatch.setenv("SIM_KEY", "right-key-1234")
    with SimProcess("--api-key-env", "SIM_KEY") as server:
        db = tmp_path / "runs.db"
        options = ["-u", "2", "-t", "3s", "--think-time", "0.2"]
        done = run(server.url, db, *options, "--no-preflight", "--model", "sim-8b")
    rows = final_rows(done.stderr)
    with Store.open(str(db)) as store:
        records = list(store.records(only_run(db).id))
    assert done.returncode == 1  # Locust's own convention: something failed
    assert {(r.outcome, r.http_status) for r in records} == {(Outcome.HTTP_ERROR, 401)}
    assert rows["Aggregated"].failures == len(records) > 0
    assert "TTFT chat" not in rows


@pytest.mark.slow
def test_several_processes_are_one_run(metronome: str, tmp_path: Path) -> None:
    """With --processes 2 the records of both workers are in the one run, none lost."""
    db = tmp_path / "runs.db"
    done = run(
        metronome, db, "-u", "4", "-r", "4", "-t", "5s", "--think-time", "0.1", "--processes", "2"
    )

    assert done.returncode == 0, done.stderr
    found = only_run(db)
    with Store.open(str(db)) as store:
        records = list(store.records(found.id))
    assert found.status is RunStatus.COMPLETE
    assert {r.worker for r in records} == {"w0", "w1"}
    assert {f"{r.run_id}-{r.worker}-{r.seq}" for r in records} == truth_ids(metronome, found.id)
    assert set(found.client["workers"]) == {"w0", "w1"}


@pytest.mark.slow
def test_a_master_and_a_worker_are_one_run(metronome: str, tmp_path: Path) -> None:
    """Locust's own --master and --worker record into the master's database."""
    db, port = tmp_path / "runs.db", str(free_port())
    worker = start(metronome, tmp_path / "unused.db", "--worker", "--master-port", port)
    try:
        master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        options = ["-u", "2", "-t", "3s", "--think-time", "0.1", "--expect-workers", "1"]
        done = run(metronome, db, *master, *options)
        assert done.returncode == 0, done.stderr
        assert worker.wait(PATIENCE_S) == 0
    finally:
        worker.kill()
        worker.communicate()
    with Store.open(str(db)) as store:
        records = list(store.records(only_run(db).id))
        salt = store.salt()
    assert {r.worker for r in records} == {"w0"}
    assert all(r.prompt_hash and r.prompt_sketch and r.answer_hash for r in records)
    assert salt.hex() not in done.stdout + done.stderr
    assert not (tmp_path / "unused.db").exists()


def test_the_number_of_requests_can_be_limited(metronome: str, tmp_path: Path) -> None:
    """--requests 7 makes seven requests due, no more and no fewer, and ends the run."""
    db = tmp_path / "runs.db"
    done = run(metronome, db, "-u", "3", "-r", "3", "--think-time", "0", "--requests", "7")

    assert done.returncode == 0, done.stderr
    with Store.open(str(db)) as store:
        assert store.count(only_run(db).id) == 7
    assert only_run(db).status is RunStatus.COMPLETE


@pytest.mark.parametrize(
    "processes",
    [
        pytest.param([], id="one"),
        pytest.param(["--processes", "2"], id="two", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_an_interrupted_run_with_everything_in_it(
    number: signal.Signals, processes: list[str], slow_metronome: str, tmp_path: Path
) -> None:
    """What was open at the signal is recorded as unfinished, and the run says interrupted."""
    db = tmp_path / "runs.db"
    options = ["-u", "3", "-r", "3", "--think-time", "0", "--max-tokens", "100", *processes]
    process = start(slow_metronome, db, "--headless", *options)
    try:
        wait_until(lambda: open_requests(db) >= 3)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    found = only_run(db)
    with Store.open(str(db)) as store:
        records = list(store.records(found.id))
    assert found.status is RunStatus.INTERRUPTED, err
    assert [r.outcome for r in records] == [Outcome.UNFINISHED] * 3
    assert all(r.ended_at_s is not None for r in records)


def test_kill_9_of_the_load_leaves_a_readable_interrupted_run(
    metronome: str, tmp_path: Path
) -> None:
    """After kill -9 the run is interrupted and holds every record handed on before."""
    db = tmp_path / "runs.db"
    process = start(metronome, db, "--headless", "-u", "4", "-r", "4", "--think-time", "0")
    try:
        wait_until(lambda: has_records(db, 20))
        process.kill()
        process.communicate()
        process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: only_run(db).status is RunStatus.INTERRUPTED)
    with Store.open(str(db)) as store:
        records = list(store.records(only_run(db).id))
    assert len(records) >= 20
    assert {r.outcome for r in records} <= {Outcome.OK, Outcome.UNFINISHED}


@pytest.mark.slow
def test_stop_before_the_run_has_begun_leaves_no_run_going(metronome: str, tmp_path: Path) -> None:
    """Stop pressed while the recorder starts ends that run at once, and Locust can go on."""
    db, port = tmp_path / "runs.db", free_port()
    process = start(metronome, db, "--web-host", "127.0.0.1", "--web-port", str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url))
        form = {"user_count": "2", "spawn_rate": "2", "host": metronome}
        httpx.post(f"{url}/swarm", data=form)
        wait_until(db.exists)  # the recorder is at work, and has not reported yet
        httpx.post(f"{url}/stop", timeout=PATIENCE_S)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    with Store.open(str(db)) as store:
        assert RunStatus.RUNNING not in [r.status for r in store.runs()]


def test_our_options_stand_in_locusts_help() -> None:
    """`locust -f scenarios/chat.py --help` names every option of ours."""
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", SCENARIO, "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert [o.name for o in OPTIONS if o.name not in done.stdout] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "http://127.0.0.1:9"], "Cannot reach http://127.0.0.1:9"),
        (["--model", "nope"], "does not serve 'nope'"),
        (["--host", "ftp://x"], "expected a URL like"),
        (["--api-key-env", "NOT_SET_ANYWHERE"], "'NOT_SET_ANYWHERE' is not set"),
        (["--db", "/nowhere/at/all/runs.db"], "/nowhere/at/all"),
        (["--think-time", "soon"], "--think-time: expected a duration"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    options: list[str], words: str, metronome: str, tmp_path: Path
) -> None:
    """What cannot work ends with exit code 2 and one sentence, and leaves no database."""
    db = tmp_path / "runs.db"
    done = run(metronome, db, "-u", "1", "-t", "2s", *options)

    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in done.stderr
    assert not db.exists()


def test_an_endpoint_that_wants_a_key_says_how_to_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 401 before the run is one sentence that names --api-key-env."""
    monkeypatch.setenv("SIM_KEY", "right-key-1234")
    with SimProcess("--api-key-env", "SIM_KEY") as server:
        done = run(server.url, tmp_path / "runs.db", "-u", "1", "-t", "2s")
    assert done.returncode == 2
    assert "wants an API key (HTTP 401); give it with --api-key-env NAME" in done.stderr


def test_the_api_key_reaches_the_server_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the key the run works, and no byte of the database or the output holds it."""
    key = "sg-canary-5d41402abc4b2a76"
    monkeypatch.setenv("CANARY_KEY", key)
    with SimProcess("--api-key-env", "CANARY_KEY") as server:
        db = tmp_path / "runs.db"
        options = ["-u", "2", "-t", "3s", "--think-time", "0.2", "--api-key-env", "CANARY_KEY"]
        done = run(server.url, db, *options, "--header", "X-Extra=@CANARY_KEY")
    assert done.returncode == 0, done.stderr
    with Store.open(str(db)) as store:
        assert {r.outcome for r in store.records(only_run(db).id)} == {Outcome.OK}
        assert store.salt().hex() not in done.stdout + done.stderr
        assert repr(store.salt()) not in repr(only_run(db)) + done.stdout + done.stderr
    assert key not in done.stdout + done.stderr
    assert all(key.encode() not in p.read_bytes() for p in tmp_path.iterdir())


@pytest.mark.slow
def test_a_lost_worker_makes_the_run_invalid(slow_metronome: str, tmp_path: Path) -> None:
    """A worker killed on the way is counted as lost; what it had open is there as unfinished."""
    db, port = tmp_path / "runs.db", str(free_port())
    worker = start(slow_metronome, db, "--worker", "--master-port", port, "--max-tokens", "100")
    master = start(
        slow_metronome,
        db,
        *["--headless", "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port],
        *["-u", "2", "-r", "2", "--expect-workers", "1", "--max-tokens", "100"],
    )
    try:
        wait_until(lambda: open_requests(db) >= 2)
        worker.kill()
        master.send_signal(signal.SIGINT)
        master.communicate(timeout=PATIENCE_S)
    finally:
        for process in (worker, master):
            process.kill()
            process.communicate()
    found = only_run(db)
    with Store.open(str(db)) as store:
        outcomes = [r.outcome for r in store.records(found.id)]
    assert found.status is RunStatus.INTERRUPTED
    assert found.client["workers_lost"] == 1
    assert outcomes == [Outcome.UNFINISHED] * 2

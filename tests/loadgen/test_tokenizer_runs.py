"""Runs that count tokens themselves, and those that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from collectors.figures import measure
from collectors.records import Outcome, TokenSource
from collectors.store import Store
from reference_server.process import SimProcess
from tests.loadgen.locusts import PATIENCE_S, final_rows, free_port, only_run, run, start
from tests.loadgen.tokenizer_files import saved, word_tokenizer

SILENT = ["--dialect", "mistral"]  # does not ask for usage, so that the simulator tells none


@pytest.fixture(scope="module")
def metronome() -> Iterator[str]:
    """A quick source: TTFT 20 ms, gap 2 ms."""
    with SimProcess("--metronome", "--ttft", "20ms", "--itl", "2ms") as server:
        yield server.url


@pytest.mark.slow
def test_a_run_counts_what_the_server_does_not_tell(metronome: str, tmp_path: Path) -> None:
    """As many tokens as were generated, in the records, the figures and Locust's rows."""
    db, tokenizer = tmp_path / "runs.db", saved(word_tokenizer(), tmp_path)
    options = ["-u", "2", "-t", "3s", "--think-time", "0.1", "--max-tokens", "9", *SILENT]
    more = ["--tokenizer", tokenizer, "--processes", "2", "--warmup", "0", "--ramp", "0.5"]
    done = run(metronome, db, *options, *more)

    assert done.returncode == 0, done.stderr
    found = only_run(db)
    with Store.open(str(db)) as store:
        records = list(store.records(found.id))
        figures = measure(found, store.table(found.id), store.samples(found.id))
    assert {(r.outcome, r.token_source) for r in records} == {(Outcome.OK, TokenSource.TOKENIZER)}
    assert {r.finish_reasons for r in records} == {("length",)}
    assert {r.output_tokens for r in records} == {r.asked_output_tokens for r in records} == {9}
    assert figures.tokens.source == "tokenizer"
    assert figures.users is not None
    assert 1 < figures.users <= 2  # the second comes when Locust gets round to it
    assert found.config["tokenizer"]["file"] == "tokenizer.json"
    assert found.client["tokenizer"]["counted"] == len(records)
    assert found.client["tokenizer"]["given_up"] == 0
    assert final_rows(done.stderr)["TOKENS chat (tokens, not ms)"].requests == len(records)


@pytest.mark.parametrize("processes", [[], ["--processes", "2"]], ids=["one", "two"])
def test_a_tokenizer_that_cannot_be_used_ends_the_run_before_it_begins(
    processes: list[str], metronome: str, tmp_path: Path
) -> None:
    """One sentence, exit code 2, no database, and the server was not asked for anything."""
    before = len(httpx.get(f"{metronome}/truth").json()["requests"])
    db, nothing = tmp_path / "runs.db", tmp_path / "no-such.json"
    done = run(metronome, db, "-u", "2", "-t", "2s", "--tokenizer", str(nothing), *processes)

    errors = [line for line in done.stderr.splitlines() if "Error:" in line]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert errors[0].startswith("Error: --tokenizer: cannot read")
    assert "Traceback" not in done.stderr
    assert not db.exists()
    assert len(httpx.get(f"{metronome}/truth").json()["requests"]) == before


@pytest.mark.slow
def test_a_worker_that_lacks_the_file_ends_the_run(metronome: str, tmp_path: Path) -> None:
    """Options go to the workers as they are, and each reads the file for itself."""
    here, there, port = tmp_path / "here", tmp_path / "there", str(free_port())
    for folder in (here, there):
        folder.mkdir()
    saved(word_tokenizer(), here)
    db = tmp_path / "runs.db"
    ports = ["--master-bind-host", "127.0.0.1", "--master-bind-port", port]
    worker = start(metronome, db, "--worker", "--master-port", port, cwd=there)
    master = start(
        *(metronome, db, "--headless", "--master", *ports, "--expect-workers", "1"),
        *("-u", "2", "-t", "20s", "--tokenizer", "tokenizer.json"),
        cwd=here,
    )
    try:
        _, err = master.communicate(timeout=PATIENCE_S)
    finally:
        for process in (worker, master):
            process.kill()
            process.communicate()

    assert master.returncode == 2, err
    assert "Error: Worker w0: --tokenizer: cannot read 'tokenizer.json'" in err
    with Store.open(str(db)) as store:
        assert store.count(only_run(db).id) == 0

"""``streamgauge doctor`` and ``--dialect auto`` as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reference_server.byteserver import Play, free_port
from tests.loadgen.vendors import answer, bodies, model_list, refusal, vendor

PATIENCE_S = 60.0
MODELS = {"/v1/models": model_list("m", owner="vllm")}


def streamgauge(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "streamgauge", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_an_endpoint_that_answers() -> None:
    """Exit code 0, and a page that begins with the endpoint."""
    with vendor(pages=MODELS) as server:
        done = streamgauge("doctor", server.url)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{server.url} (chat)\n")
    assert "vLLM, by models owned by 'vllm'" in done.stdout
    assert "\nA run would measure\n  - TTFT" in done.stdout


@pytest.mark.parametrize("words", [["--json"], ["--format", "json"]])
def test_as_json(words: list[str]) -> None:
    """One document, by either spelling."""
    with vendor(pages=MODELS) as server:
        done = streamgauge("doctor", server.url, *words)

    assert json.loads(done.stdout)["dialect"]["name"] == "vllm"


def test_an_endpoint_whose_answers_are_none() -> None:
    """Exit code 2, and what was seen all the same."""
    with vendor(lambda _: refusal("500 Oops", {"error": "broken"}), pages=MODELS) as server:
        done = streamgauge("doctor", server.url)

    assert done.returncode == 2
    assert "Anything: a run's request ends http_error (broken)." in done.stdout


def test_an_endpoint_that_is_not_there() -> None:
    """Exit code 2 and one sentence."""
    done = streamgauge("doctor", f"http://127.0.0.1:{free_port()}", "--model", "m")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: Cannot reach http://127.0.0.1:")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_what_auto_learned_reaches_the_workers(tmp_path: Path) -> None:
    """A field that is refused is not asked for again, by whichever process."""

    def reply(asked: dict[str, Any]) -> Play:
        if "stream_options" in asked:
            return refusal("400 No", {"error": {"message": "unknown field stream_options"}})
        return answer(asked)

    with vendor(reply, pages=MODELS) as server:
        done = streamgauge(
            *("run", "chat", "--host", server.url, "--dialect", "auto", "--processes", "2"),
            *("--users", "2", "--duration", "2s", "--no-calibrate"),
            *("--think-time", "100ms", "--db", str(tmp_path / "runs.db")),
        )
        asked = bodies(server)

    assert done.returncode == 0
    assert len(asked) > 4
    assert [n for n, body in enumerate(asked) if "stream_options" in body] == [0]

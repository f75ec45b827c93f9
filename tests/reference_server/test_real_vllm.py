"""Real vLLM on this CPU, as `reference_server.vllm_process` starts it: what a client meets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.demo_vllm import metric_totals
from reference_server.vllm_process import MODEL_NAME, VllmProcess, ensure_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.needs("vllm")]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-vllm"
QUESTION = [{"role": "user", "content": "Say something."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmProcess]:
    """One real server for all tests here; entering it proves readiness."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    model = ensure_tiny_model(ENVIRONMENT)
    with VllmProcess(model=model, environment=ENVIRONMENT, log=log) as server:
        yield server


def post(server: VllmProcess, path: str, **body: Any) -> tuple[int, str]:
    """Status and body of one request, whatever the status."""
    request = urllib.request.Request(
        server.url + path,
        json.dumps({"model": MODEL_NAME, **body}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as reply:
        with reply:
            return reply.code, reply.read().decode()


def test_it_lists_the_tiny_model(server: VllmProcess) -> None:
    """The served name is the one that scenarios ask for."""
    with urllib.request.urlopen(server.url + "/v1/models", timeout=10) as reply:
        assert [model["id"] for model in json.load(reply)["data"]] == [MODEL_NAME]


def test_a_chat_stream_ends_with_usage_and_done(server: VllmProcess) -> None:
    """A role event, then one answer of the asked length, then usage, then the end marker."""
    status, text = post(
        server,
        "/v1/chat/completions",
        messages=QUESTION,
        max_tokens=12,
        ignore_eos=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert status == 200
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 12


def test_a_completion_says_what_it_used(server: VllmProcess) -> None:
    """Without streaming the usage stands in the one reply."""
    status, text = post(server, "/v1/completions", prompt="Once", max_tokens=7, ignore_eos=True)
    assert status == 200
    assert json.loads(text)["usage"]["completion_tokens"] == 7


def test_a_wrong_model_is_refused_by_name(server: VllmProcess) -> None:
    """404, and the message names the model that was asked for."""
    status, text = post(server, "/v1/chat/completions", model="nope", messages=QUESTION)
    assert status == 404
    assert "nope" in json.loads(text)["error"]["message"]


def test_its_metrics_count_what_it_generated(server: VllmProcess) -> None:
    """The counters that `make demo-vllm` compares with the client exist and move."""

    def generated() -> float:
        with urllib.request.urlopen(server.url + "/metrics", timeout=10) as reply:
            return metric_totals(reply.read().decode())["vllm:generation_tokens_total"]

    before = generated()
    post(server, "/v1/completions", prompt="Once", max_tokens=9, ignore_eos=True)
    assert generated() - before == 9


def test_kill_9_of_the_parent_leaves_no_part_of_it_running(tmp_path: Path) -> None:
    """Server and engine both end when the process that started them is killed outright."""
    code = (
        "import signal; from pathlib import Path\n"
        "from reference_server.vllm_process import VllmProcess, ensure_tiny_model\n"
        f"with VllmProcess(model=ensure_tiny_model(), log=Path({str(tmp_path / 'log')!r})) as s:\n"
        "    print(s.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        assert len(living(group)) > 1
        parent.kill()
    deadline = time.monotonic() + 30
    while (left := living(group)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def living(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            member = os.getpgid(process.pid) == group
        except ProcessLookupError:
            continue
        if member and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found

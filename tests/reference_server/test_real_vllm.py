"""Real vLLM on this CPU, as the launchers start it: what a client meets."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from bench.demo_vllm import metric_totals
from collectors.store import Store
from reference_server.engine import EngineConfig
from reference_server.metrics import Metrics
from reference_server.vllm_process import MODEL_NAME, VllmProcess, ensure_tiny_model
from tests.reference_server.conftest import recorded
from tests.reference_server.test_metrics import parse
from tests.reference_server.test_simulator import shape

pytestmark = [pytest.mark.vllm, pytest.mark.needs("vllm"), pytest.mark.usefixtures("logs_apart")]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv-vllm"
STREAMGAUGE = [sys.executable, "-m", "streamgauge"]
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


def test_a_completion_streams_its_text(server: VllmProcess) -> None:
    """Events with text, the last with a finish reason; without asking there is no usage."""
    status, text = post(
        server, "/v1/completions", prompt="Once", max_tokens=9, ignore_eos=True, stream=True
    )
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert status == 200
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert not any(chunk.get("usage") for chunk in chunks)


def test_several_prompts_have_several_choices_each(server: VllmProcess) -> None:
    """Counted through, prompt by prompt; the second choice says what the next seed's first does."""
    asked = {"max_tokens": 4, "ignore_eos": True, "seed": 1}
    status, text = post(server, "/v1/completions", prompt=["Once", "Twice"], n=2, **asked)
    lone = post(server, "/v1/completions", prompt="Twice", **{**asked, "seed": 2})[1]
    choices = json.loads(text)["choices"]
    assert status == 200
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert choices[3]["text"] == json.loads(lone)["choices"][0]["text"]
    assert json.loads(text)["usage"]["completion_tokens"] == 16


def test_messages_are_told_in_the_simulators_events(server: VllmProcess) -> None:
    """The same events with the same keys in the same order, however many deltas there are."""
    body = {"messages": QUESTION, "max_tokens": 4, "stream": True}
    there = post(server, "/v1/messages", **body)[1]

    def told(text: str) -> list[str]:
        data = [line.removeprefix("data: ") for line in text.splitlines() if line[:5] == "data:"]
        events = [json.loads(line) for line in data]
        return list(dict.fromkeys(f"{event['type']} {shape(event)}" for event in events))

    assert told(there) == told(recorded("messages, stream"))


def test_a_wrong_model_is_refused_by_name(server: VllmProcess) -> None:
    """404, and the message names the model that was asked for."""
    status, text = post(server, "/v1/chat/completions", model="nope", messages=QUESTION)
    assert status == 404
    assert "nope" in json.loads(text)["error"]["message"]


def test_a_prompt_too_long_is_refused_with_both_numbers(server: VllmProcess) -> None:
    """400; the message tells the limit and what came."""
    status, text = post(server, "/v1/completions", prompt=[5] * 8200, max_tokens=1)
    assert status == 400
    error = json.loads(text)["error"]
    assert error["type"] == "BadRequestError"
    assert "8192" in error["message"]
    assert "8200" in error["message"]


def test_a_client_that_leaves_ends_its_request(server: VllmProcess) -> None:
    """Soon nothing runs, and far fewer tokens were generated than asked for."""
    before = total(server, "vllm:generation_tokens_total")
    body = {"model": MODEL_NAME, "prompt": "Once", "max_tokens": 8000, "ignore_eos": True}
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps(body | {"stream": True}),
        {"Content-Type": "application/json"},
    )
    assert connection.getresponse().readline().startswith(b"data: ")
    assert total(server, "vllm:num_requests_running") == 1
    connection.close()
    deadline = time.monotonic() + 10
    while total(server, "vllm:num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert total(server, "vllm:num_requests_running") == 0
    assert total(server, "vllm:generation_tokens_total") - before < 8000


def test_its_metrics_count_what_it_generated(server: VllmProcess) -> None:
    """The counters that `make demo-vllm` compares with the client exist and move."""
    before = total(server, "vllm:generation_tokens_total")
    post(server, "/v1/completions", prompt="Once", max_tokens=9, ignore_eos=True)
    assert total(server, "vllm:generation_tokens_total") - before == 9


def test_its_metrics_are_those_that_the_simulator_copies(server: VllmProcess) -> None:
    """Every name of the simulator's is on the real page: same type, same edges of buckets."""
    types, samples = parse(Metrics(MODEL_NAME, EngineConfig()).page().decode())
    theirs = page(server)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", theirs, re.MULTILINE))
    ours = {name: kind for name, kind in types.items() if name.startswith("vllm:")}
    assert ours.items() <= kinds.items()
    for name in [name for name in samples if name.startswith("vllm:") and "_bucket" in name]:
        edges = re.findall(rf'^{name}{{[^}}]*le="([^"]+)"', theirs, re.MULTILINE)
        assert [labels["le"] for labels in samples[name]] == edges, name


def test_a_run_serves_a_variant_of_it_and_says_so(tmp_path: Path) -> None:
    """`run --serve` starts it, measures it, judges it, labels the run, and leaves nothing."""
    db, sla = tmp_path / "runs.db", tmp_path / "one.sla.yaml"
    sla.write_text("sla: one\nobjectives:\n  error_ratio: < 50 %\n", encoding="utf-8")
    words = ("--serve", "vllm:tiny,no-prefix-cache --max-num-seqs 8", "--users", "2")
    words += ("--requests", "30", "--max-tokens", "16", "--think-time", "0.1", "--no-calibrate")
    done = subprocess.run(
        [*STREAMGAUGE, "run", "chat", *words, "--db", str(db), "--sla", str(sla)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in {0, 3}, done.stderr  # 3: on a busy machine the run may be invalid
    assert "loading weights" in done.stderr or "s  waiting for" in done.stderr
    with Store.open(str(db)) as store:
        run = store.find_run("last")
    assert run.model == MODEL_NAME
    assert run.labels["server"] == "vllm"
    assert run.labels["server_version"].startswith("0.")
    assert run.labels["server_variants"] == "no-prefix-cache"
    assert run.labels["server_flags"] == "--no-enable-prefix-caching --max-num-seqs 8"
    assert run.labels["model"] == MODEL_NAME


def test_kill_9_of_the_command_leaves_no_part_of_it_running(tmp_path: Path) -> None:
    """Server and engine both end when the command that started them is killed outright."""
    words = ("serve", "vllm", "--profile", "tiny", "--port", "0", "--log", str(tmp_path / "log"))
    with subprocess.Popen(
        [*STREAMGAUGE, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline().startswith("serving on ")
        family = psutil.Process(command.pid).children(recursive=True)
        assert len(family) > 2  # the tether, the server, the engine
        command.kill()
    _, left = psutil.wait_procs(family, timeout=30)
    for process in left:
        process.kill()
    assert not left


def page(server: VllmProcess) -> str:
    """The text of /metrics."""
    with urllib.request.urlopen(server.url + "/metrics", timeout=10) as reply:
        text: str = reply.read().decode()
        return text


def total(server: VllmProcess, name: str) -> float:
    """The sum of a metric's series."""
    return metric_totals(page(server))[name]

"""``streamgauge serve sim`` as a process: how it starts, what it refuses, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from reference_server.engine import RooflineCost
from reference_server.engine.cost import QUANTIZATIONS, Prompts
from reference_server.engine.hardware import DEVICES
from reference_server.engine.machine import Machine
from reference_server.engine.models import MODELS
from reference_server.errors import SettingsError, StartError
from reference_server.kernel import listen, run_before_others
from reference_server.process import SimProcess
from tests.reference_server.conftest import chat, truth_of, wait_for

SIM = [sys.executable, "-m", "streamgauge", "serve", "sim"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SIM, *options], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("mode", [[], ["--metronome"]])
def test_a_port_in_use_is_one_sentence_and_exit_code_2(mode: list[str]) -> None:
    """It says which, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("--port", port, *mode)

    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: Cannot listen on 127.0.0.1:{port} (Address already in use); "
        "choose another with --port, or --port 0 for any free one.\n"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ttft", "5ms"], "--ttft needs --metronome."),
        (["--metronome", "--max-num-seqs", "5"], "--max-num-seqs has no effect with --metronome."),
        (["--metronome", "--ttft", "5 parsecs"], "'5 parsecs' is not a duration; write 50ms"),
        (["--api-key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY, which is not set"),
        (["--max-model-len", "1000000"], "--max-model-len must lie between 2 and the KV cache's"),
        (["--fault", "reset:2"], "The rate of a fault must lie between 0 and 1, got '2'"),
        (["--fault", "rset:0.1"], "There is no fault 'rset'; known are: 429,"),
        (["--fault", "cut:0.6", "--fault", "drop:0.6"], "add up to 1 at most, got 1.2"),
        (["--quirk", "none"], "'none' is not one of 'no-done'"),
        (["--metronome", "--quirk", "crlf"], "--quirk has no effect with --metronome."),
        (["--host", "no.such.host.invalid"], "Cannot listen on no.such.host.invalid:8000"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], says: str) -> None:
    """Before anything is served, with exit code 2."""
    result = run(*options)

    assert result.returncode == 2
    assert says in " ".join(result.stderr.split())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("mode", [[], ["--metronome"]])
def test_a_signal_ends_it_at_once_even_with_a_stream_open(
    mode: list[str], signum: signal.Signals
) -> None:
    """Exit code 0, nothing on stderr, and the client sees its stream break off."""
    process = subprocess.Popen(
        [*SIM, "--port", "0", *mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().removeprefix("serving on ").strip()
        request = chat(model=None, stream=True, max_tokens=5000)
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=request) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            process.send_signal(signum)
            asked_at = time.monotonic()
            with pytest.raises(httpx.RemoteProtocolError):
                list(pieces)
        code = process.wait(timeout=10)
        took_s = time.monotonic() - asked_at
        complaints = process.stderr.read()

    assert (code, complaints) == (0, "")
    assert took_s < 5, "a second on a quiet machine"


def test_the_server_ends_with_the_process_that_started_it() -> None:
    """Also where that one is killed without a chance to tidy up."""
    script = (
        "import time; from reference_server.process import SimProcess\n"
        "with SimProcess('--metronome') as p:\n"
        "    print(p.url, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert httpx.get(f"{url}/health").status_code == 200
        parent.kill()

    def is_gone() -> bool:
        try:
            httpx.get(f"{url}/health", timeout=1)
        except httpx.TransportError:
            return True
        return False

    wait_for(is_gone)


def test_a_server_that_does_not_come_up_is_an_error() -> None:
    """Not a wait for ever; and nothing is left running."""
    with pytest.raises(StartError, match="ended within"), SimProcess("--no-such-option"):
        pass


def test_without_uvicorn_the_simulator_says_what_to_install() -> None:
    """And the metronome, which needs the standard library alone, runs."""
    hide = (
        "import sys; sys.modules.update(dict.fromkeys(['uvicorn', 'httptools']))\n"
        "from streamgauge.cli import main\n"
        "sys.argv[1:] = ['serve', 'sim', '--port', '0', *sys.argv[1:]]\nmain()"
    )
    bare = [sys.executable, "-c", hide]
    result = subprocess.run(bare, capture_output=True, text=True, timeout=20, check=False)

    assert result.returncode == 2
    assert 'run: pip install "streamgauge[server]"' in result.stderr
    with subprocess.Popen([*bare, "--metronome"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving on http://127.0.0.1:")
        process.terminate()


def test_the_command_is_light_to_import() -> None:
    """``streamgauge --help`` and ``serve --help`` load no server."""
    script = "import sys; import streamgauge.commands.serve; print(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert not {"uvicorn", "httptools", "asyncio", "httpx"} & set(result.stdout.split())


def test_real_time_without_the_right_to_it_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what would give the right, and that it goes without."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(SettingsError, match=r"--realtime needs the right .* run without it\.$"):
        run_before_others()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gpu", "h200"], "--gpu needs --model, one of llama-3.1-8b"),
        (["--gpu", "h300", "--model", "tiny"], "The GPU 'h300' is not known; choose one of h200"),
        (["--quantization", "fp8"], "--quantization needs --gpu."),
        (
            ["--gpu", "h200", "--model", "tiny", "--quantization", "q4"],
            "The quantization 'q4' is not known",
        ),
        (
            ["--gpu", "h200", "--model", "tiny", "--decode-base", "1ms"],
            "--decode-base has no effect with --gpu.",
        ),
        (["--acceptance-ratio", "0.5"], "--acceptance-ratio needs --draft-tokens."),
        (["--routing", "round-robin"], "--routing needs --replicas."),
        (["--gpu", "h100", "--model", "llama-3.1-70b"], "no room for a KV cache on 1 x NVIDIA"),
        (["--kv-cache-tokens", "8191"], "--max-model-len must lie between 2 and the KV cache's"),
        (["--draft-tokens", "64"], "token budget (2048 a step) must be at least"),
    ],
)
def test_machines_that_make_no_sense_are_refused(options: list[str], says: str) -> None:
    """One sentence, exit code 2, nothing served."""
    result = run("--port", "0", *options)

    assert result.returncode == 2
    assert says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_model_on_a_gpu_keeps_its_schedule() -> None:
    """Llama 8B in 8 bits on an H200: the schedule of a lone request is what its cost says."""
    options = ["--model", "llama-3.1-8b", "--gpu", "h200", "--quantization", "fp8"]
    cost = RooflineCost(
        model=MODELS["llama-3.1-8b"],
        device=DEVICES["h200"],
        quantization=QUANTIZATIONS["fp8"],
    )
    with SimProcess(*options, "--prefix-caching", "--replicas", "2") as process:
        url = f"{process.url}/v1/chat/completions"
        httpx.post(url, json=chat(model=None, max_tokens=5), headers={"x-request-id": "lone"})
        truth = truth_of(process.url, "lone")
        page = httpx.get(f"{process.url}/metrics").text

    expected_s = sum(cost.line(1).at(10 + made) for made in range(1, 5))
    expected_s += cost.line(0, Prompts(1, 10, 55)).base_s
    took_s = truth["last_scheduled_at"] - truth["read_at"]
    assert took_s == pytest.approx(expected_s, abs=1e-6)
    assert f'num_gpu_blocks="{Machine(cost=cost).kv_cache_tokens // 16}"' in page
    assert 'enable_prefix_caching="True"' in page


def test_a_token_waits_for_no_acknowledgement() -> None:
    """What is accepted sends small writes at once; else the token after a head is 40 ms late."""
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

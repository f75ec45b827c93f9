"""The launcher of real vLLM, with a stand-in that starts at once and misbehaves on request."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from reference_server.errors import StartError
from reference_server.vllm_process import VllmProcess

ROOT = Path(__file__).resolve().parents[2]
# Takes the place of vLLM's command. $STAND_IN says how it behaves; its helper is a process that
# does not hear SIGTERM, as an engine left behind by a crash would be.
STAND_IN = """
import http.server, os, signal, subprocess, sys
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
helper = subprocess.Popen([sys.executable, "-c", deaf])
print("helper", helper.pid, flush=True)
mood = os.environ["STAND_IN"]
if mood == "dies":
    sys.exit("no such model")
status = 503 if mood == "is never ready" else 200
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(status)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder like ``.venv-vllm`` whose interpreter finds the stand-in as vLLM's command."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    (package / "main.py").write_text(STAND_IN)
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path / "env"


@pytest.fixture
def server(environment: Path, tmp_path: Path) -> VllmProcess:
    """A launcher of the stand-in, not yet started."""
    return VllmProcess(
        model=tmp_path, environment=environment, log=tmp_path / "log", ready_timeout_s=20
    )


def helper_pid(log: Path) -> int:
    """The stand-in's helper, as it wrote to its log."""
    return int(log.read_text().split("helper ")[1].split()[0])


def expect_gone(*pids: int) -> None:
    """Fail unless each process ends soon; one that only waits to be reaped has ended."""
    deadline = time.monotonic() + 10
    left = set(pids)
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if is_running(pid)}
        time.sleep(0.02)
    assert not left


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_serves_when_entered_and_leaves_nothing_behind(
    server: VllmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the context /health answers; after it neither server nor helper runs."""
    monkeypatch.setenv("STAND_IN", "serves")
    with server:
        assert urllib.request.urlopen(server.url + "/health", timeout=5).status == 200
        pid = server.pid
    assert pid is not None
    assert server.pid is None
    expect_gone(pid, helper_pid(server.log))


def test_it_keeps_to_the_cores_it_was_given(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client on the same machine can have a core that the server leaves alone."""
    monkeypatch.setenv("STAND_IN", "serves")
    core = max(os.sched_getaffinity(0))
    log = tmp_path / "log"
    with VllmProcess(model=tmp_path, environment=environment, log=log, cores=[core]) as server:
        assert server.pid is not None
        assert os.sched_getaffinity(server.pid) == {core}
        assert os.sched_getaffinity(helper_pid(log)) == {core}


def test_a_server_that_dies_is_told_with_its_log(
    server: VllmProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence carries exit code and log, and the orphaned helper is ended."""
    monkeypatch.setenv("STAND_IN", "dies")
    with pytest.raises(StartError, match=f"exit code 1 before .* its log is {server.log}"), server:
        pass
    assert "no such model" in server.log.read_text()
    expect_gone(helper_pid(server.log))


def test_a_server_that_is_never_ready_is_given_up(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time limit it is stopped, and the sentence names the limit."""
    monkeypatch.setenv("STAND_IN", "is never ready")
    server = VllmProcess(
        model=tmp_path, environment=environment, log=tmp_path / "log", ready_timeout_s=1
    )
    with pytest.raises(StartError, match="within 1 s"), server:
        pass
    expect_gone(helper_pid(server.log))


def test_without_an_environment_it_says_how_to_get_one(tmp_path: Path) -> None:
    """The error names the make target."""
    server = VllmProcess(model=tmp_path, environment=tmp_path / "none", log=tmp_path / "log")
    with pytest.raises(StartError, match="make demo-vllm"), server:
        pass


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_dies_with_the_process_that_started_it(
    how: signal.Signals, environment: Path, tmp_path: Path
) -> None:
    """Ctrl-C, SIGTERM and ``kill -9`` of the parent leave no server running."""
    code = (
        "import signal, sys; from pathlib import Path;"
        "from reference_server.vllm_process import VllmProcess\n"
        f"with VllmProcess(model=Path('.'), environment=Path({str(environment)!r}),"
        f" log=Path({str(tmp_path / 'log')!r})) as server:\n"
        "    print(server.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "STAND_IN": "serves"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            parent.send_signal(how)
            parent.wait(30)
            expect_gone(pid)
        finally:
            parent.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(helper_pid(tmp_path / "log"), signal.SIGKILL)

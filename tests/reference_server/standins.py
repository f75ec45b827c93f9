"""Programs that stand in for servers that are not here, and what became of their processes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil

# $STAND_IN says how it behaves. Its helper is in a session of its own and does not hear SIGTERM,
# as an engine left behind by a crash would be; with $STAND_IN_HELPER=hears it does, which saves
# the seconds until it is killed. `--port N` says where it listens.
SERVER = """
import http.server, json, os, signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
hears = os.environ.get("STAND_IN_HELPER") == "hears"
code = "import time; time.sleep(300)" if hears else deaf
helper = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
print("self", os.getpid(), "helper", helper.pid, flush=True)
mood = os.environ.get("STAND_IN", "serves")
if mood == "dies":
    sys.exit("ValueError: no such thing")
if mood == "is deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mood == "never listens":
    time.sleep(300)
status = 503 if mood == "is never ready" else 200
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/quit":
            os._exit(3)
        self.send_response(status)
        self.end_headers()
        if self.path == "/v1/models":
            self.wfile.write(json.dumps({"data": [{"id": "stand-in"}]}).encode())
        if self.path == "/version":
            self.wfile.write(b'{"version": "7.7"}')
    def log_message(self, *args):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
print("Starting to load model stand-in...", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def write_server(folder: Path) -> Path:
    """The stand-in as a script in ``folder``."""
    script = folder / "stand_in.py"
    script.write_text(SERVER)
    return script


def write_vllm_python(folder: Path, version: str = "9.9+cpu") -> Path:
    """An interpreter in ``folder`` that has the stand-in for its vLLM."""
    site = folder / "site"
    package = site / "vllm" / "entrypoints" / "cli"
    package.mkdir(parents=True)
    (package / "main.py").write_text(SERVER)
    info = site / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    python = folder / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def pids_in(log: Path) -> dict[str, int]:
    """The stand-in's processes, as it wrote to its log: ``self`` and ``helper``."""
    words = log.read_text().split()
    return {name: int(words[words.index(name) + 1]) for name in ("self", "helper")}


def expect_gone(*pids: int) -> None:
    """Fail unless each process ends soon; one that only waits to be reaped has ended."""
    deadline = time.monotonic() + 15
    left = set(pids)
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if is_running(pid)}
        time.sleep(0.02)
    assert not left


def is_running(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(file: Path, words: str) -> None:
    """Wait until a file holds some words."""
    deadline = time.monotonic() + 20
    while not file.exists() or words not in file.read_text():
        assert time.monotonic() < deadline, f"{words!r} did not appear"
        time.sleep(0.02)

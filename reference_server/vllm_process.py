"""Starts real vLLM on this CPU, waits until it serves, and leaves no process behind.

The environment is `reference_server.vllm_env`'s. vLLM is started so that it does not spin: its
usual CPU executor polls in a loop of ``sched_yield``, which on a small machine starves the very
client that measures it (upstream issue 28836). One process fewer, and engine and worker in one,
is the way that does not.

The server stands in a process group of its own, so Ctrl-C reaches it only through ``stop``; the
kernel is asked to end it if the process that started it dies, ``kill -9`` included.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from reference_server import vllm_env
from reference_server.errors import StartError

MODEL_NAME = "tiny"
READY_TIMEOUT_S = 180.0  # 15 s on an idle machine of two cores; imports are most of it
STOP_TIMEOUT_S = 20.0
# Run in the server's interpreter before vLLM: ask the kernel for SIGTERM at the parent's death
# (prctl 1 is PR_SET_PDEATHSIG, which survives exec as the cores do), then become vLLM. If the
# parent died in between, the signal would never come, hence the look at the parent.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.sched_setaffinity(0, map(int, sys.argv[2].split(",")))
os.execv(sys.argv[3], sys.argv[3:])
"""
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # without it the CPU platform turns `uni` into `mp`
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}
_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ensure_tiny_model(environment: Path = vllm_env.DEFAULT_FOLDER) -> Path:
    """The folder of the tiny model, made now if it is not there; it lives in the environment.

    Raises:
        StartError: it cannot be made.
    """
    folder = environment / "tiny-model"
    if folder.exists():
        return folder
    script = Path(__file__).with_name("tiny_model.py")
    with tempfile.TemporaryDirectory(dir=environment) as scratch:
        made = subprocess.run(
            # -P: the script's own folder must not hide packages of that environment.
            [str(vllm_env.python_of(environment)), "-P", str(script), scratch + "/model"],
            env={**os.environ, **_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise StartError(
                f"The tiny model could not be made (exit {made.returncode}): "
                f"{made.stdout.strip()[-300:]!r}."
            )
        shutil.move(scratch + "/model", folder)
    return folder


class VllmProcess:
    """Real vLLM serving one model on loopback; a context manager that is ready when entered.

    Args:
        model: folder of the model.
        environment: folder made by `vllm_env`.
        log: file that takes all that the server prints; it is appended to.
        port: TCP port; 0 finds a free one.
        max_num_seqs: sequences that vLLM decodes at once; further requests wait in its queue.
        kv_cache_bytes: memory for keys and values; a small one provokes queueing and preemption.
        cores: CPU cores that the server may use, or None for all; a client on the same machine
            measures itself unless it has one that the server leaves free.
        extra: further options of ``vllm serve``.
        ready_timeout_s: how long the server may take to answer ``/health``.

    Start and stop it in one thread that lives as long: the kernel ties a child to the *thread*
    that made it.
    """

    def __init__(
        self,
        *,
        model: Path,
        environment: Path = vllm_env.DEFAULT_FOLDER,
        log: Path,
        port: int = 0,
        max_num_seqs: int = 64,
        kv_cache_bytes: int = 256 * 2**20,
        cores: Collection[int] | None = None,
        extra: Sequence[str] = (),
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.ready_timeout_s = ready_timeout_s
        self._python = vllm_env.python_of(environment)
        self._serve = [
            *("-m", "vllm.entrypoints.cli.main", "serve", str(model)),
            *("--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(self.port)),
            *("--dtype", "bfloat16", "--max-model-len", "8192", "--enforce-eager"),
            *("--max-num-seqs", str(max_num_seqs)),
            *("--kv-cache-memory-bytes", str(kv_cache_bytes)),
            *("--distributed-executor-backend", "uni", "--disable-uvicorn-access-log"),
            *extra,
        ]
        self._cores = ",".join(map(str, sorted(cores or os.sched_getaffinity(0))))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process, or None before it is started and after it is stopped."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server without waiting for it.

        Raises:
            StartError: there is no environment to start it in.
        """
        if not self._python.exists():
            raise StartError(
                f"Expected vLLM in {self._python.parent.parent} and found nothing there; "
                "run `make demo-vllm` to set it up."
            )
        python = str(self._python)
        command = [python, "-c", _TIED_TO_PARENT, str(os.getpid()), self._cores]
        command += [python, *self._serve]
        with self.log.open("ab") as log:
            self._process = _start(command, log)

    def wait_ready(self) -> None:
        """Return once ``/health`` answers.

        Raises:
            StartError: the server ended, or took too long; names the log.
        """
        assert self._process is not None, "start it first"
        deadline = time.monotonic() + self.ready_timeout_s
        while not self._healthy():
            if self._process.poll() is not None:
                raise StartError(
                    f"vLLM ended with exit code {self._process.returncode} before it was ready; "
                    f"its log is {self.log}."
                )
            if time.monotonic() > deadline:
                raise StartError(
                    f"vLLM did not answer {self.url}/health within {self.ready_timeout_s:g} s; "
                    f"its log is {self.log}."
                )
            time.sleep(0.25)

    def stop(self) -> None:
        """End the server and all it started; gently first. Harmless when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        # What is left of the group now is stuck, or was orphaned by a server that crashed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _healthy(self) -> bool:
        try:
            with _no_proxy.open(self.url + "/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _start(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env={**os.environ, **_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _free_port() -> int:
    """A TCP port that is free now; vLLM cannot be asked which one it took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    """Serve the tiny model until interrupted."""
    environment = vllm_env.DEFAULT_FOLDER
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    log = environment / "server.log"
    with VllmProcess(model=ensure_tiny_model(environment), log=log, port=8000) as server:
        print(f"Real vLLM serves {MODEL_NAME!r} at {server.url}; Ctrl-C stops it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())

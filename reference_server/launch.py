"""Starts any server that answers HTTP, and waits until it does.

Whatever the command is, it gets the same care: its port is free before it is started, all it
prints goes to a file, it is ready when a URL of its own answers 200, why it failed is told in one
sentence, and none of its processes outlives the block (`reference_server.tether`).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reference_server.errors import StartError
from reference_server.failures import COMMON, Hints, reason
from reference_server.process import ServerProcess

READY_TIMEOUT_S = 3600.0  # a large model is fetched, loaded and compiled
STOP_TIMEOUT_S = 20.0
TELL_EVERY_S = 5.0
_POLL_S = 0.1
_LONGEST_ANSWER_BYTES = 2**20
_TETHER = Path(__file__).with_name("tether.py")
_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A server to be started.

    Attributes:
        name: what it is called in a sentence.
        command: program and arguments.
        ready_url: on this machine; the server is ready once it answers 200.
        environ: environment variables on top of ours.
        failures: what its log says when it fails, in the order of preference.
        stages: what its log says on the way to being ready; the last that occurs is told.
        ready_timeout_s: how long it may take to be ready.
        cores: CPU cores that it may use, or None for all; a client on the same machine measures
            itself unless it has one that the server leaves free.
    """

    name: str
    command: Sequence[str]
    ready_url: str
    environ: Mapping[str, str] = field(default_factory=dict)
    failures: Hints = COMMON
    stages: Hints = ()
    ready_timeout_s: float = READY_TIMEOUT_S
    cores: Collection[int] | None = None

    @property
    def url(self) -> str:
        """Where it serves: the ready URL without its path."""
        parts = urlsplit(self.ready_url)
        return f"{parts.scheme}://{parts.netloc}"


class LaunchedServer(ServerProcess):
    """A server started from a `Launch`; a context manager that is ready when entered.

    Args:
        launch: what is started.
        log: file that takes all it prints; it is appended to.
        say: takes a line of progress now and then, until it is ready.
    """

    def __init__(
        self, launch: Launch, *, log: Path, say: Callable[[str], None] = lambda _line: None
    ) -> None:
        # The tether itself waits for STOP_TIMEOUT_S before it kills, and must not be killed first.
        super().__init__(url=launch.url, stop_timeout_s=STOP_TIMEOUT_S + 5)
        self.launch = launch
        self.log = log
        self._say = say
        self._log_begins_at = 0

    def how_it_ended(self) -> str | None:
        """A sentence if it has ended by itself, with the reason that its log gives; else None."""
        code = self._process.poll() if self._process else None
        return None if code is None else self._ended(code, "while it was serving")

    def _start(self) -> subprocess.Popen[bytes]:
        expect_free(self.launch.ready_url)
        cores = self.launch.cores or os.sched_getaffinity(0)
        tether = [sys.executable, "-P", str(_TETHER), str(os.getpid()), str(STOP_TIMEOUT_S)]
        try:
            with self.log.open("ab") as log:
                self._log_begins_at = log.tell()
                return subprocess.Popen(
                    [*tether, ",".join(map(str, sorted(cores))), *self.launch.command],
                    env={**os.environ, **self.launch.environ},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise StartError(f"Cannot write the log {self.log}: {error.strerror}.") from None

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        limit_s = self.launch.ready_timeout_s
        begun = told = time.monotonic()
        while not answers(self.launch.ready_url):
            if process.poll() is not None:
                raise StartError(self._ended(process.returncode, "before it was ready"))
            now = time.monotonic()
            if now - begun > limit_s:
                raise StartError(
                    f"{self.launch.name} did not answer {self.launch.ready_url} within "
                    f"{limit_s:g} s; its log is {self.log}."
                )
            if now - told >= TELL_EVERY_S:
                told = now
                self._say(f"{now - begun:.0f} s  {self._stage()}")
            time.sleep(_POLL_S)

    def _stage(self) -> str:
        said = self.logged()
        found = [words for pattern, words in self.launch.stages if pattern.search(said)]
        return found[-1] if found else f"waiting for {self.launch.ready_url}"

    def _ended(self, code: int, when: str) -> str:
        why = reason(self.logged(), code, self.launch.failures)
        told = f": {why}" if why else ""
        return (
            f"{self.launch.name} ended with exit code {code} {when}{told}; its log is {self.log}."
        )

    def logged(self) -> str:
        """What it has printed since it was started."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_begins_at)
                return log.read().decode(errors="replace")
        except OSError:
            return ""


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a URL answers 200 now."""
    try:
        with _no_proxy.open(url, timeout=timeout_s) as reply:
            return bool(reply.status == 200)
    except (OSError, HTTPException):  # HTTP statuses but 2xx, and TLS, are OSErrors
        return False


def fetch_json(url: str, timeout_s: float = 5.0) -> Any:
    """What a URL answers as JSON; None where it answers nothing of the kind."""
    try:
        with _no_proxy.open(url, timeout=timeout_s) as reply:
            return json.loads(reply.read(_LONGEST_ANSWER_BYTES))
    except (OSError, HTTPException, ValueError):
        return None


def expect_free(url: str) -> None:
    """Return if nothing listens at the host and port of a URL.

    Raises:
        StartError: something does, which would be measured in the server's place.
    """
    host, port = loopback(url)
    try:
        with socket.create_server((host, port), family=_family(host)):
            pass
    except OSError as error:
        raise StartError(
            f"Cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); stop what listens "
            "there, or choose another with --port, or --port 0 for any free one."
        ) from None


def loopback(url: str) -> tuple[str, int]:
    """Host and port of a URL on this machine.

    Raises:
        StartError: it is none.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        host = port = None
    if host not in {"127.0.0.1", "localhost", "::1"} or port is None:
        raise StartError(
            f"Expected a URL on this machine such as http://127.0.0.1:8000/health, found {url!r}."
        )
    return ("127.0.0.1" if host == "localhost" else host), port


def free_port() -> int:
    """A TCP port that is free now, for a server that cannot be asked which one it took."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET

"""Servers that Streamgauge starts itself: for ``streamgauge serve`` and for ``run --serve``."""

from __future__ import annotations

import os
import re
import shlex
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import click

from collectors.redact import redact_text
from loadgen.errors import OptionError
from reference_server.errors import StartError
from reference_server.gpus import Gpu, find_gpus, named
from reference_server.launch import (
    READY_TIMEOUT_S,
    TELL_EVERY_S,
    Launch,
    LaunchedServer,
    answers,
    fetch_json,
    free_port,
)
from reference_server.presets import PORT, PRESETS, command_launch, preset_launch
from reference_server.process import ServerProcess, SimProcess
from reference_server.vllm_process import PROFILES, plan, tiny_model_for
from reference_server.vllm_python import find

# The value of such a flag is not kept: `--api-key abc`, `--hf_token=abc`; not `--max-tokens 5`.
_SECRET_FLAG = re.compile(r"(?i)--?(?:.*[-_])?(?:api[-_]?key|hf[-_]?token|password|secret)")
_MASK = "***"
_POLL_S = 0.5
_READY_PATH = "/v1/models"  # of any OpenAI-compatible endpoint


class Stopped(SystemExit):
    """SIGINT or SIGTERM was received; left alone, it ends the program with the code for that."""


@contextmanager
def stopping_in_order() -> Iterator[None]:
    """Within it, SIGINT and SIGTERM raise `Stopped`, so that every ``with`` is left in order."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(128 + number)

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def tell(line: str) -> None:
    """A line for people, beside what a program may read."""
    click.echo(line, err=True)


def log_file(kind: str, asked: Path | None = None) -> Path:
    """The file for what a server prints: the one asked for, or a new one of its own."""
    if asked is not None:
        return asked
    handle, path = tempfile.mkstemp(prefix=f"streamgauge-{kind}-", suffix=".log")
    os.close(handle)
    return Path(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server to be started, for a run or for as long as it is wanted.

    Attributes:
        server: a context manager that is ready when entered.
        model: what the load asks for; None for the endpoint's only one.
        labels: what is known of it before it runs.
        ask: whether it can be asked for its version.
        gpus: how many GPUs it takes, for the cost of the run; None where that is not known.
    """

    server: ServerProcess
    model: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    ask: bool = False
    gpus: int | None = None

    @contextmanager
    def running(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Start it, yield where it answers and what a run of it is labelled with, stop it."""
        with stopping_in_order(), self.server as server:
            yield server.url, self.labels_now()
            if ended := server.how_it_ended():
                tell(ended)

    def labels_now(self) -> dict[str, str]:
        """What is known of it while it runs: server, version, flags, model and GPU."""
        found = dict(self.labels)
        if self.ask:
            about = fetch_json(self.server.url + "/version")
            said = about.get("version") if isinstance(about, dict) else None
            if isinstance(said, str):
                found.setdefault("server_version", said)
        models = fetch_json(self.server.url + "/v1/models")
        if isinstance(models, dict) and (ids := _ids(models)):
            found["model"] = self.model if self.model in ids else ids[0]
        elif self.model:
            found["model"] = self.model
        return {name: redact_text(text) for name, text in found.items()}


def serving(spec: str, model: str | None, say: Callable[[str], None] = tell) -> Served:
    """The server that ``--serve SPEC`` names; nothing is started yet.

    Args:
        spec: ``sim``, ``vllm``, ``cmd`` or a preset's name, and after a colon: options of
            ``streamgauge serve sim``; variants, a profile and flags of vLLM; a command with
            ``{port}``; further words for the preset's command.
        model: what the load asks for, and the server serves.
        say: takes lines for people.

    Raises:
        OptionError: the spec cannot be read.
        ReferenceServerError: the server cannot be had.
    """
    kind, _, rest = spec.partition(":")
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise OptionError(f"--serve {spec!r}: {error}.") from None
    if kind == "sim":
        return _sim(words, model)
    if kind == "vllm":
        return _vllm(words, model, say)
    if kind == "cmd":
        return _cmd(words, model, say)
    if kind in PRESETS:
        launch = preset_launch(kind, model=model, flags=words, port=free_port())
        return _launched(kind, launch, say, flags=words, model=model)
    known = ", ".join(["sim", "vllm", "cmd:COMMAND", *PRESETS])
    raise OptionError(f"--serve: expected one of {known}; found {kind!r}.")


def shown(words: Sequence[str]) -> str:
    """Words of a command as they could be typed, without the secrets among them."""
    safe: list[str] = []
    for index, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if equals and _SECRET_FLAG.fullmatch(name):
            safe.append(f"{name}={_MASK}")
        elif index and _SECRET_FLAG.fullmatch(words[index - 1]):
            safe.append(_MASK)
        else:
            safe.append(word)
    return redact_text(shlex.join(safe))


def _sim(words: Sequence[str], model: str | None) -> Served:
    if model is not None and "--model" not in words:
        words = [*words, "--model", model]
    return Served(
        server=SimProcess(*words),
        model=model,
        labels=_labels("sim", flags=words, server_version=version("streamgauge")),
    )


def _vllm(words: Sequence[str], model: str | None, say: Callable[[str], None]) -> Served:
    names: list[str] = []
    if words and not words[0].startswith("-"):
        names, words = words[0].split(","), words[1:]
    profiles = [name for name in names if name in PROFILES]
    gpus = find_gpus()
    chosen = plan(
        find(),
        model=model,
        profile=profiles[-1] if profiles else None,
        variants=[name for name in names if name not in PROFILES],
        flags=words,
        gpus=gpus,
    )
    tiny = tiny_model_for(chosen.vllm) if chosen.profile == "tiny" else None
    launch = chosen.launch(free_port(), tiny)
    log = log_file("vllm")
    say(f"starting vLLM {chosen.vllm.version}; its log is {log}")
    return Served(
        server=LaunchedServer(launch, log=log, say=say),
        model=chosen.model,
        labels=_labels(
            "vllm",
            flags=chosen.added_flags,
            gpus=() if chosen.vllm.on_cpu else gpus[: chosen.choice.gpus],
            server_version=chosen.vllm.version,
            server_profile=chosen.profile,
            server_variants=",".join(chosen.choice.names),
        ),
        gpus=None if chosen.vllm.on_cpu else chosen.choice.gpus,
    )


def _cmd(words: Sequence[str], model: str | None, say: Callable[[str], None]) -> Served:
    if not any(PORT in word for word in words):
        raise OptionError(
            "--serve cmd: expected a command with {port} where its port goes, such as "
            "'cmd:my-server --port {port}'."
        )
    ready_url = f"http://127.0.0.1:{PORT}{_READY_PATH}"
    launch = command_launch(words, ready_url=ready_url, port=free_port())
    return _launched("cmd", launch, say, flags=words, model=model)


def _launched(
    kind: str,
    launch: Launch,
    say: Callable[[str], None],
    *,
    flags: Sequence[str],
    model: str | None,
) -> Served:
    """A server that is started without knowing it; its GPUs are taken to be this machine's."""
    log = log_file(kind)
    say(f"starting {launch.name}; its log is {log}")
    gpus = find_gpus()
    return Served(
        server=LaunchedServer(launch, log=log, say=say),
        model=model,
        labels=_labels(kind, flags=flags, gpus=gpus),
        ask=True,
    )


def _labels(
    kind: str, *, flags: Sequence[str], gpus: Sequence[Gpu] = (), **more: str
) -> dict[str, str]:
    """Labels of a run; what is empty or not known is left out."""
    found = {"server": kind, **more, "server_flags": shown(flags), "gpu": named(gpus) or ""}
    return {name: text for name, text in found.items() if text}


def _ids(models: dict[str, Any]) -> list[str]:
    data = models.get("data")
    entries = data if isinstance(data, list) else []
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    return [name for name in ids if isinstance(name, str)]


def await_ready(url: str, say: Callable[[str], None] = tell) -> str:
    """Wait until an endpoint's ``/health`` answers 200; what it is, as a line.

    Raises:
        StartError: nothing answers for as long as a large model takes to load.
    """
    base = url.rstrip("/").removesuffix("/v1")
    begun = told = time.monotonic()
    while not answers(base + "/health"):
        now = time.monotonic()
        if now - begun > READY_TIMEOUT_S:
            raise StartError(f"{base}/health did not answer 200 within {READY_TIMEOUT_S:g} s.")
        if now - told >= TELL_EVERY_S:
            told = now
            say(f"{now - begun:.0f} s  waiting for {base}/health")
        time.sleep(_POLL_S)
    version_said = (fetch_json(base + "/version") or {}).get("version", "-")
    models = ", ".join(_ids(fetch_json(base + "/v1/models") or {})) or "-"
    return f"serving on {base}  version {version_said}  models {models}"

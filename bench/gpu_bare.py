"""What `bench.gpu_check` does before it has any package: this needs the standard library alone."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

NVML = "libnvidia-ml.so.1"
NO_GPU = (
    "Expected an NVIDIA GPU with its driver and saw none here ({why}); run `make gpu-check` on a "
    "machine that has one."
)


class CheckError(Exception):
    """The check cannot go on; one sentence."""


def expect_driver() -> None:
    """Return if NVIDIA's library of readings can be loaded.

    Raises:
        CheckError: it cannot, so that no GPU can be read.
    """
    try:
        ctypes.CDLL(NVML)
    except OSError:
        raise CheckError(NO_GPU.format(why=f"{NVML} cannot be loaded")) from None


def install(wheels: Path, folder: Path, python: str = sys.executable) -> None:
    """Unpack all wheels of a folder into another with a Python's pip, with nothing fetched.

    Raises:
        CheckError: there are none, or pip refuses them.
    """
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        raise CheckError(
            f"Expected wheels in {wheels} and found none; docs/gpu.md says how they are gathered."
        )
    quiet = ("--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check")
    done = subprocess.run(
        [python, "-m", "pip", "install", *quiet, "--target", str(folder), *found],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stdout.strip().splitlines() or ["nothing was said"]
        raise CheckError(f"pip cannot install the wheels in {wheels}: {said[-1]}")


def packages(name: str = "streamgauge") -> list[str]:
    """What a distribution needs without its extras, itself left out, as ``name==version``."""
    seen: dict[str, str] = {}
    todo = [name]
    while todo:
        try:
            found = metadata.distribution(todo.pop())
        except metadata.PackageNotFoundError:  # of another platform or Python
            continue
        known = re.sub(r"[-_.]+", "-", found.name).lower()
        if known in seen:
            continue
        seen[known] = found.version
        wanted = [line for line in found.requires or () if "extra ==" not in line]
        todo += [match[0] for line in wanted if (match := re.match(r"[\w.-]+", line))]
    del seen[re.sub(r"[-_.]+", "-", name).lower()]
    return sorted(f"{each}=={version}" for each, version in seen.items())

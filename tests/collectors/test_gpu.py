"""The GPU collector, down to the C calls it makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, find

ASK_TWICE = """
import json
from collectors.errors import NoDataError
from collectors.gpu import GpuCollector
gpu = GpuCollector()
try:
    print(json.dumps([list(gpu.collect()), list(gpu.collect()), dict(gpu.facts)]))
except NoDataError as error:
    print(error)
"""


def ask(library_path: Path) -> str:
    """What a fresh process reads where NVML is looked for in ``library_path`` first."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_TWICE],
        cwd=ROOT,
        env=os.environ | {"LD_LIBRARY_PATH": str(library_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our own libnvidia-ml.so.1."""
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_stand_in.c")
    library = folder / "libnvidia-ml.so.1"
    compiler = str(find("cc"))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return folder


@pytest.mark.needs("cc")
def test_what_a_card_tells_is_read_in_base_units(stand_in: Path) -> None:
    """Each reading arrives under its GPU's UUID, in bytes, watts, joules, hertz and ratios."""
    first, _, facts = json.loads(ask(stand_in))
    assert {name: value for name, value, source in first if source == "gpu:GPU-a"} == {
        "gpu_busy_ratio": 0.75,
        "gpu_memory_busy_ratio": 0.0,
        "gpu_memory_used_bytes": 60 * 2.0**30,
        "gpu_memory_total_bytes": 80 * 2.0**30,
        "gpu_power_watts": 312.5,
        "gpu_power_limit_watts": 700.0,
        "gpu_energy_joules": 1234.5,
        "gpu_temperature_celsius": 41.0,
        "gpu_sm_clock_hertz": 1.98e9,
        "gpu_memory_clock_hertz": 2.619e9,
    }
    assert facts == {"gpu:GPU-a": "Stand-in 9000", "nvidia_driver": "550.1"}


@pytest.mark.needs("cc")
def test_what_a_card_refuses_is_absent(stand_in: Path) -> None:
    """Unsupported calls leave no reading and are not repeated; one that failed once is."""
    rounds = json.loads(ask(stand_in))[:2]
    first, second = (
        {name for name, _, source in readings if source == "gpu:GPU-b"} for readings in rounds
    )
    refused = {"gpu_busy_ratio", "gpu_memory_busy_ratio", "gpu_power_limit_watts"}
    assert refused.isdisjoint(first | second)
    assert second - first == {"gpu_power_watts"}
    assert "gpu_clock_reasons" not in first | second  # this library has no such function
    assert "gpu_energy_joules" in first


def test_without_nvml_there_is_no_gpu_to_see(tmp_path: Path) -> None:
    """A library that is none, as good as a missing one, is the note of the run and no failure."""
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    assert ask(tmp_path) == "no GPU seen here"

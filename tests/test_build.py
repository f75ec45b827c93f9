"""What is compiled when the package is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hatch_build import SOURCE, compiled
from tests.conftest import ROOT

STRICT = ["-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers"]
STRICT += ["-Wno-cast-function-type"]  # how CPython's method tables are made


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A tree with the C source alone."""
    (tmp_path / SOURCE.parent).mkdir()
    shutil.copy(ROOT / SOURCE, tmp_path / SOURCE)
    return tmp_path


@pytest.mark.needs("cc")
def test_the_fast_lane_is_compiled_and_can_be_loaded(sources: Path) -> None:
    """By the machine's compiler, without a warning, into a module of this Python."""
    made = SOURCE.with_suffix(".so")

    assert compiled(sources, made, *STRICT) is None
    code = "import _fastlane, array; print(_fastlane.FastLane(array.array('d', [0] * 4)).drain())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=sources / made.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("compiler", "told"),
    [("no-such-compiler", "no-such-compiler: No such file or directory"), ("false", "?")],
)
def test_without_a_compiler_nothing_is_left_of_an_older_one(
    sources: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, told: str
) -> None:
    """The install goes on without the lane, and says why."""
    made = SOURCE.with_suffix(".so")
    (sources / made).write_bytes(b"of an older source")
    monkeypatch.setenv("CC", compiler)

    assert compiled(sources, made) == told
    assert not (sources / made).exists()

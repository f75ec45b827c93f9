"""How other servers are started, as data: command, and the path that says it is ready.

Each is taken from the project's own documents, named beside it. None of these programs is
installed by Streamgauge; what it starts is whatever the PATH has under that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reference_server.errors import SettingsError
from reference_server.failures import COMMON
from reference_server.launch import READY_TIMEOUT_S, Launch

PORT: Final = "{port}"
MODEL: Final = "{model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A server that is started as its project says.

    Attributes:
        name: what ``--preset`` calls it.
        title: what it is called in a sentence.
        command: program and arguments, with `MODEL` and `PORT` where those go.
        ready_path: answers 200 once it serves.
        model: what ``--model`` names for it.
        source: where command and path are from.
    """

    name: str
    title: str
    command: tuple[str, ...]
    ready_path: str
    model: str
    source: str


PRESETS: Final = {
    preset.name: preset
    for preset in (
        Preset(
            name="sglang",
            title="SGLang",
            command=(
                *("python3", "-m", "sglang.launch_server", "--model-path", MODEL),
                *("--host", "127.0.0.1", "--port", PORT),
            ),
            ready_path="/health",
            model="a model of the hub or a folder",
            source="docs.sglang.io, SGLang Native APIs (2026); sgl-project/sglang, http_server.py",
        ),
        Preset(
            name="tgi",
            title="Text Generation Inference",
            command=(
                *("text-generation-launcher", "--model-id", MODEL),
                *("--hostname", "127.0.0.1", "--port", PORT),
            ),
            ready_path="/health",
            model="a model of the hub or a folder",
            source="huggingface/text-generation-inference, docs/source/reference/launcher.md",
        ),
        Preset(
            name="tensorrt-llm",
            title="TensorRT-LLM",
            command=("trtllm-serve", MODEL, "--host", "127.0.0.1", "--port", PORT),
            ready_path="/health",
            model="a model of the hub, a folder or an engine",
            source="nvidia.github.io/TensorRT-LLM: trtllm-serve (1.1)",
        ),
        Preset(
            name="llama.cpp",
            title="llama.cpp",
            command=("llama-server", "--model", MODEL, "--host", "127.0.0.1", "--port", PORT),
            ready_path="/health",
            model="a GGUF file",
            source="ggml-org/llama.cpp, tools/server/README.md",
        ),
        Preset(
            name="transformers",
            title="transformers serve",
            command=(
                *("transformers", "serve", MODEL, "--continuous-batching"),
                *("--host", "127.0.0.1", "--port", PORT),
            ),
            ready_path="/health",
            model="a model of the hub or a folder",
            source="huggingface/transformers 5.19, cli/serve.py and cli/serving/server.py",
        ),
    )
}


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in PRESETS:
        raise SettingsError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}.")
    return PRESETS[name]


def preset_launch(name: str, *, model: str | None, flags: Sequence[str], port: int) -> Launch:
    """How a preset's server is started.

    Args:
        name: of the preset.
        model: what it serves.
        flags: further words of its command.
        port: where it listens.

    Raises:
        SettingsError: there is no such preset, or no model.
    """
    preset = preset_named(name)
    if not model:
        raise SettingsError(f"{preset.title} needs --model: {preset.model}.")
    command = [word.replace(MODEL, model) for word in preset.command]
    ready_url = f"http://127.0.0.1:{PORT}{preset.ready_path}"
    return command_launch([*command, *flags], ready_url=ready_url, port=port, name=preset.title)


def command_launch(
    command: Sequence[str], *, ready_url: str, port: int, name: str | None = None
) -> Launch:
    """How any command is started; ``{port}`` in it and in its URL is filled in.

    Raises:
        SettingsError: there is no command.
    """
    if not command:
        raise SettingsError("Which command? Put it after --, such as -- my-server --port {port}.")
    words = [word.replace(PORT, str(port)) for word in command]
    return Launch(
        name=name or words[0],
        command=words,
        ready_url=ready_url.replace(PORT, str(port)),
        failures=COMMON,
        ready_timeout_s=READY_TIMEOUT_S,
    )

"""``streamgauge serve vllm`` and ``serve cmd``: servers that are not ours, under our care."""

from __future__ import annotations

from pathlib import Path

import click

from reference_server.launch import Launch

_PORT = click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port on 127.0.0.1; 0 takes any free one.",
)
_LOG = click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for all that it prints (default: a new one, named on standard error).",
)


@click.command("vllm")
@click.option("--model", metavar="NAME", help="A model of the hub, or a folder.")
@click.option(
    "--profile",
    type=click.Choice(["gpu", "cpu", "tiny"]),
    help="tiny: random weights made here, no hub and no GPU needed (default: what vLLM is for).",
)
@click.option(
    "--variant",
    "variants",
    metavar="NAME[,NAME]",
    multiple=True,
    help="A change to the server, such as fp8; `--variant list` shows all.",
)
@click.option("--setup", is_flag=True, help="Make .venv-vllm first, where it is not there.")
@click.option(
    "--python", type=click.Path(path_type=Path), help="The Python that has vLLM, if not .venv-vllm."
)
@click.option("--url", metavar="URL", help="Start none: wait for the one that runs there.")
@_PORT
@_LOG
@click.argument("flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM_FLAGS...]")
def vllm(
    *,
    model: str | None,
    profile: str | None,
    variants: tuple[str, ...],
    setup: bool,
    python: Path | None,
    url: str | None,
    port: int,
    log: Path | None,
    flags: tuple[str, ...],
) -> int:
    """Start vLLM, wait until it serves, and stop it with Ctrl-C or SIGTERM.

    Prints one line, "serving on URL", once it accepts requests; progress and the name of its log
    go to standard error. Exit code 2 and one sentence where it does not start.
    """
    from reference_server.gpus import find_gpus
    from reference_server.launch import free_port
    from reference_server.vllm_process import plan, tiny_model_for
    from reference_server.vllm_python import find
    from reference_server.vllm_variants import listed
    from streamgauge.serving import stopping_in_order, tell

    names = [name for word in variants for name in word.split(",")]
    if names == ["list"]:
        click.echo(listed())
        return 0
    _expect_flags(flags)
    if url is not None:
        if model or profile or names or setup or python or log or flags:
            raise click.UsageError("--url starts no vLLM; leave out all that shapes one.")
        return _wait_for(url)
    if setup and python is not None:
        raise click.UsageError("--setup makes .venv-vllm; leave it or --python out.")
    gpus = find_gpus()
    with stopping_in_order():
        if setup:
            _set_up(on_gpus=bool(gpus) and profile in {None, "gpu"})
        chosen = plan(
            find(python), model=model, profile=profile, variants=names, flags=flags, gpus=gpus
        )
        tell(f"vLLM {chosen.vllm.version} of {chosen.vllm.python}, profile {chosen.profile}")
        tiny = tiny_model_for(chosen.vllm) if chosen.profile == "tiny" else None
        return _serve(chosen.launch(port or free_port(), tiny), "vllm", log)


@click.command("cmd")
@click.option(
    "--ready-url",
    metavar="URL",
    help="It is ready once this URL on this machine answers 200; {port} stands for --port.",
)
@click.option(
    "--preset", metavar="NAME", help="sglang, tgi, tensorrt-llm, llama.cpp, transformers."
)
@click.option("--model", metavar="NAME", help="What a preset serves.")
@_PORT
@_LOG
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="-- COMMAND...")
def cmd(
    *,
    ready_url: str | None,
    preset: str | None,
    model: str | None,
    port: int,
    log: Path | None,
    words: tuple[str, ...],
) -> int:
    """Start any server with the same care as vLLM, wait until it serves, and stop it.

    COMMAND is taken as it is, {port} in it stands for --port. With --preset the command is the
    preset's, and what stands after -- is added to it.
    """
    from reference_server.launch import free_port
    from reference_server.presets import command_launch, preset_launch
    from streamgauge.serving import stopping_in_order

    port = port or free_port()
    if preset is not None:
        if ready_url is not None:
            raise click.UsageError("--ready-url: a preset has its own; leave one of the two out.")
        launch = preset_launch(preset, model=model, flags=words, port=port)
    elif ready_url is None:
        raise click.UsageError(
            "Which URL says that it is ready? Give --ready-url, such as "
            "http://127.0.0.1:{port}/health, or --preset."
        )
    elif model is not None:
        raise click.UsageError("--model is for a --preset; put it into the command itself.")
    else:
        launch = command_launch(words, ready_url=ready_url, port=port)
    with stopping_in_order():
        return _serve(launch, "cmd", log)


def _expect_flags(flags: tuple[str, ...]) -> None:
    """A word without dashes was meant for us, or stands before its flag."""
    if flags and not flags[0].startswith("-"):
        raise click.UsageError(
            f"Found {flags[0]!r} where vLLM's own flags go; those stand after --, such as "
            "-- --max-num-seqs 8."
        )


def _set_up(*, on_gpus: bool) -> None:
    from reference_server import vllm_env
    from streamgauge.serving import tell

    folder = vllm_env.DEFAULT_FOLDER
    if vllm_env.is_ready(folder):
        return
    kind, size = ("NVIDIA GPUs", "several GB") if on_gpus else ("this CPU", "2.5 GB")
    tell(f"setting up {folder} with vLLM {vllm_env.VLLM} for {kind} ({size}, some minutes, once)")
    vllm_env.ensure(folder, cuda=on_gpus)


def _wait_for(url: str) -> int:
    """Wait until the vLLM at ``url`` is ready, and say what it is; the exit code."""
    from streamgauge.serving import await_ready, stopping_in_order

    with stopping_in_order():
        click.echo(await_ready(url))
    return 0


def _serve(launch: Launch, kind: str, log: Path | None) -> int:
    """Run a server until it is told to stop, or ends by itself; the exit code."""
    from reference_server.launch import LaunchedServer
    from reference_server.process import READY
    from streamgauge.serving import Stopped, log_file, tell

    file = log_file(kind, log)
    tell(f"starting {launch.name}; its log is {file}")
    with LaunchedServer(launch, log=file, say=tell) as server:
        try:
            click.echo(f"{READY}{server.url}")
            server.wait()
        except Stopped:
            tell(f"stopping {launch.name}")
    return 0

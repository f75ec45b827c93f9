"""``streamgauge serve``: the reference server, in the foreground until it is stopped."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource

from reference_server.process import READY

_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(us|ms|s|)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}


class Duration(click.ParamType[float]):
    """``50ms``, ``0.05s``; a bare number is seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 50ms or 0.05s.", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


@click.group("serve")
def command() -> None:
    """Start the reference server."""


@command.command("sim")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes any free one.",
)
@click.option("--model", default="sim-8b", show_default=True, help="Name of the model served.")
@click.option(
    "--truth-tokens",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Keep every token's instant of the last N requests in /truth.",
)
@click.option("--metronome", is_flag=True, help="Keep a fixed schedule instead of simulating.")
@click.option(
    "--ttft",
    type=Duration(),
    default="50ms",
    show_default=True,
    help="Metronome: from the request read to the first token.",
)
@click.option(
    "--itl",
    type=Duration(),
    default="10ms",
    show_default=True,
    help="Metronome: from one token to the next.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Metronome: length of an answer whose request gives none.",
)
@click.option(
    "--spread",
    is_flag=True,
    help="Metronome: add to each TTFT a phase below --itl, so that streams tick apart.",
)
@click.option("--end-with-parent", is_flag=True, hidden=True)
@click.pass_context
def sim(
    ctx: click.Context,
    /,
    *,
    host: str,
    port: int,
    model: str,
    truth_tokens: int,
    metronome: bool,
    end_with_parent: bool,
    **options: Any,
) -> None:
    """Serve a simulated model, or with --metronome a fixed schedule.

    Prints one line, "serving on URL", once it accepts connections. Ctrl-C or SIGTERM ends it.
    """
    _refuse_options_without_effect(ctx, metronome=metronome)
    from reference_server import kernel  # `serve --help` needs no server
    from reference_server.truth import TruthLog

    if end_with_parent:
        kernel.end_with_parent()
    kernel.allow_many_sockets()
    log = TruthLog(keep_tokens=truth_tokens)
    with kernel.listen(host, port) as listener:

        def say_ready() -> None:
            click.echo(f"{READY}{kernel.url_of(listener)}")

        if metronome:
            _keep_time(listener, log, say_ready, **options)
        else:
            _simulate(listener, log, say_ready, **options)


_METRONOME_ONLY = ("ttft", "itl", "tokens", "spread")


def _refuse_options_without_effect(ctx: click.Context, *, metronome: bool) -> None:
    """An option that would do nothing is a misunderstanding, so it is said."""
    for name in () if metronome else _METRONOME_ONLY:
        if ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} needs --metronome.")


class _Stop(BaseException):
    """SIGTERM or SIGINT: the ordinary end of a server."""


@contextmanager
def _until_told_to_stop() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal's signature
        raise _Stop

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    try:
        yield
    except _Stop:
        return

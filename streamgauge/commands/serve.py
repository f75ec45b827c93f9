"""``streamgauge serve``: a server to measure, in the foreground until it is stopped."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from reference_server.engine.routing import Routing
from reference_server.process import READY
from reference_server.quirks import Quirk
from streamgauge.commands._engine import ALL_SETTINGS, FLEET_SETTINGS, UNNAMED_MODEL, engine_of
from streamgauge.commands._serve_others import cmd, vllm
from streamgauge.commands._settings import COUNT, Duration, Setting, chosen, given, options_of

_METRONOME_SETTINGS = (
    Setting("--ttft", "ttft_s", Duration(), 0.050, "read to first token."),
    Setting("--itl", "itl_s", Duration(), 0.010, "token to token."),
    Setting("--tokens", "tokens", COUNT, 200, "length of an answer where none is asked for."),
    Setting(
        "--spread", "spread", bool, False, "add a phase below --itl to each TTFT, so that streams "
        "that start together tick apart."
    ),
    Setting(
        "--realtime", "realtime", bool, False, "run before ordinary processes (needs root or an "
        "rtprio limit), so that tokens are punctual beside a busy client."
    ),
    Setting("--tls-cert", "tls_cert", click.Path(exists=True, dir_okay=False), None,
             "speak TLS with this PEM certificate; needs --tls-key."),
    Setting("--tls-key", "tls_key", click.Path(exists=True, dir_okay=False), None,
             "the certificate's private key (PEM, unencrypted)."),
)  # fmt: skip
_SIMULATOR_SETTINGS = (
    Setting("--max-model-len", "max_model_len", COUNT, 8192, "prompt and answer together."),
    Setting("--eos-probability", "eos_probability", click.FloatRange(0, 1, max_open=True), 0.0,
             "chance that an answer ends of itself after each token."),
    Setting("--api-key-env", "api_key_env", str, None,
             "ask for the API key that this environment variable holds."),
    Setting("--startup-delay", "startup_s", Duration(), 0.0,
             "answer 503 for so long after the start, as while a model loads."),
    Setting("--admission-limit", "admission_limit", click.IntRange(0), None,
             "requests under way at once; more are refused with 429. Without it: any number."),
    Setting("--stream-interval", "stream_interval", COUNT, 1,
             "tokens an event, after the first."),
    Setting("--enable-prompt-tokens-details", "prompt_tokens_details", bool, False,
            "usage tells the tokens that were found in the prefix cache."),
    Setting("--quirk", "quirks", click.Choice([quirk.value for quirk in Quirk]), (),
             "differ from vLLM in this way (docs/simulator.md); may be repeated.", multiple=True),
    Setting("--fault", "faults", str, (),
             "fail this share of requests in this way, NAME:RATE[:DURATION], such as reset:0.01 or "
             "stall:0.005:2s (docs/simulator.md); may be repeated.", multiple=True),
    Setting("--fault-seed", "fault_seed", int, 0, "which requests fail follows from it."),
)  # fmt: skip


@click.group("serve")
def command() -> None:
    """Start a server: the simulator, real vLLM, or any other."""


command.add_command(vllm)
command.add_command(cmd)


@command.command("sim")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes any free one.",
)
@click.option(
    "--model",
    default=UNNAMED_MODEL,
    show_default=True,
    help="Name of the model served; with --gpu one of those named there.",
)
@click.option(
    "--truth-tokens",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Keep every token's instant of the last N requests in /truth.",
)
@click.option("--metronome", is_flag=True, help="Keep a fixed schedule instead of simulating.")
@options_of("Metronome", _METRONOME_SETTINGS)
@options_of("Simulator", _SIMULATOR_SETTINGS)
@options_of("Engine", ALL_SETTINGS)
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

    Durations are written 50ms or 0.05s. Prints one line, "serving on URL", once it accepts
    connections; Ctrl-C or SIGTERM ends it. /truth tells when each answer really was written.
    """
    _refuse_options_without_effect(ctx, metronome=metronome)
    from reference_server import kernel  # `serve --help` needs no server
    from reference_server.truth import TruthLog

    if end_with_parent:
        kernel.end_with_parent()
    kernel.allow_many_sockets()
    log = TruthLog(keep_tokens=truth_tokens)
    scheme = "https" if options["tls_cert"] else "http"
    with kernel.listen(host, port) as listener:

        def say_ready() -> None:
            click.echo(f"{READY}{kernel.url_of(listener, scheme)}")

        serve = _keep_time if metronome else _simulate
        serve(listener, log, say_ready, model, options)


def _keep_time(
    listener: socket.socket,
    log: Any,
    say_ready: Callable[[], None],
    model: str,
    options: dict[str, Any],
) -> None:
    from reference_server.kernel import run_before_others
    from reference_server.metronome import Metronome, MetronomeSettings

    settings = chosen(options, _METRONOME_SETTINGS)
    tls = _tls(settings.pop("tls_cert"), settings.pop("tls_key"))
    if settings.pop("realtime"):
        run_before_others()
    server = Metronome(listener, MetronomeSettings(model=model, **settings), log, tls)
    with _until_told_to_stop():
        say_ready()
        server.run()


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("--tls-cert and --tls-key belong together; give both or neither.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password="")  # no terminal to ask on
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        raise click.UsageError(
            "--tls-cert and --tls-key: expected a PEM certificate and its unencrypted key, "
            f"found something else in {certificate!r} or {key!r}."
        ) from None
    return context


def _simulate(
    listener: socket.socket,
    log: Any,
    say_ready: Callable[[], None],
    model: str,
    options: dict[str, Any],
) -> None:
    from reference_server.app import Simulator, SimulatorSettings
    from reference_server.inject import Plan, read_rate
    from reference_server.serve import serve_simulator  # needs uvicorn

    fields = chosen(options, (*_SIMULATOR_SETTINGS, *FLEET_SETTINGS))
    fields["quirks"] = frozenset(map(Quirk, fields["quirks"]))
    fields["faults"] = Plan(map(read_rate, fields["faults"]), fields.pop("fault_seed"))
    fields["routing"] = Routing(fields["routing"])
    settings = SimulatorSettings(
        model=model,
        api_key=_api_key(fields.pop("api_key_env")),
        engine=engine_of(click.get_current_context(), model, options),
        **fields,
    )
    serve_simulator(listener, Simulator(settings, log), say_ready)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise click.UsageError(
            f"--api-key-env names {variable}, which is not set; export it or leave the option out."
        )
    return key


def _refuse_options_without_effect(ctx: click.Context, *, metronome: bool) -> None:
    """An option that would do nothing is a misunderstanding, so it is said."""
    simulator = (*_SIMULATOR_SETTINGS, *ALL_SETTINGS)
    for setting in given(ctx, simulator if metronome else _METRONOME_SETTINGS):
        verb = "has no effect with" if metronome else "needs"
        raise click.UsageError(f"{setting.flag} {verb} --metronome.")


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

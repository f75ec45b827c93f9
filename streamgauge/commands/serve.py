"""``streamgauge serve``: a server to measure, in the foreground until it is stopped."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

from reference_server.engine import EngineConfig, LinearCost
from reference_server.process import READY
from reference_server.quirks import Quirk
from streamgauge.commands._serve_others import cmd, vllm

F = TypeVar("F", bound=Callable[..., Any])

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


class _Setting(NamedTuple):
    """An option that sets one field of a server's settings."""

    flag: str
    field: str
    type: Any
    default: Any
    help: str
    multiple: bool = False  # may be given again and again


_ENGINE = EngineConfig()
_COST = LinearCost()
_COUNT = click.IntRange(1)
_METRONOME_SETTINGS = (
    _Setting("--ttft", "ttft_s", Duration(), 0.050, "read to first token."),
    _Setting("--itl", "itl_s", Duration(), 0.010, "token to token."),
    _Setting("--tokens", "tokens", _COUNT, 200, "length of an answer where none is asked for."),
    _Setting(
        "--spread", "spread", bool, False, "add a phase below --itl to each TTFT, so that streams "
        "that start together tick apart."
    ),
    _Setting(
        "--realtime", "realtime", bool, False, "run before ordinary processes (needs root or an "
        "rtprio limit), so that tokens are punctual beside a busy client."
    ),
    _Setting("--tls-cert", "tls_cert", click.Path(exists=True, dir_okay=False), None,
             "speak TLS with this PEM certificate; needs --tls-key."),
    _Setting("--tls-key", "tls_key", click.Path(exists=True, dir_okay=False), None,
             "the certificate's private key (PEM, unencrypted)."),
)  # fmt: skip
_ENGINE_SETTINGS = (
    _Setting("--max-num-seqs", "max_num_seqs", _COUNT, _ENGINE.max_num_seqs,
             "requests that run at once; more wait."),
    _Setting("--max-num-queued-reqs", "max_queued", click.IntRange(0), _ENGINE.max_queued,
             "requests that may wait; more are refused with 503. Without it: any number."),
    _Setting("--max-num-batched-tokens", "max_batched_tokens", _COUNT, _ENGINE.max_batched_tokens,
             "tokens computed in one step at most."),
    _Setting("--kv-cache-tokens", "kv_cache_tokens", _COUNT, _ENGINE.kv_cache_tokens,
             "tokens the KV cache holds."),
)  # fmt: skip
_COST_SETTINGS = (
    _Setting("--prefill-base", "prefill_base_s", Duration(), _COST.prefill_base_s,
             "cost of a step that computes prompt tokens."),
    _Setting("--prefill-per-token", "prefill_per_token_s", Duration(), _COST.prefill_per_token_s,
             "cost of each prompt token."),
    _Setting("--decode-base", "decode_base_s", Duration(), _COST.decode_base_s,
             "cost of a step that generates tokens."),
    _Setting("--decode-per-sequence", "decode_per_sequence_s", Duration(),
             _COST.decode_per_sequence_s, "cost of each sequence that gets one."),
    _Setting("--decode-per-kv-token", "decode_per_kv_token_s", Duration(),
             _COST.decode_per_kv_token_s, "cost of each token in the KV cache those look at."),
)  # fmt: skip
_SIMULATOR_SETTINGS = (
    _Setting("--max-model-len", "max_model_len", _COUNT, 8192, "prompt and answer together."),
    _Setting("--eos-probability", "eos_probability", click.FloatRange(0, 1, max_open=True), 0.0,
             "chance that an answer ends of itself after each token."),
    _Setting("--api-key-env", "api_key_env", str, None,
             "ask for the API key that this environment variable holds."),
    _Setting("--startup-delay", "startup_s", Duration(), 0.0,
             "answer 503 for so long after the start, as while a model loads."),
    _Setting("--admission-limit", "admission_limit", click.IntRange(0), None,
             "requests under way at once; more are refused with 429. Without it: any number."),
    _Setting("--stream-interval", "stream_interval", _COUNT, 1,
             "tokens an event, after the first."),
    _Setting("--quirk", "quirks", click.Choice([quirk.value for quirk in Quirk]), (),
             "differ from vLLM in this way (docs/simulator.md); may be repeated.", multiple=True),
    _Setting("--fault", "faults", str, (),
             "fail this share of requests in this way, NAME:RATE[:DURATION], such as reset:0.01 or "
             "stall:0.005:2s (docs/simulator.md); may be repeated.", multiple=True),
    _Setting("--fault-seed", "fault_seed", int, 0, "which requests fail follows from it."),
)  # fmt: skip


def _written(seconds: float) -> str:
    return f"{seconds * 1e6:g}us" if seconds < 1e-4 else f"{seconds * 1e3:g}ms"


def _settings(where: str, settings: Iterable[_Setting]) -> Callable[[F], F]:
    """Options for a server's settings."""

    def decorate(function: F) -> F:
        for flag, name, kind, default, about, multiple in reversed(tuple(settings)):
            function = click.option(
                flag,
                name,
                type=None if kind is bool else kind,
                is_flag=kind is bool,
                multiple=multiple,
                default=_written(default) if isinstance(kind, Duration) else default,
                show_default=kind is not bool and not multiple and default is not None,
                help=f"{where}: {about}",
            )(function)
        return function

    return decorate


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
@_settings("Metronome", _METRONOME_SETTINGS)
@_settings("Simulator", _SIMULATOR_SETTINGS)
@_settings("Engine", _ENGINE_SETTINGS)
@_settings("Engine", _COST_SETTINGS)
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

    chosen = _chosen(options, _METRONOME_SETTINGS)
    tls = _tls(chosen.pop("tls_cert"), chosen.pop("tls_key"))
    if chosen.pop("realtime"):
        run_before_others()
    server = Metronome(listener, MetronomeSettings(model=model, **chosen), log, tls)
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

    chosen = _chosen(options, _SIMULATOR_SETTINGS)
    chosen["quirks"] = frozenset(map(Quirk, chosen["quirks"]))
    chosen["faults"] = Plan(map(read_rate, chosen["faults"]), chosen.pop("fault_seed"))
    settings = SimulatorSettings(
        model=model,
        api_key=_api_key(chosen.pop("api_key_env")),
        engine=EngineConfig(
            **_chosen(options, _ENGINE_SETTINGS),
            cost=LinearCost(**_chosen(options, _COST_SETTINGS)),
        ),
        **chosen,
    )
    serve_simulator(listener, Simulator(settings, log), say_ready)


def _chosen(options: dict[str, Any], settings: Iterable[_Setting]) -> dict[str, Any]:
    return {setting.field: options[setting.field] for setting in settings}


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
    simulator = (*_SIMULATOR_SETTINGS, *_ENGINE_SETTINGS, *_COST_SETTINGS)
    idle = simulator if metronome else _METRONOME_SETTINGS
    for setting in idle:
        if ctx.get_parameter_source(setting.field) == ParameterSource.COMMANDLINE:
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

"""``streamgauge run``: a load run without knowing Locust, then its report and verdict."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from loadgen.errors import OptionError
from loadgen.options import OPTIONS, parse_duration, read_settings
from streamgauge.commands._load_options import load_options
from streamgauge.commands._options import default_db

if TYPE_CHECKING:
    from streamgauge.serving import Served

DEFAULT_DURATION = "30s"
DEFAULT_RAMP_S = 2.0


@click.command()
@click.argument("scenario")
@click.option("--host", metavar="URL", help="The endpoint, e.g. http://HOST:8000.")
@click.option(
    "--serve",
    metavar="SPEC",
    help="Start the endpoint for this run and stop it after: sim, vllm:tiny, vllm:fp8,kv-fp8, "
    "'cmd:COMMAND --port {port}', or sglang, tgi, tensorrt-llm, llama.cpp, transformers; flags "
    "may follow ('sim:--gpu h200', 'vllm:fp8 --max-num-seqs 64').",
)
@click.option("--users", type=click.IntRange(min=1), default=1, show_default=True, help="Users.")
@click.option(
    "--duration", metavar="S", help=f"How long requests become due (default {DEFAULT_DURATION})."
)
@click.option("--processes", type=click.IntRange(min=1), help="Load processes (Locust workers).")
@click.option(
    "--sla", type=click.Path(path_type=Path), help="SLA file: ends with its verdict and exit code."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "md"]),
    default="text",
    show_default=True,
    help="Of the report.",
)
@click.option("--no-calibrate", is_flag=True, help="Do not measure this machine's own error first.")
@load_options(OPTIONS)
def command(
    scenario: str,
    host: str | None,
    serve: str | None,
    users: int,
    duration: str | None,
    processes: int | None,
    sla: Path | None,
    form: str,
    no_calibrate: bool,
    **options: Any,
) -> int:
    """Run SCENARIO (a bundled name or a Locust file) against an endpoint, record it and report.

    The endpoint is the one at --host, or one that --serve starts for this run; the run is then
    labelled with server, version, flags, model and GPU.

    Exit codes: without --sla 0 once recorded, 2 if nothing could be sent; with --sla those of
    `streamgauge check`. Ctrl-C ends the run at once: what was open is recorded as unfinished.
    """
    from sla.spec import load_sla  # a bad SLA file is noticed before any load
    from streamgauge.load import find_scenario, run_load
    from streamgauge.progress import ProgressLine

    path = find_scenario(scenario)
    if sla is not None:
        load_sla(sla)
    options["db"] = options["db"] or default_db()
    duration_s = _duration_s(duration, options["requests"])
    if options["ramp"] is None:
        options["ramp"] = str(
            DEFAULT_RAMP_S if duration_s is None else min(DEFAULT_RAMP_S, duration_s / 5)
        )
    served = _served(host, serve, options)
    words = ["-u", str(users), *_words(options)]
    if duration_s is not None:
        words += ["-t", f"{duration_s:.0f}s"]
    if processes is not None and processes > 1:
        words += _several(processes)
    calibration = None if no_calibrate else _calibrate(users, options["transport"])
    progress = ProgressLine(duration_s=duration_s)
    if served is None:
        result = run_load(path, ["--host", str(host), *words], progress)
    else:
        with served.running() as (url, labels):
            # The user's own labels stand after ours, and win.
            first = ["--host", url, *(f"--label={name}={text}" for name, text in labels.items())]
            result = run_load(path, [*first, *words], progress)
    if result.run_id is None:
        return 128 + result.signal if result.signal else result.exit_code or 4
    if calibration is not None:
        _keep_calibration(options["db"], result.run_id, calibration)
    code = show_run(options["db"], result.run_id, sla, form)
    if result.signal is not None:
        return 128 + result.signal if code in (0, 3) else code
    # 4 is what the load process ends with where something of ours failed in it.
    return code if result.kept and result.exit_code != 4 else 4


def _several(processes: int) -> list[str]:
    """Words for load processes that find each other: Locust's own port may be another run's."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    meet = ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]
    return ["--processes", str(processes), *meet]


def _served(host: str | None, serve: str | None, options: dict[str, Any]) -> Served | None:
    """The server that ``--serve`` asks for, checked but not started; None with ``--host``.

    The load's own options are checked too: a server may take minutes to start.
    """
    if serve is None:
        if host is None:
            raise click.UsageError("Which endpoint? Give --host URL, or have one started: --serve.")
        return None
    if host is not None:
        raise click.UsageError("--serve starts the endpoint itself; leave --host out.")
    from streamgauge.serving import serving, stopping_in_order

    read_settings(SimpleNamespace(**options), "http://127.0.0.1:1")
    with stopping_in_order():
        served = serving(serve, options["model"])
    options["model"] = served.model
    if options["gpus"] is None and served.gpus is not None:
        options["gpus"] = str(served.gpus)
    return served


def _calibrate(users: int, transport: str | None) -> dict[str, Any] | None:
    """Measure and tell this machine's own error; ``None`` where it could not be told.

    Args:
        users: streams of the run to come.
        transport: what it sends through; ``None`` for the default.
    """
    from streamgauge.campaigns import calibrate

    fidelity = calibrate.measure_client(
        min(users, calibrate.CALIBRATION_STREAMS),
        duration_s=calibrate.CALIBRATION_S,
        ramp_s=1.0,
        source=calibrate.Source(tokens=25),  # many first tokens in a short time
        options=() if transport is None else ("--transport", transport),
    )
    if fidelity is None:
        click.echo("This machine's own error could not be measured; the run goes on.", err=True)
        return None
    click.echo(calibrate.describe(fidelity), err=True)
    return calibrate.as_stored(fidelity)


def _keep_calibration(db: str, run_id: str, calibration: dict[str, Any]) -> None:
    from collectors.store import Store

    with Store.open(db) as store:
        run = store.find_run(run_id)
        store.update_run(run_id, client={**run.client, "calibration": calibration})


def show_run(db: str, run_id: str, sla: Path | None, form: str) -> int:
    """Print a run's report, and its verdict where there is an SLA file; the exit code."""
    from streamgauge.commands.report import show

    return show(db, run_id, sla, form)


def _duration_s(duration: str | None, requests: str | None) -> float | None:
    if duration is None:
        if requests is not None:
            return None
        duration = DEFAULT_DURATION
    seconds = parse_duration(duration, "--duration")
    if seconds < 1 or seconds != int(seconds):
        raise OptionError(f"--duration: expected whole seconds from 1 up, found {duration!r}.")
    return seconds


def _words(options: dict[str, Any]) -> list[str]:
    """The options as words of Locust's command line."""
    words: list[str] = []
    for option in OPTIONS:
        value = options[option.field]
        if option.kind == "flag":
            words += [option.name] if value else []
        elif option.kind == "repeat":
            words += [f"{option.name}={v}" for v in value]
        elif value is not None:
            words.append(f"{option.name}={value}")
    return words

"""``streamgauge simulate``: a run in virtual time, on as many simulated GPUs as asked for."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click

from reference_server.engine import Scheduling
from reference_server.engine.load import MOST_BITS_REWORDED
from reference_server.engine.responses import NEAR_DUPLICATE_BITS, ResponseCacheConfig
from reference_server.engine.routing import Routing
from streamgauge.commands._engine import (
    COST_SETTINGS,
    ENGINE_SETTINGS,
    MACHINE_SETTINGS,
    SPECULATION_SETTINGS,
    UNNAMED_MODEL,
    engine_of,
)
from streamgauge.commands._options import db_option
from streamgauge.commands._settings import (
    COUNT,
    SHARE,
    Duration,
    Setting,
    chosen,
    given,
    options_of,
)

_RESPONSES = ResponseCacheConfig()
_POSITIVE = click.FloatRange(0, min_open=True)
_ARRIVALS = {"constant": math.inf, "poisson": 1.0, "gamma": None}  # their burstiness
_LOAD_SETTINGS = (
    Setting("--requests", "requests", COUNT, None, "so many; then nobody asks again."),
    Setting("--duration", "duration_s", Duration(), None, "requests come for so long."),
    Setting("--rate", "rate", _POSITIVE, None, "requests a second, whatever happens (open loop)."),
    Setting("--arrivals", "arrivals", click.Choice(list(_ARRIVALS)), "poisson",
            "how they are spread over time."),
    Setting("--burstiness", "burstiness", _POSITIVE, 1.0,
            "shape of gamma arrivals; 1 is Poisson, less is burstier."),
    Setting("--users", "users", COUNT, None, "who ask, wait and ask again (closed loop)."),
    Setting("--think-time", "think_s", Duration(), 0.0, "from an answer to the next request."),
    Setting("--ramp", "ramp_s", Duration(), 0.0, "over which the users begin."),
    Setting("--input-tokens", "input_tokens", str, "500", "of a prompt: 500, or 100-900."),
    Setting("--output-tokens", "output_tokens", str, "200", "of an answer, likewise."),
    Setting("--shared-tokens", "shared_tokens", click.IntRange(0), 0,
            "with which every prompt begins, beside --input-tokens."),
    Setting("--shared-prompts", "shared_prompts", COUNT, 1, "so many different such beginnings."),
    Setting("--distinct-prompts", "distinct_prompts", COUNT, None,
            "so many different questions, asked again and again; without it every request asks "
            "something else."),
    Setting("--reworded", "reworded_ratio", SHARE, 0.0,
            "share of the requests that ask one of these in other words: another prompt, whose "
            f"sketch differs in 1 to {MOST_BITS_REWORDED} bits."),
    Setting("--urgent", "urgent_ratio", SHARE, 0.0,
            "share of the requests that are more urgent than the others."),
    Setting("--timeout-total", "patience_s", Duration(), None,
            "a request is given up after so long."),
    Setting("--seed", "seed", int, 0, "all that is drawn follows from it."),
)  # fmt: skip
_FLEET_SETTINGS = (
    Setting("--gpus", "all_gpus", COUNT, None,
            "how many, all together; --tensor-parallel-size of them make a replica. Without it "
            "one replica."),
    Setting("--routing", "routing", click.Choice([way.value for way in Routing]),
            Routing.LEAST_LOADED.value, "how requests are spread over replicas."),
    Setting("--sample-interval", "look_every_s", Duration(), 1.0,
            "so often the fleet's state is kept, but for idle times; 0s: never."),
    Setting("--response-cache", "response_cache", str, None,
            "answers are kept in front of the replicas: exact (for the same prompt), similar or "
            "similar:BITS (for one whose sketch of 64 bits differs in so many at most; "
            f"{NEAR_DUPLICATE_BITS})."),
    Setting("--response-cache-size", "response_cache_size", COUNT, _RESPONSES.entries,
            "answers kept; that unused for longest makes room."),
    Setting("--response-cache-lookup", "lookup_s", Duration(), _RESPONSES.lookup_s,
            "what looking takes, found or not."),
)  # fmt: skip


@click.command()
@db_option
@click.option("--model", default=UNNAMED_MODEL, show_default=True, help="The model; see --gpu.")
@click.option("--run-name", default="simulated", show_default=True, help="Name of the run.")
@click.option("--label", multiple=True, metavar="K=V", help="Kept with the run; repeatable.")
@click.option("--gpu-hour-price", type=click.FloatRange(0), metavar="USD", help="For the costs.")
@click.option(
    "--sla",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Judge the run by this file; the exit code is that of streamgauge check.",
)
@click.option("--format", "form", type=click.Choice(["text", "json", "md"]), default="text")
@click.option(
    "--gaps/--no-gaps",
    default=True,
    show_default=True,
    help="Keep the time between tokens: 4 bytes each, 800 MB for a million answers of 200.",
)
@options_of("Load", _LOAD_SETTINGS)
@options_of("Fleet", _FLEET_SETTINGS)
@options_of("Engine", (*ENGINE_SETTINGS, *COST_SETTINGS, *SPECULATION_SETTINGS, *MACHINE_SETTINGS))
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    db: str,
    model: str,
    run_name: str,
    label: tuple[str, ...],
    gpu_hour_price: float | None,
    sla: Path | None,
    form: str,
    gaps: bool,
    **options: Any,
) -> int:
    """Simulate a load on a fleet without waiting, record it like a run, and report.

    The engine is that of `serve sim`; docs/simulator.md says what it models. The run is marked as
    simulated wherever it is shown.
    """
    from collectors.runs import Run, new_run_id
    from collectors.store import Store
    from reference_server.engine.fleet import Fleet
    from sla.spec import load_sla
    from streamgauge.commands.report import show
    from streamgauge.simulation import record_run

    _check_load(ctx, options)
    replicas = _replicas(options)
    engine = engine_of(ctx, model, options | {"replicas": replicas})
    load = _load(options)
    engine.check(load.longest)
    responses = _responses(options)
    if sla is not None:
        load_sla(sla)
    fleet = Fleet(
        engine,
        replicas,
        routing=Routing(options["routing"]),
        responses=responses,
        instants=gaps,
        look_every_s=options["look_every_s"] or None,
    )
    run = Run(
        id=new_run_id(),
        name=run_name,
        scenario="simulated",
        target=f"simulation of {replicas} x {options['gpu'] or 'an engine'}",
        model=model,
        api="chat",
        began_wall_s=time.time(),
        began_mono_s=time.monotonic(),
        heartbeat_wall_s=time.time(),
        loop="closed" if options["rate"] is None else "open",
        users=options["users"],
        rate=options["rate"],
        duration_s=options["duration_s"],
        ramp_s=options["ramp_s"],
        labels=dict(_pair(text) for text in label),
        config={name: value for name, value in options.items() if value is not None},
        gpu_hour_price_usd=gpu_hour_price,
        gpus=options["all_gpus"] or options["gpus"],
        simulated=True,
    )
    began_s = time.monotonic()
    with Store.open(db, create=True) as store:
        count = record_run(
            store,
            run,
            _serve(fleet, load, options),
            _progress,
            caching=engine.prefix_caching,
            snapshots=fleet.snapshots,
            answers_kept=responses is not None,
        )
    took_s = time.monotonic() - began_s
    click.echo(f"{count:,} requests simulated in {took_s:.1f} s", err=True)
    return show(db, run.id, sla, form)


def _check_load(ctx: click.Context, options: dict[str, Any]) -> None:
    """One loop, an end, and no option without effect."""
    if (options["rate"] is None) == (options["users"] is None):
        raise click.UsageError("Give either --rate (open loop) or --users (closed loop).")
    if options["requests"] is None and options["duration_s"] is None:
        raise click.UsageError("When is it over? Give --requests, --duration, or both.")
    open_loop = {"arrivals", "burstiness"}
    closed_loop = {"think_s", "ramp_s"}
    for setting in given(ctx, _LOAD_SETTINGS):
        if setting.field in (closed_loop if options["users"] is None else open_loop):
            needed = "--users" if options["users"] is None else "--rate"
            raise click.UsageError(f"{setting.flag} needs {needed}.")
        if setting.field == "burstiness" and options["arrivals"] != "gamma":
            raise click.UsageError("--burstiness needs --arrivals gamma.")
        if setting.field == "shared_prompts" and not options["shared_tokens"]:
            raise click.UsageError("--shared-prompts needs --shared-tokens.")
        if setting.field == "reworded_ratio" and options["distinct_prompts"] is None:
            raise click.UsageError("--reworded needs --distinct-prompts.")
    by_priority = options["scheduling"] == Scheduling.PRIORITY
    if by_priority != bool(options["urgent_ratio"]):
        raise click.UsageError(
            "--scheduling-policy priority and --urgent have no effect without each other."
        )
    for setting in given(ctx, _FLEET_SETTINGS):
        if setting.field == "response_cache" and options["distinct_prompts"] is None:
            raise click.UsageError(
                "--response-cache needs --distinct-prompts, or no question is asked twice."
            )
        if setting.field in {"response_cache_size", "lookup_s"} and not options["response_cache"]:
            raise click.UsageError(f"{setting.flag} needs --response-cache.")


def _replicas(options: dict[str, Any]) -> int:
    shared, total = options["gpus"], options["all_gpus"]
    if total is None:
        return 1
    if total % shared:
        raise click.UsageError(
            f"--gpus must be a multiple of --tensor-parallel-size, got {total} and {shared}."
        )
    replicas: int = total // shared
    return replicas


def _load(options: dict[str, Any]) -> Any:
    from reference_server.engine.load import Lengths, Load

    names = {"shared_tokens", "shared_prompts", "patience_s", "seed"}
    names |= {"distinct_prompts", "reworded_ratio", "urgent_ratio"}
    fields = {
        name: value for name, value in chosen(options, _LOAD_SETTINGS).items() if name in names
    }
    return Load(
        input_tokens=Lengths.read(options["input_tokens"]),
        output_tokens=Lengths.read(options["output_tokens"]),
        **fields,
    )


def _responses(options: dict[str, Any]) -> ResponseCacheConfig | None:
    if options["response_cache"] is None:
        return None
    return ResponseCacheConfig.read(
        options["response_cache"], options["response_cache_size"], options["lookup_s"]
    )


def _serve(fleet: Any, load: Any, options: dict[str, Any]) -> Any:
    """The requests as they end."""
    from reference_server.engine.load import closed_loop, instants, open_loop

    until = {"requests": options["requests"], "duration_s": options["duration_s"]}
    if options["users"] is not None:
        users = {name: options[name] for name in ("users", "think_s", "ramp_s")}
        return closed_loop(fleet, load, **users, **until)
    burstiness = _ARRIVALS[options["arrivals"]] or options["burstiness"]
    at_s = instants(options["rate"], burstiness, options["seed"])
    return fleet.serve(open_loop(load, at_s, **until))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.UsageError(f"--label is written K=V, got {text!r}.")
    return name, value


def _progress(count: int) -> None:
    if count % 50_000 == 0:
        click.echo(f"{count:,} requests", err=True)

"""``streamgauge fit``: the simulator's cost of a step, as recorded runs show it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from streamgauge.commands._engine import (
    ALL_SETTINGS,
    COST_SETTINGS,
    MACHINE_SETTINGS,
    UNNAMED_MODEL,
    engine_of,
)
from streamgauge.commands._options import db_option
from streamgauge.commands._settings import COUNT, Setting, given, options_of

if TYPE_CHECKING:
    from reference_server.engine.fit import Sample

_FOUND = {"compute_ratio", "bandwidth_ratio", "overhead_s", "per_sequence_s"}
_FULL = 0.9999
_APART = 2  # the longest of two lengths this many times the shortest: a line can be laid through
_SHARES = ("compute_ratio", "bandwidth_ratio")
_IS_OF_THE_SERVER = tuple(
    setting
    for setting in MACHINE_SETTINGS
    if setting.field not in {*_FOUND, "draft_model", "memory_ratio"}
)
_BUDGET = Setting("--max-num-batched-tokens", "max_batched_tokens", COUNT, 2048,
                  "tokens computed in a step at most; with --gpu vLLM's default.")  # fmt: skip


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--model", default=UNNAMED_MODEL, show_default=True, help="The model; see --gpu.")
@options_of("Server", (_BUDGET, *_IS_OF_THE_SERVER))
@db_option
@click.pass_context
def command(
    ctx: click.Context, /, *, runs: tuple[str, ...], model: str, db: str, **options: Any
) -> int:
    """Fit the simulator's cost of a step to recorded runs of one server.

    Prints the options for `serve sim` and `simulate`: with --gpu the shares of its data sheet that
    are reached and the overheads, without it the five figures of a linear cost. Runs at several
    concurrencies, one of a single user among them, and with prompts of several lengths tell most;
    prompts too much alike are noted. docs/simulator.md says what is modelled.
    """
    from collectors.store import Store

    defaults = {setting.field: setting.default for setting in ALL_SETTINGS}
    engine = engine_of(ctx, model, defaults | options)
    with Store.open(db, read_only=True) as store:
        samples = _samples(store, runs, engine.max_batched_tokens)
    if note := untold(samples):
        click.echo(f"Note: {note}", err=True)
    cost, told = _fitted(engine.cost, samples)
    click.echo(told, err=True)
    server = [] if options["gpu"] is None else ["--model", model]
    for setting in given(ctx, (_BUDGET, *_IS_OF_THE_SERVER)):
        server += [setting.flag, str(options[setting.field])]
    click.echo(shlex.join([*server, *_words(cost)]))
    return 0


def _samples(store: Any, runs: tuple[str, ...], max_batched_tokens: int) -> list[Any]:
    from streamgauge.fitting import samples_of

    samples = []
    for ref in runs:
        run = store.find_run(ref)
        found = samples_of(run, store.table(run.id, gaps=False), max_batched_tokens)
        if not found:
            click.echo(f"Note: run {ref} tells nothing and is left out.", err=True)
        samples += found
    if not samples:
        raise click.UsageError(
            "Expected runs with streamed answers whose tokens are known, and none of these has "
            "any; name others."
        )
    return samples


def untold(samples: Sequence[Sample]) -> str | None:
    """What prompts that are too much alike cannot tell; None where they differ enough."""
    works = (work for sample in samples for work in sample.works)
    prompts = [work.prompts.tokens / work.prompts.parts for work in works if work.prompts.parts]
    if prompts and max(prompts) < _APART * min(prompts):
        return (
            f"the prompts are of {min(prompts):.0f} to {max(prompts):.0f} tokens, so what each "
            "token takes cannot be told from what a prompt takes; add a run with others, four "
            "times as long."
        )
    return None


def _fitted(cost: Any, samples: list[Any]) -> tuple[Any, str]:
    """The cost that fits, and how well in words."""
    from reference_server.engine.cost import LinearCost
    from reference_server.engine.fit import fit_linear, fit_roofline

    fit: Any = (fit_linear if isinstance(cost, LinearCost) else fit_roofline)(cost, samples)
    full = [name for name in _SHARES if getattr(fit.cost, name, 0.0) > _FULL]
    told = (
        f"Fitted to {fit.samples} samples: their error is {fit.error_ratio_p50:.1%} in the median, "
        f"{fit.error_ratio_max:.1%} at most."
    )
    names = " and ".join(name.replace("_", " ") for name in full)
    return fit.cost, told + (f" The {names} is held at 1, the data sheet's." if full else "")


def _words(cost: Any) -> list[str]:
    """The options that stand for a cost's parameters."""
    words = []
    for setting in (*COST_SETTINGS, *MACHINE_SETTINGS):
        if setting in COST_SETTINGS or setting.field in _FOUND:
            value = getattr(cost, setting.field, None)
            if value is not None:
                words += [setting.flag, _written(value, setting)]
    return words


def _written(value: float, setting: Setting) -> str:
    """A share with four digits, or a duration down to the picosecond."""
    if setting.field in _SHARES:
        return f"{value:.4g}"
    return f"{value * 1e6:.6f}".rstrip("0").rstrip(".") + "us"

"""``streamgauge report``: one run's figures."""

from __future__ import annotations

from pathlib import Path

import click

from streamgauge.commands._options import db_option
from streamgauge.commands._reading import echo_json, format_option, wants_colour

FORMATS = ("text", "json", "md", "csv", "html")


@click.command()
@click.argument("run")
@format_option(*FORMATS)
@click.option(
    "--sla",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="SLA file: adds goodput and the verdict; the exit code stays 0.",
)
@db_option
def command(run: str, form: str, sla: Path | None, db: str) -> int:
    """Show the figures of RUN: an id, the beginning of one, a name, or "last".

    HTML is to come; until then it is refused.
    """
    show(db, run, sla, form)
    return 0


def show(db: str, ref: str, sla: Path | None, form: str) -> int:
    """Print a run's report, and its verdict where there is an SLA file.

    Returns:
        The exit code of ``check``; 0 without an SLA file.
    """
    from collectors.store import Store
    from sla.api import judge_run
    from sla.text import check_markdown, check_text, report_csv, report_markdown, report_text

    if form == "html":
        raise click.UsageError("reports in HTML come later; use text, json, md or csv for now.")
    with Store.open(db, read_only=True) as store:
        report, judgement = judge_run(store, store.find_run(ref), sla)
    if form == "json":
        echo_json(report)
    elif form == "csv":
        click.echo(report_csv(report), nl=False)
    elif form == "md":
        click.echo(report_markdown(report), nl=False)
        if judgement is not None:
            click.echo(f"\n{check_markdown(report, judgement)}", nl=False)
    else:
        click.echo(report_text(report, colour=wants_colour()), nl=False)
        if judgement is not None:
            verdict = check_text(report, judgement, colour=wants_colour(), is_below=True)
            click.echo(f"\n{verdict}", nl=False)
    return judgement.exit_code if judgement is not None else 0

"""``streamgauge runs``: what is in the database."""

from __future__ import annotations

import click

from streamgauge.commands._options import db_option
from streamgauge.commands._reading import echo_json, format_option


@click.command()
@format_option("text", "json", "csv")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="At most so many.",
)
@db_option
def command(form: str, limit: int, db: str) -> None:
    """List the runs in the database, newest first."""
    from collectors.store import Store
    from sla.listing import list_runs
    from sla.text import runs_csv, runs_text

    with Store.open(db, read_only=True) as store:
        found = list_runs(store, limit)
    if form == "json":
        echo_json(found)
    elif form == "csv":
        click.echo(runs_csv(found), nl=False)
    else:
        click.echo(runs_text(found), nl=False)

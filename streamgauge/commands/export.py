"""``streamgauge export``: one run's requests, for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from streamgauge.commands._options import db_option


@click.command()
@click.argument("run")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Where to: .jsonl, .csv or .parquet.",
)
@db_option
def command(run: str, target: Path, db: str) -> None:
    """Write every request of RUN to a file, one a line, in the format of the file's ending."""
    from collectors.store import Store
    from sla.export import check_target, cost_per_request, export_rows, write_export

    check_target(target)
    with Store.open(db, read_only=True) as store:
        found = store.find_run(run)
        cost_of = cost_per_request(found, store.table(found.id, gaps=False))
        count = write_export(export_rows(store.records(found.id), cost_of), target)
    click.echo(f"Wrote {count:,} requests of run {found.id} ({found.name}) to {target}.", err=True)

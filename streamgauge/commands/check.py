"""``streamgauge check``: hold a recorded run to an SLA file."""

from __future__ import annotations

from pathlib import Path

import click

from streamgauge.commands._options import db_option
from streamgauge.commands._reading import echo_json, format_option, wants_colour


@click.command()
@click.argument("run")
@click.option(
    "--sla",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The SLA file.",
)
@format_option("text", "json", "md")
@db_option
def command(run: str, sla: Path, form: str, db: str) -> int:
    """Hold RUN (an id, the beginning of one, a name, or "last") to an SLA file.

    Exit codes: 0 every objective held; 1 one is broken; 2 it could not be judged (bad file, no
    such run, a run that is empty or still going); 3 nothing is broken, but something cannot be
    told, or the run is invalid.
    """
    from collectors.figures import READINGS
    from collectors.store import Store
    from sla.judge import judge
    from sla.report import check_document, report_of
    from sla.spec import load_sla
    from sla.text import check_markdown, check_text

    agreement = load_sla(sla)
    with Store.open(db, read_only=True) as store:
        found = store.find_run(run)
        samples = store.samples(found.id, READINGS)
        judgement = judge(agreement, found, store.table(found.id), samples)
    if form == "json":
        echo_json(check_document(found, judgement))
    elif form == "md":
        click.echo(check_markdown(report_of(found, judgement.figures), judgement), nl=False)
    else:
        text = check_text(report_of(found, judgement.figures), judgement, colour=wants_colour())
        click.echo(text, nl=False)
    return judgement.exit_code

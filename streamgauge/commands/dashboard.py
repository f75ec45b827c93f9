"""``streamgauge dashboard``: the Streamlit pages on a local address, until they are stopped."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import click

from streamgauge.commands._options import db_option

NEEDS = ("pandas", "plotly", "pyarrow", "streamlit")


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. On any but a loopback one, whoever reaches it reads every run.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8501,
    show_default=True,
    help="Port to listen on; 0 takes any free one.",
)
@click.option(
    "--sla",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="What runs are held to: an SLA file, or a folder with a SCENARIO.sla.yaml for each"
    " scenario; the bundled ones by default.",
)
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@db_option
def command(host: str, port: int, sla: Path | None, no_browser: bool, db: str) -> None:
    """Open the dashboard.

    Prints one line, "dashboard on URL", once the pages answer. Ctrl-C or SIGTERM ends it.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise click.UsageError(
            f'The dashboard needs {", ".join(missing)}; pip install "streamgauge[dashboard]".'
        )
    _check(db, sla)
    from dashboard import server, settings

    os.environ[settings.DB] = db
    os.environ[settings.SLA] = str(sla or _bundled_slas())
    listener = server.listen(host, port)
    url = server.url_of(listener, host)
    if host not in server.LOOPBACK:
        click.echo(f"Whoever reaches {host} can read every run.", err=True)

    def say_ready() -> None:
        click.echo(f"dashboard on {url}")
        if not no_browser and server.has_display():
            click.launch(url)

    server.serve(listener, host, say_ready)


def _check(db: str, sla: Path | None) -> None:
    """Fail now, in the terminal, on what every page would fail on."""
    from collectors.store import Store
    from sla.spec import load_sla

    with Store.open(db, read_only=True):
        pass
    if sla is not None and not sla.is_dir():
        load_sla(sla)


def _bundled_slas() -> Path:
    return Path(__file__).resolve().parents[2] / "scenarios"

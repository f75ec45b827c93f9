"""``streamgauge doctor``: what an endpoint can do, and what a run against it would measure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import click

from loadgen.options import OPTIONS, read_settings
from streamgauge.commands._load_options import load_options
from streamgauge.commands._reading import echo_json, format_option

# What says where and as whom to ask; the rest of a run's options is about load.
_ASKED = (
    *("--model", "--api", "--dialect", "--api-version", "--api-key-env", "--api-key-file"),
    *("--header", "--tokenizer", "--timeout-total", "--transport", "--proxy"),
    *("--ca-file", "--client-cert", "--client-key", "--insecure"),
)


@click.command()
@click.argument("url")
@format_option("text", "json")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@load_options(o for o in OPTIONS if o.name in _ASKED)
def command(url: str, form: str, as_json: bool, **options: Any) -> int:
    """Ask the endpoint at URL what it can do, with at most four tiny requests.

    Prints what was learned, and what a run would and could not measure. Each request may take 120 s
    at most, whatever --timeout-total says. Exit codes: 0 a run would be answered; 2 it would not,
    or the endpoint cannot be reached.
    """
    from loadgen.diagnosis import document, text  # `--help` needs no gevent
    from loadgen.doctor import examine
    from loadgen.transports import make_transport

    settings = read_settings(SimpleNamespace(**options), url)
    transport = make_transport(settings)
    try:
        findings = examine(settings, transport)
    finally:
        transport.close()
    if as_json or form == "json":
        echo_json(document(findings))
    else:
        click.echo(text(findings), nl=False)
    return 0 if findings.usable else 2

"""What the commands that read share: formats, colours, one run's evidence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click
import orjson

F = TypeVar("F", bound=Callable[..., Any])


def wants_colour() -> bool:
    """Whether standard output is a terminal whose user did not ask for no colour."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def format_option(*formats: str) -> Callable[[F], F]:
    """``--format``: one of ``formats``, the first by default."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How to print it.",
    )


def echo_json(document: Any) -> None:
    """Print ``document`` as JSON."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())

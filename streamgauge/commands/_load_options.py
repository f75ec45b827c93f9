"""The options of a load process, for commands that pass them on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from loadgen.options import Option

F = TypeVar("F", bound=Callable[..., Any])


def load_options(options: Iterable[Option]) -> Callable[[F], F]:
    """A decorator that gives a click command these options, in this order."""
    chosen = list(options)

    def decorate(function: F) -> F:
        for option in reversed(chosen):
            function = _option(option)(function)
        return function

    return decorate


def _option(option: Option) -> Callable[[F], F]:
    if option.kind == "flag":
        return click.option(option.name, is_flag=True, help=option.help)
    repeated = option.kind == "repeat"
    return click.option(option.name, metavar=option.metavar, help=option.help, multiple=repeated)

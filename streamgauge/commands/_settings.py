"""Options that set the fields of a server's settings, from tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import click
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])

COUNT = click.IntRange(1)
SHARE = click.FloatRange(0, 1)
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(us|ms|s|m|h|)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


class Duration(click.ParamType[float]):
    """``50ms``, ``0.05s``, ``2m``; a bare number is seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 50ms or 0.05s.", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


class Setting(NamedTuple):
    """An option that sets one field of a server's settings."""

    flag: str
    field: str
    type: Any
    default: Any
    help: str
    multiple: bool = False  # may be given again and again


def _written(seconds: float) -> str:
    if not seconds:
        return "0s"
    return f"{seconds * 1e6:g}us" if seconds < 1e-4 else f"{seconds * 1e3:g}ms"


def options_of(where: str, settings: Iterable[Setting]) -> Callable[[F], F]:
    """Options for a server's settings."""

    def decorate(function: F) -> F:
        for flag, name, kind, default, about, multiple in reversed(tuple(settings)):
            function = click.option(
                flag,
                name,
                type=None if kind is bool else kind,
                is_flag=kind is bool,
                multiple=multiple,
                default=_written(default)
                if isinstance(default, float) and isinstance(kind, Duration)
                else default,
                show_default=kind is not bool and not multiple and default is not None,
                help=f"{where}: {about}",
            )(function)
        return function

    return decorate


def chosen(options: dict[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """The values of the settings, by field."""
    return {setting.field: options[setting.field] for setting in settings}


def given(ctx: click.Context, settings: Iterable[Setting]) -> list[Setting]:
    """Those that stand on the command line."""
    return [
        setting
        for setting in settings
        if ctx.get_parameter_source(setting.field) == ParameterSource.COMMANDLINE
    ]

"""What to leave out of a request that an endpoint refused. Pure.

Which optional fields an endpoint takes has to be learned, not guessed: vendors answer 400 or 422 to
what others need. Going down the ladder, the fields that the refusal names are left out; where it
names none, everything that a run can do without goes first, then the usage option, then the other
spelling of the token limit. The shape of requests never changes within a run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loadgen.dialects import Dialect

MAX_REQUESTS = 4
REFUSED = frozenset({400, 422})
CONTINUOUS, USAGE = "continuous_usage_stats", "stream_options"
_OTHER_LIMIT = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How requests look: the dialect, and fields that may be left out.

    Attributes:
        continuous: asks for running usage in every event.
        swapped: the token limit has its other spelling already.
    """

    dialect: Dialect
    api: str = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)
    continuous: bool = False
    swapped: bool = False

    def fields(self) -> dict[str, Any]:
        """Fields beside those that every request has."""
        if not self.continuous or not self.dialect.include_usage:
            return dict(self.extra)
        return {**self.extra, USAGE: {"include_usage": True, CONTINUOUS: True}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step down.

    Attributes:
        left_out: fields the next request lacks, or spells otherwise.
        named: the refusal named them; otherwise one of them, or none, was what it meant.
    """

    shape: Shape
    left_out: tuple[str, ...]
    named: bool


def step_down(
    shape: Shape, sent: Mapping[str, Any], words: str, *, hurry: bool = False
) -> Step | None:
    """The next shape after a refusal; ``None`` where nothing of ours is left to change.

    Args:
        shape: what was sent.
        sent: the body that was refused.
        words: the whole body of the refusal: some name the field outside the message.
        hurry: leave out at once whatever a run does not ask for; few requests are left.
    """
    named = [name for name in _ours(shape, sent) if _names(words, name)]
    if CONTINUOUS in named and USAGE in named:
        named.remove(USAGE)  # "stream_options.continuous_usage_stats" names the inner one
    needless = _needless(shape, sent)
    left_out = [*named, *needless] if hurry else named or needless
    left_out = left_out or _ours(shape, sent)[:1]
    if not left_out:
        return None
    once = tuple(dict.fromkeys(left_out))
    return Step(shape=_without(shape, once), left_out=once, named=bool(named))


def _ours(shape: Shape, sent: Mapping[str, Any]) -> list[str]:
    """Names of the fields that may go, as far as they were sent."""
    names = [CONTINUOUS] if CONTINUOUS in shape.fields().get(USAGE, {}) else []
    names += [USAGE] if USAGE in sent else []
    names += [name for name in shape.extra if name in sent]
    return names + _limit(shape, sent)


def _limit(shape: Shape, sent: Mapping[str, Any]) -> list[str]:
    """The token limit's field, where it has another spelling that was not tried."""
    name = shape.dialect.limit_field
    return [name] if shape.api == "chat" and name in sent and not shape.swapped else []


def _names(words: str, name: str) -> bool:
    spellings = (name, "include_usage") if name == USAGE else (name,)
    return any(re.search(rf"\b{re.escape(s)}\b", words) for s in spellings)


def _needless(shape: Shape, sent: Mapping[str, Any]) -> list[str]:
    return [name for name in _ours(shape, sent) if name == CONTINUOUS or name in shape.extra]


def _without(shape: Shape, names: tuple[str, ...]) -> Shape:
    dialect = shape.dialect
    if USAGE in names:
        dialect = replace(dialect, include_usage=False)
    swaps = dialect.limit_field in names
    if swaps:
        dialect = replace(dialect, limit_field=_OTHER_LIMIT[dialect.limit_field])
    return replace(
        shape,
        dialect=dialect,
        extra={name: value for name, value in shape.extra.items() if name not in names},
        continuous=shape.continuous and CONTINUOUS not in names,
        swapped=shape.swapped or swaps,
    )

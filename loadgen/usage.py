"""Token counts as servers report them, brought to the same names. Pure.

Absent is ``None``, never 0: a hit rate drawn from "absent is 0" would be a lie about most servers.

Source of the names: the APIs' own references, and what servers really send (docs/definitions.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_COUNT = 2**53  # what any store and any reader of JSON can hold
_INPUT = (("prompt_tokens",), ("input_tokens",))
_OUTPUT = (("completion_tokens",), ("output_tokens",))
_CACHED = (
    ("prompt_tokens_details", "cached_tokens"),
    ("input_tokens_details", "cached_tokens"),
    ("prompt_cache_hit_tokens",),  # DeepSeek
    ("cached_tokens",),  # Moonshot
)
_REASONING = (
    ("completion_tokens_details", "reasoning_tokens"),
    ("output_tokens_details", "reasoning_tokens"),
    ("reasoning_tokens",),  # SGLang
)
_CACHE_READ, _CACHE_WRITE = "cache_read_input_tokens", "cache_creation_input_tokens"
_TELLING = (
    "completion_tokens",
    "prompt_tokens",
    "total_tokens",
    "output_tokens",
    "input_tokens",
    _CACHE_READ,
    _CACHE_WRITE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as a server reports them; ``None`` is "not said", never 0.

    Attributes:
        input_tokens: all of the prompt, cached or not.
        cached_input_tokens: those of them that a cache answered for.
        output_tokens: all that was generated, reasoning included.
        reasoning_tokens: those of them that were reasoning.
    """

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


def read_usage(usage: Mapping[str, Any]) -> Usage:
    """A usage object of the OpenAI APIs, whoever wrote it."""
    return Usage(
        input_tokens=_first(usage, _INPUT),
        cached_input_tokens=_first(usage, _CACHED),
        output_tokens=_first(usage, _OUTPUT),
        reasoning_tokens=_first(usage, _REASONING),
    )


def read_messages_usage(usage: Mapping[str, Any]) -> Usage:
    """A usage object of the Anthropic Messages API.

    Its ``input_tokens`` leave out what was read from the cache and what was written to it.
    Reasoning is inside the output and not told apart.
    """
    fresh, cached = count(usage, "input_tokens"), count(usage, _CACHE_READ)
    return Usage(
        input_tokens=None
        if fresh is None
        else fresh + (cached or 0) + (count(usage, _CACHE_WRITE) or 0),
        cached_input_tokens=cached,
        output_tokens=count(usage, "output_tokens"),
    )


def usage_of_timings(timings: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's ``timings`` say of tokens, as a usage object.

    ``prompt_n`` leaves the cached part out, so without ``cache_n`` the whole is not known.
    """
    cached, processed = count(timings, "cache_n"), count(timings, "prompt_n")
    return {
        "prompt_tokens": None if cached is None or processed is None else cached + processed,
        "completion_tokens": count(timings, "predicted_n"),
        "cached_tokens": cached,
    }


def tells_tokens(usage: Mapping[str, Any]) -> bool:
    """Not one of the all-zero placeholders that some servers send before the real thing."""
    return any(usage.get(key) for key in _TELLING)


def adds_up(usage: Mapping[str, Any]) -> bool:
    """Input and output make the total, as far as all three are said.

    Where they do not, some path left thinking out of the output, or counted it twice.
    """
    given, made, total = _first(usage, _INPUT), output_count(usage), count(usage, "total_tokens")
    return given is None or made is None or total is None or given + made == total


def output_count(usage: Mapping[str, Any]) -> int | None:
    """Output tokens under either name."""
    return _first(usage, _OUTPUT)


def count(usage: Mapping[str, Any], *path: str) -> int | None:
    """The count under a path of keys; ``None`` where there is none that makes sense."""
    value: Any = usage
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MAX_COUNT else None


def _first(usage: Mapping[str, Any], paths: tuple[tuple[str, ...], ...]) -> int | None:
    counts = (count(usage, *path) for path in paths)
    return next((value for value in counts if value is not None), None)

"""Token counts as servers report them, brought to the same names. Pure.

Absent is ``None``, never 0: a hit rate drawn from "absent is 0" would be a lie about most servers.

Source of the names: the APIs' own references, and what servers really send (docs/definitions.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_COUNT = 2**53
"""What any store and any reader of JSON can hold."""
_INPUT = (("prompt_tokens",), ("input_tokens",))
_OUTPUT = (("completion_tokens",), ("output_tokens",))
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUTPUT_DETAILS = ("completion_tokens_details", "output_tokens_details", "output_token_details")


def _inside(details: tuple[str, ...], *names: str) -> tuple[tuple[str, ...], ...]:
    """Each name in each of the places for details."""
    return tuple((place, name) for name in names for place in details)


_CACHE_READ, _CACHE_WRITE = "cache_read_input_tokens", "cache_creation_input_tokens"  # Anthropic
_CACHED = (
    *_inside(_INPUT_DETAILS, "cached_tokens"),
    ("prompt_cache_hit_tokens",),  # DeepSeek
    ("cached_tokens",),  # Moonshot
    (_CACHE_READ,),  # a gateway's copy
)
_CACHE_WRITTEN = (
    # OpenAI and OpenRouter; LiteLLM; vLLM
    *_inside(_INPUT_DETAILS, "cache_write_tokens", "cache_creation_tokens", "created_cache_tokens"),
    (_CACHE_WRITE,),  # a gateway's copy
)
_AUDIO_INPUT = _inside(_INPUT_DETAILS, "audio_tokens")
_AUDIO_OUTPUT = _inside(_OUTPUT_DETAILS, "audio_tokens")
_REASONING = (
    *_inside(_OUTPUT_DETAILS, "reasoning_tokens"),
    ("reasoning_tokens",),  # SGLang
)
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
        cache_write_input_tokens: those of them that were written to a cache.
        audio_input_tokens: those of them that were audio.
        output_tokens: all that was generated, reasoning included.
        reasoning_tokens: those of them that were reasoning.
        audio_output_tokens: those of them that were audio.
    """

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None
    audio_input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_output_tokens: int | None = None


def read_usage(usage: Mapping[str, Any]) -> Usage:
    """A usage object of the OpenAI APIs, whoever wrote it."""
    return Usage(
        input_tokens=_first(usage, _INPUT),
        cached_input_tokens=_first(usage, _CACHED),
        cache_write_input_tokens=_first(usage, _CACHE_WRITTEN),
        audio_input_tokens=_first(usage, _AUDIO_INPUT),
        output_tokens=_first(usage, _OUTPUT),
        reasoning_tokens=_first(usage, _REASONING),
        audio_output_tokens=_first(usage, _AUDIO_OUTPUT),
    )


def read_messages_usage(usage: Mapping[str, Any]) -> Usage:
    """A usage object of the Anthropic Messages API.

    Its ``input_tokens`` leave out what was read from the cache and what was written to it.
    Reasoning is inside the output and not told apart.
    """
    fresh, cached = count(usage, "input_tokens"), count(usage, _CACHE_READ)
    written = count(usage, _CACHE_WRITE)
    if written is None:
        written = _by_lifetime(usage)
    return Usage(
        input_tokens=None if fresh is None else fresh + (cached or 0) + (written or 0),
        cached_input_tokens=cached,
        cache_write_input_tokens=written,
        output_tokens=count(usage, "output_tokens"),
    )


def _by_lifetime(usage: Mapping[str, Any]) -> int | None:
    """Tokens written to the cache, where only their split by lifetime is said."""
    parts = usage.get("cache_creation")
    counts = [count(parts, key) for key in parts] if isinstance(parts, Mapping) else []
    seen = [value for value in counts if value is not None]
    return sum(seen) if seen else None


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


def adds_up(said: Usage, total: int | None) -> bool:
    """Input and output make the total, and parts of either fit in it, as far as they are said.

    Where they do not, some path left thinking out of the output, the cache out of the input, or
    counted one of them twice.
    """
    given, made = said.input_tokens, said.output_tokens
    if given is not None and made is not None and total is not None and given + made != total:
        return False
    cached = (said.cached_input_tokens or 0) + (said.cache_write_input_tokens or 0)
    thought = said.reasoning_tokens or 0
    return (given is None or cached <= given) and (made is None or thought <= made)


def output_count(usage: Mapping[str, Any]) -> int | None:
    """Output tokens under either name."""
    return _first(usage, _OUTPUT)


def count(usage: Mapping[str, Any], *path: str) -> int | None:
    """The count under a path of keys; ``None`` where there is none that makes sense."""
    value: Any = usage
    for key in path:
        if not isinstance(value, dict):  # JSON has no other mapping, and asking for any is slow
            return None
        value = value.get(key)
    if value.__class__ is not int:  # a bool is none
        return None
    return value if 0 <= value <= MAX_COUNT else None


def _first(usage: Mapping[str, Any], paths: tuple[tuple[str, ...], ...]) -> int | None:
    for path in paths:
        if path[0] in usage:  # most are not
            value = count(usage, *path)
            if value is not None:
                return value
    return None

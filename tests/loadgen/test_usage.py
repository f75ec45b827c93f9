"""Token counts of every vendor under the same names."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.usage import Usage, count, read_messages_usage, read_usage


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 6},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(input_tokens=9, cached_input_tokens=6, output_tokens=5, reasoning_tokens=3),
        ),
        (
            {
                "input_tokens": 9,
                "output_tokens": 5,
                "input_tokens_details": {"cached_tokens": 6},
                "output_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(input_tokens=9, cached_input_tokens=6, output_tokens=5, reasoning_tokens=3),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 5, "prompt_cache_hit_tokens": 6},
            Usage(input_tokens=9, cached_input_tokens=6, output_tokens=5),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 5, "cached_tokens": 0},
            Usage(input_tokens=9, cached_input_tokens=0, output_tokens=5),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 5, "reasoning_tokens": 3},
            Usage(input_tokens=9, output_tokens=5, reasoning_tokens=3),
        ),
        (  # a gateway's copy of Anthropic's names adds nothing to a total
            {"prompt_tokens": 9, "completion_tokens": 5, "cache_read_input_tokens": 6},
            Usage(input_tokens=9, output_tokens=5),
        ),
        ({}, Usage()),
    ],
    ids=["chat", "responses", "deepseek", "moonshot", "sglang", "litellm", "nothing"],
)
def test_openai_usage(usage: dict[str, Any], expected: Usage) -> None:
    """Each vendor's place is found, and what is not said stays unknown."""
    assert read_usage(usage) == expected


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {"input_tokens": 3, "cache_read_input_tokens": 6, "output_tokens": 5},
            Usage(input_tokens=9, cached_input_tokens=6, output_tokens=5),
        ),
        (
            {
                "input_tokens": 1,
                "cache_read_input_tokens": 0,
                "cache_creation_input_tokens": 8,
                "output_tokens": 5,
            },
            Usage(input_tokens=9, cached_input_tokens=0, output_tokens=5),
        ),
        ({"input_tokens": 9, "output_tokens": 5}, Usage(input_tokens=9, output_tokens=5)),
        (
            {"cache_read_input_tokens": 6, "output_tokens": 5},
            Usage(cached_input_tokens=6, output_tokens=5),
        ),
        (
            {"input_tokens": 9, "cache_read_input_tokens": None, "output_tokens": 5},
            Usage(input_tokens=9, output_tokens=5),
        ),
    ],
    ids=["read", "written", "no cache", "no input", "null"],
)
def test_messages_usage(usage: dict[str, Any], expected: Usage) -> None:
    """The input is the sum of what was fresh, read from the cache and written to it."""
    assert read_messages_usage(usage) == expected


@pytest.mark.parametrize("value", [-1, 1.5, "7", True, None, [7], {"n": 7}, 2**53 + 1])
def test_what_is_no_count_is_unknown(value: Any) -> None:
    """And never 0."""
    assert count({"n": value}, "n") is None

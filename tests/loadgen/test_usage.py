"""Token counts of every vendor under the same names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import orjson
import pytest

from loadgen.replies import make_reply
from loadgen.usage import Usage, adds_up, count, read_messages_usage


class Vendor(NamedTuple):
    """What one vendor's stream says of tokens, and what it comes to.

    ``last`` is the event with the usage; for the Messages API those at the start and the end.
    """

    name: str
    api: str
    last: tuple[dict[str, Any], ...]
    expected: Usage


def own(usage: dict[str, Any]) -> tuple[dict[str, Any]]:
    """An event of its own with the usage."""
    return ({"choices": [], "usage": usage},)


BOTH = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
IN_OUT = Usage(input_tokens=9, output_tokens=5)
VENDORS = (
    Vendor(
        "openai",
        "chat",
        own(
            BOTH
            | {
                "prompt_tokens_details": {"cached_tokens": 6, "audio_tokens": 2},
                "completion_tokens_details": {
                    "reasoning_tokens": 3,
                    "audio_tokens": 1,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            }
        ),
        replace(
            IN_OUT,
            cached_input_tokens=6,
            audio_input_tokens=2,
            reasoning_tokens=3,
            audio_output_tokens=1,
        ),
    ),
    Vendor(
        "openai, a model that writes its cache",
        "chat",
        own(BOTH | {"prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 8}}),
        replace(IN_OUT, cached_input_tokens=0, cache_write_input_tokens=8),
    ),
    Vendor(
        "azure",
        "chat",
        own(BOTH | {"prompt_tokens_details": {"cached_tokens": 6, "audio_tokens": 0}}),
        replace(IN_OUT, cached_input_tokens=6, audio_input_tokens=0),
    ),
    Vendor(
        "openai responses",
        "responses",
        (
            {
                "type": "response.completed",
                "response": {
                    "status": "completed",
                    "usage": {
                        "input_tokens": 9,
                        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                        "output_tokens": 5,
                        "output_tokens_details": {"reasoning_tokens": 2},
                        "total_tokens": 14,
                    },
                },
            },
        ),
        replace(IN_OUT, cached_input_tokens=4, cache_write_input_tokens=3, reasoning_tokens=2),
    ),
    Vendor(
        "anthropic",
        "messages",
        (
            {
                "type": "message_start",
                "message": {
                    "usage": {
                        "input_tokens": 1,
                        "cache_read_input_tokens": 6,
                        "cache_creation_input_tokens": 2,
                        "output_tokens": 1,
                    }
                },
            },
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn"},
                "usage": {"output_tokens": 5},
            },
        ),
        replace(IN_OUT, cached_input_tokens=6, cache_write_input_tokens=2),
    ),
    Vendor(
        "anthropic, written by lifetime",
        "messages",
        (
            {
                "type": "message_start",
                "message": {
                    "usage": {
                        "input_tokens": 1,
                        "cache_read_input_tokens": 0,
                        "cache_creation": {
                            "ephemeral_5m_input_tokens": 3,
                            "ephemeral_1h_input_tokens": 5,
                        },
                    }
                },
            },
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}},
        ),
        replace(IN_OUT, cached_input_tokens=0, cache_write_input_tokens=8),
    ),
    Vendor(
        "deepseek",
        "chat",
        own(
            BOTH
            | {
                "prompt_cache_hit_tokens": 6,
                "prompt_cache_miss_tokens": 3,
                "completion_tokens_details": {"reasoning_tokens": 2},
            }
        ),
        replace(IN_OUT, cached_input_tokens=6, reasoning_tokens=2),
    ),
    Vendor(
        "groq",
        "chat",
        (
            {
                "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                "x_groq": {
                    "id": "req_1",
                    "usage": BOTH
                    | {"queue_time": 0.01, "prompt_tokens_details": {"cached_tokens": 6}},
                },
            },
        ),
        replace(IN_OUT, cached_input_tokens=6),
    ),
    Vendor(
        "moonshot",
        "chat",
        (
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {},
                        "finish_reason": "stop",
                        "usage": BOTH | {"cached_tokens": 6},
                    }
                ]
            },
        ),
        replace(IN_OUT, cached_input_tokens=6),
    ),
    Vendor(
        "llama.cpp",
        "chat",
        own(BOTH | {"prompt_tokens_details": {"cached_tokens": 6}}),
        replace(IN_OUT, cached_input_tokens=6),
    ),
    Vendor(
        "llama.cpp, cached tokens in its timings",
        "chat",
        (
            {
                "choices": [],
                "usage": BOTH,
                "timings": {"cache_n": 6, "prompt_n": 3, "predicted_n": 5},
            },
        ),
        replace(IN_OUT, cached_input_tokens=6),
    ),
    Vendor(
        "llama.cpp, timings alone",
        "chat",
        ({"choices": [], "timings": {"cache_n": 6, "prompt_n": 3, "predicted_n": 5}},),
        replace(IN_OUT, cached_input_tokens=6),
    ),
    Vendor(
        "openrouter",
        "chat",
        own(
            BOTH
            | {
                "prompt_tokens_details": {
                    "cached_tokens": 0,
                    "cache_write_tokens": 8,
                    "audio_tokens": 0,
                },
                "completion_tokens_details": {"reasoning_tokens": 0},
                "cost": 0.95,
            }
        ),
        replace(
            IN_OUT,
            cached_input_tokens=0,
            cache_write_input_tokens=8,
            audio_input_tokens=0,
            reasoning_tokens=0,
        ),
    ),
    Vendor(
        "litellm",
        "chat",
        own(
            BOTH
            | {
                "prompt_tokens_details": {
                    "text_tokens": None,
                    "audio_tokens": None,
                    "cached_tokens": 6,
                    "cache_creation_tokens": 2,
                },
                "completion_tokens_details": {"reasoning_tokens": None},
                "cache_read_input_tokens": 6,
                "cache_creation_input_tokens": 2,
            }
        ),
        replace(IN_OUT, cached_input_tokens=6, cache_write_input_tokens=2),
    ),
    Vendor(
        "a gateway that copies Anthropic's names",
        "chat",
        own(BOTH | {"cache_read_input_tokens": 6, "cache_creation_input_tokens": 2}),
        replace(IN_OUT, cached_input_tokens=6, cache_write_input_tokens=2),
    ),
    Vendor("vllm as it comes", "chat", own(BOTH | {"prompt_tokens_details": None}), IN_OUT),
    Vendor(
        "vllm with details",
        "chat",
        own(
            BOTH
            | {
                "prompt_tokens_details": {
                    "cached_tokens": 6,
                    "created_cache_tokens": 3,
                    "multimodal_tokens": {"image": 2},
                }
            }
        ),
        replace(IN_OUT, cached_input_tokens=6, cache_write_input_tokens=3),
    ),
    Vendor(
        "sglang",
        "chat",
        own(BOTH | {"prompt_tokens_details": {"cached_tokens": 6}, "reasoning_tokens": 3}),
        replace(IN_OUT, cached_input_tokens=6, reasoning_tokens=3),
    ),
    Vendor(
        "gemini, no output said",
        "chat",
        own({"prompt_tokens": 9, "total_tokens": 9}),
        Usage(input_tokens=9),
    ),
    Vendor("nothing", "chat", ({"choices": []},), Usage()),
)


@pytest.mark.parametrize("vendor", VENDORS, ids=[v.name for v in VENDORS])
def test_each_vendors_stream_comes_to_the_same_names(vendor: Vendor) -> None:
    """Through the whole reply, from wherever it is said; what is not said stays unknown."""
    reply = make_reply(vendor.api)
    for number, payload in enumerate(vendor.last):
        reply.event(b"", orjson.dumps(payload), float(number), number, None)

    assert reply.tokens()[0] == vendor.expected
    assert "total_mismatch" not in list(reply.flags())


@pytest.mark.parametrize(
    ("said", "total", "holds"),
    [
        (Usage(input_tokens=9, output_tokens=5), 14, True),
        (Usage(input_tokens=9, output_tokens=5), None, True),
        (Usage(input_tokens=9, output_tokens=5), 17, False),
        (Usage(input_tokens=9, cached_input_tokens=6, cache_write_input_tokens=3), None, True),
        (Usage(input_tokens=9, cached_input_tokens=6, cache_write_input_tokens=4), None, False),
        (Usage(output_tokens=5, reasoning_tokens=5), None, True),
        (Usage(output_tokens=5, reasoning_tokens=6), None, False),
        (Usage(cached_input_tokens=6, reasoning_tokens=6), None, True),
    ],
)
def test_parts_and_totals_have_to_fit(said: Usage, total: int | None, holds: bool) -> None:
    """A part that does not fit into its whole was left out of it; unknown parts fit anywhere."""
    assert adds_up(said, total) is holds


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
            Usage(
                input_tokens=9, cached_input_tokens=0, cache_write_input_tokens=8, output_tokens=5
            ),
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

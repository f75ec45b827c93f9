"""What a refusal teaches: which field goes next."""

from __future__ import annotations

from typing import Any

import pytest

from loadgen.dialects import DIALECTS, GENERIC
from loadgen.ladder import Shape, step_down

EXTRA = {"ignore_eos": True, "min_tokens": 24, "temperature": 0}
WIDE = Shape(dialect=GENERIC, extra=EXTRA, continuous=True)


def sent(shape: Shape) -> dict[str, Any]:
    """The body of a request of that shape."""
    usage = {"stream_options": {"include_usage": True}} if shape.dialect.include_usage else {}
    return {"messages": [], shape.dialect.limit_field: 24, **usage, **shape.fields()}


@pytest.mark.parametrize(
    ("words", "left_out"),
    [
        ("Unrecognized request argument supplied: ignore_eos", ("ignore_eos",)),
        (
            '{"detail":[{"loc":["body","ignore_eos"]},{"loc":["body","min_tokens"]}]}',
            ("ignore_eos", "min_tokens"),
        ),
        ("stream_options.continuous_usage_stats: unknown field", ("continuous_usage_stats",)),
        ("stream_options is not supported", ("stream_options",)),
        ("include_usage: unknown field", ("stream_options",)),
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            ("max_tokens",),
        ),
        ("'temperature' does not support 0 with this model", ("temperature",)),
    ],
)
def test_what_a_refusal_names_is_left_out(words: str, left_out: tuple[str, ...]) -> None:
    """And nothing else, wherever in the body it is named."""
    step = step_down(WIDE, sent(WIDE), words)

    assert step is not None
    assert step.left_out == left_out
    assert step.named
    after = sent(step.shape)
    gone = {*left_out} & {"ignore_eos", "min_tokens", "temperature", "stream_options", "max_tokens"}
    assert not gone & set(after)
    assert {"max_tokens", "max_completion_tokens"} & set(after)


def test_a_refusal_without_names_costs_the_least_needed_first() -> None:
    """Then the usage option, then the spelling of the limit; then there is nothing left."""
    shape, gone = WIDE, []
    while step := step_down(shape, sent(shape), "Bad Request"):
        assert not step.named
        gone.append(set(step.left_out))
        shape = step.shape

    assert gone == [{"continuous_usage_stats", *EXTRA}, {"stream_options"}, {"max_tokens"}]
    assert sent(shape) == {"messages": [], "max_completion_tokens": 24}


def test_the_limit_is_spelled_otherwise_only_once() -> None:
    """A server that takes neither is not asked for ever."""
    shape = Shape(dialect=DIALECTS["mistral"])
    step = step_down(shape, sent(shape), "max_tokens")
    assert step is not None
    assert step.shape.dialect.limit_field == "max_completion_tokens"
    assert step_down(step.shape, sent(step.shape), "max_completion_tokens") is None


def test_a_field_is_named_by_its_whole_name() -> None:
    """max_tokens_per_user is another field."""
    step = step_down(WIDE, sent(WIDE), "max_tokens_per_user exceeded, my_temperature too")

    assert step is not None
    assert not step.named


def test_a_field_that_was_not_sent_is_not_left_out() -> None:
    """The APIs beside chat have another limit, and one spelling of it."""
    shape = Shape(dialect=GENERIC, api="responses")

    assert step_down(shape, {"input": "x", "max_output_tokens": 24}, "max_tokens") is None


def test_in_a_hurry_everything_needless_goes_with_what_is_named() -> None:
    """Few requests are left, and the last should be one that a run would send."""
    step = step_down(WIDE, sent(WIDE), "unknown field min_tokens", hurry=True)

    assert step is not None
    assert set(step.left_out) == {"continuous_usage_stats", *EXTRA}
    assert sent(step.shape).keys() == {"messages", "max_tokens", "stream_options"}

"""A stream taken apart: every place where servers keep what matters."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from loadgen.anatomy import Anatomy, dissect
from loadgen.probe import Event
from tests.loadgen.cases import chunk, counts

ROLE = chunk({"role": "assistant", "content": ""})
TEXT = chunk({"content": "a"})
END = chunk({}, finish="stop")
DONE = "[DONE]"


def anatomy(*payloads: Any) -> Anatomy:
    """The anatomy of a stream of these, a second apart."""
    return dissect(
        [
            Event(float(at), b"[DONE]" if payload == DONE else orjson.dumps(payload))
            for at, payload in enumerate(payloads)
        ]
    )


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (ROLE, "a role only"),
        (TEXT, "text"),
        ({"choices": [{"index": 0, "text": "a"}]}, "text"),
        (chunk({"reasoning_content": "hm"}), "reasoning"),
        (chunk({"tool_calls": [{"function": {"name": "f"}}]}), "a tool call"),
        (chunk({"content": ""}), "an empty delta"),
        ({"choices": [], "prompt_filter_results": []}, "no choices"),
        ({"choices": None}, "no choices"),
        ({"type": "response.created"}, "response.created"),
        ({"choices": [5, None]}, "no choices"),
        ({"choices": [{"delta": None}]}, "an empty delta"),
    ],
)
def test_the_first_event(payload: Any, kind: str) -> None:
    """Whatever it is, its instant is kept beside the first output's."""
    found = anatomy(payload, TEXT)

    assert (found.first_event, found.first_event_at) == (kind, 0.0)


@pytest.mark.parametrize(
    ("payloads", "places"),
    [
        ((TEXT, END), ()),
        ((TEXT, END, {"choices": [], "usage": counts(1, 1)}), ("an event of its own",)),
        (
            (TEXT, chunk({}, finish="stop", usage=counts(1, 1))),
            ("the event with the finish reason",),
        ),
        (
            tuple(chunk({"content": "a"}, usage=counts(1, n)) for n in range(1, 5)),
            ("every event, growing",),
        ),
        ((TEXT, {"choices": [], "x_groq": {"usage": counts(1, 1)}}), ("x_groq.usage",)),
        (({"choices": [{"delta": {}, "usage": counts(1, 1)}]},), ("inside a choice",)),
        (
            (
                {"type": "message_start", "message": {"usage": {"input_tokens": 1}}},
                {"type": "message_delta", "usage": {"output_tokens": 1}},
            ),
            ("message.usage", "event message_delta"),
        ),
        (
            ({"type": "response.completed", "response": {"usage": {"input_tokens": 1}}},),
            ("response.usage",),
        ),
    ],
)
def test_where_usage_is(payloads: tuple[Any, ...], places: tuple[str, ...]) -> None:
    """Each place once."""
    assert anatomy(*payloads).usage_in == places


@pytest.mark.parametrize(
    ("payload", "fields"),
    [
        (TEXT, ()),
        (chunk({"reasoning_content": "hm"}), ("reasoning_content",)),
        (chunk({"reasoning": "hm"}), ("reasoning",)),
        (chunk({"reasoning_content": "hm", "reasoning": "hm"}), ("reasoning_content", "reasoning")),
        (chunk({"reasoning_content": None}), ()),
        (chunk({"content": [{"type": "thinking"}]}), ("content parts of type thinking",)),
        ({"type": "response.reasoning_text.delta"}, ("response.reasoning_text.delta",)),
        ({"type": "response.reasoning_text.done"}, ()),
        ({"type": "content_block_delta", "delta": {"type": "thinking_delta"}}, ("thinking_delta",)),
    ],
)
def test_where_reasoning_is(payload: Any, fields: tuple[str, ...]) -> None:
    """By the names that servers have for it."""
    assert anatomy(payload).reasoning_in == fields


def test_how_it_ends() -> None:
    """Finish reasons, terminal events and the marker, in the order they came."""
    assert anatomy(TEXT, END, DONE).ends == ("finish reason 'stop'", "[DONE]")
    assert anatomy(TEXT, END).ends == ("finish reason 'stop'",)
    assert anatomy(TEXT, chunk({}, finish="")).ends == ()
    assert anatomy({"type": "message_stop"}).ends == ("message_stop",)


@pytest.mark.parametrize(
    ("payload", "proof"),
    [
        (TEXT, ()),
        ({"choices": [{"delta": {"content": "a"}, "token_ids": [5]}]}, ("token_ids",)),
        ({"choices": [{"delta": {}, "logprobs": {"content": [{}]}}]}, ("logprobs",)),
        (chunk({"content": "a"}, timings={"predicted_n": 1}), ("timings",)),
        (chunk({"content": "a"}, usage=counts(1, 1)), ("running usage",)),
        ({"choices": [], "usage": counts(1, 1)}, ()),
    ],
)
def test_what_proves_tokens(payload: Any, proof: tuple[str, ...]) -> None:
    """Only what stands on the events themselves."""
    assert anatomy(payload).token_proof == proof


def test_nonsense_has_no_anatomy() -> None:
    """Nothing is guessed at."""
    assert dissect([Event(0.0, b"oops"), Event(1.0, b"[1]"), Event(2.0, b"5")]) == Anatomy()
    assert dissect([]) == Anatomy()

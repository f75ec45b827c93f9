"""What a stream looks like: which event comes first, where usage and reasoning are, how it ends.

Pure, and off the clock: it works on the events a probe kept. What counts as output is not decided
here: the reply has done that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from loadgen.probe import Event

REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A stream, taken apart.

    Attributes:
        events: events with a payload, the end marker not counted.
        first_event: what the first one is.
        first_event_at: its instant, CLOCK_MONOTONIC seconds; ``None`` without any.
        usage_in: places where usage was found, each once.
        reasoning_in: fields that carried reasoning.
        token_proof: what says how many tokens an event carries.
        ends: end markers, in the order they came.
    """

    events: int = 0
    first_event: str = ""
    first_event_at: float | None = None
    usage_in: tuple[str, ...] = ()
    reasoning_in: tuple[str, ...] = ()
    token_proof: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()


def dissect(events: Sequence[Event]) -> Anatomy:
    """Take a stream apart; what is no JSON object is passed over, but for the end marker."""
    payloads = [(event.at, payload) for event in events if (payload := _object(event.data))]
    ends = [end for _, payload in payloads for end in _ends(payload)]
    if any(event.data.strip() == b"[DONE]" for event in events):
        ends.append("[DONE]")
    usages = [place for _, payload in payloads for place in _usage_places(payload)]
    if len(payloads) > 2 and usages.count(_RUNNING) > len(payloads) / 2:
        usages = ["every event, growing", *(u for u in usages if u != _RUNNING)]
    return Anatomy(
        events=len(payloads),
        first_event=_kind(payloads[0][1]) if payloads else "",
        first_event_at=payloads[0][0] if payloads else None,
        usage_in=_once(usages),
        reasoning_in=_once(f for _, payload in payloads for f in _reasoning(payload)),
        token_proof=_once(f for _, payload in payloads for f in _proofs(payload)),
        ends=_once(ends),
    )


_RUNNING = "an event with output"


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return payload if isinstance(payload, dict) else None


def _choices(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = payload.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []


def _delta(choice: Mapping[str, Any]) -> dict[str, Any]:
    delta = choice.get("delta")
    return delta if isinstance(delta, dict) else {}


def _kind(payload: Mapping[str, Any]) -> str:
    """What one event is, in a few words."""
    if isinstance(payload.get("type"), str):
        return str(payload["type"])  # Responses and Messages name their events
    choices = _choices(payload)
    if not choices:
        return "no choices"
    delta = _delta(choices[0])
    if any(delta.get(name) for name in REASONING_FIELDS):
        return "reasoning"
    if delta.get("tool_calls"):
        return "a tool call"
    if delta.get("content") or choices[0].get("text"):
        return "text"
    return "a role only" if delta.get("role") else "an empty delta"


def _ends(payload: Mapping[str, Any]) -> Iterator[str]:
    for choice in _choices(payload):
        if isinstance(reason := choice.get("finish_reason"), str) and reason:
            yield f"finish reason {reason!r}"
    kind = payload.get("type")
    if kind in ("message_stop", "response.completed", "response.incomplete", "response.failed"):
        yield str(kind)


def _usage_places(payload: Mapping[str, Any]) -> Iterator[str]:
    choices = _choices(payload)
    if isinstance(payload.get("usage"), dict):
        if isinstance(kind := payload.get("type"), str):
            yield f"event {kind}"
        elif not choices:
            yield "an event of its own"
        elif any(choice.get("finish_reason") for choice in choices):
            yield "the event with the finish reason"
        else:
            yield _RUNNING
    for holder in ("response", "message", "x_groq"):
        inner = payload.get(holder)
        if isinstance(inner, dict) and isinstance(inner.get("usage"), dict):
            yield f"{holder}.usage"
    if any(isinstance(choice.get("usage"), dict) for choice in choices):
        yield "inside a choice"


def _reasoning(payload: Mapping[str, Any]) -> Iterator[str]:
    for choice in _choices(payload):
        delta = _delta(choice)
        yield from (name for name in REASONING_FIELDS if delta.get(name))
        content = delta.get("content")
        if isinstance(content, list) and any(
            isinstance(part, dict) and part.get("type") == "thinking" for part in content
        ):
            yield "content parts of type thinking"
    if "reasoning" in (kind := str(payload.get("type"))) and kind.endswith(".delta"):
        yield kind
    inner = payload.get("delta")
    if isinstance(inner, dict) and inner.get("type") == "thinking_delta":
        yield "thinking_delta"


def _proofs(payload: Mapping[str, Any]) -> Iterator[str]:
    choices = _choices(payload)
    for choice in choices:
        yield from (name for name in ("token_ids", "logprobs") if choice.get(name))
    if isinstance(payload.get("timings"), dict) and choices:
        yield "timings"
    if _RUNNING in _usage_places(payload):
        yield "running usage"


def _once(words: Iterator[str] | list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))

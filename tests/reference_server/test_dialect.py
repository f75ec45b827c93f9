"""vLLM's dialect, byte for byte against what real vLLM 0.32 sent."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from reference_server.dialect import Reply, error_body
from reference_server.errors import RefusedError
from tests.reference_server.conftest import events, recorded

FINGERPRINT = "vllm-0.32.0-9a090e9f"


def reply_like(body: str, *, chat: bool, prompt_tokens: int, usage: bool, running: bool) -> Reply:
    """A reply with the ids of a recorded one."""
    first = events(body)[0]
    return Reply(
        chat=chat,
        id=first["id"],
        model=first["model"],
        created=first["created"],
        prompt_tokens=prompt_tokens,
        usage=usage,
        running_usage=running,
        fingerprint=FINGERPRINT,
    )


@pytest.mark.parametrize(
    ("title", "chat", "prompt_tokens", "usage", "running"),
    [
        ("chat, stream, include_usage, max_tokens 8", True, 16, True, False),
        ("chat, stream, no stream_options, max_tokens 4", True, 16, False, False),
        (
            "chat, stream, include_usage + continuous_usage_stats, max_tokens 3",
            *(True, 16, True, True),
        ),
        ("completions, stream, include_usage, ignore_eos, max_tokens 5", False, 7, True, False),
    ],
)
def test_a_stream_is_vllms_to_the_byte(
    title: str, chat: bool, prompt_tokens: int, usage: bool, running: bool
) -> None:
    """Rendered with the recorded ids and words, each stream comes out as it was recorded."""
    body = recorded(title)
    reply = reply_like(body, chat=chat, prompt_tokens=prompt_tokens, usage=usage, running=running)
    choices = [e["choices"][0] for e in events(body) if e != "[DONE]" and e["choices"]]
    texts = [c["delta"]["content"] if chat else c["text"] for c in choices][1 if chat else 0 :]
    rendered = reply.opening()
    for so_far, text in enumerate(texts, start=1):
        rendered += reply.token(text, so_far, "length" if so_far == len(texts) else None)
    rendered += reply.closing(len(texts))

    assert rendered.decode() == body.rstrip("\n") + "\n\n"


def test_a_whole_chat_reply_is_vllms_to_the_byte() -> None:
    """The body of the recorded non-streamed chat, content-length and all."""
    body = recorded("chat, non-stream").rstrip("\n")
    fields = json.loads(body)
    reply = reply_like("data: " + body, chat=True, prompt_tokens=16, usage=False, running=False)
    text = fields["choices"][0]["message"]["content"]

    assert reply.whole(text, 8, "length").decode() == body
    assert len(body.encode()) == 711, "as its recorded content-length says"


def test_a_whole_completion_is_vllms_to_the_byte() -> None:
    """The recorded one had asked for token ids; apart from those it is the same."""
    title = "completions, prompt as token ids, min_tokens 6, return_token_ids, non-stream"
    body = recorded(title).rstrip("\n")
    without_ids = re.sub(r'token_ids":\[[\d,]+\]', 'token_ids":null', body)
    reply = reply_like("data: " + body, chat=False, prompt_tokens=4, usage=False, running=False)
    text = json.loads(body)["choices"][0]["text"]

    assert reply.whole(text, 6, "length").decode() == without_ids


def test_half_a_surrogate_pair_does_not_break_the_server() -> None:
    """JSON can carry one in a model's name; it cannot be written as UTF-8."""
    reply = Reply(chat=True, id="a", model="\ud800", created=0, prompt_tokens=1)

    assert b'"model":"?"' in reply.token("x", 1)
    assert b"[DONE]" in dataclasses.replace(reply, usage=True).closing(1)


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (RefusedError(401, "Unauthorized", ""), '{"error":"Unauthorized"}'),
        (RefusedError(404, "Not Found", ""), '{"detail":"Not Found"}'),
        (
            RefusedError(404, "No `x`.", "NotFoundError", "model"),
            '{"error":{"message":"No `x`.","type":"NotFoundError","param":"model","code":404}}',
        ),
        (
            RefusedError(503, "busy", "Service Unavailable"),
            '{"error":{"message":"busy","type":"Service Unavailable","param":null,"code":503}}',
        ),
    ],
)
def test_errors_have_vllms_three_shapes(error: RefusedError, body: str) -> None:
    """Its guard, its router and its routes each have their own."""
    assert error_body(error).decode() == body

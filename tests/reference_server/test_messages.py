"""The Anthropic Messages API, byte for byte what vLLM 0.32 sends.

What our own client reads of it, test_served_faults.py sees.
"""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from reference_server.dialect import Cached, Told
from reference_server.messages import MessagesReply
from reference_server.script import Function, Kind, Piece, Script, Speech, write_script
from tests.reference_server.conftest import chat, recorded

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
QUESTION = {"model": "tiny", "max_tokens": 6, "messages": chat()["messages"]}
TOOL = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def named_events(body: str) -> list[dict[str, Any]]:
    """The events' JSON; each is named as its type says."""
    found = []
    for block in body.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def told(tokens: int, finish: str, stop: str | None = None) -> Told:
    script = Script(
        pieces=iter(()),
        length=tokens,
        reasoning_tokens=0,
        finish_reason=finish,
        stop_reason=stop,
        function=Function(name="weather", argument="city"),
    )
    return Told(0, script)


@pytest.mark.parametrize(
    ("title", "tokens", "finish", "stop", "cached"),
    [
        ("messages, stream", 4, "length", None, None),
        ("messages, stop_sequences, stream", 5, "stop", "e", None),
        ("messages, tool asked for, stream", 60, "length", None, None),
        ("details: messages, stream, long", 4, "length", None, Cached(256, 0)),
    ],
)
def test_a_stream_is_vllms_to_the_byte(
    title: str, tokens: int, finish: str, stop: str | None, cached: Cached | None
) -> None:
    """Rendered with the recorded words, each stream comes out as it was recorded."""
    body = recorded(title).rstrip("\n")
    sent = named_events(body)
    start = sent[0]["message"]
    reply = MessagesReply(
        id=start["id"],
        model="tiny",
        prompt_tokens=start["usage"]["input_tokens"],
        cached=lambda: cached,
    )
    so_far = told(tokens, finish, stop)
    rendered = reply.opening()
    if sent[1]["content_block"]["type"] == "tool_use":
        rendered += reply.events(so_far, [Piece(Kind.NAME, "weather", "weather")])
    for event in sent:
        delta = event.get("delta", {})
        text = delta.get("text") or delta.get("partial_json")
        if text is not None:
            kind = Kind.TEXT if "text" in delta else Kind.ARGUMENTS
            rendered += reply.events(so_far, [Piece(kind, text, text)])
    rendered += reply.closing(tokens)

    made_up = re.compile(r"chatcmpl-tool-\w+")
    assert made_up.sub("", rendered.decode()) == made_up.sub("", body) + "\n\n"


@pytest.mark.parametrize(
    ("title", "tokens", "finish", "stop", "cached"),
    [
        ("messages, whole", 4, "length", None, None),
        ("messages, stop_sequences, whole", 5, "stop", "e", None),
        ("details: messages, whole, long", 4, "length", None, Cached(256, 0)),
    ],
)
def test_a_whole_message_is_vllms_to_the_byte(
    title: str, tokens: int, finish: str, stop: str | None, cached: Cached | None
) -> None:
    """The recorded body."""
    body = recorded(title).rstrip("\n")
    fields = json.loads(body)
    usage = fields["usage"]
    prompt_tokens = usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    reply = MessagesReply(
        id=fields["id"], model="tiny", prompt_tokens=prompt_tokens, cached=lambda: cached
    )
    text = fields["content"][0]["text"]
    so_far = told(tokens, finish, stop)
    so_far.tokens, so_far.pieces = tokens, [Piece(Kind.TEXT, text, text)]

    assert reply.body([so_far]).decode() == body


def test_most_events_differ_in_their_text_alone() -> None:
    """While a text is told; thinking and a tool's use are rendered one by one."""
    reply = MessagesReply(id="x", model="m", prompt_tokens=1)
    so_far = told(9, "length")
    before = reply.around_text()
    reply.events(so_far, [Piece(Kind.REASONING, "a", "a")])
    thinking = reply.around_text()
    first = reply.events(so_far, [Piece(Kind.TEXT, "*", "*")])
    around = reply.around_text()

    assert (before, thinking) == (None, None)
    assert around is not None
    assert first.endswith(b'"*"'.join(around))
    assert b'"index":1}' in around[1], "the block after the thinking"


def test_thinking_is_signed_and_a_tool_is_used(simulator: str) -> None:
    """Blocks in their order, each closed before the next; whole and streamed say the same."""
    asked = {
        **QUESTION,
        "max_tokens": 20,
        "thinking": {"type": "adaptive"},
        "tools": [TOOL],
        "tool_choice": {"type": "any"},
    }
    sent = named_events(httpx.post(simulator + PATH, json={**asked, "stream": True}).text)
    whole = httpx.post(simulator + PATH, json=asked).json()
    starts = [e["content_block"]["type"] for e in sent if e["type"] == "content_block_start"]
    deltas = [e["delta"] for e in sent if e["type"] == "content_block_delta"]
    thinking, tool = whole["content"]

    assert starts == ["thinking", "tool_use"]
    assert "".join(d["thinking"] for d in deltas if "thinking" in d) == thinking["thinking"]
    assert [len(d["signature"]) for d in deltas if "signature" in d] == [32]
    arguments = "".join(d["partial_json"] for d in deltas if "partial_json" in d)
    assert (tool["type"], tool["name"], tool["input"]) == (
        *("tool_use", "weather"),
        json.loads(arguments),
    )
    assert sent[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    assert sent[-2]["usage"] == whole["usage"]
    assert whole["usage"]["output_tokens"] == 20


def test_a_message_says_what_the_chat_would(simulator: str) -> None:
    """It is one, in other words; a stop sequence ends it as a stop string does."""
    words = httpx.post(f"{simulator}/v1/chat/completions", json=chat(max_tokens=30)).json()
    text = words["choices"][0]["message"]["content"]
    stop = " " + text.split()[9]
    plain = httpx.post(simulator + PATH, json={**QUESTION, "max_tokens": 30}).json()
    stopped = {**QUESTION, "max_tokens": 30, "stop_sequences": [stop]}
    whole = httpx.post(simulator + PATH, json=stopped).json()
    sent = named_events(httpx.post(simulator + PATH, json={**stopped, "stream": True}).text)

    assert plain["content"] == [{"type": "text", "text": text}]
    assert whole["content"][0]["text"] == text[: text.index(stop)]
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", stop)
    assert (
        "".join(e["delta"].get("text", "") for e in sent if "delta" in e)
        == (whole["content"][0]["text"])
    )
    assert sent[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": stop}


def test_a_conversation_is_counted_as_the_chat_it_is(simulator: str) -> None:
    """Blocks, a system prompt and tools' results; what is counted is what is used."""
    conversation = {
        "model": "tiny",
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "rain"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "input": {"city": "Bonn"}}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "and now"},
                    {"type": "tool_result", "content": [{"type": "text", "text": "sunny"}]},
                ],
            },
        ],
    }
    counted = httpx.post(simulator + COUNT, json=conversation).json()
    whole = httpx.post(simulator + PATH, json={**conversation, "max_tokens": 1}).json()
    roles = ["system", "user", "assistant", "tool", "user"]
    texts = ["be brief", "rain", '{"city": "Bonn"}', "sunny", "and now"]
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    same = httpx.post(f"{simulator}/tokenize", json={"messages": messages}).json()

    assert counted["input_tokens"] == whole["usage"]["input_tokens"] == same["count"]
    assert counted["context_management"] == {"original_input_tokens": same["count"]}


@pytest.mark.parametrize(
    ("title", "path", "fields"),
    [
        ("messages, wrong model", PATH, {**QUESTION, "model": "nope"}),
        ("count_tokens, wrong model", COUNT, {**QUESTION, "model": "nope"}),
        ("messages, empty messages", PATH, {**QUESTION, "messages": []}),
        ("messages, max_tokens 9000", PATH, {**QUESTION, "max_tokens": 9000}),
        (
            "details: messages, two tools",
            PATH,
            {**QUESTION, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "nope"}},
        ),
        ("messages, no max_tokens", PATH, {**QUESTION, "max_tokens": None}),
        ("messages, max_tokens 0", PATH, {**QUESTION, "max_tokens": 0}),
        ("messages, no messages", PATH, {**QUESTION, "messages": None}),
        ("messages, no model", PATH, {**QUESTION, "model": None}),
    ],
)
def test_a_refusal_has_the_recorded_shape(
    simulator: str, title: str, path: str, fields: dict[str, Any]
) -> None:
    """Anthropic's, but for what the schema refuses, which is vLLM's; and the recorded type."""
    there = json.loads(recorded(title))
    answer = httpx.post(simulator + path, json=fields)
    here = answer.json()

    assert list(here) == list(there)
    assert list(here["error"]) == list(there["error"])
    assert here["error"]["type"] == there["error"]["type"]
    assert answer.status_code == (404 if "wrong model" in title else 400)
    if "type" in there:
        assert here == there


@pytest.mark.parametrize(
    "more",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 10}},
        {"thinking": {"type": "enabled", "budget_tokens": 2000}},
        {"thinking": {"type": "enabled"}},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": ["x"]},
    ],
)
def test_what_the_schema_refuses_is_refused(simulator: str, more: dict[str, Any]) -> None:
    """With 400 and vLLM's own shape."""
    answer = httpx.post(simulator + PATH, json={**QUESTION, **more})

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 400


def test_an_answer_without_words_has_one_empty_block() -> None:
    """Strict clients take it for granted that there is one."""
    script = write_script(Speech(seed=1, max_tokens=2, function=Function(name="f", argument="a")))
    so_far = Told(0, script, 2, list(script.pieces))
    body = json.loads(MessagesReply(id="x", model="m", prompt_tokens=1).body([so_far]))

    assert body["content"] == [{"type": "text", "text": ""}]
    assert body["stop_reason"] == "max_tokens"

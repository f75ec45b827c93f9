"""What of an answer goes into its chain, in every API, streamed and whole."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from loadgen.fingerprint import AnswerChain
from loadgen.replies import make_reply
from loadgen.reply import ANSWER, REASONING, REFUSAL, TOOL, TOOL_NAME
from tests.loadgen.api_cases import API_CASES
from tests.loadgen.cases import CASES, Case, all_in_one, random_cuts
from tests.loadgen.playing import play

SALT = bytes(32)
Said = list[tuple[int, str]]


def followed(api: str, *payloads: Any, whole: bool = False) -> tuple[str | None, bytes | None]:
    """The fingerprint of an answer that comes in these events, or as this body."""
    chain = AnswerChain(SALT)
    reply = make_reply(api, chain=chain)
    for read, payload in enumerate(payloads):
        data = orjson.dumps(payload)
        if whole:
            assert reply.body(data)
        else:
            reply.event(b"", data, 1.0, read, None)
    return chain.result()


def fingerprint(said: Said) -> tuple[str | None, bytes | None]:
    chain = AnswerChain(SALT)
    for kind, text in said:
        chain.add(kind, text)
    return chain.result()


def choice(delta: Any, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, **more}]}


def call(**function: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": function}]}


CHAT: dict[str, tuple[list[dict[str, Any]], Said]] = {
    "content": (
        [
            choice({"role": "assistant", "content": ""}),
            choice({"content": "He"}),
            choice({"content": "llo"}),
            choice({}, finish_reason="stop"),
        ],
        [(ANSWER, "Hello")],
    ),
    "a role in each event": (
        [choice({"role": "assistant", "content": text, "tool_calls": None}) for text in "abc"],
        [(ANSWER, "abc")],
    ),
    "completions": (
        [{"choices": [{"text": "Hel"}]}, {"choices": [{"text": "lo"}]}],
        [(1, "Hello")],
    ),
    "reasoning first": (
        [
            choice({"reasoning_content": "hm"}),
            choice({"reasoning": "m"}),
            choice({"reasoning": ".", "content": "Yes"}),
        ],
        [(REASONING, "hmm."), (ANSWER, "Yes")],
    ),
    "reasoning said twice": (
        [
            choice({"reasoning": "hm", "reasoning_details": [{"text": "hm"}]}),
            choice({"reasoning_details": [{"summary": "so"}, {"data": "encrypted"}]}),
        ],
        [(REASONING, "hmso")],
    ),
    "parts": (
        [
            choice(
                {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}
            ),
            choice({"content": [{"type": "text", "text": "Y"}, {"type": "text", "text": "es"}]}),
            choice({"content": [{"type": "thinking", "thinking": "so"}]}),
        ],
        [(REASONING, "hm"), (ANSWER, "Yes"), (REASONING, "so")],
    ),
    "two tools": (
        [
            choice(call(name="find", arguments="")),
            choice(call(arguments='{"a"')),
            choice(call(arguments=":1}")),
            choice(call(name="find", arguments='{"a":1}')),
        ],
        [(TOOL_NAME, "find"), (TOOL, '{"a":1}'), (TOOL_NAME, "find"), (TOOL, '{"a":1}')],
    ),
    "a tool's input as an object": (
        [choice(call(name="find", arguments={"a": 1}))],
        [(TOOL_NAME, "find"), (TOOL, '{"a":1}')],
    ),
    "a function of old": (
        [choice({"function_call": {"name": "find", "arguments": "{}"}})],
        [(TOOL_NAME, "find"), (TOOL, "{}")],
    ),
    "a refusal": (
        [choice({"refusal": "I can"}), choice({"refusal": "not"})],
        [(REFUSAL, "I cannot")],
    ),
    "other choices": (
        [choice({"content": "zero"}), choice({"content": "one"}, 1), choice({"content": "two"}, 2)],
        [(ANSWER, "zero")],
    ),
    "sound and pictures": ([choice({"audio": {"data": "UklG"}}), choice({"images": ["x"]})], []),
    "nothing": ([choice({"role": "assistant", "content": ""}, finish_reason="stop")], []),
}


@pytest.mark.parametrize("name", CHAT)
def test_what_a_chat_says_is_followed(name: str) -> None:
    """The texts of the first choice, each as its kind, in order; no roles, no other choices."""
    events, said = CHAT[name]
    assert followed("chat", *events) == fingerprint(said)


RESPONSES_ITEMS = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hmm"}]},
    {"type": "message", "content": [{"type": "output_text", "text": "Yes"}]},
    {"type": "function_call", "name": "find", "arguments": '{"a":1}'},
    {"type": "message", "content": [{"type": "refusal", "refusal": "No"}]},
]
BLOCKS = [
    {"type": "thinking", "thinking": "hmm", "signature": "x"},
    {"type": "redacted_thinking", "data": "encrypted"},
    {"type": "text", "text": "Yes"},
    {"type": "tool_use", "id": "t", "name": "find", "input": {"a": 1}},
]
ALL_SAID: Said = [(REASONING, "hmm"), (ANSWER, "Yes"), (TOOL_NAME, "find"), (TOOL, '{"a":1}')]
MESSAGE = {
    "role": "assistant",
    "content": "Yes",
    "reasoning": "hmm",
    "tool_calls": [{"function": {"name": "find", "arguments": '{"a":1}'}}],
}

STREAMS: dict[str, tuple[str, list[dict[str, Any]], Said]] = {
    "responses": (
        "responses",
        [
            {"type": "response.created", "response": {"status": "queued"}},
            {"type": "response.output_item.added", "item": {"type": "reasoning", "summary": []}},
            {"type": "response.reasoning_summary_text.delta", "delta": "hm"},
            {"type": "response.reasoning_text.delta", "delta": "m"},
            {"type": "response.output_text.delta", "delta": "Yes"},
            {"type": "response.output_text.done", "text": "Yes"},
            {
                "type": "response.output_item.added",
                "item": {"type": "function_call", "name": "find", "arguments": ""},
            },
            {"type": "response.function_call_arguments.delta", "delta": '{"a":1}'},
            {"type": "response.audio.delta", "delta": "UklG"},
            {"type": "response.refusal.delta", "delta": "No"},
            {
                "type": "response.completed",
                "response": {"status": "completed", "output": RESPONSES_ITEMS},
            },
        ],
        [*ALL_SAID, (REFUSAL, "No")],
    ),
    "responses, all in the last event": (
        "responses",
        [
            {
                "type": "response.completed",
                "response": {"status": "completed", "output": RESPONSES_ITEMS},
            }
        ],
        [*ALL_SAID, (REFUSAL, "No")],
    ),
    "messages": (
        "messages",
        [
            {"type": "message_start", "message": {"usage": {"input_tokens": 3}}},
            {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}},
            {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hmm"}},
            {"type": "content_block_delta", "delta": {"type": "signature_delta", "signature": "x"}},
            {"type": "content_block_start", "content_block": BLOCKS[1]},
            {"type": "content_block_start", "content_block": {"type": "text", "text": "Y"}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "es"}},
            {"type": "content_block_start", "content_block": {**BLOCKS[3], "input": {}}},
            {
                "type": "content_block_delta",
                "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
            },
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
            {"type": "message_stop"},
        ],
        ALL_SAID,
    ),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_other_apis_stream_is_followed(name: str) -> None:
    """Deltas and what items begin with; nothing that repeats, signs or encrypts."""
    api, events, said = STREAMS[name]
    assert followed(api, *events) == fingerprint(said)


@pytest.mark.parametrize(
    ("api", "body", "said"),
    [
        ("chat", {"choices": [{"message": MESSAGE, "finish_reason": "stop"}]}, ALL_SAID),
        ("completions", {"choices": [{"text": "Yes"}, {"index": 1, "text": "No"}]}, [(1, "Yes")]),
        (
            "responses",
            {"status": "completed", "output": RESPONSES_ITEMS},
            [*ALL_SAID, (REFUSAL, "No")],
        ),
        ("messages", {"content": BLOCKS, "stop_reason": "tool_use"}, ALL_SAID),
        ("embeddings", {"data": [{"embedding": [0.5]}]}, []),
    ],
)
def test_a_whole_answer_is_followed_as_a_streamed_one(
    api: str, body: dict[str, Any], said: Said
) -> None:
    """The same answer has the same fingerprint either way; a vector is no text."""
    assert followed(api, body, whole=True) == fingerprint(said)


def test_input_nested_too_deep_is_passed_over() -> None:
    """What can be read and not be written again costs no answer."""
    chain = AnswerChain(SALT)
    data = b'{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":%s}}]}}]}'
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    make_reply("chat", chain=chain).event(b"", data % deep, 1.0, 0, None)
    assert chain.result() == fingerprint([(TOOL_NAME, "f")])


@pytest.mark.parametrize("case", [*CASES, *API_CASES], ids=lambda c: c.name)
def test_how_bytes_arrive_makes_no_difference(case: Case) -> None:
    """Any answer leaves the same fingerprint however its bytes come."""
    ways = (case.writes, all_in_one(case.writes), random_cuts(case.writes, 1))
    records = [play(case, writes) for writes in ways]
    assert len({(r.answer_hash, r.answer_chain) for r in records}) == 1
    if case.events.answer or case.events.tool:
        assert records[0].answer_hash is not None

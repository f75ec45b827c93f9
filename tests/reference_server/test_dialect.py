"""vLLM's dialect, byte for byte against what real vLLM 0.32 sent."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from reference_server.dialect import Cached, Reply, Told, error_body, quoted_bytes
from reference_server.errors import RefusedError
from reference_server.quirks import Quirk
from reference_server.script import Kind, Piece, Script, Speech, write_script
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
        prompts=(prompt_tokens,),
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


SEVERAL = [
    # title, chat, tokens of each prompt, answers to each, usage, running usage
    ("chat, n 2, stream", True, (19,), 2, False, False),
    ("chat, n 2, stream, include_usage", True, (19,), 2, True, False),
    ("chat, n 2, stream, continuous", True, (19,), 2, True, True),
    ("completions, 2 prompts, stream", False, (4, 13), 1, False, False),
    ("completions, 2 prompts, n 2, stream, include_usage", False, (4, 13), 2, True, False),
    (
        "completions, 2 prompts, stream, continuous, return_token_ids",
        *(False, (4, 13), 1, True, True),
    ),
]
IDS = {2: (1, 100), 3: (1, 200, 300), 4: (1, 51, 193, 4043)}
IDS[13] = (1, 186, 1474, 661, 79, 129, 195, 1092, 131, 83, 92, 3619, 87)


def several(
    body: str, *, chat: bool, prompts: tuple[int, ...], choices: int, usage: bool, running: bool
) -> Reply:
    """A reply of several choices with the ids of a recorded one."""
    first = events(body)[0]
    return Reply(
        chat=chat,
        id=first["id"],
        model=first["model"],
        created=first["created"],
        prompts=prompts,
        choices=choices,
        usage=usage,
        running_usage=running,
        prompt_ids=[IDS[tokens] for tokens in prompts] if '_ids":[' in body else None,
        fingerprint="vllm-0.32.0-9616678b",
    )


def of_three_tokens(index: int) -> Told:
    script = Script(pieces=iter(()), length=3, reasoning_tokens=0, finish_reason="length")
    return Told(index, script)


def without_made_up(body: str) -> str:
    """Ids of generated tokens follow from their text here, and from a vocabulary there."""
    return re.sub(r'"token_ids":\[[\d,]+\]', '"token_ids":[]', body)


@pytest.mark.parametrize(
    ("title", "chat", "prompts", "choices", "usage", "running"), SEVERAL, ids=lambda value: value
)
def test_a_stream_of_several_answers_is_vllms_to_the_byte(
    title: str, chat: bool, prompts: tuple[int, ...], choices: int, usage: bool, running: bool
) -> None:
    """In the order in which it was recorded, whatever the answers are to one or two prompts."""
    body = recorded(title)
    reply = several(body, chat=chat, prompts=prompts, choices=choices, usage=usage, running=running)
    told = [of_three_tokens(index) for index in range(len(prompts) * choices)]
    sent = [e["choices"][0] for e in events(body) if e != "[DONE]" and e["choices"]]
    rendered = reply.opening()
    for number, choice in enumerate(sent[choices if chat else 0 :], start=1):
        text = choice["delta"]["content"] if chat else choice["text"]
        total = 3 * len(told) if number == 3 * len(told) else None
        rendered += reply.events(told[choice["index"]], [Piece(Kind.TEXT, text, text)], total=total)
    rendered += reply.closing(3 * len(told))

    assert without_made_up(rendered.decode()) == without_made_up(body).rstrip("\n") + "\n\n"


@pytest.mark.parametrize(
    ("title", "chat", "prompts", "choices"),
    [
        ("chat, n 2, whole", True, (19,), 2),
        ("completions, 2 prompts of ids, n 2, whole, return_token_ids", False, (2, 3), 2),
    ],
)
def test_a_whole_reply_of_several_answers_is_vllms_to_the_byte(
    title: str, chat: bool, prompts: tuple[int, ...], choices: int
) -> None:
    """Prompt by prompt, and one usage of all."""
    body = recorded(title).rstrip("\n")
    reply = several(
        "data: " + body, chat=chat, prompts=prompts, choices=choices, usage=False, running=False
    )
    told = [of_three_tokens(index) for index in range(len(prompts) * choices)]
    for each, choice in zip(told, json.loads(body)["choices"], strict=True):
        text = choice["message"]["content"] if chat else choice["text"]
        each.tokens = 3
        each.pieces = [Piece(Kind.TEXT, text, text)]

    assert without_made_up(reply.body(told).decode()) == without_made_up(body)


@pytest.mark.parametrize(
    ("title", "chat", "cached"),
    [
        ("details: chat, whole, nothing cached", True, Cached(0, 0)),
        ("details: chat, n 2, whole, long", True, Cached(256, 0)),
        ("details: chat, n 2, stream, new long", True, Cached(0, 256)),
        ("details: completions, 2 prompts, whole", False, Cached(0, 1024)),
        ("details: completions, 2 prompts, stream, again", False, Cached(384, 0)),
    ],
)
def test_cached_tokens_are_told_as_vllm_tells_them(title: str, chat: bool, cached: Cached) -> None:
    """None found is 0; what was made findable is told of chats only."""
    body = recorded(title).rstrip("\n")
    streamed = body.startswith("data: ")
    body = body if streamed else f"data: {body}"
    like = several(body, chat=chat, prompts=(9,), choices=1, usage=True, running=False)
    reply = dataclasses.replace(like, cached=lambda: cached)
    rendered = reply.closing(1) if streamed else b"data: " + reply.body([])
    last = -2 if streamed else 0
    here, there = events(rendered.decode())[last], events(body)[last]

    assert here["usage"]["prompt_tokens_details"] == there["usage"]["prompt_tokens_details"]


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("text", [" word", '"*"', "\n\u2028é", "\ud800"])
def test_most_events_differ_in_their_text_alone(text: str, chat: bool) -> None:
    """What stands around it is the same for all, so that a token's event is not made anew."""
    script = Script(pieces=iter(()), length=9, reasoning_tokens=0, finish_reason="length")
    reply = Reply(chat=chat, id='x"*"', model='"*"', created=1, prompts=(1,), usage=True)
    around = reply.around_text()
    assert around is not None
    told = Told(0, script, tokens=4)

    event = reply.events(told, [Piece(Kind.TEXT, text, text)])
    assert around[0] + quoted_bytes(text) + around[1] == event


@pytest.mark.parametrize(
    "more",
    [{"running_usage": True}, {"logprobs": 0}, {"prompt_ids": [[1]]}, {"quirks": {Quirk.COMMENTS}}],
)
def test_some_events_differ_in_more(more: dict[str, Any]) -> None:
    """Counts, ids and the like; these are made one by one."""
    reply = Reply(chat=True, id="x", model="m", created=1, prompts=(1,), usage=True, **more)

    assert reply.around_text() is None


def test_half_a_surrogate_pair_does_not_break_the_server() -> None:
    """JSON can carry one in a model's name; it cannot be written as UTF-8."""
    reply = Reply(chat=True, id="a", model="\ud800", created=0, prompts=(1,))

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


def told(*quirks: Quirk, **speech: Any) -> list[Any]:
    """The events of an answer of six tokens under quirks."""
    script = write_script(Speech(seed=3, max_tokens=6, **speech))
    reply = Reply(
        chat=True,
        id="a",
        model="m",
        created=0,
        prompts=(9,),
        usage=True,
        quirks=frozenset(quirks),
    )
    so_far = Told(0, script)
    body = reply.at_once() + reply.opening()
    for number, piece in enumerate(script.pieces, start=1):
        body += reply.events(so_far, [piece], total=6 if number == 6 else None)
    return events((body + reply.closing(6, script.reasoning_tokens)).decode())


def deltas(sent: list[Any]) -> list[dict[str, Any]]:
    return [
        event["choices"][0]["delta"] for event in sent if event != "[DONE]" and event["choices"]
    ]


PLAIN = told()
WORDS = [delta["content"] for delta in deltas(PLAIN)[1:]]


def test_without_quirks_there_are_role_tokens_usage_and_end() -> None:
    """The order that all of the following differ from."""
    assert deltas(PLAIN)[0] == {"role": "assistant", "content": ""}
    assert len(WORDS) == 6
    assert PLAIN[-2]["usage"] == {"prompt_tokens": 9, "total_tokens": 15, "completion_tokens": 6}
    assert PLAIN[-1] == "[DONE]"


def test_usage_can_stand_on_the_finish() -> None:
    """And in no event of its own."""
    sent = told(Quirk.USAGE_ON_FINISH)

    assert [event["usage"]["completion_tokens"] for event in sent[:-1] if "usage" in event] == [6]
    assert sent[-2]["choices"][0]["finish_reason"] == "length"


def test_usage_can_run_along() -> None:
    """Counted up, from none on."""
    sent = told(Quirk.RUNNING_USAGE)

    assert [e["usage"]["completion_tokens"] for e in sent[:-1]] == [0, 1, 2, 3, 4, 5, 6, 6]


def test_usage_can_be_missing() -> None:
    """Asked for or not."""
    assert not any("usage" in event for event in told(Quirk.NO_USAGE)[:-1])


def test_the_finish_can_stand_apart() -> None:
    """In an event without output, after the last token's."""
    last, finish = told(Quirk.FINISH_APART)[-4:-2]

    assert (last["choices"][0]["finish_reason"], deltas([last])[0]["content"]) == (None, WORDS[-1])
    assert (finish["choices"][0]["finish_reason"], deltas([finish])[0]) == ("length", {})


def test_the_role_can_stand_in_every_event() -> None:
    """And in none by itself."""
    assert deltas(told(Quirk.ROLE_MERGED)) == [
        {"role": "assistant", "content": word} for word in WORDS
    ]


def test_an_event_can_be_empty_while_its_text_waits() -> None:
    """The fourth one's, for the fifth."""
    texts = [delta["content"] for delta in deltas(told(Quirk.EMPTY_EVENTS))[1:]]

    assert texts == [*WORDS[:3], "", WORDS[3] + WORDS[4], WORDS[5]]


def test_reasoning_can_have_its_older_name() -> None:
    """Everywhere."""
    names = [set(delta) for delta in deltas(told(Quirk.REASONING_CONTENT, reasons=True))[1:]]

    assert names == [{"reasoning_content"}] * 3 + [{"content"}] * 3


def test_a_comment_can_come_before_every_event() -> None:
    """But not before the end marker."""
    reply = Reply(
        chat=True,
        id="a",
        model="m",
        created=0,
        prompts=(1,),
        quirks=frozenset({Quirk.COMMENTS, Quirk.AFTER_DONE}),
    )

    assert reply.token("x", 1).startswith(b": keep-alive\n\ndata: {")
    assert reply.closing(1).startswith(b"data: [DONE]\n\n: keep-alive\n\ndata: {")

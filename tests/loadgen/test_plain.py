"""Events that repeat are told by comparison; that must not change anything but the speed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen import plain
from loadgen.body import AnswerBody
from loadgen.errors import DecodeError
from loadgen.fingerprint import AnswerChain
from loadgen.replies import make_reply
from loadgen.said import Said

SALT = b"s" * 32


def chat_event(text: Any, /, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None, **more}
    return b"data: %s\n\n" % orjson.dumps({"id": "a", "usage": None, "choices": [choice]})


def completion_event(text: Any, /, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": None, **more}
    return b"data: %s\r\n\r\n" % orjson.dumps({"choices": [choice]})


def messages_event(text: Any, /, **more: Any) -> bytes:
    delta = {"type": "text_delta", "text": text, **more}
    payload = orjson.dumps({"type": "content_block_delta", "index": 0, "delta": delta})
    return b"event: content_block_delta\ndata: %s\n\n" % payload


EVENTS = {"chat": chat_event, "completions": completion_event, "messages": messages_event}


def followed(api: str, chunks: list[bytes], *, plainly: bool) -> dict[str, Any]:
    """Everything a reply came to know from the chunks."""
    chain, said = AnswerChain(SALT), Said()
    reply = make_reply(api, chain=chain, said=said)
    body = AnswerBody(reply)
    body._lessons *= plainly
    refused = ""
    try:
        for number, chunk in enumerate(chunks):
            body.data(chunk, 1.0 + number * number / 100, number // 2, 0.001)
    except DecodeError as error:
        refused = str(error)
    slots = {name for kind in type(reply).__mro__ for name in getattr(kind, "__slots__", ())}
    known = {name: getattr(reply, name) for name in slots - {"chain", "said", "_ear"}}
    return {**known, "refused": refused, "chain": chain.result(), "said": said.texts()}


odd_texts = st.one_of(
    st.text(max_size=8),
    st.text('a"\\ }]\n', max_size=6),
    st.sampled_from(
        ["", "index", "content", "a", '","finish_reason":"stop', "\u2028", "é", "\x7f"]
    ),
)
MORE: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"finish_reason": "stop"},
    {"index": 1},
    {"logprobs": {"content": [{"token": "a"}]}},
    {"token_ids": [1, 2]},
    {"delta": {"content": "a", "reasoning_content": "b"}},
    {"delta": {"role": "assistant", "content": "a"}},
    {"usage": {"completion_tokens": 3}},
    {"text": 7},
    {"type": "thinking_delta", "thinking": "hm"},
)


@pytest.mark.parametrize("api", EVENTS)
@given(data=st.data())
def test_comparing_and_decoding_say_the_same(api: str, data: st.DataObject) -> None:
    """Whatever the texts, whatever comes between them, whatever is left out or cut."""
    events = data.draw(
        st.lists(st.tuples(odd_texts, st.sampled_from(MORE)), min_size=3, max_size=12)
    )
    chunks = [EVENTS[api](text, **extra) for text, extra in events]
    for index in data.draw(st.sets(st.integers(0, len(chunks) - 1), max_size=3)):
        chunks[index] = data.draw(
            st.sampled_from(
                [
                    b": ping\n\n" + chunks[index],
                    chunks[index][:-1],
                    chunks[index].replace(b'"', b"'"),
                    chunks[index].replace(b"a", b"\xff"),
                    b"data: [DONE]\n\n",
                    chunks[index] * 2,
                    b'data: {"error": {"message": "a"}}\n\n',
                ]
            )
        )

    assert followed(api, chunks, plainly=True) == followed(api, chunks, plainly=False)


@pytest.mark.parametrize("api", EVENTS)
def test_an_answer_is_mostly_compared(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its first events are decoded in full."""
    decoded: list[bytes] = []
    loads = orjson.loads

    def counted(data: bytes) -> Any:
        decoded.append(data)
        return loads(data)

    monkeypatch.setattr(orjson, "loads", counted)
    texts = [f" word{n}" for n in range(100)]
    known = followed(api, [EVENTS[api](text) for text in texts], plainly=True)

    assert known["n_answer"] == 100
    assert len(decoded) <= 8


def test_letters_that_stand_elsewhere_too_are_not_taken_for_the_text() -> None:
    """The text is escaped, and the same letters are another field's value."""
    chunk = b'data: {"model":"a","choices":[{"index":0,"delta":{"content":"\\u0061"}}]}\n\n'

    assert plain.learn(chunk, "a", AnswerBody(make_reply("chat"))._plain_text) is None


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("\x7f", "\x7f"),
        ("é", "é"),
        ("\\n", "\n"),
        ('\\"', '"'),
        ("\\u00e9", "é"),
        ("\u2028", "\u2028"),
    ],
)
def test_a_text_is_what_json_makes_of_it(raw: str, text: str) -> None:
    """Escapes and what is beyond ASCII included."""
    event = plain.PlainEvent(b'data: {"a":"', b'"}\n\n')

    assert event.text(event.head + raw.encode() + event.tail) == text


@pytest.mark.parametrize("text", ['"', "\\", "\\x", "\\ud800", "\n", "\r", "\x00", "\x1f", ""])
def test_what_json_would_not_have_raw_is_decoded_in_full(text: str) -> None:
    """A quote, half an escape, a control character, nothing at all."""
    event = plain.PlainEvent(b'data: {"a":"', b'"}\n\n')

    assert event.text(event.head + text.encode() + event.tail) is None
    assert event.text(event.head + b"plain" + event.tail) == "plain"

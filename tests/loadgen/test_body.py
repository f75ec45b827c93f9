"""Which kind of body a response has, and what is read of it."""

from __future__ import annotations

import pytest

from loadgen.body import MAX_ERROR_BYTES, MAX_JSON_BYTES, AnswerBody
from loadgen.errors import DecodeError
from loadgen.replies import make_reply
from loadgen.reply import MAX_WORDS
from tests.loadgen.cases import C, D, F

ANSWER = b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}'
STREAM = C("a") + F() + D
BOM = b"\xef\xbb\xbf"


def receive(
    data: bytes, content_type: str | None, *, status: int = 200, size: int | None = None
) -> AnswerBody:
    """A body that arrived in pieces of ``size`` bytes and ended."""
    body = AnswerBody(make_reply("chat"))
    body.head(status, {} if content_type is None else {"content-type": content_type})
    size = size or max(1, len(data))
    for start in range(0, len(data), size):
        body.data(data[start : start + size], 1.0, start, None)
    body.end(2.0)
    return body


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(
    "content_type",
    [
        "text/event-stream",
        "text/event-stream; charset=utf-8",
        "Text/Event-Stream",
        "text/plain",
        "application/json",
        "text/html",
        "",
        None,
    ],
)
@pytest.mark.parametrize(
    "start",
    [b"", BOM, b"\n\n", b"\n" + BOM, b": ping\n\n", b"event: x\n", b"id: 1\n", b"retry: 5\n"],
)
def test_a_stream_is_a_stream_whatever_it_is_called(
    start: bytes, content_type: str | None, size: int | None
) -> None:
    """Its first bytes tell, wherever reads end."""
    reply = receive(start + STREAM, content_type, size=size).reply

    assert (reply.whole, reply.done, reply.n_answer) == (False, True, 1)


@pytest.mark.parametrize("size", [None, 1, 3])
@pytest.mark.parametrize(
    "content_type", ["application/json", "text/event-stream", "text/plain", None]
)
@pytest.mark.parametrize("start", [b"", BOM, b"\n\n\n", BOM + b" ", b"\r\n" + BOM])
def test_a_json_answer_is_one_whatever_it_is_called(
    start: bytes, content_type: str | None, size: int | None
) -> None:
    """No stream begins with a brace."""
    reply = receive(start + ANSWER, content_type, size=size).reply

    assert (reply.whole, reply.complete, reply.n_answer) == (True, True, 1)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    "data", [b"<!doctype html>", b"internal server error", b"deadline", b"d", b"\x00\x01", b"retry"]
)
def test_anything_else_is_refused_by_its_type(data: bytes, size: int | None) -> None:
    """A login page and a word that begins like a field are no answers."""
    with pytest.raises(DecodeError, match="content type 'text/html' is not an answer"):
        receive(data, "text/html; charset=utf-8", size=size)


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"nonsense", "application/json"),
        (b"[1]", "text/plain"),
        (b"{}\n{}\n", "application/x-ndjson"),
    ],
)
def test_json_that_is_no_answer_is_refused(data: bytes, content_type: str) -> None:
    """Words, a list, and several objects."""
    with pytest.raises(DecodeError, match="a JSON body that is not an answer"):
        receive(data, content_type)


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n "])
@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json", "text/html"])
def test_nothing_but_blanks_is_empty(data: bytes, content_type: str) -> None:
    """Whatever type it has."""
    assert receive(data, content_type).empty


def test_a_stream_without_events_is_not_empty() -> None:
    """Keep-alives came, so it is a stream that was cut."""
    assert not receive(b": ping\n\n", "text/event-stream").empty


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"error":{"message":"boom"}}', "boom"),
        (b'{"error":"Unauthorized"}', "Unauthorized"),
        (b'{"detail":[{"loc":["body","x"],"msg":"boom"}]}', "boom"),
        (b'[{"error":{"message":"boom"}}]', "boom"),
        (b'{"object":"error","message":"boom"}', "boom"),
        (b"\n\nboom\n", "boom"),
        (b"<html>boom</html>", "<html>boom</html>"),
        (b"\xff\xfeboom", "\ufffd\ufffdboom"),
        (b"", ""),
        (b"x" * 5_000, "x" * MAX_WORDS),
    ],
)
def test_the_words_of_a_refusal(data: bytes, words: str, size: int | None) -> None:
    """Of every shape, whatever its content type."""
    assert receive(data, "text/event-stream", status=429, size=size).refusal == words


def test_a_huge_refusal_is_not_kept() -> None:
    """Only its start can hold the reason."""
    body = receive(b'{"error":"' + b"x" * (5 << 20), "application/json", status=502, size=1 << 16)

    assert len(body._kept) == MAX_ERROR_BYTES
    assert body.refusal.startswith('{"error":"xxx')


def test_a_huge_json_answer_is_refused() -> None:
    """It cannot be read in part."""
    body = AnswerBody(make_reply("chat"))
    body.head(200, {"content-type": "application/json"})
    body.data(b"{" + b" " * (MAX_JSON_BYTES - 1), 1.0, 1, None)
    with pytest.raises(DecodeError, match="larger than"):
        body.data(b" ", 1.0, 2, None)

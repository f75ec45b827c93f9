"""From an exchange and its body to one outcome."""

from __future__ import annotations

from typing import Any

import pytest

from collectors.records import Outcome
from loadgen.body import AnswerBody
from loadgen.exchange import CUT, End, Exchange
from loadgen.outcome import judge_exchange
from loadgen.replies import make_reply
from loadgen.target import HttpRequest
from tests.loadgen.cases import C, D, F, R, sse
from tests.loadgen.playing import TARGET

FAILED_ENDS = [End.RESET, End.TIMEOUT, End.MALFORMED, End.ABANDONED, End.CUT]


def judge(
    data: bytes = b"",
    *,
    end: End = End.COMPLETE,
    status: int | None = 200,
    content_type: str = "text/event-stream",
    **exchange: Any,
) -> tuple[Outcome, str | None]:
    """The outcome of a request that was sent and answered with ``data``."""
    body = AnswerBody(make_reply("chat"))
    headers = {"content-type": content_type, **exchange.pop("headers", {})}
    if status is not None:
        body.head(status, headers)
        if data:
            body.data(data, 1.0, 1, None)
    return judge_exchange(
        Exchange(
            request=HttpRequest(TARGET, b"", b""),
            **{"sent_at": 0.0, "status": status, "headers": headers, "end": end, **exchange},
        ),
        body,
    )


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (End.CONNECT_ERROR, Outcome.CONNECT_ERROR),
        (End.TLS_ERROR, Outcome.TLS_ERROR),
        (End.TIMEOUT, Outcome.TIMEOUT),
        (End.RESET, Outcome.RESET),
        (End.MALFORMED, Outcome.MALFORMED),
        (End.ABANDONED, Outcome.UNFINISHED),
        (End.CUT, Outcome.CANCELLED),
    ],
)
def test_without_an_answer_the_transport_decides(end: End, outcome: Outcome) -> None:
    """And its words are the detail."""
    assert judge(status=None, end=end, detail="why") == (outcome, "why")


def test_a_request_never_sent_says_so() -> None:
    """It had no connection to fail on."""
    outcome, detail = judge(status=None, end=End.ABANDONED, sent_at=None)

    assert outcome is Outcome.NOT_SENT
    assert detail == "the run ended before a connection was open"


def test_a_users_own_limit_is_no_timeout() -> None:
    """It says nothing about the server: the request is cancelled, and that says it all."""
    assert judge(C("a"), end=End.TIMEOUT, detail=CUT) == (Outcome.CANCELLED, None)


def test_a_request_cut_before_it_was_sent_is_cancelled() -> None:
    """The client could have sent it, so that it is none of those that were never sent."""
    assert judge(status=None, end=End.CUT, sent_at=None) == (Outcome.CANCELLED, None)


@pytest.mark.parametrize(
    ("data", "outcome", "detail"),
    [
        (R + C("a") + F() + D, Outcome.OK, None),
        (C("a") + F(), Outcome.OK, None),
        (C("a") + D, Outcome.OK, None),
        (R + C("a"), Outcome.TRUNCATED, None),
        (R, Outcome.TRUNCATED, None),
        (b": ping\n\n", Outcome.TRUNCATED, None),
        (C("a") + sse({"error": "boom"}) + F() + D, Outcome.IN_BAND_ERROR, "boom"),
        (C("a") + F() + sse({"error": "boom"}), Outcome.IN_BAND_ERROR, "boom"),
        (C("a") + F() + b'data: {"error":"boom"}', Outcome.IN_BAND_ERROR, "boom"),
        (b"", Outcome.MALFORMED, "an empty body"),
        (b"{}", Outcome.MALFORMED, "a JSON body without a finish reason"),
        (b"[]", Outcome.MALFORMED, "a JSON body that is not an answer"),
        (b'{"error":{"message":"boom"}}', Outcome.IN_BAND_ERROR, "boom"),
        (b'[{"error":{"message":"boom"}}]', Outcome.IN_BAND_ERROR, "boom"),
        (
            b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}',
            Outcome.OK,
            None,
        ),
    ],
)
def test_a_whole_response_is_judged_by_what_it_says(
    data: bytes, outcome: Outcome, detail: str | None
) -> None:
    """HTTP 200 is not success."""
    assert judge(data) == (outcome, detail)


@pytest.mark.parametrize("end", FAILED_ENDS)
@pytest.mark.parametrize(
    ("data", "outcome", "detail"),
    [
        (C("a") + F(), Outcome.OK, None),
        (C("a") + D, Outcome.OK, None),
        (C("a") + sse({"error": "boom"}), Outcome.IN_BAND_ERROR, "boom"),
    ],
)
def test_what_was_said_before_the_connection_failed_stands(
    end: End, data: bytes, outcome: Outcome, detail: str | None
) -> None:
    """A whole answer is not lost to a reset, nor an error's words."""
    assert judge(data, end=end, detail="why") == (outcome, detail)


@pytest.mark.parametrize("end", FAILED_ENDS)
def test_a_part_of_an_answer_is_not_enough(end: End) -> None:
    """Neither streamed nor in one piece."""
    whole = b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}'

    assert judge(C("a"), end=end)[0] not in (Outcome.OK, Outcome.TRUNCATED)
    assert judge(whole, end=end)[0] is not Outcome.OK


@pytest.mark.parametrize("end", [End.COMPLETE, *FAILED_ENDS])
@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (301, Outcome.HTTP_ERROR),
        (400, Outcome.HTTP_ERROR),
        (401, Outcome.HTTP_ERROR),
        (404, Outcome.HTTP_ERROR),
        (422, Outcome.HTTP_ERROR),
        (429, Outcome.RATE_LIMITED),
        (500, Outcome.HTTP_ERROR),
        (502, Outcome.HTTP_ERROR),
        (503, Outcome.OVERLOADED),
        (504, Outcome.HTTP_ERROR),
        (529, Outcome.OVERLOADED),
    ],
)
def test_a_refusal_is_one_however_it_ends(status: int, outcome: Outcome, end: End) -> None:
    """The status was said; a body that breaks off takes nothing back."""
    assert judge(b'{"error":"why"}', status=status, end=end) == (outcome, "why")


@pytest.mark.parametrize(("detail", "words"), [(None, None), ("cut", "cut")])
def test_a_refusal_without_words(detail: str | None, words: str | None) -> None:
    """Then the transport's stand in, if it has any."""
    assert judge(status=503, detail=detail) == (Outcome.OVERLOADED, words)


def test_a_redirect_shows_where_to_without_its_secrets() -> None:
    """It is not followed, so the user must know."""
    headers = {"location": "https://user:hunter2@login.example/sso?ticket=abcdef"}
    outcome, detail = judge(b"moved", status=307, headers=headers)

    assert outcome is Outcome.HTTP_ERROR
    assert detail == "a redirect to https://***@login.example/sso?ticket=***, not followed"

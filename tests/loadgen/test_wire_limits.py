"""Time limits, and what is left of a request that we leave.

Limits are tens of milliseconds; what is asserted is which of them fired, never how fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest

from collectors.records import Outcome, RequestRecord
from loadgen.client import Ask, now
from loadgen.exchange import End, Limits
from loadgen.target import parse_target
from loadgen.wire import WireTransport
from reference_server.byteserver import ByteServer, Play, Then
from reference_server.rawhttp import chunk
from tests.loadgen.cases import PING, C, F, R
from tests.loadgen.playing import make_client
from tests.loadgen.wiring import (
    ANSWER,
    CHUNKED,
    HEAD,
    PATIENT,
    ask,
    chunked,
    judged,
    prepare,
    raw,
    sized,
    wait_until,
)

SILENCE = Play(then=Then.HOLD)
HEAD_ONLY = raw(CHUNKED, Then.HOLD)
ROLE_ONLY = chunked(((0, R),), then=Then.HOLD)
ONE_TOKEN = chunked(((0, R + C("aa")),), then=Then.HOLD)
PINGS = chunked(((0, R + C("aa")), *((10 * n, PING) for n in range(1, 500))), then=Then.HOLD)
ENDLESS = chunked(((0, R), *((10 * n, C("aa")) for n in range(500))), then=Then.HOLD)
LIMIT_S = 0.06
LONG_S = 10.0


@pytest.mark.parametrize(
    ("play", "limits", "fired"),
    [
        (SILENCE, {"head_s": LIMIT_S}, "head"),
        (SILENCE, {"first_s": LIMIT_S}, "first"),
        (SILENCE, {"total_s": LIMIT_S}, "total"),
        (SILENCE, {"head_s": LIMIT_S, "first_s": 2 * LIMIT_S, "total_s": LONG_S}, "head"),
        (HEAD_ONLY, {"head_s": LONG_S, "first_s": 5 * LIMIT_S}, "first"),
        (ROLE_ONLY, {"first_s": LIMIT_S, "idle_s": 2 * LIMIT_S}, "first"),
        (ROLE_ONLY, {"total_s": 2 * LIMIT_S, "idle_s": LIMIT_S}, "total"),
        (ONE_TOKEN, {"first_s": LONG_S, "idle_s": LIMIT_S, "total_s": LONG_S}, "idle"),
        (ONE_TOKEN, {"idle_s": LIMIT_S, "total_s": None}, "idle"),
        (PINGS, {"idle_s": LIMIT_S, "total_s": LONG_S}, "idle"),
        (ENDLESS, {"idle_s": 1.0, "first_s": 1.0, "total_s": 5 * LIMIT_S}, "total"),
    ],
    ids=[
        "silence, head",
        "silence, first",
        "silence, total",
        "silence, nearest",
        "head only",
        "role only",
        "role only, idle waits for output",
        "one token",
        "one token, no total",
        "keep-alives are no life",
        "slow for ever",
    ],
)
def test_a_limit_fires(
    transport: WireTransport, play: Play, limits: dict[str, Any], fired: str
) -> None:
    """The one that was reached first, with what had come until then."""
    with ByteServer(play) as server:
        seen = ask(transport, server.url, **limits)

        assert (seen.outcome, seen.detail) == (Outcome.TIMEOUT, fired)
        assert (seen.exchange.head_at is None) == (play is SILENCE)
        assert (seen.reply.n_answer > 0) == (play in (ONE_TOKEN, PINGS, ENDLESS))
        assert seen.exchange.sent_at is not None
        assert seen.exchange.ended_at is not None
        allowed = limits["idle_s" if fired == "idle" else f"{fired}_s"]
        assert allowed <= seen.exchange.ended_at - seen.exchange.sent_at < LONG_S
        assert server.client_left() == 0


def test_limits_that_are_kept_do_not_fire(transport: WireTransport) -> None:
    """Output moves the idle limit on."""
    writes = ((0, R), *((50 * n, C("aa")) for n in range(1, 16)), (760, F()))
    with ByteServer(chunked(writes)) as server:
        seen = ask(transport, server.url, head_s=5.0, first_s=5.0, idle_s=0.5, total_s=10.0)

    assert (seen.outcome, seen.reply.n_answer) == (Outcome.OK, 15)


def test_a_whole_answer_beats_a_limit(transport: WireTransport) -> None:
    """A finish reason without the marker, then silence: the user had it all."""
    with ByteServer(chunked(((0, R + C("aa") + F()),), then=Then.HOLD)) as server:
        seen = ask(transport, server.url, idle_s=LIMIT_S)

    assert (seen.outcome, seen.exchange.end) == (Outcome.OK, End.TIMEOUT)


def test_connecting_has_a_limit_of_its_own(transport: WireTransport) -> None:
    """A handshake that never ends is no connection."""
    with ByteServer(Play()) as server:
        url = server.url.replace("http:", "https:")
        seen = ask(transport, url, connect_s=LIMIT_S)

    assert (seen.outcome, seen.detail) == (Outcome.CONNECT_ERROR, f"no connection in {LIMIT_S} s")
    assert seen.exchange.sent_at is None


def test_the_callers_own_time_limit_is_not_taken_for_ours(transport: WireTransport) -> None:
    """A scenario may give up on connecting by itself."""
    with ByteServer(Play()) as server:
        exchange, answer = prepare(server.url.replace("http:", "https:"))
        with pytest.raises(gevent.Timeout), gevent.Timeout(LIMIT_S):
            transport.send(exchange, answer, PATIENT)

    assert judged(exchange, answer).outcome is Outcome.NOT_SENT


# -- uploads -----------------------------------------------------------------------------------

BIG = b"x" * (32 << 20)  # more than the kernel takes at once


def test_a_big_request_arrives_whole(transport: WireTransport) -> None:
    """However long it takes to be taken."""
    with ByteServer(chunked()) as server:
        seen = ask(transport, server.url, body=BIG)

        assert seen.outcome is Outcome.OK
        assert server.requests[0].body == BIG
        assert ask(transport, server.url).exchange.reused


def test_a_server_that_does_not_take_the_request(transport: WireTransport) -> None:
    """The limits run while it is being sent."""
    with ByteServer(SILENCE, reads_bodies=False) as server:
        seen = ask(transport, server.url, body=BIG, total_s=LIMIT_S)

    assert (seen.outcome, seen.detail) == (Outcome.TIMEOUT, "total")


@pytest.mark.parametrize("then", [Then.HOLD, Then.CLOSE, Then.RESET])
def test_a_refusal_may_come_before_the_request_was_sent(
    transport: WireTransport, then: Then
) -> None:
    """It is told as such, whether or not the server stays to read the rest."""
    response = sized("413 Too Large", b'{"error":"too large"}')
    play = Play(writes=((0, response), (50, b"")), then=then)
    with ByteServer(play, reads_bodies=False) as server:
        seen = ask(transport, server.url, body=BIG)

        assert (seen.outcome, seen.detail) == (Outcome.HTTP_ERROR, "too large")
        assert ask(transport, server.url).exchange.reused is False


# -- leaving -----------------------------------------------------------------------------------


def killed_while(
    transport: WireTransport, url: str, is_time: Callable[[RequestSeen], bool]
) -> RequestRecord:
    """The record of a request whose greenlet is killed once ``is_time``."""
    records: list[RequestRecord] = []
    client = make_client(transport, records, target=parse_target(url))
    user = gevent.spawn(client.ask, Ask(task="t", prompt="hi"), now())
    wait_until(lambda: is_time(RequestSeen(client)))
    user.kill()

    assert client.open == {}
    (record,) = records
    return record


class RequestSeen:
    """How far the one open request of a client is."""

    def __init__(self, client: Any) -> None:
        self._open = next(iter(client.open.values()), None)

    @property
    def asked(self) -> bool:
        """It is open."""
        return self._open is not None

    @property
    def sent(self) -> bool:
        """It went out."""
        return self._open is not None and self._open.exchange.sent_at is not None

    @property
    def answered(self) -> bool:
        """Its first token came."""
        return self._open is not None and self._open.reply.first_output_at is not None

    @property
    def whole(self) -> bool:
        """Its end marker came."""
        return self._open is not None and self._open.reply.done


@pytest.mark.parametrize(
    ("play", "is_time", "first_token"),
    [(SILENCE, lambda r: r.sent, False), (ONE_TOKEN, lambda r: r.answered, True)],
    ids=["before an answer", "within the answer"],
)
def test_a_kill_leaves_an_unfinished_request(
    transport: WireTransport,
    play: Play,
    is_time: Callable[[RequestSeen], bool],
    first_token: bool,
) -> None:
    """With what it had until then; the server sees us leave."""
    with ByteServer(play) as server:
        record = killed_while(transport, server.url, is_time)

        assert record.outcome is Outcome.UNFINISHED
        assert record.sent_at_s is not None
        assert record.ended_at_s is not None
        assert record.ended_at_s > record.sent_at_s
        assert (record.first_token_at_s is not None) == first_token
        assert record.done_at_s is None
        assert server.client_left() == 0


def test_a_kill_while_connecting_leaves_a_request_never_sent(transport: WireTransport) -> None:
    """Not unfinished: the server never saw it."""
    with ByteServer(Play()) as server:
        url = server.url.replace("http:", "https:")
        record = killed_while(transport, url, lambda r: r.asked)

        assert (record.outcome, record.sent_at_s) == (Outcome.NOT_SENT, None)
        assert server.client_left() == 0


def test_a_kill_while_sending_leaves_an_unfinished_request(transport: WireTransport) -> None:
    """Part of it went out."""
    with ByteServer(SILENCE, reads_bodies=False) as server:
        exchange, answer = prepare(server.url, BIG)
        user = gevent.spawn(transport.send, exchange, answer, PATIENT)
        wait_until(lambda: exchange.sent_at)
        user.kill()

    assert judged(exchange, answer).outcome is Outcome.UNFINISHED


def test_a_kill_after_the_marker_loses_nothing(transport: WireTransport) -> None:
    """Only the connection's end was still waited for."""
    with ByteServer(chunked(((0, ANSWER),), then=Then.HOLD)) as server:
        record = killed_while(transport, server.url, lambda r: r.whole)

    assert record.outcome is Outcome.OK
    assert record.done_at_s is not None


def test_a_kill_within_the_fresh_try(transport: WireTransport) -> None:
    """The time it had ends with the kill, not with the stale connection."""
    with ByteServer(chunked(), Play(then=Then.CLOSE), SILENCE) as server:
        ask(transport, server.url)
        exchange, answer = prepare(server.url)
        user = gevent.spawn(transport.send, exchange, answer, PATIENT)
        wait_until(lambda: len(server.requests) == 3)
        before = now()
        user.kill()

    assert (exchange.end, exchange.retries) == (End.ABANDONED, 1)
    assert exchange.ended_at is not None
    assert exchange.ended_at >= before


def test_closing_the_transport_ends_what_is_open() -> None:
    """Nobody waits for ever on a connection that is gone."""
    transport = WireTransport()
    with ByteServer(ONE_TOKEN) as server:
        exchange, answer = prepare(server.url)
        user = gevent.spawn(transport.send, exchange, answer, Limits(total_s=None))
        wait_until(lambda: answer.first_output_at)
        transport.close()
        user.join(timeout=10)

        assert user.dead
        assert exchange.end is End.ABANDONED
        assert server.client_left() == 0


def test_a_head_without_length_is_watched_too(transport: WireTransport) -> None:
    """A body that ends with its connection may never end."""
    with ByteServer(raw(HEAD + b"\r\n" + R + C("aa"), Then.HOLD)) as server:
        seen = ask(transport, server.url, idle_s=LIMIT_S)

    assert (seen.outcome, seen.detail) == (Outcome.TIMEOUT, "idle")


def test_frames_without_events_are_no_life(transport: WireTransport) -> None:
    """Bytes alone do not move the idle limit."""
    pieces = ((10 * n, chunk(b" ")) for n in range(1, 500))
    play = Play(writes=((0, CHUNKED + chunk(R + C("aa"))), *pieces), then=Then.HOLD)
    with ByteServer(play) as server:
        seen = ask(transport, server.url, idle_s=LIMIT_S)

    assert (seen.outcome, seen.detail) == (Outcome.TIMEOUT, "idle")

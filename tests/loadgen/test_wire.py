"""The wire transport over real sockets, with servers that do everything wrong."""

from __future__ import annotations

import zlib

import gevent
import pytest

from collectors.records import Outcome
from loadgen.exchange import End, Exchange
from loadgen.wire import WireTransport
from reference_server.byteserver import ByteServer, Play, Then, free_port
from reference_server.rawhttp import LAST_CHUNK, chunk
from tests.loadgen.cases import C, D, F, R, U, in_seven_byte_pieces
from tests.loadgen.wiring import (
    ANSWER,
    CHUNKED,
    HEAD,
    PATIENT,
    STREAM,
    Seen,
    ask,
    chunked,
    flushed,
    judged,
    prepare,
    raw,
    sized,
    wait_until,
)


def expect_answer(seen: Seen) -> None:
    """The plain answer came through whole."""
    assert (seen.outcome, seen.detail) == (Outcome.OK, None)
    assert (seen.reply.n_answer, seen.reply.done) == (2, True)
    assert seen.reply.tokens()[0].output_tokens == 2


def expect_order(exchange: Exchange, *instants: float | None) -> None:
    """The instants are known and follow one another, between sent and ended."""
    seen = [exchange.sent_at, *instants, exchange.ended_at]
    known = [at for at in seen if at is not None]
    assert len(known) == len(seen)
    assert known == sorted(known)


# -- answers -----------------------------------------------------------------------------------


def test_a_streamed_answer(transport: WireTransport) -> None:
    """Head, tokens and end have their instants, in order, and the connection is kept."""
    with ByteServer(chunked()) as server:
        seen = ask(transport, server.url)

        expect_answer(seen)
        exchange, reply = seen.exchange, seen.reply
        expect_order(
            exchange,
            exchange.head_at,
            reply.first_output_at,
            reply.last_output_at,
            exchange.done_at,
        )
        assert exchange.connect_s is not None
        assert exchange.connect_s > 0
        assert (exchange.status, exchange.reused, exchange.retries) == (200, False, 0)
        assert exchange.headers["content-type"] == "text/event-stream"
        assert transport.stamps.counts.kind == "kernel"


def test_what_is_sent_is_what_was_asked(transport: WireTransport) -> None:
    """The bytes of the request, with its length, and nothing of ours."""
    with ByteServer(chunked()) as server:
        ask(transport, server.url + "/base", body=b'{"a":1}')
        (request,) = server.requests

    assert (request.method, request.path) == ("POST", "/base/v1/chat/completions")
    assert request.body == b'{"a":1}'
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "x-test": "1",
        "content-length": "7",
    }


def test_a_token_is_never_earlier_than_it_was_written(transport: WireTransport) -> None:
    """The head comes long before the first token, and is not taken for it."""
    writes = ((10, R), (60, C("aa")), (80, C("bb")), (90, F() + U(7, 2) + D))
    with ByteServer(chunked(writes)) as server:
        seen = ask(transport, server.url)

    expect_answer(seen)
    exchange, reply = seen.exchange, seen.reply
    assert exchange.sent_at is not None
    assert exchange.head_at is not None
    assert reply.first_output_at is not None
    assert reply.first_output_at - exchange.sent_at >= 0.060
    assert reply.first_output_at > exchange.head_at


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n",
    ],
)
@pytest.mark.parametrize("pause_ms", [0, 10])
def test_interim_heads_are_passed_over(
    transport: WireTransport, interim: bytes, pause_ms: int
) -> None:
    """In the same read as the final head or before it."""
    writes = ((0, interim), (pause_ms, CHUNKED + chunk(ANSWER) + LAST_CHUNK))
    with ByteServer(Play(writes=writes), chunked()) as server:
        seen = ask(transport, server.url)

        expect_answer(seen)
        assert seen.exchange.status == 200
        assert "link" not in seen.exchange.headers
        expect_answer(ask(transport, server.url))
        assert server.connections == 1


def test_frames_are_not_events(transport: WireTransport) -> None:
    """Chunks of seven bytes change nothing."""
    writes = tuple((at, b"".join(map(chunk, in_seven_byte_pieces(data)))) for at, data in STREAM)
    with ByteServer(Play(writes=((0, CHUNKED), *writes, (20, LAST_CHUNK)))) as server:
        expect_answer(ask(transport, server.url))


@pytest.mark.parametrize("size", [1, 3])
def test_a_response_in_tiny_writes(transport: WireTransport, size: int) -> None:
    """Head and body cut anywhere."""
    data = sized("200 OK", ANSWER, "Content-Type: text/event-stream")
    writes = tuple((0, data[i : i + size]) for i in range(0, len(data), size))
    with ByteServer(Play(writes=writes)) as server:
        expect_answer(ask(transport, server.url))


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (ANSWER, Outcome.OK),
        (R + C("aa") + F(), Outcome.OK),
        (R + C("aa"), Outcome.TRUNCATED),
        (b"", Outcome.MALFORMED),
    ],
)
def test_a_body_that_ends_with_its_connection(
    transport: WireTransport, data: bytes, outcome: Outcome
) -> None:
    """Without a length only its words say whether it is whole."""
    with ByteServer(raw(HEAD + b"\r\n" + data, Then.CLOSE)) as server:
        seen = ask(transport, server.url)
        assert seen.outcome is outcome
        ask(transport, server.url)
        assert server.connections == 2


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (CHUNKED + chunk(R + C("aa")), 1),
        (CHUNKED + chunk(R + C("aa"))[:-5], 0),
        (HEAD + b"Content-Length: 9999\r\n\r\n" + R + C("aa"), 1),
        (HEAD, 0),
        (b"HTTP/1.1 2", 0),
        (b"", 0),
    ],
    ids=[
        "no zero chunk",
        "within a chunk",
        "length too short",
        "within the head",
        "status",
        "none",
    ],
)
@pytest.mark.parametrize("then", [Then.CLOSE, Then.RESET])
def test_a_connection_that_ends_early_is_a_reset(
    transport: WireTransport, data: bytes, answers: int, then: Then
) -> None:
    """Orderly or not; what had come is kept, and nothing is sent again."""
    play = Play(writes=((0, data), (30, b"")), then=then)
    with ByteServer(play) as server:
        seen = ask(transport, server.url)

        assert seen.outcome is Outcome.RESET
        assert seen.detail
        assert seen.reply.n_answer == answers
        assert len(server.requests) == 1


@pytest.mark.parametrize("then", [Then.CLOSE, Then.RESET])
def test_an_answer_that_was_whole_survives_its_connection(
    transport: WireTransport, then: Then
) -> None:
    """After the marker the missing zero chunk is the server's untidiness."""
    play = Play(writes=((0, CHUNKED + chunk(ANSWER)), (30, b"")), then=then)
    with ByteServer(play) as server:
        expect_answer(ask(transport, server.url))


def test_after_the_marker_an_open_socket_is_not_waited_for(transport: WireTransport) -> None:
    """The answer's end is that of the marker; the connection is not used again."""
    with ByteServer(chunked(then=Then.HOLD)) as server:
        seen = ask(transport, server.url)

        expect_answer(seen)
        assert seen.exchange.end is End.COMPLETE
        assert server.client_left() == 0
        assert seen.exchange.done_at is not None
        assert seen.exchange.ended_at is not None
        assert seen.exchange.done_at < seen.exchange.ended_at
        ask(transport, server.url)
        assert server.connections == 2


@pytest.mark.parametrize("pause_ms", [0, 20], ids=["same read", "later"])
def test_what_follows_the_marker_is_flagged_and_not_counted(
    transport: WireTransport, pause_ms: int
) -> None:
    """However it is cut."""
    writes = (*STREAM, (15 + pause_ms, C("zz") + F()))
    with ByteServer(chunked(writes)) as server:
        seen = ask(transport, server.url)

        expect_answer(seen)
        assert seen.reply.after_done
        assert seen.exchange.done_at is not None


def test_garbage_after_the_marker_costs_nothing(transport: WireTransport) -> None:
    """The answer was whole; only the connection is not used again."""
    writes = ((0, CHUNKED + chunk(ANSWER)), (10, b"this is no chunk"))
    with ByteServer(Play(writes=writes), chunked()) as server:
        expect_answer(ask(transport, server.url))
        expect_answer(ask(transport, server.url))
        assert server.connections == 2


@pytest.mark.parametrize(
    "extra",
    [
        b"surplus",
        sized("500 Internal Server Error", b"second answer"),
        sized("200 OK", C("zz") + F(), "Content-Type: text/event-stream"),
    ],
)
@pytest.mark.parametrize("ending", [ANSWER, ANSWER.removesuffix(D)], ids=["done", "no done"])
@pytest.mark.parametrize("pause_ms", [0, 10], ids=["same read", "later"])
def test_bytes_beyond_the_response_are_nobodys(
    transport: WireTransport, extra: bytes, ending: bytes, pause_ms: int
) -> None:
    """They change nothing of the answer, and the connection is not used again."""
    data = CHUNKED + chunk(ending) + LAST_CHUNK
    writes = ((0, data + extra),) if not pause_ms else ((0, data), (pause_ms, extra))
    with ByteServer(Play(writes=writes), chunked()) as server:
        seen = ask(transport, server.url)

        assert (seen.outcome, seen.exchange.status) == (Outcome.OK, 200)
        assert seen.reply.n_answer == 2
        wait_until(lambda: not any(transport._idle.values()))
        expect_answer(ask(transport, server.url))
        assert server.connections == 2


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "outcome", "detail"),
    [
        ("429 Too Many Requests", b'{"error":{"message":"slow"}}', Outcome.RATE_LIMITED, "slow"),
        ("503 Service Unavailable", b"", Outcome.OVERLOADED, None),
        ("529 Overloaded", b'{"type":"error","error":{"message":"x"}}', Outcome.OVERLOADED, "x"),
        ("401 Unauthorized", b'{"error":"Unauthorized"}', Outcome.HTTP_ERROR, "Unauthorized"),
        ("422 Unprocessable", b'{"detail":[{"loc":["x"],"msg":"no"}]}', Outcome.HTTP_ERROR, "no"),
        ("400 Bad Request", b'[{"error":{"message":"no"}}]', Outcome.HTTP_ERROR, "no"),
        ("400 Bad Request", b'{"object":"error","message":"no"}', Outcome.HTTP_ERROR, "no"),
        ("502 Bad Gateway", b"<html>bad</html>", Outcome.HTTP_ERROR, "<html>bad</html>"),
        ("404 Not Found", b"", Outcome.HTTP_ERROR, None),
    ],
)
def test_a_refusal_is_told_in_the_servers_words(
    transport: WireTransport, status: str, body: bytes, outcome: Outcome, detail: str | None
) -> None:
    """Of whatever shape; it is not tried again, and the connection is kept."""
    with ByteServer(raw(sized(status, body))) as server:
        seen = ask(transport, server.url)

        assert (seen.outcome, seen.detail) == (outcome, detail)
        assert len(server.requests) == 1
        ask(transport, server.url)
        assert server.connections == 1


@pytest.mark.parametrize(
    ("response", "then", "outcome", "detail"),
    [
        (
            b"HTTP/1.1 503 x\r\nContent-Length: 99\r\n\r\nbusy",
            Then.CLOSE,
            Outcome.OVERLOADED,
            "busy",
        ),
        (
            sized("503 x", b"\x0b\x02\x80busy\x03", "Content-Encoding: br"),
            Then.KEEP,
            Outcome.OVERLOADED,
            "content encoding 'br', which was not asked for",
        ),
        (b"HTTP/1.0 502 x\r\n\r\nbad", Then.CLOSE, Outcome.HTTP_ERROR, "bad"),
    ],
    ids=["cut", "compressed", "close-delimited"],
)
def test_a_refusal_whose_body_fails_is_still_a_refusal(
    transport: WireTransport, response: bytes, then: Then, outcome: Outcome, detail: str
) -> None:
    """Its status was said."""
    with ByteServer(raw(response, then)) as server:
        seen = ask(transport, server.url)

    assert (seen.outcome, seen.detail) == (outcome, detail)


def test_a_huge_refusal_is_read_to_its_end(transport: WireTransport) -> None:
    """But not kept; the connection can be used again."""
    with ByteServer(raw(sized("500 x", b"x" * (5 << 20))), chunked()) as server:
        seen = ask(transport, server.url)

        assert seen.outcome is Outcome.HTTP_ERROR
        assert seen.detail == "x" * 4096
        expect_answer(ask(transport, server.url))
        assert server.connections == 1


@pytest.mark.parametrize("status", ["301 Moved", "307 Temporary Redirect", "308 Permanent"])
def test_a_redirect_is_not_followed(transport: WireTransport, status: str) -> None:
    """Exactly one request, none at the place it points to."""
    with ByteServer(chunked()) as elsewhere:
        response = sized(status, b"", f"Location: {elsewhere.url}/x?key=secret")
        with ByteServer(raw(response)) as server:
            seen = ask(transport, server.url)

            assert seen.outcome is Outcome.HTTP_ERROR
            assert seen.detail == f"a redirect to {elsewhere.url}/x?key=***, not followed"
            assert (len(server.requests), len(elsewhere.requests)) == (1, 0)


@pytest.mark.parametrize(
    ("response", "then", "outcome", "detail"),
    [
        (
            sized("200 OK", b"<html>log in</html>", "Content-Type: text/html"),
            Then.KEEP,
            Outcome.MALFORMED,
            "content type 'text/html' is not an answer",
        ),
        (
            sized(
                "200 OK",
                b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop"}]}',
                "Content-Type: application/json",
            ),
            Then.KEEP,
            Outcome.OK,
            None,
        ),
        (sized("200 OK", b'{"error":"boom"}'), Then.KEEP, Outcome.IN_BAND_ERROR, "boom"),
        (sized("200 OK", b""), Then.KEEP, Outcome.MALFORMED, "an empty body"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Then.KEEP, Outcome.MALFORMED, "an empty body"),
        (CHUNKED + LAST_CHUNK, Then.KEEP, Outcome.MALFORMED, "an empty body"),
        (
            sized("200 OK", ANSWER, "Content-Encoding: br"),
            Then.KEEP,
            Outcome.MALFORMED,
            "content encoding 'br', which was not asked for",
        ),
        (
            sized("200 OK", b"not gzip", "Content-Encoding: gzip"),
            Then.KEEP,
            Outcome.MALFORMED,
            None,
        ),
        (b"SSH-2.0-OpenSSH_9.9\r\n", Then.HOLD, Outcome.MALFORMED, None),
        (CHUNKED + b"zz\r\n", Then.HOLD, Outcome.MALFORMED, None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000, Then.HOLD, Outcome.MALFORMED, None),
    ],
    ids=[
        "html",
        "json",
        "json error",
        "empty",
        "204",
        "no chunks",
        "brotli",
        "broken gzip",
        "not http",
        "bad chunk",
        "endless head",
    ],
)
def test_a_200_is_not_yet_an_answer(
    transport: WireTransport,
    response: bytes,
    then: Then,
    outcome: Outcome,
    detail: str | None,
) -> None:
    """What is no stream is told apart by what it is."""
    with ByteServer(raw(response, then)) as server:
        seen = ask(transport, server.url)

    assert seen.outcome is outcome
    if detail is not None or outcome is Outcome.OK:
        assert seen.detail == detail
    else:
        assert seen.detail


# -- encodings and sizes -----------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
def test_a_flushed_gzip_stream_is_read_as_it_comes(transport: WireTransport, encoding: str) -> None:
    """It was not asked for, but does no harm."""
    head = CHUNKED.replace(b"\r\n\r\n", f"\r\nContent-Encoding: {encoding}\r\n\r\n".encode())
    with ByteServer(chunked(flushed(STREAM), head=head)) as server:
        seen = ask(transport, server.url)

    expect_answer(seen)
    assert seen.reply.first_output_at != seen.reply.last_output_at


def test_a_compressed_stream_may_end_in_one_piece(transport: WireTransport) -> None:
    """Then everything is as late as its end."""
    data = zlib.compress(ANSWER)
    response = sized("200 OK", data, "Content-Type: text/event-stream", "Content-Encoding: deflate")
    with ByteServer(raw(response)) as server:
        seen = ask(transport, server.url)

    expect_answer(seen)
    assert seen.reply.coalesced == 1


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_an_endless_event_is_refused(transport: WireTransport, packed: bool) -> None:
    """At the limit, not when memory is full."""
    writes = tuple((0, b"data: " * (not n) + b"x" * (1 << 20)) for n in range(40))
    head = CHUNKED
    if packed:
        writes = flushed(writes)
        head = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    with ByteServer(chunked(writes, head=head, then=Then.HOLD)) as server:
        seen = ask(transport, server.url)

    assert seen.outcome is Outcome.MALFORMED
    assert seen.detail == "an event is larger than 16777216 bytes"


# -- connections -------------------------------------------------------------------------------


def test_a_connection_is_used_again(transport: WireTransport) -> None:
    """A hundred requests, one connection, opened once."""
    with ByteServer(chunked(((0, ANSWER),))) as server:
        seen = [ask(transport, server.url) for _ in range(100)]

        assert server.connections == 1
    for one in seen:
        expect_answer(one)
    assert [s.exchange.connect_s is not None for s in seen] == [True] + [False] * 99
    assert [s.exchange.reused for s in seen] == [False] + [True] * 99


@pytest.mark.parametrize("header", ["Connection: close", "Connection: Close"])
def test_a_server_that_wants_to_close_is_left_alone(transport: WireTransport, header: str) -> None:
    """The next request opens a connection of its own."""
    response = sized("200 OK", ANSWER, "Content-Type: text/event-stream", header)
    with ByteServer(raw(response)) as server:
        expect_answer(ask(transport, server.url))
        expect_answer(ask(transport, server.url))
        assert server.connections == 2


@pytest.mark.parametrize("then", [Then.CLOSE, Then.RESET])
def test_a_stale_connection_costs_one_fresh_try(transport: WireTransport, then: Then) -> None:
    """Counted, and the clock runs on from the first."""
    with ByteServer(chunked(), Play(writes=((40, b""),), then=then), chunked()) as server:
        ask(transport, server.url)
        seen = ask(transport, server.url)

        expect_answer(seen)
        exchange = seen.exchange
        assert (exchange.retries, exchange.reused) == (1, False)
        assert exchange.connect_s is not None
        assert exchange.sent_at is not None
        assert exchange.head_at is not None
        assert exchange.head_at - exchange.sent_at >= 0.040
        assert (len(server.requests), server.connections) == (3, 2)


def test_there_is_no_second_fresh_try(transport: WireTransport) -> None:
    """What fails on a connection of its own has failed."""
    gone = Play(then=Then.CLOSE)
    with ByteServer(chunked(), gone, gone, chunked()) as server:
        ask(transport, server.url)
        seen = ask(transport, server.url)

        assert (seen.outcome, seen.exchange.retries) == (Outcome.RESET, 1)
        assert len(server.requests) == 3


def test_a_fresh_try_may_fail_to_connect(transport: WireTransport) -> None:
    """It is told as what it is."""
    with ByteServer(chunked(), Play(writes=((20, b""),), then=Then.CLOSE)) as server:
        ask(transport, server.url)
        server.stop_listening()
        seen = ask(transport, server.url)

    assert (seen.outcome, seen.exchange.retries) == (Outcome.CONNECT_ERROR, 1)


def test_nothing_is_sent_again_once_the_server_spoke(transport: WireTransport) -> None:
    """Not even on a reused connection: one byte of head is enough."""
    with ByteServer(chunked(), raw(b"H", Then.CLOSE), chunked()) as server:
        ask(transport, server.url)
        seen = ask(transport, server.url)

        assert (seen.outcome, seen.exchange.retries) == (Outcome.RESET, 0)
        assert len(server.requests) == 2


def test_a_connection_idle_for_too_long_is_not_used(
    transport: WireTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server would be about to close it."""
    with ByteServer(chunked()) as server:
        ask(transport, server.url)
        monkeypatch.setattr("loadgen.wire.MAX_IDLE_S", 0.0)
        seen = ask(transport, server.url)

        assert (seen.exchange.reused, seen.exchange.retries) == (False, 0)
        assert server.connections == 2


def test_a_connection_closed_while_idle_is_forgotten(transport: WireTransport) -> None:
    """No request is lost on it, and none is sent twice."""
    with ByteServer(chunked(), chunked()) as server:
        ask(transport, server.url)
        server.hang_up()
        wait_until(lambda: not any(transport._idle.values()))
        seen = ask(transport, server.url)

        assert (seen.exchange.reused, seen.exchange.retries) == (False, 0)
        assert len(server.requests) == 2


def test_targets_do_not_share_connections(transport: WireTransport) -> None:
    """Each has its own."""
    with ByteServer(chunked()) as one, ByteServer(chunked()) as other:
        for server in (one, other, one, other):
            expect_answer(ask(transport, server.url))
        assert (one.connections, other.connections) == (1, 1)


def test_a_port_that_refuses(transport: WireTransport) -> None:
    """Nothing was sent."""
    seen = ask(transport, f"http://127.0.0.1:{free_port()}")

    assert (seen.outcome, seen.detail) == (Outcome.CONNECT_ERROR, "Connection refused")
    assert (seen.exchange.sent_at, seen.exchange.connect_s) == (None, None)


def test_a_host_that_does_not_resolve(transport: WireTransport) -> None:
    """Nor here."""
    seen = ask(transport, "http://no-such-host.invalid:8000", connect_s=10.0)

    assert seen.outcome is Outcome.CONNECT_ERROR
    assert seen.detail
    assert seen.exchange.sent_at is None


# -- many at once ------------------------------------------------------------------------------


def test_two_hundred_streams_at_once(transport: WireTransport) -> None:
    """Each gets its own answer, whole."""
    exchanges = []

    def one() -> None:
        exchange, answer = prepare(server.url)
        exchanges.append((exchange, answer))
        transport.send(exchange, answer, PATIENT)

    with ByteServer(chunked()) as server:
        gevent.joinall([gevent.spawn(one) for _ in range(200)], raise_error=True, timeout=30)

        assert server.connections <= 200
    assert len(exchanges) == 200
    for exchange, answer in exchanges:
        expect_answer(judged(exchange, answer))
        expect_order(exchange, exchange.head_at, answer.reply.first_output_at, exchange.done_at)


def test_a_fault_of_ours_ends_the_request_and_is_told(
    transport: WireTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the hub, as any other of its callbacks'; nobody waits for the time limit."""
    told: list[type] = []
    monkeypatch.setattr(
        gevent.get_hub(), "handle_error", lambda _context, kind, _error, _trace: told.append(kind)
    )
    with ByteServer(chunked()) as server:
        exchange, answer = prepare(server.url)
        monkeypatch.setattr(type(answer.reply), "event", lambda *_: 1 / 0)
        transport.send(exchange, answer, PATIENT)

        assert judged(exchange, answer).outcome is Outcome.MALFORMED
        assert exchange.detail == "Streamgauge itself failed"
        assert exchange.done_at is None
        assert told == [ZeroDivisionError]
        assert server.client_left() == 0

"""What servers do with sockets and HTTP, by number, through both transports.

The same assertions hold for both, so they agree: on the outcome and its reason, on what was output
and how it finished, on which connection, and on how often anything was sent. A case that one of
them cannot play is skipped by name.
"""

from __future__ import annotations

import importlib.util
import resource
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest

from collectors.records import Outcome, RequestRecord
from loadgen.client import Ask, now
from loadgen.exchange import End, Exchange, Limits, Transport
from loadgen.health import LoopHealth
from loadgen.httpx_transport import HttpxTransport
from loadgen.retry_after import asked_wait_s
from loadgen.target import parse_target
from loadgen.wire import WireTransport
from reference_server.byteserver import ByteServer, Play, Then, free_port, self_signed_context
from reference_server.rawhttp import LAST_CHUNK, chunk
from tests.loadgen.cases import C, D, F, R, U, in_seven_byte_pieces
from tests.loadgen.playing import make_client
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

TRANSPORTS: dict[str, Any] = {"wire": WireTransport, "httpx": HttpxTransport}
LIMIT_S = 0.1
EARLY = {"early_head", "early_event"}  # the head and the role come before the tokens
SSE = "Content-Type: text/event-stream"


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """Each transport in turn."""
    transport = TRANSPORTS[request.param]()
    yield transport
    transport.close()


def expect_answer(seen: Seen) -> None:
    """The plain answer came through whole: two tokens, told by usage, and a reason to stop."""
    assert (seen.outcome, seen.detail, seen.exchange.status) == (Outcome.OK, None, 200)
    assert (seen.reply.n_answer, seen.reply.done) == (2, True)
    assert seen.reply.tokens()[0].output_tokens == 2
    assert list(seen.reply.finish_reasons) == ["stop"]


def since_sent_ms(seen: Seen, at: float | None) -> float:
    """Milliseconds from sent."""
    assert at is not None
    assert seen.exchange.sent_at is not None
    return (at - seen.exchange.sent_at) * 1000


def record_of(transport: Transport, url: str) -> RequestRecord:
    """What a client records of one request."""
    records: list[RequestRecord] = []
    make_client(transport, records, target=parse_target(url)).ask(Ask(task="t", prompt="p"), now())
    return records[0]


def test_n01_head_early(transport: Transport) -> None:
    """The head and the role come long before the first token, and are not taken for it."""
    writes = ((150, R), (160, C("aa")), (170, C("bb")), (180, F() + U(7, 2) + D))
    with ByteServer(chunked(writes)) as server:
        seen = ask(transport, server.url)

    expect_answer(seen)
    assert since_sent_ms(seen, seen.exchange.head_at) < 150
    assert since_sent_ms(seen, seen.reply.first_output_at) >= 160
    assert since_sent_ms(seen, seen.exchange.done_at) >= 180


def test_n02_status_429(transport: Transport) -> None:
    """It is told as what it is, with the wait asked for, and nothing is sent again."""
    response = sized(
        "429 Too Many Requests",
        b'{"error":{"message":"slow down"}}',
        "Retry-After: 2",
        "x-ratelimit-remaining-requests: 0",
    )
    with ByteServer(raw(response)) as server:
        seen = ask(transport, server.url)

        assert (seen.outcome, seen.exchange.status) == (Outcome.RATE_LIMITED, 429)
        assert seen.detail == "asks to wait 2 s; slow down"
        assert seen.exchange.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        (("retry-after-ms: 350", "Retry-After: 1"), 0.35),
        (("Retry-After: 1.5",), 1.5),
        (
            ("Date: Sat, 01 Feb 2025 10:00:00 GMT", "Retry-After: Sat, 01 Feb 2025 10:01:30 GMT"),
            90.0,
        ),
        (("Retry-After: Sat, 01 Feb 2025 10:01:30 GMT",), 0.0),
        (("Retry-After: soon",), None),
        ((), None),
    ],
    ids=["ms wins", "seconds", "date", "date gone by", "nonsense", "none"],
)
def test_n03_retry_after_forms(
    transport: Transport, headers: tuple[str, ...], wait_s: float | None
) -> None:
    """Milliseconds, seconds, or a date on the server's own clock."""
    with ByteServer(raw(sized("429 x", b"", *headers))) as server:
        seen = ask(transport, server.url)

    assert asked_wait_s(seen.exchange.headers) == wait_s
    assert seen.detail == (None if wait_s is None else f"asks to wait {wait_s:g} s")


@pytest.mark.parametrize("status", ["503 Service Unavailable", "529 Overloaded"])
def test_n04_overloaded_without_a_word(transport: Transport, status: str) -> None:
    """An empty body is no crash."""
    with ByteServer(raw(sized(status, b""))) as server:
        seen = ask(transport, server.url)

    assert (seen.outcome, seen.detail) == (Outcome.OVERLOADED, None)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        ("401 Unauthorized", b'{"error":"Unauthorized"}', "Unauthorized"),
        ("422 Unprocessable", b'{"detail":[{"loc":["body","x"],"msg":"no"}]}', "no"),
        ("400 Bad Request", b'[{"error":{"message":"no"}}]', "no"),
        ("400 Bad Request", b'{"object":"error","message":"no"}', "no"),
        ("502 Bad Gateway", b"<html>bad</html>", "<html>bad</html>"),
        ("500 Internal Server Error", b"x" * (5 << 20), "x" * 4096),
    ],
    ids=["text", "detail", "list", "flat", "html", "5 MB"],
)
def test_n05_error_bodies(transport: Transport, status: str, body: bytes, words: str) -> None:
    """Each has its message, of bounded size."""
    with ByteServer(raw(sized(status, body))) as server:
        seen = ask(transport, server.url)

    assert (seen.outcome, seen.detail) == (Outcome.HTTP_ERROR, words)


@pytest.mark.parametrize("status", ["301 Moved Permanently", "307 Temporary Redirect"])
def test_n06_redirect(transport: Transport, status: str) -> None:
    """One request on the wire, none at the place it points to."""
    with ExitStack() as stack:
        elsewhere = stack.enter_context(ByteServer(chunked()))
        response = sized(status, b"", f"Location: {elsewhere.url}/v1")
        server = stack.enter_context(ByteServer(raw(response)))
        seen = ask(transport, server.url)

        assert seen.outcome is Outcome.HTTP_ERROR
        assert seen.detail == f"a redirect to {elsewhere.url}/v1, not followed"
        assert (len(server.requests), len(elsewhere.requests)) == (1, 0)


@pytest.mark.parametrize("status", ["100 Continue", "103 Early Hints"])
def test_n07_interim(transport: Transport, status: str) -> None:
    """Passed over."""
    interim = f"HTTP/1.1 {status}\r\nX-Interim: 1\r\n\r\n".encode()
    writes = ((0, interim), (10, CHUNKED), (20, chunk(ANSWER) + LAST_CHUNK))
    with ByteServer(Play(writes=writes)) as server:
        seen = ask(transport, server.url)

    expect_answer(seen)
    assert "x-interim" not in seen.exchange.headers


def test_n08_gzip_flushed(transport: Transport) -> None:
    """Read as it comes, and flagged."""
    head = CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    spread = tuple((20 * n, data) for n, (_, data) in enumerate(STREAM))
    with ByteServer(chunked(flushed(spread), head=head)) as server:
        record = record_of(transport, server.url)

    assert (record.outcome, record.output_tokens) == (Outcome.OK, 2)
    assert set(record.flags) - EARLY == {"encoded"}


def test_n09_gzip_at_end(transport: Transport) -> None:
    """Everything is as late as the end, and flagged."""
    packed = zlib.compress(ANSWER, wbits=31)
    response = sized("200 OK", packed, SSE, "Content-Encoding: gzip")
    with ByteServer(Play(writes=((30, response),))) as server:
        record = record_of(transport, server.url)

    assert (record.outcome, record.output_tokens) == (Outcome.OK, 2)
    assert set(record.flags) - EARLY == {"coalesced", "first_coalesced", "encoded"}
    assert record.first_token_at_s == record.last_token_at_s == record.done_at_s


def test_n10_br_unasked(transport: Transport) -> None:
    """An encoding that cannot be read is an error that says so."""
    with ByteServer(raw(sized("200 OK", b"\x0b\x02", SSE, "Content-Encoding: br"))) as server:
        seen = ask(transport, server.url)

    assert seen.outcome is Outcome.MALFORMED
    assert seen.detail == "content encoding 'br', which was not asked for"


@pytest.mark.parametrize(
    ("data", "answers", "outcome"),
    [(ANSWER, 2, Outcome.OK), (R + C("aa"), 1, Outcome.TRUNCATED)],
    ids=["ok", "cut"],
)
def test_n11_close_delimited(
    transport: Transport, data: bytes, answers: int, outcome: Outcome
) -> None:
    """A crash and an orderly end look the same: its words say whether it is whole."""
    with ByteServer(raw(HEAD + b"\r\n" + data, Then.CLOSE)) as server:
        seen = ask(transport, server.url)

    assert seen.outcome is outcome
    assert seen.exchange.end is End.COMPLETE
    assert seen.reply.n_answer == answers


def test_n12_length_short(transport: Transport) -> None:
    """Less than the length promised is a reset; what came is kept."""
    data = HEAD + b"Content-Length: 9999\r\n\r\n" + R + C("aa")
    with ByteServer(raw(data, Then.CLOSE)) as server:
        seen = ask(transport, server.url)

    assert (seen.outcome, seen.detail) == (Outcome.RESET, "the connection was closed")
    assert seen.reply.n_answer == 1


def test_n13_frames_misaligned(transport: Transport) -> None:
    """Chunks of seven bytes change nothing."""
    writes = tuple((at, b"".join(map(chunk, in_seven_byte_pieces(data)))) for at, data in STREAM)
    with ByteServer(Play(writes=((0, CHUNKED), *writes, (20, LAST_CHUNK)))) as server:
        seen = ask(transport, server.url)

    expect_answer(seen)
    assert seen.reply.first_output_at != seen.reply.last_output_at


@pytest.mark.parametrize("then", [Then.CLOSE, Then.RESET])
def test_n14_stale_socket(transport: Transport, then: Then) -> None:
    """One fresh try, counted, and the clock runs on from the first."""
    with ByteServer(chunked(), Play(writes=((40, b""),), then=then), chunked()) as server:
        ask(transport, server.url)
        seen = ask(transport, server.url)

        expect_answer(seen)
        assert (seen.exchange.retries, seen.exchange.reused) == (1, False)
        assert since_sent_ms(seen, seen.exchange.head_at) >= 40
        assert (len(server.requests), server.connections) == (3, 2)


def test_n14_stale_socket_seen_in_time(transport: Transport) -> None:
    """Closed while idle: no request is lost on it, and none is sent twice."""
    with ByteServer(chunked()) as server:
        ask(transport, server.url)
        server.hang_up()
        gevent.sleep(0.05)
        seen = ask(transport, server.url)

        expect_answer(seen)
        assert (seen.exchange.retries, seen.exchange.reused) == (0, False)
        assert len(server.requests) == 2


def test_n15_stale_after_bytes(transport: Transport) -> None:
    """Once the server spoke nothing is sent again."""
    with ByteServer(chunked(), raw(CHUNKED, Then.CLOSE)) as server:
        ask(transport, server.url)
        seen = ask(transport, server.url)

        assert (seen.outcome, seen.exchange.retries) == (Outcome.RESET, 0)
        assert seen.exchange.reused
        assert len(server.requests) == 2


def expect_no_connection(seen: Seen, outcome: Outcome) -> None:
    """Nothing was sent."""
    assert seen.outcome is outcome
    assert (seen.exchange.sent_at, seen.exchange.status) == (None, None)
    assert seen.detail


def test_n16_refused(transport: Transport) -> None:
    """A port where nobody listens."""
    seen = ask(transport, f"http://127.0.0.1:{free_port()}")

    expect_no_connection(seen, Outcome.CONNECT_ERROR)
    assert seen.detail == "Connection refused"


def test_n16_black_hole(transport: Transport) -> None:
    """A listener whose queue is full answers no SYN; connecting has a limit of its own."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        seen = ask(transport, f"http://127.0.0.1:{listener.getsockname()[1]}", connect_s=LIMIT_S)

    expect_no_connection(seen, Outcome.CONNECT_ERROR)
    assert seen.detail == f"no connection in {LIMIT_S} s"


def test_n16_no_such_host(transport: Transport) -> None:
    """DNS is part of connecting."""
    seen = ask(transport, "http://no-such-host.invalid:8000", connect_s=10.0)

    expect_no_connection(seen, Outcome.CONNECT_ERROR)


@pytest.mark.needs("openssl")
def test_n16_bad_certificate(transport: Transport, tmp_path: Path) -> None:
    """Nobody trusts it."""
    context, _ = self_signed_context(tmp_path)
    with ByteServer(chunked(), tls=context) as server:
        seen = ask(transport, server.url)

        expect_no_connection(seen, Outcome.TLS_ERROR)
        assert "self-signed certificate" in (seen.detail or "")
        assert server.requests == []


def test_n16_no_tls(transport: Transport) -> None:
    """Whoever answers a handshake in clear text is no endpoint."""
    with ByteServer(Play(), greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        seen = ask(transport, server.url.replace("http:", "https:"))

    expect_no_connection(seen, Outcome.TLS_ERROR)


def test_n17_no_head(transport: Transport) -> None:
    """Silence, until the head's limit."""
    with ByteServer(Play(then=Then.HOLD)) as server:
        seen = ask(transport, server.url, head_s=LIMIT_S)

        assert (seen.outcome, seen.detail) == (Outcome.TIMEOUT, "head")
        assert seen.exchange.head_at is None
        assert server.client_left() == 0


def test_n18_no_first_output(transport: Transport) -> None:
    """A head and a role are no output."""
    with ByteServer(chunked(((0, R),), then=Then.HOLD)) as server:
        seen = ask(transport, server.url, first_s=LIMIT_S, idle_s=2 * LIMIT_S)

        assert (seen.outcome, seen.detail) == (Outcome.TIMEOUT, "first")
        assert seen.exchange.head_at is not None
        assert server.client_left() == 0


def test_n19_total_timeout(transport: Transport) -> None:
    """Endless slow tokens; what came is kept, and the time it had is known."""
    writes = tuple((20 * n, C("aa")) for n in range(500))
    with ByteServer(chunked(writes, then=Then.HOLD)) as server:
        seen = ask(transport, server.url, idle_s=5.0, total_s=4 * LIMIT_S)

        assert (seen.outcome, seen.detail) == (Outcome.TIMEOUT, "total")
        assert seen.reply.n_answer > 0
        assert since_sent_ms(seen, seen.exchange.ended_at) >= 4000 * LIMIT_S
        assert server.client_left() == 0


@pytest.mark.parametrize(
    ("is_scenario", "outcome"), [(True, Outcome.CANCELLED), (False, Outcome.UNFINISHED)]
)
def test_n20_client_cancel(transport: Transport, is_scenario: bool, outcome: Outcome) -> None:
    """A kill leaves what there was, says whose it was, and the server sees us leave."""
    writes = (*((10 * n, C("aa")) for n in range(3)), (30, R))
    records: list[RequestRecord] = []
    with ByteServer(chunked(writes, then=Then.HOLD)) as server:
        client = make_client(transport, records, target=parse_target(server.url))
        asked = Ask(task="t", prompt="hi")
        user = gevent.spawn(client.ask, asked, now(), is_cut=lambda _: is_scenario)
        wait_until(lambda: client.open and client.open[0].reply.n_answer == 3)
        user.kill()

        assert server.client_left() == 0
    assert [(r.outcome, r.output_events.answer, r.output_tokens) for r in records] == [
        (outcome, 3, None)
    ]
    assert records[0].ended_at_s is not None
    assert records[0].done_at_s is None


def test_n20_a_user_who_loses_patience(transport: Transport) -> None:
    """Left after the time given: cancelled, no time limit of ours, and the server sees it."""
    records: list[RequestRecord] = []
    with ByteServer(chunked(((0, R), (10, C("aa"))), then=Then.HOLD)) as server:
        client = make_client(transport, records, target=parse_target(server.url))
        record = client.ask(Ask(task="t", prompt="hi", cancel_after_s=LIMIT_S), now())

        assert server.client_left() == 0
    assert (record.outcome, record.detail) == (Outcome.CANCELLED, None)
    assert record.output_events.answer == 1
    assert record.ended_at_s is not None
    assert record.sent_at_s is not None
    assert record.ended_at_s - record.sent_at_s >= LIMIT_S
    assert records == [record]


def test_an_answer_that_was_whole_in_time_is_no_cancelled_one(transport: Transport) -> None:
    """However short the user's patience was."""
    with ByteServer(chunked()) as server:
        client = make_client(transport, [], target=parse_target(server.url))
        record = client.ask(Ask(task="t", prompt="hi", cancel_after_s=PATIENT.total_s), now())

    assert record.outcome is Outcome.OK


def test_n21_event_too_large(transport: Transport) -> None:
    """64 MiB without a line's end are refused at the limit; memory is bounded."""
    piece = b"x" * (1 << 20)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    writes = ((0, HEAD + b"\r\ndata: "), *((0, piece) for _ in range(64)))
    with ByteServer(Play(writes=writes, then=Then.HOLD)) as server:
        seen = ask(transport, server.url)

    assert seen.outcome is Outcome.MALFORMED
    assert seen.detail == "an event is larger than 16777216 bytes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 60 * 1024


@pytest.mark.parametrize("extra", [b"surplus", sized("200 OK", C("zz") + F(), SSE)])
@pytest.mark.parametrize("pause_ms", [0, 10], ids=["same read", "later"])
def test_n22_extra_bytes_after_body(transport: Transport, extra: bytes, pause_ms: int) -> None:
    """They are nobody's: the answer stands, and the connection is not used again."""
    whole = CHUNKED + chunk(ANSWER) + LAST_CHUNK
    writes = ((0, whole + extra),) if not pause_ms else ((0, whole), (pause_ms, extra))
    with ByteServer(Play(writes=writes), chunked()) as server:
        expect_answer(ask(transport, server.url))
        gevent.sleep(0.05)  # late bytes are there by then
        seen = ask(transport, server.url)

        expect_answer(seen)
        assert (seen.exchange.reused, server.connections) == (False, 2)


def test_n23_slow_reader(transport: Transport) -> None:
    """While the loop stood still ten events came: stamped apart or flagged, and told how late."""
    writes = ((0, R), *((100 + 10 * n, C("aa")) for n in range(10)), (800, F() + U(7, 10) + D))
    with ByteServer(chunked(writes)) as server:
        exchange, answer = prepare(server.url)
        user = gevent.spawn(transport.send, exchange, answer, PATIENT)
        wait_until(lambda: exchange.head_at)
        time.sleep(0.5)  # not gevent's: the whole loop waits
        user.join()
    reply = answer.reply

    assert judged(exchange, answer).outcome is Outcome.OK
    assert reply.n_answer == 10
    assert reply.coalesced == list(reply.gaps_s).count(0.0)  # as far as the kernel joined them
    assert sum(reply.gaps_s) < 0.2
    assert reply.first_read_delay is not None
    assert reply.first_read_delay > 0.05


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("how", ["goaway", "goaway unprocessed", "rst-stream", "plain", "head"])
def test_n24_http2(transport: Transport, tmp_path: Path, how: str) -> None:
    """A stream or a connection that is given up is a reset, and no other request's business."""
    if isinstance(transport, WireTransport):
        pytest.skip("wire speaks HTTP/1.1 only")
    if importlib.util.find_spec("h2") is None:
        pytest.skip("HTTP/2 needs the package h2")
    from tests.loadgen.h2server import Http2Server, head  # noqa: PLC0415  # imports h2

    def plain(state: Any, stream: int) -> None:
        head(state, stream)
        state.send_data(stream, ANSWER, end_stream=True)

    def broken(state: Any, stream: int) -> None:
        if how == "goaway unprocessed":
            state.close_connection(last_stream_id=stream - 2)
            return
        head(state, stream)
        if how == "head":
            return
        state.send_data(stream, R + C("aa"))
        if how == "goaway":
            state.close_connection(error_code=2, last_stream_id=stream)
        elif how == "rst-stream":
            state.reset_stream(stream, error_code=2)
        else:
            state.send_data(stream, C("bb") + F() + U(7, 2) + D, end_stream=True)

    context, certificate = self_signed_context(tmp_path)
    transport = HttpxTransport(ssl.create_default_context(cafile=str(certificate)))
    with Http2Server(context, plain, broken, plain) as server:
        first = ask(transport, server.url, body=b'{"a":1}')
        second = ask(transport, server.url, first_s=0.3 if how == "head" else None)
        third = ask(transport, server.url)
        transport.close()

        expect_answer(first)
        assert first.exchange.http_version == "2"
        assert second.exchange.reused == (how != "goaway unprocessed")
        if how in ("plain", "goaway unprocessed"):
            expect_answer(second)
            assert second.exchange.retries == (how != "plain")
        else:
            expected = Outcome.TIMEOUT if how == "head" else Outcome.RESET
            assert second.outcome is expected
            assert second.reply.n_answer == (how != "head")
        expect_answer(third)
        assert server.bodies[0] == b'{"a":1}'
        assert server.requests[0][":path"] == "/v1/chat/completions"


@pytest.mark.slow
def test_n25_two_thousand_parallel(transport: Transport) -> None:
    """No wrong result among them; how far the client lagged is reported."""
    pairs: list[tuple[Exchange, Any]] = []
    health = LoopHealth(gevent.sleep)
    prober = gevent.spawn(health.run)
    writes = (*((20 * n, C("aa")) for n in range(1, 51)), (1020, F() + U(7, 50) + D))

    def one(number: int) -> None:
        gevent.sleep(number * 0.001)
        exchange, answer = prepare(server.url)
        pairs.append((exchange, answer))
        transport.send(exchange, answer, Limits(total_s=120.0))

    with ByteServer(chunked(writes)) as server:
        users = [gevent.spawn(one, number) for number in range(2000)]
        gevent.joinall(users, raise_error=True, timeout=150)
        prober.kill()

    seen = [judged(*pair) for pair in pairs]
    assert len(seen) == 2000
    assert {s.outcome for s in seen} == {Outcome.OK}
    assert {s.reply.n_answer for s in seen} == {50}
    assert health.report().loop_lag_p99_s is not None
    print(health.report())


def test_n26_kept_alive_accounting(transport: Transport) -> None:
    """A hundred requests, one connection, and only the first has a time to connect."""
    with ByteServer(chunked(((0, ANSWER),))) as server:
        seen = [ask(transport, server.url) for _ in range(100)]

        assert server.connections == 1
    assert [s.exchange.connect_s is not None for s in seen] == [True] + [False] * 99
    assert [s.exchange.reused for s in seen] == [False] + [True] * 99

"""Both transports over TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gevent
import pytest

from collectors.records import Outcome
from loadgen.exchange import End, Transport
from loadgen.httpx_transport import HttpxTransport
from loadgen.wire import WireTransport
from reference_server.byteserver import ByteServer, Play, Then, self_signed_context
from reference_server.rawhttp import LAST_CHUNK, chunk
from tests.loadgen.cases import C, D, F, R, U
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

pytestmark = pytest.mark.needs("openssl")  # makes the certificate


class Tls(NamedTuple):
    """Contexts of a server with a certificate of its own, and of a client that trusts it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate made on the spot."""
    server, certificate = self_signed_context(Path(tmp_path_factory.mktemp("tls")))
    return Tls(server, ssl.create_default_context(cafile=str(certificate)))


@pytest.fixture(params=[WireTransport, HttpxTransport])
def trusting(tls: Tls, request: pytest.FixtureRequest) -> Iterator[Transport]:
    """Each transport in turn, trusting the certificate."""
    transport = request.param(tls.client)
    yield transport
    transport.close()


def test_an_answer_over_tls(trusting: Transport, tls: Tls) -> None:
    """As without it; the kernel stamps the ciphertext; the connection is kept."""
    with ByteServer(chunked(), tls=tls.server) as server:
        first, second = ask(trusting, server.url), ask(trusting, server.url)

        for seen in (first, second):
            assert (seen.outcome, seen.reply.n_answer) == (Outcome.OK, 2)
            assert seen.reply.first_read_delay is not None
        assert first.exchange.connect_s is not None
        assert second.exchange.reused
        assert server.connections == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_either_version(tls: Tls, version: ssl.TLSVersion) -> None:
    """The handshakes differ in who speaks last."""
    tls.client.maximum_version = version
    transport = WireTransport(tls.client)
    try:
        with ByteServer(chunked(), tls=tls.server) as server:
            assert ask(transport, server.url).outcome is Outcome.OK
            assert ask(transport, server.url).exchange.reused
    finally:
        tls.client.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        transport.close()


def test_a_certificate_that_nobody_trusts(transport: WireTransport, tls: Tls) -> None:
    """Nothing is sent to whoever that is."""
    with ByteServer(chunked(), tls=tls.server) as server:
        seen = ask(transport, server.url)

        assert seen.outcome is Outcome.TLS_ERROR
        assert seen.detail is not None
        assert "self-signed certificate" in seen.detail
        assert seen.exchange.sent_at is None
        assert server.client_left() == 0
        assert server.requests == []


def test_a_certificate_of_another_host(trusting: Transport, tls: Tls) -> None:
    """The name is checked."""
    with ByteServer(chunked(), tls=tls.server) as server:
        seen = ask(trusting, server.url.replace("127.0.0.1", "127.1"))  # the same address

        assert seen.outcome is Outcome.TLS_ERROR
        assert seen.detail is not None
        assert "Hostname mismatch" in seen.detail
        assert server.requests == []


def test_a_port_that_does_not_speak_tls(trusting: Transport) -> None:
    """What it says instead is no answer."""
    with ByteServer(Play(), greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        seen = ask(trusting, server.url.replace("http:", "https:"))

    assert (seen.outcome, seen.exchange.sent_at) == (Outcome.TLS_ERROR, None)


def test_a_server_that_leaves_within_the_handshake(trusting: Transport) -> None:
    """There was no connection yet."""
    with ByteServer(Play()) as server:
        gevent.spawn(lambda: (wait_until(lambda: server._open), server.hang_up()))
        seen = ask(trusting, server.url.replace("http:", "https:"))

    assert (seen.outcome, seen.exchange.sent_at) == (Outcome.TLS_ERROR, None)
    assert seen.detail is not None
    assert "handshake" in seen.detail


def test_an_answer_larger_than_a_tls_record(trusting: Transport, tls: Tls) -> None:
    """Records, reads and events have no common borders."""
    big = C("x" * 300_000)
    writes = ((0, R + big), (0, big + C("y") * 1000), (0, F() + U(7, 2) + D))
    with ByteServer(chunked(writes), tls=tls.server) as server:
        seen = ask(trusting, server.url)

    assert (seen.outcome, seen.reply.n_answer) == (Outcome.OK, 1002)


def test_a_big_request_over_tls(trusting: Transport, tls: Tls) -> None:
    """It goes out whole."""
    body = b"x" * (8 << 20)
    with ByteServer(chunked(), tls=tls.server) as server:
        assert ask(trusting, server.url, body=body).outcome is Outcome.OK
        assert server.requests[0].body == body


@pytest.mark.parametrize(
    ("data", "then", "outcome"),
    [
        (HEAD + b"\r\n" + ANSWER, Then.CLOSE, Outcome.OK),
        (HEAD + b"\r\n" + R + C("aa"), Then.CLOSE, Outcome.TRUNCATED),
        (CHUNKED + chunk(R + C("aa")), Then.CLOSE, Outcome.RESET),
        (CHUNKED + chunk(R + C("aa")), Then.RESET, Outcome.RESET),
        (sized("429 x", b'{"error":"slow"}'), Then.CLOSE, Outcome.RATE_LIMITED),
    ],
    ids=["close-delimited", "close-delimited cut", "cut", "reset", "refusal"],
)
def test_endings_over_tls(
    trusting: Transport, tls: Tls, data: bytes, then: Then, outcome: Outcome
) -> None:
    """The same outcomes as without it."""
    play = Play(writes=((0, data), (20, b"")), then=then)
    with ByteServer(play, tls=tls.server) as server:
        assert ask(trusting, server.url).outcome is outcome


def test_a_stale_connection_over_tls(trusting: Transport, tls: Tls) -> None:
    """One fresh try, with a handshake of its own."""
    with ByteServer(chunked(), Play(then=Then.CLOSE), chunked(), tls=tls.server) as server:
        ask(trusting, server.url)
        seen = ask(trusting, server.url)

    assert (seen.outcome, seen.exchange.retries) == (Outcome.OK, 1)


def test_a_goodbye_ends_a_body_without_length(trusting: Transport, tls: Tls) -> None:
    """This server keeps the socket open until we leave; there is nothing more to wait for."""
    data = HEAD + b"\r\n" + ANSWER.removesuffix(D)
    with ByteServer(raw(data, Then.CLOSE), tls=tls.server) as server:
        seen = ask(trusting, server.url)

    assert (seen.outcome, seen.exchange.end) == (Outcome.OK, End.COMPLETE)


def test_ten_streams_over_tls_at_once(trusting: Transport, tls: Tls) -> None:
    """Each connection has its own state."""
    exchanges = []

    def one() -> None:
        exchange, answer = prepare(server.url)
        exchanges.append((exchange, answer))
        trusting.send(exchange, answer, PATIENT)

    writes = ((0, CHUNKED), *((5 * n, chunk(C("aa"))) for n in range(20)))
    play = Play(writes=(*writes, (100, chunk(F() + U(7, 20) + D) + LAST_CHUNK)))
    with ByteServer(play, tls=tls.server) as server:
        gevent.joinall([gevent.spawn(one) for _ in range(10)], raise_error=True, timeout=30)

    assert [judged(*pair).outcome for pair in exchanges] == [Outcome.OK] * 10
    assert [pair[1].reply.n_answer for pair in exchanges] == [20] * 10

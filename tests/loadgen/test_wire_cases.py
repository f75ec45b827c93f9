"""The table of answers again, over real sockets: as written, gzipped, and in small frames.

Through both transports, which therefore agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import gevent
import pytest

from collectors.records import RequestRecord
from loadgen.client import now
from loadgen.exchange import Limits
from loadgen.httpx_transport import HttpxTransport
from loadgen.target import parse_target
from loadgen.wire import WireTransport
from reference_server.byteserver import ByteServer, Play, Received, Then
from reference_server.rawhttp import LAST_CHUNK, chunk
from tests.loadgen.api_cases import API_CASES
from tests.loadgen.cases import CASES, Case, Finish, Writes, in_seven_byte_pieces
from tests.loadgen.playing import ask_for, make_client
from tests.loadgen.test_cases import expect_reading
from tests.loadgen.wiring import flushed

ALL = (*CASES, *API_CASES)
ENDINGS = {Finish.END: Then.KEEP, Finish.RESET: Then.RESET, Finish.HOLD: Then.HOLD}


def framed(case: Case, frames: Callable[[bytes], bytes], writes: Writes, encoding: str) -> Play:
    """A case as a chunked response."""
    lines = ["HTTP/1.1 200 OK", f"Content-Type: {case.content_type}"]
    head = "\r\n".join([*lines, encoding, "Transfer-Encoding: chunked", "", ""])
    end = (
        ((writes[-1][0], LAST_CHUNK),)
        if case.ending is Finish.END
        else ((writes[-1][0] + 20, b""),)
    )
    pieces = tuple((at, frames(data)) for at, data in writes)
    return Play(writes=((0, head.encode()), *pieces, *end), then=ENDINGS[case.ending])


def as_written(case: Case) -> Play:
    """One write is one chunk."""
    return framed(case, chunk, case.writes, "X-Encoding: none")


def gzipped(case: Case) -> Play:
    """Flushed after each write."""
    return framed(case, chunk, flushed(case.writes), "Content-Encoding: gzip")


def in_small_frames(case: Case) -> Play:
    """Seven bytes a chunk, in the same writes."""
    return framed(
        case,
        lambda d: b"".join(map(chunk, in_seven_byte_pieces(d))),
        case.writes,
        "X-Encoding: none",
    )


def prompt_of(received: Received) -> str:
    """What was asked, in whichever field its API has it."""
    body = json.loads(received.body)
    return str(body.get("prompt") or body.get("input") or body["messages"][0]["content"])


@pytest.fixture(
    scope="module",
    params=product((WireTransport, HttpxTransport), (as_written, gzipped, in_small_frames)),
    ids=lambda pair: f"{pair[0].__name__}-{pair[1].__name__}",
)
def records(request: pytest.FixtureRequest) -> dict[str, RequestRecord]:
    """The record of every case, all asked at once."""
    make_transport, delivery = request.param
    by_prompt = {case.name: delivery(case) for case in ALL}
    kept: list[RequestRecord] = []

    def choose(received: Received) -> Play:
        return by_prompt[prompt_of(received)]

    transport, began_at = make_transport(), now()
    with ByteServer(choose=choose) as server, pytest.MonkeyPatch.context() as patch:
        for module in ("wire", "httpx_transport"):  # a busy machine may take longer than users wait
            patch.setattr(f"loadgen.{module}.END_GRACE_S", 0.8)

        def ask(case: Case) -> None:
            idle_s = None if case.idle_ms is None else case.idle_ms / 1000
            client = make_client(
                transport,
                kept,
                limits=Limits(idle_s=idle_s, total_s=20.0),
                target=parse_target(server.url),
                began_at=began_at,
                api=case.api,
            )
            client.ask(ask_for(case), now())

        users = [gevent.spawn(ask, case) for case in ALL]
        gevent.joinall(users, timeout=30, raise_error=True)
        transport.close()
    return {record.task: record for record in kept if record.task is not None}


@pytest.mark.parametrize("case", ALL, ids=lambda c: c.name)
def test_a_case_over_a_socket(records: dict[str, RequestRecord], case: Case) -> None:
    """Counts, outcome and flags as without one; no output is earlier than it was written."""
    record = records[case.name]
    encoded = {"encoded"} & set(record.flags)
    expected = replace(case, flags=case.flags | encoded)
    if case.ending is Finish.RESET:
        expected = replace(expected, detail="Connection reset by peer")
    expect_reading(record, expected)

    assert (record.ttft_s is None) == (case.ttft_ms is None)
    if record.ttft_s is not None and case.ttft_ms is not None:
        assert record.ttft_s * 1000 > case.ttft_ms - 1  # two clocks, read one after the other

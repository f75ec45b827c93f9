"""The endpoint that fails: what it says a client must make of each answer is what ours makes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gevent
import pytest

from bench.soak_checks import disagreement
from collectors.records import Outcome, RequestRecord
from loadgen.client import Ask, now
from loadgen.exchange import Limits
from loadgen.httpx_transport import HttpxTransport
from loadgen.target import parse_target
from loadgen.wire import WireTransport
from reference_server import faults as faults_module
from reference_server.byteserver import ByteServer, Received
from reference_server.faults import FAULTS, Expected, Fault, FaultSource, Source, serve
from tests.loadgen.playing import make_client

LIMIT_S = 0.4
LIMITS = Limits(head_s=LIMIT_S, first_s=1.2 * LIMIT_S, idle_s=LIMIT_S, total_s=20.0)
SOURCE = Source(tokens=12, first_ms=20, gap_ms=4, limit_ms=LIMIT_S * 1000, good_ratio=0.0)
EACH = 4


def request(name: str, connection: int = 0, method: str = "POST") -> Received:
    """A request as the server sees it."""
    headers = {"x-request-id": name} if name else {}
    return Received(connection=connection, method=method, path="/", headers=headers, body=b"")


@pytest.fixture(
    scope="module", params=[WireTransport, pytest.param(HttpxTransport, marks=pytest.mark.slow)]
)
def played(request: pytest.FixtureRequest) -> dict[str, list[tuple[Expected, RequestRecord]]]:
    """Each fault a few times on connections that are kept, all faults at once; pairs by fault."""
    pairs: dict[str, list[tuple[Expected, RequestRecord]]] = {}

    def play(fault: Fault) -> None:
        source = FaultSource(SOURCE, (fault,))
        with serve(source) as server:
            records = ask(server, request.param())
        pairs[fault.name] = [
            (source.expected[f"{r.run_id}-{r.worker}-{r.seq}"], r) for r in records
        ]

    gevent.joinall([gevent.spawn(play, fault) for fault in FAULTS], raise_error=True)
    return pairs


def ask(server: ByteServer, transport: Any) -> list[RequestRecord]:
    """A few requests in turn."""
    records: list[RequestRecord] = []
    target = parse_target(server.url)
    client = make_client(transport, records, limits=LIMITS, target=target, began_at=now())
    for _ in range(EACH):
        client.ask(Ask(task="t", prompt="p"), now())
    transport.close()
    return records


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_a_client_makes_of_it_what_it_must(
    played: dict[str, list[tuple[Expected, RequestRecord]]], fault: Fault
) -> None:
    """Outcome, detail, output events, tokens, flags and retries."""
    assert len(played[fault.name]) == EACH
    for expected, record in played[fault.name]:
        assert expected.fault == fault.name
        assert disagreement(expected, record) is None


def test_a_stale_connection_costs_one_fresh_try(
    played: dict[str, list[tuple[Expected, RequestRecord]]],
) -> None:
    """Where the connection was kept; the first request has a new one."""
    assert [record.conn_retries for _, record in played["stale"]] == [0, 1, 1, 1]


def test_every_outcome_of_an_answer_is_among_them() -> None:
    """All but those that come before or instead of one."""
    ours = {Outcome.NOT_SENT, Outcome.CONNECT_ERROR, Outcome.TLS_ERROR}
    ours |= {Outcome.UNFINISHED, Outcome.CANCELLED}
    source = FaultSource(SOURCE)
    for number in range(1500):
        source.choose(request(f"run-w-{number}", connection=number % 7))

    assert {e.outcome for e in source.expected.values()} == {o.value for o in Outcome} - {
        o.value for o in ours
    }


def test_what_a_request_gets_hangs_on_the_seed_and_its_number() -> None:
    """Not on the run's name, nor on the order in which requests come."""

    def names(seed: int, run: str, order: list[int]) -> list[str]:
        source = FaultSource(Source(seed=seed))
        for number in order:
            source.choose(request(f"{run}-local-{number}"))
        return [source.expected[f"{run}-local-{n}"].fault for n in range(200)]

    forth, back = list(range(200)), list(range(199, -1, -1))
    assert names(1, "a", forth) == names(1, "b-c", back) != names(2, "a", forth)


def test_most_answers_are_plain_and_the_others_by_weight() -> None:
    """As many as asked for."""
    source = FaultSource(Source(good_ratio=0.7))
    for number in range(1500):
        source.choose(request(f"r-w-{number}"))
    counts = Counter(expected.fault for expected in source.expected.values())

    assert 0.65 < counts["plain"] / 1500 < 0.75
    total = sum(fault.weight for fault in FAULTS)
    for fault in FAULTS:
        share = 0.3 * fault.weight / total
        assert abs(counts[fault.name] / 1500 - share) < 4 * (share / 1500) ** 0.5


def test_a_request_without_a_name_is_answered_plainly() -> None:
    """It cannot be held against anything; neither can a look at the models."""
    source = FaultSource(SOURCE)
    play = source.choose(request(""))

    assert b"[DONE]" in b"".join(data for _, data in play.writes)
    assert b'"id":"m"' in source.choose(request("", method="GET")).writes[0][1]
    assert source.expected == {}


def test_a_second_try_is_answered_plainly() -> None:
    """It is right after a reset that may have taken the first bytes with it, and else a mistake."""
    (reset,) = [fault for fault in FAULTS if fault.name == "reset"]
    (cut,) = [fault for fault in FAULTS if fault.name == "clean-cut"]
    for fault, outcome in ((reset, "ok"), (cut, "truncated")):
        source = FaultSource(SOURCE, (fault,))
        source.choose(request("r-w-0"))
        again = source.choose(request("r-w-0", connection=1))

        assert b"[DONE]" in b"".join(data for _, data in again.writes)
        assert source.expected["r-w-0"].outcome == outcome


def test_names_are_unique() -> None:
    """A fault is known by its name."""
    names = [fault.name for fault in (*FAULTS, faults_module.PLAIN)]
    assert len(set(names)) == len(names)

"""Cases played without a socket or a clock: instants are those the case names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collectors.records import RequestRecord
from loadgen.client import Ask, Client, Endpoint
from loadgen.counts import Counter
from loadgen.errors import DecodeError
from loadgen.exchange import End, Exchange, Limits, ResponseBody, Transport
from loadgen.fingerprint import Fingerprints
from loadgen.target import Target
from tests.loadgen.cases import Case, Finish, Writes

BEGAN_AT = 1000.0
SENT_AT = 1002.0
DUE_AT = 1001.5
TARGET = Target("127.0.0.1", 8000, False, "")


class PlayedTransport:
    """Hands a case's writes to the body as a socket would, each as one read."""

    def __init__(
        self, case: Case, writes: Writes, headers: Mapping[str, str] | None = None
    ) -> None:
        self._case = case
        self._writes = writes
        self._headers = headers or {}

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        """Play the case; every instant is a scripted one."""
        headers = {"content-type": self._case.content_type, **self._headers}
        exchange.sent_at, exchange.status, exchange.headers = SENT_AT, 200, headers
        exchange.head_at = SENT_AT + self._writes[0][0] / 1000
        at = exchange.head_at
        body.head(200, headers)
        try:
            for read, (at_ms, data) in enumerate(self._writes, start=1):
                at = SENT_AT + at_ms / 1000
                if _idle_too_long(body, at, limits):
                    break
                if body.data(data, at, read, 0.0) and exchange.done_at is None:
                    exchange.done_at = at
        except DecodeError as error:
            exchange.end, exchange.detail = End.MALFORMED, str(error)
        else:
            self._end(exchange, at)
        exchange.ended_at = at

    def close(self) -> None:
        """Nothing is open."""

    def _end(self, exchange: Exchange, at: float) -> None:
        if self._case.ending is Finish.RESET:
            exchange.end, exchange.detail = End.RESET, "the connection was closed"
        elif self._case.ending is Finish.HOLD and exchange.done_at is None:
            exchange.end, exchange.detail = End.TIMEOUT, "idle"
        else:
            exchange.end = End.COMPLETE
            exchange.done_at = exchange.done_at or at


class Deaf:
    """A transport that ends every exchange in the same way."""

    def __init__(self, **ending: Any) -> None:
        self._ending = ending
        self.requests: list[bytes] = []

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        """End the exchange as told."""
        self.requests.append(exchange.request.head + exchange.request.body)
        for name, value in self._ending.items():
            setattr(exchange, name, value)

    def close(self) -> None:
        """Nothing is open."""


def make_client(
    transport: Transport,
    records: list[RequestRecord],
    *,
    limits: Limits | None = None,
    target: Target = TARGET,
    headers: Mapping[str, str] | None = None,
    began_at: float = BEGAN_AT,
    fingerprints: Fingerprints | None = None,
    counter: Counter | None = None,
    **endpoint: Any,
) -> Client:
    """A client of ``transport`` that appends what it records."""
    return Client(
        transport,
        Endpoint(target=target, model="m", headers=headers or {}, **endpoint),
        limits or Limits(),
        run_id="run",
        scenario="chat",
        worker="w0",
        began_at=began_at,
        emit=records.append,
        fingerprints=fingerprints,
        counter=counter,
    )


def play(case: Case, writes: Writes | None = None) -> RequestRecord:
    """The record that a case leaves."""
    transport = PlayedTransport(case, case.writes if writes is None else writes)
    idle_s = None if case.idle_ms is None else case.idle_ms / 1000
    taken = Fingerprints(bytes(32))
    client = make_client(
        transport, [], limits=Limits(idle_s=idle_s), api=case.api, fingerprints=taken
    )
    return client.ask(ask_for(case), DUE_AT)


def ask_for(case: Case) -> Ask:
    """What a client would have asked to be answered so; the prompt is the case's name."""
    return Ask(
        task=case.name, prompt=case.name, extra={"n": case.choices} if case.choices > 1 else {}
    )


def _idle_too_long(body: ResponseBody, at: float, limits: Limits) -> bool:
    return (
        limits.idle_s is not None
        and body.last_output_at is not None
        and at > body.last_output_at + limits.idle_s
    )

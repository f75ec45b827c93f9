"""What a client sends, and that everything due leaves exactly one record."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from collectors.records import Outcome, RequestRecord
from loadgen.client import Ask
from loadgen.dialects import DIALECTS
from loadgen.errors import OptionError
from loadgen.exchange import End, Exchange, Limits, ResponseBody
from loadgen.fingerprint import Fingerprints
from tests.loadgen.cases import CASES
from tests.loadgen.playing import DUE_AT, SENT_AT, Deaf, PlayedTransport, make_client, play

PLAIN = CASES[0]
SENT: dict[str, Any] = {"sent_at": SENT_AT, "ended_at": SENT_AT + 1}


def sent(ask: Ask, **endpoint: Any) -> tuple[list[str], dict[str, Any]]:
    """Lines of the head, and the body, of what goes over the wire for ``ask``."""
    transport = Deaf(end=End.RESET, **SENT)
    make_client(transport, [], **endpoint).ask(ask, DUE_AT)
    head, _, body = transport.requests[0].rpartition(b"\r\n")
    return head.decode("latin-1").split("\r\n"), orjson.loads(body)


def test_a_chat_request() -> None:
    """Streamed, with usage asked for."""
    head, body = sent(Ask(task="t", prompt="hi", max_tokens=9))

    assert head[0] == "POST /v1/chat/completions HTTP/1.1"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("ask", "api", "expected"),
    [
        (
            Ask(task="t", prompt="hi", stream=False),
            "completions",
            {"model": "m", "prompt": "hi"},
        ),
        (
            Ask(task="t", prompt=[{"role": "system", "content": "x"}], stream=False),
            "chat",
            {"model": "m", "messages": [{"role": "system", "content": "x"}]},
        ),
        (
            Ask(task="t", prompt="hi", stream=False, max_tokens=9, extra={"max_tokens": 1, "n": 2}),
            "chat",
            {
                "model": "m",
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 1,
                "n": 2,
            },
        ),
        (
            Ask(task="t", prompt="hi", max_tokens=9),
            "responses",
            {"model": "m", "input": "hi", "max_output_tokens": 9, "stream": True},
        ),
        (
            Ask(task="t", prompt="hi", max_tokens=9),
            "messages",
            {
                "model": "m",
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 9,
                "stream": True,
            },
        ),
        (
            Ask(task="t", prompt="hi", max_tokens=9, extra={"encoding_format": "base64"}),
            "embeddings",
            {"model": "m", "input": "hi", "encoding_format": "base64"},
        ),
    ],
)
def test_further_requests(ask: Ask, api: str, expected: dict[str, Any]) -> None:
    """Of the other APIs, of messages, and with fields of the user's own, which win."""
    assert sent(ask, api=api)[1] == expected


@pytest.mark.parametrize(
    ("api", "path"),
    [
        ("completions", "/v1/completions"),
        ("responses", "/v1/responses"),
        ("messages", "/v1/messages"),
        ("embeddings", "/v1/embeddings"),
    ],
)
def test_each_api_has_its_path(api: str, path: str) -> None:
    """And the version header goes to the one API that refuses requests without it."""
    head, _ = sent(Ask(task="t", prompt="hi"), api=api)

    assert head[0] == f"POST {path} HTTP/1.1"
    assert ("anthropic-version: 2023-06-01" in head) == (api == "messages")


@pytest.mark.parametrize(
    ("api", "field", "limit"),
    [
        ("chat", "max_tokens", None),
        ("responses", "max_output_tokens", None),
        ("messages", "max_tokens", 1024),
        ("embeddings", "max_tokens", None),
    ],
)
def test_the_record_tells_the_limit_that_was_sent(api: str, field: str, limit: int | None) -> None:
    """Without one asked for only the Messages API gets one: it refuses requests that have none."""
    transport = Deaf(end=End.RESET, **SENT)
    record = make_client(transport, [], api=api).ask(Ask(task="t", prompt="hi"), DUE_AT)
    body = orjson.loads(transport.requests[0].rpartition(b"\r\n")[2])

    assert (body.get(field), record.asked_output_tokens) == (limit, limit)


def test_no_limit_is_recorded_where_no_tokens_come_out() -> None:
    """A scenario's default for answers says nothing about embeddings."""
    client = make_client(Deaf(end=End.RESET, **SENT), [], api="embeddings")

    assert client.ask(Ask(task="t", prompt="hi", max_tokens=9), DUE_AT).asked_output_tokens is None


@pytest.mark.parametrize("api", ["responses", "messages"])
def test_one_answer_is_complete_where_an_api_knows_no_more(api: str) -> None:
    """However many are asked for, since such a field is ignored there."""
    case = next(c for c in CASES if c.api == api)
    client = make_client(PlayedTransport(case, case.writes), [], api=api)

    assert client.ask(Ask(task="t", prompt="hi", extra={"n": 3}), DUE_AT).outcome is Outcome.OK


def test_headers_that_bend_the_measurement_are_not_sent() -> None:
    """Compressed answers are declined, and nothing waits for a 100."""
    head, _ = sent(Ask(task="t", prompt="hi"))

    assert "Accept-Encoding: identity" in head
    assert not any(line.lower().startswith("expect") for line in head)


def test_a_header_of_the_users_replaces_ours() -> None:
    """However its name is written."""
    head, _ = sent(Ask(task="t", prompt="hi"), headers={"user-agent": "theirs", "X-A": "1"})

    assert [line for line in head if line.lower().startswith("user-agent")] == [
        "user-agent: theirs"
    ]
    assert "X-A: 1" in head


def test_a_request_in_another_dialect() -> None:
    """Path, key and token limit are the dialect's; what the user adds goes out as it is."""
    head, body = sent(
        Ask(task="t", prompt="hi", max_tokens=9, extra={"max_tokens": 5}),
        dialect=DIALECTS["azure"],
        key="k",
    )

    version = DIALECTS["azure"].api_version
    assert head[0].split()[1] == f"/openai/deployments/m/chat/completions?api-version={version}"
    assert "api-key: k" in head
    assert (body["max_completion_tokens"], body["max_tokens"]) == (9, 5)


@pytest.mark.parametrize(("value", "flagged"), [("HIT", True), ("MISS", False)])
def test_an_answer_from_a_gateways_cache_is_flagged(value: str, flagged: bool) -> None:
    """No model was asked, so its times are no model's."""
    transport = Deaf(end=End.RESET, headers={"helicone-cache": value}, **SENT)
    client = make_client(transport, [], dialect=DIALECTS["helicone"])

    record = client.ask(Ask(task="t", prompt="hi"), DUE_AT)
    assert ("gateway_cache" in record.flags) == flagged
    assert record.cache_status == value.lower()


@pytest.mark.parametrize(("status", "wait_s"), [(429, 1.5), (503, 1.5), (200, None)])
def test_what_a_refusal_asks_to_wait_is_kept(status: int, wait_s: float | None) -> None:
    """In seconds; an answer that is none asks for nothing."""
    headers = {"retry-after": "1.5"}
    transport = Deaf(end=End.COMPLETE, status=status, http_version="1.1", headers=headers, **SENT)
    record = make_client(transport, []).ask(Ask(task="t", prompt="hi"), DUE_AT)

    assert (record.retry_after_s, record.http_version) == (wait_s, "1.1")


@pytest.mark.parametrize(
    ("headers", "events", "usd"),
    [
        ({}, b'{"choices":[],"usage":{"completion_tokens":1,"cost":0.95}}', 0.95),
        ({}, b'{"choices":[],"cost":"0.5"}', 0.5),
        ({}, b'{"choices":[],"cost":"0"}', 0.0),
        ({"x-litellm-response-cost": "0.0012"}, b"{}", 0.0012),
        ({"x-litellm-response-cost": "2"}, b'{"usage":{"completion_tokens":1,"cost":3}}', 3.0),
        ({"x-litellm-response-cost": "None"}, b"{}", None),
        ({}, b'{"choices":[],"usage":{"completion_tokens":1,"cost":{"total":1}}}', None),
        ({}, b'{"choices":[],"cost":-1}', None),
        ({}, b'{"choices":[],"cost":true}', None),
        ({}, b'{"choices":[],"cost":"1e999"}', None),
        ({}, b"{}", None),
    ],
)
def test_what_a_server_says_a_request_cost(
    headers: dict[str, str], events: bytes, usd: float | None
) -> None:
    """In usage, in an event of its own or in a header; no cost is not a cost of 0."""
    transport = PlayedTransport(PLAIN, [(1.0, b"data: %s\n\ndata: [DONE]\n\n" % events)], headers)
    client = make_client(transport, [], dialect=DIALECTS["litellm"])

    assert client.ask(Ask(task="t", prompt="hi"), DUE_AT).server_cost_usd == usd


def test_prompts_and_answers_leave_fingerprints() -> None:
    """The same ones whenever the same is asked and answered; no word of either."""
    taken = Fingerprints(bytes(32))
    client = make_client(PlayedTransport(PLAIN, PLAIN.writes), [], fingerprints=taken)
    first, again, other = (client.ask(Ask(task="t", prompt=p), DUE_AT) for p in ("a", "a", "b"))

    assert (first.prompt_hash, first.prompt_sketch) == taken.prompt("a")
    assert first.prompt_hash == again.prompt_hash != other.prompt_hash
    assert first.answer_hash == again.answer_hash == other.answer_hash is not None
    assert first.answer_chain == b""


def test_what_was_sent_is_fingerprinted() -> None:
    """Fields of the user's replace ours in the request, and so in its fingerprint."""
    taken = Fingerprints(bytes(32))
    client = make_client(PlayedTransport(PLAIN, PLAIN.writes), [], fingerprints=taken)
    theirs = [{"role": "user", "content": "theirs"}]

    record = client.ask(Ask(task="t", prompt="ours", extra={"messages": theirs}), DUE_AT)
    assert record.prompt_hash == taken.prompt("theirs")[0]


def test_without_a_salt_there_are_no_fingerprints() -> None:
    """Absent: an unkeyed hash could be tried against guesses."""
    record = make_client(PlayedTransport(PLAIN, PLAIN.writes), []).ask(
        Ask(task="t", prompt="a"), DUE_AT
    )
    fingerprints = (record.prompt_hash, record.prompt_sketch, record.answer_hash)
    assert (*fingerprints, record.answer_chain) == (None,) * 4


def test_a_request_that_is_refused_has_a_prompt_and_no_answer() -> None:
    """What was asked is known of every request that was due."""
    taken = Fingerprints(bytes(32))
    transport = Deaf(end=End.COMPLETE, status=429, **SENT)
    record = make_client(transport, [], fingerprints=taken).ask(Ask(task="t", prompt="a"), DUE_AT)

    assert record.prompt_hash == taken.prompt("a")[0]
    assert (record.answer_hash, record.answer_chain) == (None, None)


@pytest.mark.parametrize("n", [None, "two", 0, -1, 1.5, []])
def test_nonsense_for_n_is_the_servers_business(n: Any) -> None:
    """It is sent as it is, and one answer makes the reply complete."""
    client = make_client(PlayedTransport(PLAIN, PLAIN.writes), [])

    assert client.ask(Ask(task="t", prompt="hi", extra={"n": n}), DUE_AT).outcome is Outcome.OK


def test_a_record_tells_what_was_asked() -> None:
    """Run, place in it, task, model, limit: everything but the answer."""
    client = make_client(PlayedTransport(PLAIN, PLAIN.writes), [])
    records = [client.ask(Ask(task="t", prompt="hi", max_tokens=9), DUE_AT) for _ in range(2)]

    assert [r.seq for r in records] == [0, 1]
    assert client.asked == 2
    first = records[0]
    assert (first.run_id, first.worker, first.scenario, first.task) == ("run", "w0", "chat", "t")
    assert (first.endpoint, first.model, first.api) == ("http://127.0.0.1:8000", "m", "chat")
    assert first.asked_output_tokens == 9


def test_instants_are_seconds_since_the_run_began() -> None:
    """The process's own clock does not leave it."""
    record = play(PLAIN)

    assert (record.due_at_s, record.sent_at_s) == (1.5, 2.0)
    assert record.first_byte_at_s == pytest.approx(2.005)
    assert record.first_token_at_s == pytest.approx(2.3)
    assert record.last_token_at_s == pytest.approx(2.32)
    assert record.done_at_s == pytest.approx(2.342)
    assert record.gaps_s is not None
    assert list(record.gaps_s) == pytest.approx([0.02])


def test_a_request_never_sent_has_no_instants_but_due() -> None:
    """Not even an end: nothing of it was there to be watched."""
    client = make_client(Deaf(end=End.ABANDONED, ended_at=SENT_AT), [])
    record = client.ask(Ask(task="t", prompt="hi"), DUE_AT)

    assert record.outcome is Outcome.NOT_SENT
    assert (record.sent_at_s, record.ended_at_s, record.gaps_s) == (None, None, None)


class Killed:
    """A transport whose caller is killed while it waits."""

    def __init__(self) -> None:
        self.seen_open: list[int] = []
        self.records: list[RequestRecord] = []
        self.client = make_client(self, self.records)

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        """Leave the exchange as a killed greenlet does."""
        self.seen_open = list(self.client.open)
        exchange.sent_at = SENT_AT
        exchange.end, exchange.ended_at = End.ABANDONED, SENT_AT + 1
        raise KeyboardInterrupt

    def close(self) -> None:
        """Nothing is open."""


def test_a_request_cut_by_the_end_of_the_run_leaves_a_record() -> None:
    """While it was open it could be seen to be, and afterwards not."""
    killed = Killed()
    with pytest.raises(KeyboardInterrupt):
        killed.client.ask(Ask(task="t", prompt="hi"), DUE_AT)

    assert killed.seen_open == [0]
    assert killed.client.open == {}
    assert [r.outcome for r in killed.records] == [Outcome.UNFINISHED]
    assert killed.records[0].ended_at_s == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("exchange", "flags"),
    [
        ({"retries": 1}, ("stale_connection",)),
        ({"headers": {"content-encoding": "gzip"}}, ("encoded",)),
        ({}, ()),
    ],
)
def test_oddities_of_the_transport_are_flags(
    exchange: dict[str, Any], flags: tuple[str, ...]
) -> None:
    """Whatever the outcome."""
    client = make_client(Deaf(end=End.RESET, **SENT, **exchange), [])

    assert client.ask(Ask(task="t", prompt="hi"), DUE_AT).flags == flags


def test_a_stream_of_nonsense_says_so() -> None:
    """Without output the other flags would say little."""
    case = CASES[0]
    client = make_client(PlayedTransport(case, ((5, b"data: {oops\n\n"),)), [])
    record = client.ask(Ask(task="t", prompt="hi"), DUE_AT)

    assert (record.outcome, record.flags) == (Outcome.TRUNCATED, ("bad_json",))


class Broken(PlayedTransport):
    """Plays the case, then loses the connection."""

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        """As the case, but for its end."""
        super().send(exchange, body, limits)
        exchange.end, exchange.done_at = End.RESET, None


def test_a_whole_answer_on_a_broken_connection_is_flagged() -> None:
    """The user lost nothing, the server's operator may want to know."""
    record = make_client(Broken(PLAIN, PLAIN.writes), []).ask(Ask(task="t", prompt="hi"), DUE_AT)

    assert (record.outcome, record.done_at_s) == (Outcome.OK, None)
    assert "dirty_close" in record.flags


@pytest.mark.parametrize("secret", ["sk-canary-1234567890", "plainsecretword"])
def test_no_secret_in_the_words_of_a_record(secret: str) -> None:
    """A server may quote the key it refuses, and the cut to length must not leave half of one."""
    words = f"{'x' * 490} Incorrect API key provided: {secret}. " + "y" * 100
    client = make_client(Deaf(end=End.RESET, detail=words, **SENT), [], secrets=(secret,))
    detail = client.ask(Ask(task="t", prompt="hi"), DUE_AT).detail

    assert detail is not None
    assert len(detail) == 500
    assert secret[:6] not in detail


def test_what_cannot_be_sent_is_the_scenarios_fault_and_takes_no_number() -> None:
    """A field that is no JSON is one sentence naming the task; the next request is number 0."""
    records: list[RequestRecord] = []
    client = make_client(Deaf(end=End.RESET, **SENT), records)
    with pytest.raises(OptionError, match=r"Task 'sum' asks with a field that is no JSON: .*set"):
        client.ask(Ask(task="sum", prompt="hi", extra={"stop": {"a", "b"}}), DUE_AT)
    assert client.asked == 0
    client.ask(Ask(task="sum", prompt="hi"), DUE_AT)
    assert [r.seq for r in records] == [0]

"""Every fault and quirk over a real socket: what our own client makes of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import httpx
import pytest

from collectors.records import Outcome, OutputEvents, RequestRecord
from loadgen.client import Ask
from loadgen.exchange import Limits
from loadgen.fingerprint import Fingerprints
from loadgen.target import parse_target
from loadgen.wire import WireTransport
from reference_server.inject import Fault
from reference_server.process import SimProcess
from reference_server.quirks import Quirk
from tests.loadgen.playing import make_client
from tests.reference_server.conftest import chat, events, truth_of

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 8
PROMPT = "How are you?"
FAULTS: dict[str, tuple[Outcome, set[str]]] = {
    "429": (Outcome.RATE_LIMITED, set()),
    "503": (Outcome.OVERLOADED, set()),
    "529:3s": (Outcome.OVERLOADED, set()),
    "500": (Outcome.HTTP_ERROR, set()),
    "redirect": (Outcome.HTTP_ERROR, set()),
    "held-open:50ms": (Outcome.OK, set()),
    "drop": (Outcome.RESET, set()),
    "empty": (Outcome.MALFORMED, set()),
    "html": (Outcome.MALFORMED, set()),
    "json": (Outcome.OK, {"not_streamed"}),
    "slow-head:30ms": (Outcome.OK, set()),
    "stall:100ms": (Outcome.OK, set()),
    "truncate": (Outcome.TRUNCATED, {"no_done", "no_usage"}),
    "cut": (Outcome.RESET, {"no_done", "no_usage"}),
    "reset": (Outcome.RESET, {"no_done", "no_usage"}),
    "bad-json": (Outcome.OK, {"bad_json"}),
    "no-finish": (Outcome.OK, {"no_finish", "no_usage"}),
    "error-first": (Outcome.IN_BAND_ERROR, set()),
    "error-object": (Outcome.IN_BAND_ERROR, {"no_usage"}),
    "error-string": (Outcome.IN_BAND_ERROR, {"no_usage"}),
    "error-flat": (Outcome.IN_BAND_ERROR, {"no_usage"}),
    "error-event": (Outcome.IN_BAND_ERROR, {"no_usage"}),
    "error-field": (Outcome.IN_BAND_ERROR, {"no_usage"}),
    "error-array": (Outcome.IN_BAND_ERROR, {"no_usage"}),
    "error-finish": (Outcome.IN_BAND_ERROR, {"no_usage"}),
}
OF_THE_MACHINE = {"coalesced", "first_coalesced"}  # where it is busy
HALF = {name for name, (_, flags) in FAULTS.items() if "no_usage" in flags}
QUIRKS: dict[Quirk, set[str]] = {quirk: set[str]() for quirk in Quirk} | {
    Quirk.NO_DONE: {"no_done"},
    Quirk.NO_USAGE: {"no_usage"},
    Quirk.ROLE_EARLY: {"early_event"},
    Quirk.MERGED_EVENTS: {"coalesced"},
    Quirk.AFTER_DONE: {"after_done"},
    Quirk.UNTERMINATED: {"no_done", "unterminated_event"},
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A simulator with room for all, whose first token takes 60 ms and the others 10 ms."""
    with SimProcess(
        *("--model", "m", "--max-num-seqs", "64", "--prefill-base", "60ms"),
        *("--prefill-per-token", "0ms", "--decode-base", "10ms", "--decode-per-sequence", "0ms"),
    ) as process:
        yield process.url


def ask(
    transport: WireTransport,
    url: str,
    fault: str | None,
    *,
    api: str = "chat",
    extra: dict[str, Any] | None = None,
    **limits: Any,
) -> RequestRecord:
    """The record of one request that asks for a fault."""
    headers = {} if fault is None else {"X-Fault": fault}
    client = make_client(
        transport,
        [],
        target=parse_target(url),
        limits=Limits(**{"total_s": 20.0, **limits}),
        headers=headers,
        began_at=time.monotonic(),
        fingerprints=Fingerprints(bytes(32)),
        api=api,
    )
    asked = Ask(task="t", prompt=PROMPT, max_tokens=TOKENS, extra=extra or {})
    return client.ask(asked, time.monotonic())


@pytest.fixture(scope="module")
def records(url: str) -> dict[str | None, RequestRecord]:
    """What each fault and quirk leaves, all asked at once; under None, what none leaves."""
    transport = WireTransport()
    names = [None, *FAULTS, *Quirk]
    tasks = [gevent.spawn(ask, transport, url, name) for name in names]
    gevent.joinall(tasks, timeout=30, raise_error=True)
    transport.close()
    return dict(zip(names, (task.value for task in tasks), strict=True))


def test_the_tables_have_every_fault() -> None:
    """So a new one cannot go untested."""
    assert {name.partition(":")[0] for name in FAULTS} == set(Fault)


def test_the_page_names_every_fault_and_quirk() -> None:
    """So that what can be asked for can be looked up."""
    page = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")

    assert {kind for kind in (*Fault, *Quirk) if f"`{kind}`" not in page} == set()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_recorded_as_what_it_is(
    records: dict[str | None, RequestRecord], name: str
) -> None:
    """The outcome that the design names for it, and the flags that tell more."""
    record, (outcome, flags) = records[name], FAULTS[name]
    plain = set(records[None].flags)

    assert record.outcome is outcome, record.detail
    assert flags <= set(record.flags)
    if outcome is Outcome.OK:
        assert set(record.flags) <= plain | flags | OF_THE_MACHINE


@pytest.mark.parametrize("name", sorted(HALF))
def test_what_is_cut_is_cut_halfway(records: dict[str | None, RequestRecord], name: str) -> None:
    """Four of eight tokens have come by then; the partial answer is kept."""
    events = records[name].output_events

    assert events is not None
    assert events.answer == TOKENS // 2


def test_the_truth_log_says_which_request_got_which_fault(
    records: dict[str | None, RequestRecord], url: str
) -> None:
    """Under the client's own id, and how it ended."""
    assert records
    headers = {"X-Request-Id": "mine", "X-Fault": "truncate"}
    httpx.post(f"{url}/v1/chat/completions", json=chat(model="m", max_tokens=2), headers=headers)
    logged = httpx.get(f"{url}/truth").json()["requests"]
    mine = truth_of(url, "mine")
    outcomes: dict[str, set[str]] = {}
    for row in logged:
        if row["fault"] is not None:
            outcomes.setdefault(row["outcome"], set()).add(row["fault"].partition(":")[0])

    assert (mine["fault"], mine["outcome"]) == ("truncate", "broken")
    assert outcomes["refused"] == {"429", "503", "529", "500"}
    assert outcomes["finished"] - set(Quirk) == {
        "json",
        "slow-head",
        "stall",
        "bad-json",
        "held-open",
    }
    assert set(Fault) <= set.union(*outcomes.values())


@pytest.mark.parametrize("quirk", Quirk)
def test_a_quirk_leaves_the_answer_whole(
    records: dict[str | None, RequestRecord], quirk: Quirk
) -> None:
    """The same words, the same number of tokens, and the flag that tells of it, if there is one."""
    record, plain = records[quirk], records[None]
    flags = QUIRKS[quirk]

    assert record.outcome is Outcome.OK
    assert record.answer_hash == plain.answer_hash
    assert record.output_tokens == (None if quirk is Quirk.NO_USAGE else TOKENS)
    assert flags <= set(record.flags)
    assert ("early_head" in record.flags) == (quirk is not Quirk.LATE_HEAD)


def test_faults_show_in_what_was_measured(records: dict[str | None, RequestRecord]) -> None:
    """A stall is a gap, a refusal says when to come back, errors are told in words."""
    stalled, refused = records["stall:100ms"], records["529:3s"]

    assert stalled.last_token_at_s is not None
    assert stalled.first_token_at_s is not None
    assert stalled.last_token_at_s - stalled.first_token_at_s > 0.1
    assert refused.retry_after_s == 3
    assert "this fault was asked for" in (records["error-string"].detail or "")


@pytest.mark.parametrize(("fault", "limit"), [("slow-head:5s", "head_s"), ("stall:5s", "idle_s")])
def test_what_is_late_beyond_a_limit_is_a_timeout(url: str, fault: str, limit: str) -> None:
    """The limit that it runs into."""
    transport = WireTransport()
    record = ask(transport, url, fault, **{limit: 0.15})
    transport.close()

    assert (record.outcome, record.detail) == (Outcome.TIMEOUT, limit.removesuffix("_s"))


@pytest.mark.parametrize(
    ("api", "fault", "outcome"),
    [
        ("completions", None, Outcome.OK),
        ("responses", None, Outcome.OK),
        ("embeddings", None, Outcome.OK),
        ("messages", None, Outcome.OK),
        ("messages", "truncate", Outcome.TRUNCATED),
        ("messages", "reset", Outcome.RESET),
        ("messages", "stall:20ms", Outcome.OK),
        ("messages", "error-event", Outcome.IN_BAND_ERROR),
        ("messages", "429", Outcome.RATE_LIMITED),
        ("messages", "json", Outcome.OK),
        ("responses", "truncate", Outcome.TRUNCATED),
        ("responses", "reset", Outcome.RESET),
        ("responses", "error-event", Outcome.IN_BAND_ERROR),
        ("embeddings", "reset", Outcome.RESET),
        ("embeddings", "truncate", Outcome.MALFORMED),
        ("embeddings", "429", Outcome.RATE_LIMITED),
        ("embeddings", "error-string", Outcome.IN_BAND_ERROR),
    ],
)
def test_other_apis_have_faults_too(
    url: str, api: str, fault: str | None, outcome: Outcome
) -> None:
    """And whole answers without one, with their tokens counted by the server."""
    transport = WireTransport()
    record = ask(transport, url, fault, api=api)
    transport.close()

    assert record.outcome is outcome
    if fault is None:
        assert record.input_tokens
        assert record.output_tokens == (None if api == "embeddings" else TOKENS)


def test_an_error_can_be_all_that_a_stream_says(url: str) -> None:
    """No role event before it, as where vLLM's queue is full."""
    request = chat(model="m", max_tokens=4, stream=True)
    headers = {"X-Fault": "error-first"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=request, headers=headers)
    error, end = events(answer.text)

    assert (answer.status_code, error["error"]["code"], end) == (200, 500, "[DONE]")


def test_what_an_answer_is_made_of_is_recorded_as_that(url: str) -> None:
    """Choices, reasoning, a tool call: each in its own count, all tokens in usage."""
    tool = {"type": "function", "function": {"name": "weather"}}
    transport = WireTransport()
    several = ask(transport, url, "split-events", extra={"n": 3})
    thought = ask(transport, url, None, extra={"reasoning_effort": "low"})
    called = ask(transport, url, None, extra={"tools": [tool]})
    transport.close()

    assert (several.outcome, several.output_tokens) == (Outcome.OK, 3 * TOKENS)
    assert several.finish_reasons == ("length",) * 3
    assert thought.output_events == OutputEvents(answer=4, reasoning=4, tool=0, hidden=0)
    assert thought.reasoning_tokens == 4
    assert thought.first_answer_at_s is not None
    assert thought.first_token_at_s is not None
    assert thought.first_answer_at_s > thought.first_token_at_s
    assert called.output_events == OutputEvents(answer=0, reasoning=0, tool=5, hidden=0)
    assert (called.finish_reasons, called.output_tokens) == (("tool_calls",), TOKENS)


def test_the_admin_endpoint_changes_faults_while_running(url: str) -> None:
    """Every request fails, then none; what was given is counted."""
    post = f"{url}/v1/chat/completions"
    httpx.post(f"{url}/faults", json={"faults": ["503:1"]})
    failed = httpx.post(post, json=chat(model="m", max_tokens=1))
    shown = httpx.get(f"{url}/faults").json()
    httpx.post(f"{url}/faults", json={})
    after = httpx.post(post, json=chat(model="m", max_tokens=1))

    assert (failed.status_code, failed.headers["retry-after"]) == (503, "1")
    assert shown == {"faults": ["503:1"], "seed": 0, "given": {"503": 1}}
    assert after.status_code == 200


@pytest.mark.parametrize("body", [b"{", b'{"faults": ["reset:2"]}', b'{"faults": ["nonsense:1"]}'])
def test_a_plan_that_makes_no_sense_changes_nothing(url: str, body: bytes) -> None:
    """400, and one sentence."""
    answer = httpx.post(f"{url}/faults", content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith(".")
    assert httpx.get(f"{url}/faults").json()["faults"] == []


def test_a_fault_nobody_knows_is_400(url: str) -> None:
    """Rather than an answer that the client takes for the fault's."""
    headers = {"X-Fault": "nonsense"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=chat(model="m"), headers=headers)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("There is no fault 'nonsense'; known are:")

"""The doctor's findings against servers of many makes, over real sockets."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from loadgen.diagnosis import document, text
from loadgen.doctor import Findings, examine
from loadgen.errors import TargetError
from loadgen.options import read_settings
from loadgen.prognosis import measures, misses
from loadgen.transports import make_transport
from reference_server.byteserver import ByteServer, Play
from reference_server.process import SimProcess
from tests.loadgen.cases import block_delta, chunk, content, counts, finish, sse, typed
from tests.loadgen.tokenizer_files import saved, word_tokenizer
from tests.loadgen.vendors import (
    ANSWER,
    DONE,
    NOT_FOUND,
    ROLE,
    USAGE,
    WHOLE,
    answer,
    bodies,
    model_list,
    page,
    refusal,
    stream,
    vendor,
)
from tests.loadgen.wiring import HEAD, chunked, raw, sized

KEY = "c4narysecret9"
ENVIRON = {"KEY": KEY}
Reply = Callable[[dict[str, Any]], Play]


def look(url: str, **options: Any) -> Findings:
    """What the doctor finds."""
    settings = read_settings(SimpleNamespace(**options), url, ENVIRON)
    transport = make_transport(settings)
    try:
        return examine(settings, transport)
    finally:
        transport.close()


def examined(
    reply: Reply | Play = answer, pages: Mapping[str, Play] | None = None, **options: Any
) -> tuple[Findings, list[dict[str, Any]]]:
    """Findings about a server with that reply, and the bodies it was sent."""
    replies = (lambda _: reply) if isinstance(reply, Play) else reply
    with vendor(replies, pages=pages) as server:
        findings = look(server.url, **{"model": "m", **options})
        return findings, bodies(server)


def says(sentences: list[str], words: str) -> bool:
    """Whether one of the sentences holds the words."""
    return any(words in sentence for sentence in sentences)


# -- a server like ours ------------------------------------------------------------------------


def test_the_simulator() -> None:
    """It speaks vLLM's dialect, and nearly everything can be measured against it."""
    with SimProcess("--metronome", "--ttft", "20ms", "--itl", "2ms") as server:
        findings = look(server.url)

    assert findings.usable
    assert findings.endpoint.dialect.name in ("vllm", "generic")
    assert findings.asked <= 4
    assert findings.refused == ()
    assert says(measures(findings), "TTFT, from sent to the first output")
    assert says(measures(findings), "24 tokens, one each")
    assert says(measures(findings), "Tokens:")


def test_what_is_asked_of_an_unknown_server() -> None:
    """Everything worth having, then what a run asks with the same prompt, then that unstreamed."""
    findings, asked = examined()

    wide, plain, whole = asked
    assert {"ignore_eos", "min_tokens", "temperature"} <= set(wide)
    assert wide["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert set(plain) == {"model", "messages", "max_tokens", "stream", "stream_options"}
    assert "stream" not in whole
    assert wide["messages"] == plain["messages"]
    assert 8 <= plain["max_tokens"] <= 32
    assert findings.endpoint.dialect.name == "generic"


def test_two_looks_do_not_share_a_prompt() -> None:
    """The second would find what the first one left in a cache."""
    assert examined()[1][0]["messages"] != examined()[1][0]["messages"]


# -- refusals ----------------------------------------------------------------------------------


def refusing(*names: str, status: str = "400 Bad Request") -> Reply:
    """A server that knows none of these fields, and names the first it finds."""

    def reply(asked: dict[str, Any]) -> Play:
        body = {**asked, **(asked.get("stream_options") or {})}
        for name in names:
            if name in body:
                return refusal(status, {"error": {"message": f"unknown field {name}"}})
        return answer(asked)

    return reply


def test_stream_options_refused() -> None:
    """The run does without, and cannot know its tokens where no usage comes of itself."""
    bare = stream(ROLE, content("a"), content("b"), finish(), DONE)
    reply = refusing("stream_options")
    findings, asked = examined(
        lambda body: bare if body.get("stream") and "stream_options" not in body else reply(body)
    )

    assert findings.usable
    assert not findings.endpoint.dialect.include_usage
    assert [r.left_out for r in findings.refused] == [("stream_options",)]
    assert says(misses(findings), "Tokens, tokens/s and cost by tokens: no usage came")
    assert says(misses(findings), "with --tokenizer FILE a run counts visible output itself, but")
    assert all("stream_options" not in body for body in asked[1:])


def test_a_tokenizer_counts_what_is_not_told(tmp_path: Path) -> None:
    """The findings say so, and judge nothing by it that takes the server's own count."""
    path = saved(word_tokenizer(), tmp_path)
    findings, _ = examined(
        stream(ROLE, content("Hello "), content("world"), finish()), tokenizer=path
    )

    assert says(measures(findings), "Tokens: - in, 2 out, counted here from visible text")
    assert says(misses(findings), "taken, but without usage nobody can tell")
    assert document(findings)["tokens"]["source"] == "tokenizer"


@pytest.mark.parametrize(
    ("api", "reply", "words"),
    [
        (
            "completions",
            stream(sse({"choices": [{"text": "a", "finish_reason": "stop"}]})),
            "prompts",
        ),
        ("embeddings", page({"data": [{"embedding": [0.1]}]}), "the input itself"),
    ],
)
def test_what_a_tokenizer_would_add_depends_on_the_api(api: str, reply: Play, words: str) -> None:
    """A prompt is counted where it is sent as it is."""
    findings, _ = examined(reply, api=api)

    assert says(misses(findings), f"with --tokenizer FILE a run counts {words}")


def test_max_completion_tokens_refused() -> None:
    """As by Mistral: the words stand beside the message, and the other spelling is taken."""

    def reply(asked: dict[str, Any]) -> Play:
        if "max_completion_tokens" in asked:
            detail = [{"loc": ["body", "max_completion_tokens"], "msg": "Extra inputs"}]
            return refusal("422 Unprocessable Entity", {"detail": detail})
        return answer(asked)

    findings, asked = examined(reply, dialect="openai")

    assert findings.usable
    assert findings.endpoint.dialect.limit_field == "max_tokens"
    assert ["max_tokens" in body for body in asked] == [False, True, True, True]
    assert findings.refused[0].words == "Extra inputs"


def test_a_server_that_names_one_field_at_a_time() -> None:
    """The second refusal costs whatever a run does not ask for, so that its own request is seen."""
    fields = ("temperature", "ignore_eos", "min_tokens", "continuous_usage_stats", "stream_options")
    findings, asked = examined(refusing(*fields))

    assert len(asked) == findings.asked == 4
    assert [len(r.left_out) for r in findings.refused] == [1, 3, 1]
    assert findings.usable
    assert set(asked[-1]) == {"model", "messages", "max_tokens", "stream"}


def test_never_more_than_four_requests() -> None:
    """A server that refuses everything is not asked for ever."""
    findings, asked = examined(refusal("400 Bad Request", {"error": {"message": "no"}}))

    assert len(asked) == findings.asked == 4
    assert not findings.usable
    assert findings.refused[-1].left_out == ()
    assert says(misses(findings), "Anything: a run's request ends http_error")


def test_a_refusal_without_names() -> None:
    """What a run can do without goes first, and at once."""
    findings, asked = examined(
        lambda body: refusal("400 Bad Request", "no") if "ignore_eos" in body else answer(body)
    )

    assert findings.usable
    assert not findings.refused[0].named
    assert set(asked[1]) == {"model", "messages", "max_tokens", "stream", "stream_options"}
    assert says(misses(findings), "Answers of equal length: they are refused")


@pytest.mark.parametrize(
    ("play", "outcome"),
    [
        (refusal("500 Oops", {"error": "broken"}), "http_error"),
        (refusal("429 Slow", {"error": {"message": "slow down"}}), "rate_limited"),
        (NOT_FOUND, "http_error"),
        (stream(sse({"error": {"message": "broken"}})), "in_band_error"),
        (raw(sized("200 OK", b"<html>", "Content-Type: text/html")), "malformed"),
        (stream(ROLE, content("a")), "truncated"),
    ],
)
def test_an_endpoint_whose_answers_are_none(play: Play, outcome: str) -> None:
    """The doctor says how a run's requests would end, and nothing else."""
    findings, _ = examined(play)

    assert not findings.usable
    assert document(findings)["outcome"] == outcome
    assert len(misses(findings)) == 1
    assert measures(findings) == []
    assert "A run could not measure\n  - Anything" in text(findings)


# -- what streams look like --------------------------------------------------------------------


def test_usage_on_the_finish_chunk() -> None:
    """Its place is told, and the tokens are known."""
    findings, _ = examined(
        stream(ROLE, content("a"), content("b"), finish(usage=counts(40, 2)), DONE)
    )

    assert document(findings)["stream"]["usage_in"] == ["the event with the finish reason"]
    assert says(measures(findings), "Tokens: 40 in, 2 out")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning(name: str) -> None:
    """By either name; then the answer has a time of its own."""
    thought = sse(chunk({name: "hm"}))
    findings, _ = examined(stream(ROLE, thought, content("b"), finish(), USAGE, DONE))

    assert document(findings)["stream"]["reasoning_in"] == [name]
    assert says(measures(findings), f"TTFA apart from TTFT: reasoning comes in {name}.")


def test_no_end_marker() -> None:
    """A finish reason is one too."""
    findings, _ = examined(stream(ROLE, content("a"), finish(), USAGE))

    assert findings.usable
    assert says(measures(findings), "a whole one ends with finish reason 'stop'.")


def test_the_role_trap() -> None:
    """How much too early a tool would be that took the first event for a token."""
    slow = chunked(((0, ROLE), (60, content("a") + finish() + USAGE + DONE)))
    findings, _ = examined(slow)
    seen = document(findings)["stream"]

    assert seen["first_event"] == "a role only"
    assert seen["role_trap_s"] >= 0.03
    assert seen["head_lead_s"] >= 0.03


def test_several_tokens_an_event() -> None:
    """A gap is then one between events, and the doctor says so."""
    usage = sse({"choices": [], "usage": counts(40, 9)})
    findings, _ = examined(stream(ROLE, content("abc"), content("def"), finish(), usage, DONE))

    assert says(misses(findings), "2 output events carried 9 tokens")


def test_an_answer_that_is_not_streamed() -> None:
    """Though a stream was asked for."""
    findings, _ = examined(WHOLE)

    assert findings.usable
    assert says(misses(findings), "the answer came whole")
    assert says(measures(findings), "Tokens: 40 in, 2 out, by usage in the answer.")


def test_a_packed_stream() -> None:
    """Gaps inside it are in doubt."""
    pack = zlib.compressobj(wbits=31)
    whole = pack.compress(ROLE + content("a") + finish() + USAGE + DONE) + pack.flush()
    head = HEAD + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    findings, _ = examined(stream(whole, head=head))

    assert findings.usable
    assert says(misses(findings), "the stream is packed (gzip)")


def cached(tokens: int | None) -> Play:
    """An answer whose usage says how many input tokens came from the cache."""
    details = {} if tokens is None else {"prompt_tokens_details": {"cached_tokens": tokens}}
    usage = sse({"choices": [], "usage": counts(40, 1, **details)})
    return stream(ROLE, content("a"), finish(), usage, DONE)


@pytest.mark.parametrize(
    ("first", "again", "measured", "words"),
    [
        (0, 32, True, "0, then 32 for the same prompt; its prefix cache works."),
        (0, 0, True, "so short a prompt was not cached"),
        (None, None, False, "Cached input tokens: usage does not say them"),
    ],
)
def test_the_prefix_cache(first: int | None, again: int | None, measured: bool, words: str) -> None:
    """Absent is not zero; what grows with the same prompt is a cache."""
    plays = iter([cached(first), cached(again), WHOLE])
    findings, _ = examined(lambda _: next(plays))

    assert says(measures(findings) if measured else misses(findings), words)


@pytest.mark.parametrize(
    ("forced", "free", "measured", "words"),
    [
        (24, 3, True, "ignore_eos and min_tokens work (3 tokens without, 24 with)"),
        (3, 3, False, "taken and ignored"),
        (24, 24, True, "answers reach their limit without, too"),
    ],
)
def test_equal_lengths(forced: int, free: int, measured: bool, words: str) -> None:
    """Taken is not yet obeyed: only the lengths with and without tell."""

    def reply(asked: dict[str, Any]) -> Play:
        tokens = forced if "ignore_eos" in asked else free
        usage = sse({"choices": [], "usage": counts(40, tokens)})
        return stream(ROLE, content("a"), finish(), usage, DONE)

    findings, _ = examined(reply)

    assert says(measures(findings) if measured else misses(findings), words)


# -- what stands beside ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pages", "name"),
    [
        ({"/v1/models": model_list("m", owner="vllm")}, "vllm"),
        ({"/v1/models": model_list("m", owner="sglang")}, "sglang"),
        ({"/info": page({"model_id": "m", "version": "3"})}, "tgi"),
        ({"/props": page({"default_generation_settings": {}})}, "llama.cpp"),
        ({"/api/version": page({"version": "0.9"})}, "ollama"),
        ({"/v1/models": model_list("m", headers=("x-litellm-version: 1",))}, "litellm"),
        ({"/info": page([1]), "/version": raw(sized("200 OK", b"["))}, "generic"),
    ],
)
def test_pages_give_a_server_away(pages: dict[str, Play], name: str) -> None:
    """The list of models first, then pages that only some servers have."""
    findings, _ = examined(pages=pages)

    assert findings.endpoint.dialect.name == name
    assert bool(findings.because) == (name != "generic")


def test_a_health_page_that_generates_is_not_asked() -> None:
    """SGLang's /health makes a token; /ready does not."""
    pages = {"/v1/models": model_list("m", owner="sglang"), "/ready": page({})}
    with vendor(pages=pages) as server:
        findings = look(server.url)
        asked = {request.path for request in server.requests}

    assert findings.healthy is True
    assert not {"/health", "/health_generate"} & asked


def test_a_named_dialect_is_not_doubted() -> None:
    """No page is asked, whatever the models' owner."""
    with vendor(pages={"/v1/models": model_list("m", owner="vllm")}) as server:
        findings = look(server.url, dialect="ollama")
        asked = [request.path for request in server.requests if request.method == "GET"]

    assert findings.endpoint.dialect.name == "ollama"
    assert asked == ["/v1/models", "/"]


def test_azure() -> None:
    """The deployment and the version are in the path, the key in its own header."""
    with vendor(pages={}) as server:
        findings = look(
            server.url, dialect="azure", api_version="2025-01-01", model="dep", api_key_env="KEY"
        )
        posts = [r for r in server.requests if r.method == "POST"]

    assert findings.usable
    assert {r.path for r in posts} == {
        "/openai/deployments/dep/chat/completions?api-version=2025-01-01"
    }
    assert all(r.headers["api-key"] == KEY for r in server.requests)
    assert all("authorization" not in r.headers for r in server.requests)
    assert all("max_completion_tokens" in body for body in bodies(server))


def test_rate_limits_are_shown() -> None:
    """A planned rate above them would measure them."""
    head = HEAD + b"x-ratelimit-limit-requests: 60\r\nTransfer-Encoding: chunked\r\n\r\n"
    findings, _ = examined(stream(ROLE, content("a"), finish(), USAGE, DONE, head=head))

    assert "x-ratelimit-limit-requests: 60" in text(findings)


def test_other_apis() -> None:
    """Messages streams with its own events; nothing of chat's is asked for."""
    messages = stream(
        typed("message_start", message={"usage": {"input_tokens": 40, "output_tokens": 1}}),
        block_delta(type="text_delta", text="a"),
        typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
        typed("message_stop"),
    )
    findings, asked = examined(messages, api="messages")

    assert findings.usable
    assert set(asked[0]) == {"model", "messages", "max_tokens", "stream"}
    assert says(measures(findings), "a whole one ends with message_stop.")


def test_embeddings() -> None:
    """They do not stream, and that is no fault."""
    vectors = page({"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 40}})
    findings, asked = examined(vectors, api="embeddings")

    assert findings.usable
    assert len(asked) == 2
    assert says(measures(findings), "E2E, from sent to the end: this API does not stream.")


# -- how it is shown ---------------------------------------------------------------------------


def test_the_key_is_shown_nowhere() -> None:
    """Not even where the server repeats it in its words."""
    findings, _ = examined(
        refusal("400 Bad Request", {"error": {"message": f"bad field for {KEY}"}}),
        api_key_env="KEY",
    )

    assert KEY not in text(findings)
    assert KEY not in orjson.dumps(document(findings)).decode()


def test_the_document_and_the_text_say_the_same() -> None:
    """Every sentence stands in both."""
    findings, _ = examined(ANSWER)
    shown = document(findings)

    assert shown["schema"] == "streamgauge.doctor/1"
    assert shown["measures"]
    for sentence in [*shown["measures"], *shown["misses"]]:
        assert f"- {sentence}\n" in text(findings)
        assert sentence[-1] == "."


def test_an_endpoint_that_cannot_be_asked() -> None:
    """One sentence, as before a run."""
    with vendor(pages={"/v1/models": refusal("401 No", {"error": "Unauthorized"})}) as server:
        with pytest.raises(TargetError, match="wants an API key"):
            look(server.url, model="m")
        assert bodies(server) == []


def test_a_model_that_is_not_named() -> None:
    """It has to be, where there is no list of models."""
    with ByteServer(NOT_FOUND) as server, pytest.raises(TargetError, match="--model NAME"):
        look(server.url)

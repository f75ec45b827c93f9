"""What clients of vLLM ask for beyond a plain chat, over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest

from reference_server.app import Simulator, SimulatorSettings
from reference_server.process import SimProcess
from tests.reference_server.conftest import chat, events, recorded, truth_of, wait_for
from tests.reference_server.test_simulator import CHAT, OPTIONS, PLAIN, gauge, shape

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def post(url: str, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(url + path, json=fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def stream(url: str, path: str, fields: dict[str, Any]) -> list[Any]:
    return events(httpx.post(url + path, json={**fields, "stream": True}).text)


def choices(sent: list[Any], index: int = 0) -> list[dict[str, Any]]:
    """All that a stream said of one choice."""
    found = [event["choices"] for event in sent if isinstance(event, dict)]
    return [choice for each in found for choice in each if choice["index"] == index]


def said(sent: list[Any], key: str, index: int = 0) -> str:
    return "".join(choice["delta"].get(key) or "" for choice in choices(sent, index))


def test_several_choices_interleave_each_with_its_own_words(simulator: str) -> None:
    """Their roles first; usage is of all together; the first says what a lone one says."""
    asked = chat(max_tokens=5, n=3, stream_options=OPTIONS)
    sent = stream(simulator, CHAT, asked)
    whole = post(simulator, CHAT, chat(max_tokens=5, n=3))
    lone = post(simulator, CHAT, chat(max_tokens=5))
    texts = [said(sent, "content", index) for index in range(3)]

    assert [event["choices"][0]["delta"].get("role") for event in sent[:3]] == ["assistant"] * 3
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert texts[0] == lone["choices"][0]["message"]["content"]
    assert [choices(sent, index)[-1]["finish_reason"] for index in range(3)] == ["length"] * 3
    assert sent[-2]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 15
    assert sent[-1] == "[DONE]"


def test_several_prompts_are_answered_together(simulator: str) -> None:
    """Two choices each, counted through; usage counts each prompt once, and every token."""
    asked = {"prompt": ["one two", "three four five"], "max_tokens": 3, "n": 2, "seed": 7}
    sent = stream(simulator, PLAIN, {**asked, "stream_options": OPTIONS})
    whole = post(simulator, PLAIN, asked)
    texts = ["".join(c["text"] for c in choices(sent, index)) for index in range(4)]
    lone = {"prompt": "three four five", "max_tokens": 3, "seed": 8}

    assert texts == [choice["text"] for choice in whole["choices"]]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert texts[3] == post(simulator, PLAIN, lone)["choices"][0]["text"]
    assert sent[-2]["usage"] == {"prompt_tokens": 6, "total_tokens": 18, "completion_tokens": 12}
    assert {k: whole["usage"][k] for k in sent[-2]["usage"]} == sent[-2]["usage"]


@pytest.mark.parametrize("caching", [True, False])
def test_several_choices_share_their_prompt_where_prefixes_are_cached(caching: bool) -> None:
    """Four answers to a prompt of 800 tokens hold its 50 blocks once, or else four times."""
    options = ["--model", "tiny", "--kv-cache-tokens", "16000", "--decode-base", "5ms"]
    options += ["--prefix-caching"] * caching
    question = {"messages": [{"role": "user", "content": "a " * 793}], "max_tokens": 4000, "n": 4}
    with SimProcess(*options) as process:
        url = process.url
        with httpx.stream("POST", url + CHAT, json={**question, "stream": True}) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            wait_for(lambda: gauge(url, "num_requests_running") == 4)
            blocks = gauge(url, "kv_cache_usage_perc") * 1000
        hits = gauge(url, "prefix_cache_hits_total")

    # Of what is shared only whole blocks are, and each answer has begun to need its own.
    assert (50 <= blocks < 100) if caching else (200 <= blocks < 250)
    assert hits == (3 * 799 if caching else 0), "all but the last token, which is computed again"


def test_a_stop_string_ends_an_answer(simulator: str) -> None:
    """Before it, with finish reason and stop reason, streamed and whole alike."""
    full = post(simulator, CHAT, chat(max_tokens=30))["choices"][0]["message"]["content"]
    stop = full.split()[12]
    asked = chat(max_tokens=30, stop=["~~~", f" {stop}"])
    choice = post(simulator, CHAT, asked)["choices"][0]
    sent = stream(simulator, CHAT, asked)

    assert choice["message"]["content"] == full[: full.index(f" {stop}")]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", f" {stop}")
    assert said(sent, "content") == choice["message"]["content"]
    assert choices(sent)[-1]["stop_reason"] == f" {stop}"


def test_a_tool_is_called_in_deltas(simulator: str) -> None:
    """The name first, then arguments that are JSON together; the whole reply says the same."""
    asked = chat(max_tokens=12, tools=[TOOL], stream_options=OPTIONS)
    sent = stream(simulator, CHAT, asked)
    calls = [call for c in choices(sent) for call in c["delta"].get("tool_calls", [])]
    whole = post(simulator, CHAT, chat(max_tokens=12, tools=[TOOL]))["choices"][0]

    assert sent[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert calls[0]["function"] == {"name": "weather"}
    assert (calls[0]["type"], calls[0]["index"]) == ("function", 0)
    arguments = "".join(call["function"]["arguments"] for call in calls[1:])
    assert list(json.loads(arguments)) == ["city"]
    assert choices(sent)[-1]["finish_reason"] == whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == arguments
    assert sent[-2]["usage"]["completion_tokens"] == 12, "held-back tokens count"


@pytest.mark.parametrize(
    "more",
    [{"tool_choice": "none"}, {"messages": [{"role": "tool", "content": "sunny"}]}],
)
def test_a_tool_is_not_called_where_it_should_not_be(simulator: str, more: dict[str, Any]) -> None:
    """Where the client says so, or has just sent what the tool answered."""
    message = post(simulator, CHAT, {**chat(max_tokens=6, tools=[TOOL]), **more})["choices"][0]

    assert message["finish_reason"] == "length"
    assert message["message"]["content"]


@pytest.mark.parametrize(
    "how",
    [
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_effort": "low"},
        {"include_reasoning": True},
    ],
)
def test_reasoning_comes_before_the_answer(simulator: str, how: dict[str, Any]) -> None:
    """In its own field, and usage tells its tokens."""
    sent = stream(simulator, CHAT, chat(max_tokens=8, stream_options=OPTIONS, **how))
    kinds = ["reasoning" in choice["delta"] for choice in choices(sent)[1:]]
    usage = sent[-2]["usage"]

    assert kinds == [True] * 4 + [False] * 4
    assert usage["completion_tokens"] == 8
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 4}


def test_reasoning_can_be_hidden(simulator: str) -> None:
    """It is generated and counted, and not told."""
    asked = chat(max_tokens=8, reasoning_effort="low", include_reasoning=False)
    body = post(simulator, CHAT, asked)
    message = body["choices"][0]["message"]
    first, *rest = choices(stream(simulator, CHAT, asked))

    assert first["delta"]["role"] == "assistant"
    assert "".join(choice["delta"]["content"] for choice in rest) == message["content"]
    assert message["reasoning"] is None
    assert len(message["content"].split()) == 4
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}


def test_logprobs_have_one_entry_a_token(simulator: str) -> None:
    """In the chat's shape and in the completion's, the best first."""
    sent = stream(simulator, CHAT, chat(max_tokens=3, logprobs=True, top_logprobs=2))
    entries = [entry for c in choices(sent)[1:] for entry in c["logprobs"]["content"]]
    plain = post(simulator, PLAIN, {"prompt": "a b", "max_tokens": 3, "logprobs": 2})["choices"][0]
    rows = plain["logprobs"]

    assert "".join(entry["token"] for entry in entries) == said(sent, "content")
    assert all(entry["bytes"] == list(entry["token"].encode()) for entry in entries)
    for entry in entries:
        best, second = entry["top_logprobs"]
        assert (best["token"], best["logprob"]) == (entry["token"], entry["logprob"])
        assert 0 > best["logprob"] > second["logprob"]
    assert "".join(rows["tokens"]) == plain["text"]
    assert [
        plain["text"][at:].startswith(t)
        for at, t in zip(rows["text_offset"], rows["tokens"], strict=True)
    ] == [True] * 3
    assert [len(row) for row in rows["top_logprobs"]] == [2, 2, 2]


def test_token_ids_are_told_on_request(simulator: str) -> None:
    """One an event, and the prompt's with the role; /detokenize gives the words back."""
    sent = stream(simulator, CHAT, chat(max_tokens=3, return_token_ids=True))
    ids = [token for choice in choices(sent)[1:] for token in choice["token_ids"]]
    text = post(simulator, "/detokenize", {"tokens": ids})["prompt"]

    assert len(sent[0]["prompt_token_ids"]) == 10
    assert text == said(sent, "content")


def test_token_ids_and_logprobs_have_the_recorded_shape(simulator: str) -> None:
    """As real vLLM sent them: the same keys in the same order, the same types of values."""
    asked = chat(max_tokens=2, return_token_ids=True, logprobs=True, top_logprobs=1)
    sent = stream(simulator, CHAT, asked)
    there = events(recorded("chat stream return_token_ids + logprobs"))
    fields = {"prompt": [1, 100, 200, 300], "max_tokens": 6, "return_token_ids": True}
    whole = post(simulator, PLAIN, fields)
    title = "completions, prompt as token ids, min_tokens 6, return_token_ids, non-stream"

    assert [str(one_of_each(shape(e))) for e in sent] == [str(one_of_each(shape(e))) for e in there]
    assert str(shape(whole)) == str(shape(json.loads(recorded(title))))


def one_of_each(value: Any) -> Any:
    """Lists of any length compare as what they are made of."""
    if isinstance(value, dict):
        return {key: one_of_each(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [one_of_each(inner) for inner in value[:1]]
    return value


def test_tokenize_counts_a_chat_as_usage_does(simulator: str) -> None:
    """With the template's tokens; a text's tokens also as text."""
    counted = post(simulator, "/tokenize", chat())
    strings = post(simulator, "/tokenize", {"prompt": "a bcdefg", "return_token_strs": True})

    assert counted["count"] == post(simulator, CHAT, chat(max_tokens=1))["usage"]["prompt_tokens"]
    assert strings["token_strs"] == ["a", "bcde", "fg"]


def test_a_stream_interval_puts_several_tokens_into_an_event(simulator: str) -> None:
    """The first alone, then so many each, the rest in the last."""
    sent = stream(simulator, CHAT, chat(max_tokens=9, stream_interval=3))
    words = [len(choice["delta"]["content"].split()) for choice in choices(sent)[1:]]

    assert words == [1, 3, 3, 2]


def test_a_response_is_told_in_named_events(simulator: str) -> None:
    """In the API's order, numbered; the last one repeats all of it and has the usage."""
    fields = {"input": "How are you?", "max_output_tokens": 6, "reasoning": {"effort": "low"}}
    text = httpx.post(f"{simulator}/v1/responses", json={**fields, "stream": True}).text
    blocks = [block.split("\ndata: ") for block in text.strip().split("\n\n")]
    sent = [json.loads(data) for _, data in blocks]
    whole = post(simulator, "/v1/responses", fields)
    last = sent[-1]["response"]

    assert [name.removeprefix("event: ") for name, _ in blocks] == [e["type"] for e in sent]
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    assert [event["type"] for event in sent[:2]] == ["response.created", "response.in_progress"]
    assert sent[-1]["type"] == "response.completed"
    assert (last["status"], last["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    deltas = [event["delta"] for event in sent if event["type"].endswith("_text.delta")]
    texts = [part["text"] for item in last["output"] for part in item["content"]]
    assert "".join(deltas) == "".join(texts)
    assert [item["type"] for item in last["output"]] == ["reasoning", "message"]
    assert last["usage"] == whole["usage"]
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert [item["content"] for item in whole["output"]] == [
        item["content"] for item in last["output"]
    ]


def test_a_response_calls_a_function(simulator: str) -> None:
    """As an output item whose arguments come in deltas."""
    tool = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
    fields = {"input": [{"role": "user", "content": "Rain?"}], "tools": [tool], "stream": True}
    text = httpx.post(f"{simulator}/v1/responses", json={**fields, "max_output_tokens": 9}).text
    sent = [json.loads(block.split("data: ")[1]) for block in text.strip().split("\n\n")]
    deltas = [e["delta"] for e in sent if e["type"] == "response.function_call_arguments.delta"]
    (item,) = sent[-1]["response"]["output"]

    assert (item["type"], item["name"]) == ("function_call", "weather")
    assert item["arguments"] == "".join(deltas)
    assert list(json.loads(item["arguments"])) == ["city"]


def test_embeddings_take_the_engines_time(simulator: str) -> None:
    """Each text is computed like a prompt; the truth log has the request."""
    headers = {"X-Request-Id": "embedded"}
    fields = {"input": ["one two", "three"], "dimensions": 4}
    body = httpx.post(f"{simulator}/v1/embeddings", json=fields, headers=headers).json()
    truth = truth_of(simulator, "embedded")

    assert [len(item["embedding"]) for item in body["data"]] == [4, 4]
    assert body["usage"]["prompt_tokens"] == 4
    assert truth["last_scheduled_at"] - truth["read_at"] > 0.002, "a step of prefill"
    assert truth["tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 0}, "n must be at least 1, got 0."),
        ({"n": 1000}, "n must be at most 128, got 1000."),
        ({"stop": [""]}, "stop cannot contain an empty string."),
        ({"stop": 5}, "Input should be a valid string: stop"),
        ({"logprobs": True, "top_logprobs": 99}, "greater than max allowed: 20"),
        ({"top_logprobs": 3}, "`logprobs` must be set to true."),
        ({"tool_choice": "required"}, "`tools` must be set."),
        (
            {"tools": [TOOL], "tool_choice": {"function": {"name": "nope"}}},
            "does not match any of the specified `tools`",
        ),
        ({"max_tokens": 9000}, "max_tokens=9000 cannot be greater than max_model_len=8192"),
        (
            {"messages": [{"role": "user", "content": "a " * 9000}]},
            "This model's maximum context length is 8192 tokens. However, your prompt contains",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(simulator: str, fields: dict[str, Any], says: str) -> None:
    """400, with the sentence that says what."""
    answer = httpx.post(
        simulator + CHAT, json=chat(**fields) if "messages" not in fields else {**chat(), **fields}
    )

    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize"])
def test_every_api_knows_its_model(simulator: str, path: str) -> None:
    """Another one is 404, in vLLM's words."""
    answer = httpx.post(simulator + path, json={"model": "nope", "input": "a", "prompt": "a"})

    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("The model `nope` does not exist.")


def test_a_client_that_leaves_frees_the_place_of_every_choice(simulator: str) -> None:
    """All of its sequences are gone from the batch, and their blocks are free."""
    request = chat(stream=True, max_tokens=5000, n=3)
    with httpx.stream("POST", simulator + CHAT, json=request) as answer:
        pieces = answer.iter_bytes()  # kept, since a generator that goes closes the answer
        next(pieces)
        wait_for(lambda: gauge(simulator, "num_requests_running") == 3)
        used = gauge(simulator, "kv_cache_usage_perc")
    wait_for(lambda: gauge(simulator, "num_requests_running") == 0)

    assert used > 0
    assert gauge(simulator, "kv_cache_usage_perc") == 0


def test_choices_for_which_the_queue_has_no_room_are_refused_together(simulator: str) -> None:
    """Four run and two wait; of seven none is left behind."""
    answer = httpx.post(simulator + CHAT, json=chat(n=7, max_tokens=2))

    assert answer.status_code == 503
    wait_for(lambda: gauge(simulator, "num_requests_running") == 0)
    assert gauge(simulator, "num_requests_waiting") == 0


def test_a_starting_server_says_so_and_an_admission_limit_holds() -> None:
    """503 until the delay is over; then 429 for one more than may be under way."""
    client = httpx.Client()  # made before, since that takes a while
    with client, SimProcess("--startup-delay", "1.5s", "--admission-limit", "1") as process:
        url, began = process.url, time.monotonic()
        early = [client.get(f"{url}/health"), client.get(f"{url}/v1/models")]
        truth = client.get(f"{url}/truth")
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 200)
        ready_s = time.monotonic() - began
        request = {"prompt": "a", "max_tokens": 5000}
        with httpx.stream("POST", url + PLAIN, json={**request, "stream": True}) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            second = httpx.post(url + PLAIN, json=request)
        wait_for(lambda: gauge(url, "num_requests_running") == 0)
        third = httpx.post(url + PLAIN, json={"prompt": "a", "max_tokens": 1})

    assert [answer.status_code for answer in early] == [503, 503]
    assert truth.status_code == 200
    assert 0.2 < ready_s < 10
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    assert third.status_code == 200


def test_the_next_turn_finds_this_one_in_the_cache() -> None:
    """Its prompt and, as a message of the next one, its answer; usage tells how much."""
    options = ("--prefix-caching", "--enable-prompt-tokens-details", "--prefill-base", "1ms")
    question = {"role": "user", "content": "How are you? " * 40}
    with SimProcess(*options, "--model", "tiny", "--decode-base", "1ms") as process:
        first = post(process.url, CHAT, {"messages": [question], "max_tokens": 40})
        answer = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
        turn = {"messages": [question, answer, {"role": "user", "content": "Good."}]}
        second = stream(process.url, CHAT, {**turn, "max_tokens": 5, "stream_options": OPTIONS})
    known = first["usage"]["total_tokens"]

    assert first["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 0,
        "created_cache_tokens": 112,
        "multimodal_tokens": None,
    }
    cached = second[-2]["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert known - 32 <= cached <= known, "all whole blocks of 16, but for the last one"


def test_a_full_queue_can_be_told_inside_a_stream() -> None:
    """As vLLM often does: 200, an error, the end marker."""
    options = ("--max-num-seqs", "1", "--max-num-queued-reqs", "0", "--quirk", "late-refusal")
    with SimProcess("--model", "tiny", *options) as process:
        request = chat(max_tokens=5000, stream=True)
        with httpx.stream("POST", process.url + CHAT, json=request) as answer:
            pieces = answer.iter_bytes()
            next(pieces)
            refused = httpx.post(process.url + CHAT, json=request)
            whole = httpx.post(process.url + CHAT, json=chat())
    error, end = events(refused.text)

    assert (refused.status_code, error["error"]["code"], end) == (200, 503, "[DONE]")
    assert whole.status_code == 503


def test_the_urgent_are_served_first() -> None:
    """One place: of those that wait the one with the lowest number, however it says so."""
    options = ("--max-num-seqs", "1", "--scheduling-policy", "priority", "--decode-base", "2ms")
    asks: list[tuple[str, dict[str, int], dict[str, str]]] = [
        ("later", {"priority": 3}, {}),
        ("normal", {}, {}),
        ("urgent", {}, {"X-Vllm-Priority": "-2"}),
    ]
    long = {"prompt": "a", "max_tokens": 5000, "stream": True}
    with SimProcess("--model", "tiny", *options) as process, ThreadPoolExecutor() as pool:
        url = process.url
        with httpx.stream("POST", url + PLAIN, json=long) as first:
            pieces = first.iter_bytes()  # kept, since a generator that goes closes the answer
            next(pieces)
            for waiting, (name, fields, header) in enumerate(asks):
                wait_for(partial(is_waiting, url, waiting))
                pool.submit(
                    httpx.post,
                    url + PLAIN,
                    json={"prompt": "a", "max_tokens": 5, **fields},
                    headers={"X-Request-Id": name, **header},
                )
            wait_for(partial(is_waiting, url, 3))
        wait_for(lambda: len(httpx.get(f"{url}/truth").json()["requests"]) == 4)
        ended = [row["id"] for row in httpx.get(f"{url}/truth").json()["requests"]]

    assert ended[1:] == ["urgent", "normal", "later"]


def is_waiting(url: str, number: int) -> bool:
    return gauge(url, "num_requests_waiting") == number


def test_only_this_machine_may_set_faults() -> None:
    """Whoever else asks is refused; whoever does not say where from, too."""
    for client in (("10.1.2.3", 5), None, ("testclient", 1)):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b'{"faults": ["reset:1"]}'}

        simulator = Simulator(SimulatorSettings())
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/faults",
            "query_string": b"",
            "headers": [],
            "client": client,
        }
        asyncio.run(simulator(scope, receive, send))

        assert sent[0]["status"] == 403
        assert simulator.faults.rates == ()

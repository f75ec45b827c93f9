"""The simulator over real sockets: what a client of vLLM would find there."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from reference_server.app import Simulator, SimulatorSettings
from reference_server.errors import SettingsError
from reference_server.process import SimProcess
from tests.reference_server.conftest import chat, events, recorded, truth_of, wait_for

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"
OPTIONS = {"include_usage": True}


def shape(value: Any) -> Any:
    """Keys in their order, without what differs from one answer to the next."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize(
    ("title", "path", "request_"),
    [
        (
            "chat, stream, include_usage, max_tokens 8",
            CHAT,
            chat(stream=True, max_tokens=8, stream_options=OPTIONS),
        ),
        (
            "chat, stream, no stream_options, max_tokens 4",
            CHAT,
            chat(stream=True, max_tokens=4),
        ),
        (
            "chat, stream, include_usage + continuous_usage_stats, max_tokens 3",
            CHAT,
            chat(
                stream=True,
                max_tokens=3,
                stream_options={**OPTIONS, "continuous_usage_stats": True},
            ),
        ),
        (
            "completions, stream, include_usage, ignore_eos, max_tokens 5",
            PLAIN,
            {
                "prompt": "one two",
                "stream": True,
                "max_tokens": 5,
                "ignore_eos": True,
                "stream_options": OPTIONS,
            },
        ),
    ],
)
def test_a_stream_has_the_events_of_the_recorded_one(
    server: str, title: str, path: str, request_: dict[str, Any]
) -> None:
    """Same events in the same order, same keys in the same order, same types of values."""
    answer = httpx.post(server + path, json=request_)

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["transfer-encoding"] == "chunked"
    sent, there = events(answer.text), events(recorded(title))
    # dicts compare without regard to order, their text does not
    assert [str(shape(event)) for event in sent] == [str(shape(event)) for event in there]


def test_a_whole_reply_has_the_keys_of_the_recorded_one(server: str) -> None:
    """The non-streamed chat likewise."""
    answer = httpx.post(server + CHAT, json=chat(max_tokens=8))
    there = events("data: " + recorded("chat, non-stream"))[0]

    assert str(shape(answer.json())) == str(shape(there))
    assert answer.json()["usage"] | {"prompt_tokens": 16, "total_tokens": 24} == there["usage"]


def test_streamed_and_whole_replies_say_the_same(simulator: str) -> None:
    """The same prompt and seed give the same words, however they are sent."""
    streamed = httpx.post(simulator + CHAT, json=chat(stream=True, max_tokens=9, seed=3))
    whole = httpx.post(simulator + CHAT, json=chat(max_tokens=9, seed=3))
    deltas = [event["choices"][0]["delta"] for event in events(streamed.text)[:-1]]

    said = whole.json()["choices"][0]["message"]["content"]
    assert "".join(delta["content"] for delta in deltas) == said
    assert len(said.split()) == 9


def test_the_clients_id_becomes_the_answers(server: str) -> None:
    """As in vLLM, and the truth log knows the request by it."""
    headers = {"X-Request-Id": 'a"b'}
    answer = httpx.post(server + CHAT, json=chat(max_tokens=1), headers=headers)

    assert answer.json()["id"] == 'chatcmpl-a"b'
    assert truth_of(server, 'a"b')["tokens"] == 1


def test_truth_lies_between_sending_and_receiving(server: str) -> None:
    """One clock for both processes: sent <= read <= first <= last <= received.

    The last is only so where the server is not held up between a write and its look at the clock,
    so one of several tries must show it.
    """
    tries = [_instants(server, f"between-{number}") for number in range(5)]

    assert all(instants[:4] == sorted(instants[:4]) for instants in tries)
    assert any(instants == sorted(instants) for instants in tries)
    truth = truth_of(server, "between-0")
    assert truth["first_lateness_s"] == truth["first_token_at"] - truth["first_scheduled_at"]
    assert truth["outcome"] == "finished"
    assert truth["streamed"] is True


def _instants(server: str, request_id: str) -> list[float]:
    """When a request was sent, read, first and last written, and received."""
    sent_at = time.monotonic()
    headers = {"x-request-id": request_id}
    httpx.post(server + CHAT, json=chat(stream=True, max_tokens=3), headers=headers)
    received_at = time.monotonic()
    truth = truth_of(server, request_id)
    return [
        sent_at,
        truth["read_at"],
        truth["first_token_at"],
        truth["last_token_at"],
        received_at,
    ]


def test_the_log_has_one_pair_of_clocks(server: str) -> None:
    """Wall time minus monotonic time, the same at every asking."""
    first, second = (httpx.get(f"{server}/truth").json()["clock"] for _ in range(2))

    assert first == second
    assert first["realtime_s"] > first["monotonic_s"] > 0


def test_the_schedule_is_the_engines(simulator: str) -> None:
    """A lone request: 2 ms + 0.01 ms a prompt token, then steps of 4 ms + 0.3 ms + KV cost."""
    httpx.post(simulator + CHAT, json=chat(max_tokens=3), headers={"x-request-id": "lone"})
    truth = truth_of(simulator, "lone")
    prompt = 10  # How are you? = 3, message 4, opening 3
    prefill_s = 0.002 + prompt * 0.00001
    decode_s = 2 * (0.004 + 0.0003) + (prompt + 1 + prompt + 2) * 0.35e-6

    took = truth["last_scheduled_at"] - truth["read_at"]
    assert took == pytest.approx(prefill_s + decode_s, abs=1e-7)


def test_models_health_and_version_are_there(server: str) -> None:
    """What clients ask before they begin."""
    (model,) = httpx.get(f"{server}/v1/models").json()["data"]

    assert model["object"] == "model"
    assert httpx.get(f"{server}/health").content == b""


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/nothing", 404, '{"detail":"Not Found"}'),
        ("GET", CHAT, 405, '{"detail":"Method Not Allowed"}'),
        ("PUT", "/truth", 405, '{"detail":"Method Not Allowed"}'),
    ],
)
def test_the_routers_errors_are_fastapis(
    server: str, method: str, path: str, status: int, body: str
) -> None:
    """Another shape than those of the API itself."""
    answer = httpx.request(method, server + path)
    assert (answer.status_code, answer.text) == (status, body)


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_request_is_no_stream(server: str, stream: bool) -> None:
    """An error found before the first token has its status, streamed or not."""
    answer = httpx.post(server + CHAT, json=chat(max_tokens=0, stream=stream))

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["message"] == "max_tokens must be at least 1, got 0."


def test_a_wrong_model_is_404(simulator: str) -> None:
    """With vLLM's message, which names the one that exists."""
    answer = httpx.post(simulator + CHAT, json=chat(model="nope"))

    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == (
        "The model `nope` does not exist. Valid aliases: tiny."
    )


def test_tokenize_counts_as_the_answers_usage_does(simulator: str) -> None:
    """A completion's prompt has as many tokens as /tokenize says."""
    prompt = "Counting is measuring, too."
    counted = httpx.post(f"{simulator}/tokenize", json={"prompt": prompt}).json()
    used = httpx.post(simulator + PLAIN, json={"prompt": prompt, "max_tokens": 1}).json()["usage"]

    assert counted["count"] == len(counted["tokens"]) == used["prompt_tokens"] == 7


def gauge(url: str, name: str) -> float:
    page = httpx.get(f"{url}/metrics").text
    (line,) = [line for line in page.splitlines() if line.startswith(f"vllm:{name}{{")]
    return float(line.split()[-1])


def test_a_client_that_leaves_frees_its_place(simulator: str) -> None:
    """Running falls to 0, generation stops, and no histogram of requests has a trace of it."""
    before = gauge(simulator, "e2e_request_latency_seconds_count")
    request = chat(stream=True, max_tokens=5000)
    headers = {"x-request-id": "leaver"}
    with httpx.stream("POST", simulator + CHAT, json=request, headers=headers) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        assert gauge(simulator, "num_requests_running") == 1
    wait_for(lambda: gauge(simulator, "num_requests_running") == 0)

    assert truth_of(simulator, "leaver")["outcome"] == "client_left"
    assert gauge(simulator, "e2e_request_latency_seconds_count") == before


def test_a_client_that_leaves_a_reply_that_is_not_streamed_frees_its_place(simulator: str) -> None:
    """There is nothing to write meanwhile that could fail; the server listens all the same."""
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(simulator + CHAT, json=chat(max_tokens=5000), timeout=0.2)
    wait_for(lambda: gauge(simulator, "num_requests_running") == 0)


def test_a_full_queue_answers_503(simulator: str) -> None:
    """Four run, two wait, and one more is refused; when they have left all is as before."""

    async def crowd() -> list[int]:
        async with httpx.AsyncClient(base_url=simulator) as client:
            tasks = [
                asyncio.create_task(client.post(CHAT, json=chat(max_tokens=400, seed=n)))
                for n in range(6)
            ]
            await asyncio.to_thread(wait_for, lambda: gauge(simulator, "num_requests_waiting") == 2)
            seventh = await client.post(CHAT, json=chat(stream=True))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return [seventh.status_code, seventh.json()["error"]["code"]]

    assert asyncio.run(crowd()) == [503, 503]
    wait_for(lambda: gauge(simulator, "num_requests_running") == 0)


def test_an_api_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under /v1 only, in vLLM's third shape of errors; the key shows nowhere."""
    monkeypatch.setenv("SIM_KEY", "sk-secret-of-the-test")
    with SimProcess("--api-key-env", "SIM_KEY") as process:
        url = f"{process.url}/v1/models"
        answers = [
            httpx.get(url),
            httpx.get(url, headers={"authorization": "Bearer wrong"}),
            httpx.get(url, headers={"authorization": "Bearer sk-secret-of-the-test"}),
            httpx.get(f"{process.url}/health"),
            httpx.get(f"{process.url}/metrics"),
        ]

    assert [answer.status_code for answer in answers] == [401, 401, 200, 200, 200]
    assert answers[0].text == '{"error":"Unauthorized"}'
    assert not any("secret" in answer.text for answer in answers)
    assert "secret" not in repr(SimulatorSettings(api_key="secret"))


@pytest.mark.parametrize("wrong", [{"max_model_len": 1_000_000}, {"eos_probability": 1.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    """In one sentence that names the option."""
    with pytest.raises(SettingsError, match=r"^--(max-model-len|eos-probability) must"):
        Simulator(SimulatorSettings(**wrong))

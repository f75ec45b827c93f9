"""The two servers, started once for all tests, and what was recorded from real vLLM."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from reference_server.process import SimProcess

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def simulator() -> Iterator[str]:
    """URL of a simulator with four places, two in the queue, and quick steps."""
    with SimProcess(
        *("--model", "tiny", "--max-num-seqs", "4", "--max-num-queued-reqs", "2"),
        *("--prefill-base", "2ms", "--prefill-per-token", "0.01ms", "--decode-base", "4ms"),
    ) as process:
        yield process.url


@pytest.fixture(scope="session")
def metronome() -> Iterator[str]:
    """URL of a metronome: first token after 30 ms, the others 5 ms apart, 7 unless asked."""
    with SimProcess(
        *("--metronome", "--ttft", "30ms", "--itl", "5ms", "--tokens", "7"),
        *("--truth-tokens", "100"),
    ) as process:
        yield process.url


@pytest.fixture(params=["simulator", "metronome"])
def server(request: pytest.FixtureRequest) -> str:
    """URL of each of the two, where both must behave the same."""
    url: str = request.getfixturevalue(request.param)
    return url


RECORDINGS = ("vllm_stream.txt", "vllm_several.txt", "vllm_messages.txt")


def recorded(title: str) -> str:
    """The body that real vLLM 0.32 sent in the recording of that title."""
    text = "\n".join((FIXTURES / name).read_text(encoding="utf-8") for name in RECORDINGS)
    section = text.split(f"##### {title}\n")[1].split("\n##### ")[0]
    return section.split("\n\n", 1)[1]


def events(body: str) -> list[Any]:
    """The JSON of each event of a stream; the end marker as it is."""
    data = [event.removeprefix("data: ") for event in body.split("\n\n") if event.strip()]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


def chat(**more: Any) -> dict[str, Any]:
    """A short chat request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "How are you?"}], **more}


def truth_of(url: str, request_id: str) -> dict[str, Any]:
    """The one truth record of a request."""
    answer = httpx.get(f"{url}/truth", params={"id": request_id}).json()
    (record,) = answer["requests"]
    found: dict[str, Any] = record
    return found


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until something that the server does in its own time has happened."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)

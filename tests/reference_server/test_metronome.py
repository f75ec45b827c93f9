"""The metronome over real sockets: its schedule to the digit, and clients that misbehave."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from reference_server.byteserver import self_signed_context
from reference_server.errors import SettingsError
from reference_server.metronome import MetronomeSettings
from reference_server.process import SimProcess
from tests.reference_server.conftest import chat, events, truth_of, wait_for

TTFT_S, ITL_S, TOKENS = 0.030, 0.005, 7  # as the fixture starts it


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def raw_request(body: dict[str, Any], *headers: str, path: str = "/v1/chat/completions") -> bytes:
    data = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "host: x",
        "content-type: application/json",
        f"content-length: {len(data)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        piece = sock.recv(65536)
        assert piece, f"the server closed after {data!r}"
        data += piece
    return data


def test_every_token_is_scheduled_from_the_instant_the_request_was_read(metronome: str) -> None:
    """First at read + TTFT, last at first + (n - 1) x ITL; exact, however late the writes."""
    httpx.post(
        f"{metronome}/v1/chat/completions",
        json=chat(stream=True, max_tokens=12),
        headers={"x-request-id": "schedule"},
    )
    truth = truth_of(metronome, "schedule")

    assert truth["first_scheduled_at"] == truth["read_at"] + TTFT_S
    assert truth["last_scheduled_at"] == truth["first_scheduled_at"] + 11 * ITL_S
    assert truth["tokens"] == len(truth["token_at"]) == 12
    assert truth["first_lateness_s"] == truth["first_token_at"] - truth["first_scheduled_at"]
    assert truth["outcome"] == "finished"


def test_no_token_is_early_and_none_goes_back_in_time(metronome: str) -> None:
    """Lateness may be any, but never negative."""
    httpx.post(
        f"{metronome}/v1/chat/completions",
        json=chat(stream=True, max_tokens=20),
        headers={"x-request-id": "early"},
    )
    truth = truth_of(metronome, "early")
    due = [truth["first_scheduled_at"] + k * ITL_S for k in range(20)]

    assert all(at >= deadline for at, deadline in zip(truth["token_at"], due, strict=True))
    assert truth["token_at"] == sorted(truth["token_at"])


def test_a_reply_that_is_not_streamed_comes_when_its_last_token_is_due(metronome: str) -> None:
    """Read + TTFT + (n - 1) x ITL, all tokens in one write."""
    answer = httpx.post(
        f"{metronome}/v1/chat/completions", json=chat(), headers={"x-request-id": "whole"}
    )
    truth = truth_of(metronome, "whole")

    assert answer.json()["usage"]["completion_tokens"] == TOKENS, "the default length"
    assert truth["first_scheduled_at"] == pytest.approx(
        truth["read_at"] + TTFT_S + 6 * ITL_S, abs=1e-9
    )
    assert truth["tokens"] == TOKENS
    assert truth["streamed"] is False


def test_phases_are_spread_evenly_over_the_gap() -> None:
    """With --spread, any 16 streams that start together leave no hole larger than 2/16 of it."""
    settings = MetronomeSettings(ttft_s=0.05, itl_s=0.01, spread=True)
    for start in range(0, 100, 7):
        phases = sorted(settings.first_at(0.0, start + n) - 0.05 for n in range(16))
        gaps = [b - a for a, b in zip(phases, [*phases[1:], phases[0] + 0.01], strict=True)]
        assert max(gaps) < 2 / 16 * 0.01
        assert phases[0] >= 0
        assert phases[-1] < 0.01


def test_without_spread_the_time_to_first_token_is_as_asked() -> None:
    """For every request, not only for the first."""
    settings = MetronomeSettings(ttft_s=0.05)
    assert {settings.first_at(10.0, n) for n in range(9)} == {10.05}


@pytest.mark.parametrize("wrong", [{"ttft_s": -0.01}, {"itl_s": -1.0}, {"tokens": 0}])
def test_a_schedule_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    """In one sentence that names the options."""
    with pytest.raises(SettingsError, match="--ttft and --itl"):
        MetronomeSettings(**wrong)


@pytest.mark.parametrize("length", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("running", [False, True])
def test_usage_tells_what_was_sent(metronome: str, length: int, running: bool) -> None:
    """As many output events as tokens, and where running usage is asked for it counts up."""
    options = {"include_usage": True, "continuous_usage_stats": running}
    answer = httpx.post(
        f"{metronome}/v1/chat/completions",
        json=chat(stream=True, max_tokens=length, stream_options=options),
    )
    sent = events(answer.text)
    output = [e for e in sent[:-1] if e["choices"] and e["choices"][0]["delta"].get("content")]

    assert len(output) == length
    assert sent[-2]["usage"]["completion_tokens"] == length
    if running:
        counts = [event["usage"]["completion_tokens"] for event in output]
        assert counts == list(range(1, length + 1))


def test_a_connection_serves_one_request_after_another(metronome: str) -> None:
    """Sent both at once on one connection, the second is answered after the first."""
    with connect(metronome) as sock:
        request = raw_request(chat(stream=True, max_tokens=2))
        sock.sendall(request + request)
        data = read_until(sock, b"0\r\n\r\n")
        if data.count(b"0\r\n\r\n") < 2:
            data += read_until(sock, b"0\r\n\r\n")

    assert data.count(b"data: [DONE]\n\n") == 2
    assert data.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_a_request_that_comes_in_drips_is_read_when_its_last_byte_is(metronome: str) -> None:
    """Its schedule begins with the last byte, not with the first."""
    request = raw_request(chat(stream=True, max_tokens=1), "x-request-id: drips")
    with connect(metronome) as sock:
        for at in range(0, len(request) - 1, 60):
            sock.sendall(request[at : min(at + 60, len(request) - 1)])
        health = httpx.get(f"{metronome}/health")  # the loop has turned since
        assert health.status_code == 200
        sock.sendall(request[-1:])
        read_until(sock, b"0\r\n\r\n")

    truth = truth_of(metronome, "drips")
    assert truth["first_scheduled_at"] == truth["read_at"] + TTFT_S


def test_a_client_that_asks_first_is_told_to_go_on(metronome: str) -> None:
    """``Expect: 100-continue`` gets its 100, once, before the body is sent."""
    request = raw_request(chat(max_tokens=1), "expect: 100-continue")
    head, body = request.split(b"\r\n\r\n", 1)
    with connect(metronome) as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert b'"object":"chat.completion"' in read_until(sock, b"}")


def test_close_is_honoured(metronome: str) -> None:
    """The server says so too, and closes after the answer."""
    with connect(metronome) as sock:
        sock.sendall(raw_request(chat(stream=True, max_tokens=2), "connection: close"))
        data = b"".join(iter(lambda: sock.recv(65536), b""))

    assert b"connection: close\r\n" in data
    assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_client_that_leaves_is_forgotten(metronome: str) -> None:
    """Its truth says so, with the tokens written until then; others go on undisturbed."""
    with connect(metronome) as sock:
        sock.sendall(raw_request(chat(stream=True, max_tokens=1000), "x-request-id: leaver"))
        while b"finish_reason" not in sock.recv(65536):
            pass
    wait_for(lambda: httpx.get(f"{metronome}/truth?id=leaver").json()["requests"])
    truth = truth_of(metronome, "leaver")

    assert truth["outcome"] == "client_left"
    assert 1 <= truth["tokens"] < 1000


def test_a_slow_reader_loses_nothing() -> None:
    """What the kernel would not take is held back, counted, and arrives in the end, in order."""
    length = 30_000  # some 7 MB, more than the sockets' buffers take
    options = {"include_usage": True, "continuous_usage_stats": True}
    request = chat(stream=True, max_tokens=length, stream_options=options)
    with (
        SimProcess("--metronome", "--ttft", "0s", "--itl", "0s") as process,
        connect(process.url) as sock,
    ):
        sock.sendall(raw_request(request, "x-request-id: slow"))
        wait_for(lambda: httpx.get(f"{process.url}/health").status_code == 200)
        assert httpx.get(f"{process.url}/truth?id=slow").json()["requests"] == [], "not all taken"
        data = read_until(sock, b"\r\n0\r\n\r\n")
        truth = truth_of(process.url, "slow")

    counts = [int(n) for n in re.findall(rb'"completion_tokens":(\d+),"completion_tok', data)]
    assert counts == list(range(length + 1))  # the role event counts 0
    assert truth["tokens"] == length
    assert truth["held_back"] > 0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"411 Length"),
    ],
)
def test_bytes_that_are_no_request_are_answered_and_the_connection_closed(
    metronome: str, data: bytes, status: bytes
) -> None:
    """Rather than left to hang."""
    with connect(metronome) as sock:
        sock.sendall(data)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 " + status)


@pytest.mark.needs("openssl")
def test_over_tls_it_keeps_the_same_schedule(tmp_path: Path) -> None:
    """Whatever the request's size: TLS takes more from the kernel than it hands out at once."""
    _, certificate = self_signed_context(tmp_path)
    files = ("--tls-cert", str(certificate), "--tls-key", str(tmp_path / "key.pem"))
    trust = ssl.create_default_context(cafile=str(certificate))
    with SimProcess("--metronome", "--ttft", "30ms", "--itl", "5ms", *files) as server:
        assert server.url.startswith("https://")
        with httpx.Client(verify=trust, timeout=20) as client:
            for name, prompt in (("short", "hi"), ("long", "hi " * 100_000)):
                body = chat(stream=True, max_tokens=TOKENS)
                body["messages"] = [{"role": "user", "content": prompt}]
                answer = client.post(
                    f"{server.url}/v1/chat/completions", json=body, headers={"x-request-id": name}
                )
                assert answer.text.endswith("data: [DONE]\n\n")
            entries = client.get(f"{server.url}/truth").json()["requests"]

    assert [(e["id"], e["tokens"]) for e in entries] == [("short", TOKENS), ("long", TOKENS)]
    for entry in entries:
        assert entry["first_scheduled_at"] == pytest.approx(entry["read_at"] + TTFT_S, abs=1e-6)


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("words", [("--tls-cert", "{c}"), ("--tls-key", "{k}")])
def test_half_of_what_tls_needs_is_refused(tmp_path: Path, words: tuple[str, str]) -> None:
    """One sentence, before anything listens."""
    _, certificate = self_signed_context(tmp_path)
    paths = {"c": str(certificate), "k": str(tmp_path / "key.pem")}
    command = [sys.executable, "-m", "streamgauge", "serve", "sim", "--metronome", "--port", "0"]
    ended = subprocess.run(
        [*command, *(word.format(**paths) for word in words)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    assert ended.returncode == 2
    assert "--tls-cert and --tls-key belong together" in ended.stderr

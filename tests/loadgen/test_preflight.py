"""The look at an endpoint before the load."""

from __future__ import annotations

import json

import pytest

from loadgen.client import Endpoint
from loadgen.errors import TargetError
from loadgen.preflight import look_at
from loadgen.target import parse_target
from reference_server.byteserver import ByteServer, Play, Then, free_port
from tests.loadgen.wiring import raw, sized

KEY = "c4narysecret9"


def endpoint(url: str, model: str = "", *, key: str | None = None) -> Endpoint:
    """An endpoint as the options give it."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return Endpoint(
        target=parse_target(url),
        model=model,
        headers=headers,
        secrets=() if key is None else (key,),
    )


def models(*ids: object) -> Play:
    """A list of models."""
    body = json.dumps({"object": "list", "data": [{"id": i} for i in ids]}).encode()
    return raw(sized("200 OK", body, "Content-Type: application/json"))


@pytest.mark.parametrize(
    ("play", "asked", "model"),
    [
        (models("only"), "", "only"),
        (models("only"), "only", "only"),
        (models("a", "b"), "b", "b"),
        (models(), "m", "m"),
        (raw(sized("404 Not Found", b"")), "m", "m"),
        (raw(sized("500 Oops", b"{}")), "m", "m"),
        (raw(sized("200 OK", b"<html>")), "m", "m"),
        (raw(sized("200 OK", b"[]")), "m", "m"),
        (raw(sized("200 OK", b'{"data":5}')), "m", "m"),
        (raw(sized("200 OK", b'{"data":[5,{},{"id":7}]}')), "m", "m"),
        (raw(sized("200 OK", b"[" * 100_000)), "m", "m"),
    ],
)
def test_an_endpoint_that_can_be_used(play: Play, asked: str, model: str) -> None:
    """Where it lists no models, what was asked for stands."""
    with ByteServer(play) as server:
        assert look_at(endpoint(server.url, asked)).model == model
        (request,) = server.requests

    assert (request.method, request.path) == ("GET", "/v1/models")


def test_the_key_goes_along() -> None:
    """As it will with the load."""
    with ByteServer(models("m")) as server:
        look_at(endpoint(server.url, key=KEY))

        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def refusal(asked: Endpoint) -> str:
    """The sentence that says why an endpoint cannot be used."""
    with pytest.raises(TargetError) as raised:
        look_at(asked)
    sentence = str(raised.value)
    assert sentence[-1] in ".?"
    assert "\n" not in sentence
    assert KEY not in sentence
    return sentence


@pytest.mark.parametrize(
    ("play", "model", "key", "words"),
    [
        (models("a", "b"), "", None, "serves a, b; say which with --model NAME."),
        (models("a", "b"), "c", None, "does not serve 'c'; it serves a, b."),
        (models(*"abcdefghij"), "x", None, "it serves a, b, c, d, e, f, g, h, ...."),
        (models(), "", None, "does not list its models; say which with --model NAME."),
        (raw(sized("404 No", b"")), "", None, "does not list its models"),
        (raw(sized("401 No", b"")), "m", None, "wants an API key (HTTP 401)"),
        (raw(sized("403 No", b"")), "m", KEY, "refused the API key (HTTP 403)"),
        (raw(sized("401 No", f"bad key {KEY}".encode())), "m", KEY, "refused the API key"),
        (
            raw(sized("307 Elsewhere", b"", f"Location: https://else.where/login?next={KEY}")),
            "m",
            None,
            "redirects to https://else.where/login?next=***; redirects are not followed",
        ),
        (Play(then=Then.CLOSE), "m", None, "Cannot reach"),
        (raw(b"SSH-2.0\r\n", Then.CLOSE), "m", KEY, "Cannot reach"),
    ],
)
def test_an_endpoint_that_cannot(play: Play, model: str, key: str | None, words: str) -> None:
    """Is told in one sentence, before a thousand requests fail."""
    with ByteServer(play) as server:
        sentence = refusal(endpoint(server.url, model, key=key))

        assert words in sentence
        assert server.url in sentence


@pytest.mark.parametrize("name", ["api-key", "X-Api-Key", "authorization"])
def test_a_key_in_any_header_is_a_key(name: str) -> None:
    """Whoever gave one is not asked to give one."""
    with ByteServer(raw(sized("401 No", b""))) as server:
        asked = Endpoint(target=parse_target(server.url), model="m", headers={name: KEY})

        assert "refused the API key" in refusal(asked)


def test_an_endpoint_that_is_not_there() -> None:
    """Nobody listens, or there is no such host."""
    assert "Connection refused" in refusal(endpoint(f"http://127.0.0.1:{free_port()}", "m"))
    assert "Cannot reach http://no-such.invalid" in refusal(endpoint("http://no-such.invalid", "m"))


def test_an_endpoint_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is waited for only so long."""
    monkeypatch.setattr("loadgen.preflight.TIMEOUT_S", 0.05)
    with ByteServer(Play(then=Then.HOLD)) as server:
        assert "did not answer within" in refusal(endpoint(server.url, "m"))


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load would not use it either."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with ByteServer(models("m")) as server:
        assert look_at(endpoint(server.url)).model == "m"

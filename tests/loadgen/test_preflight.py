"""The look at an endpoint before the load."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from loadgen.client import Endpoint
from loadgen.dialects import DIALECTS
from loadgen.errors import TargetError
from loadgen.options import Settings, read_settings
from loadgen.preflight import look, look_at
from loadgen.target import parse_target
from reference_server.byteserver import ByteServer, Play, Then, free_port
from tests.loadgen.vendors import answer, bodies, model_list, vendor
from tests.loadgen.vendors import refusal as refused
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


# -- dialects ----------------------------------------------------------------------------------


def settings(url: str, **options: Any) -> Settings:
    """The settings of a command line."""
    return read_settings(SimpleNamespace(model="m", **options), url, {"KEY": KEY})


@pytest.mark.parametrize(
    ("owner", "headers", "name"),
    [
        ("vllm", (), "vllm"),
        ("llamacpp", (), "llama.cpp"),
        ("someone", ("Server: llama.cpp",), "llama.cpp"),
        ("someone", ("x-litellm-version: 1",), "litellm"),
        ("someone", ("Server: uvicorn",), "generic"),
    ],
)
def test_the_list_of_models_tells_the_dialect(
    owner: str, headers: tuple[str, ...], name: str
) -> None:
    """Without a further request."""
    with vendor(pages={"/v1/models": model_list("m", owner=owner, headers=headers)}) as server:
        assert look(settings(server.url)).endpoint.dialect.name == name
        assert len(server.requests) == 1


def test_a_named_dialect_stands() -> None:
    """Whatever the models' owner."""
    with vendor(pages={"/v1/models": model_list("m", owner="vllm")}) as server:
        assert look(settings(server.url, dialect="generic")).endpoint.dialect.name == "generic"


def test_a_server_that_takes_any_name_is_asked_by_any() -> None:
    """Ollama lists llama3 as llama3:latest."""
    with vendor(pages={"/v1/models": model_list("m:latest", owner="library")}) as server:
        assert look(settings(server.url)).endpoint.model == "m"


def test_a_dialect_without_a_list_of_models_is_not_asked_for_one() -> None:
    """The model has to be named then."""
    with vendor() as server:
        assert look(settings(server.url, dialect="bedrock")).endpoint.model == "m"
        assert server.requests == []


def test_without_preflight_nothing_is_asked() -> None:
    """Not even which dialect it is."""
    with vendor() as server:
        asked = settings(server.url, no_preflight=True)
        assert look(asked) is asked
        assert server.requests == []


def test_auto_asks_what_a_run_would_and_no_more() -> None:
    """One request, where it is not refused, with the user's own fields."""
    with vendor(pages={"/v1/models": model_list("m")}) as server:
        seen = look(settings(server.url, dialect="auto", temperature="0.5"))
        (asked,) = bodies(server)

    assert seen.endpoint.dialect == DIALECTS["generic"]
    assert asked["temperature"] == 0.5
    assert set(asked) == {
        *("model", "messages", "max_tokens", "stream", "stream_options", "temperature")
    }


def test_auto_learns_what_is_refused() -> None:
    """The run asks without it, from its first request on."""

    def reply(asked: dict[str, Any]) -> Play:
        for name in ("max_tokens", "stream_options"):
            if name in asked:
                return refused("400 No", {"error": {"message": f"unsupported: {name}"}})
        return answer(asked)

    with vendor(reply) as server:
        dialect = look(settings(server.url, dialect="auto")).endpoint.dialect
        assert len(bodies(server)) == 3

    assert (dialect.limit_field, dialect.include_usage) == ("max_completion_tokens", False)


@pytest.mark.parametrize(
    ("status", "posts"), [("400 No", 3), ("422 No", 3), ("401 No", 1), ("404 No", 1)]
)
def test_auto_refuses_a_run_that_would_be_refused(status: str, posts: int) -> None:
    """In the server's own words, but for the key."""
    play = refused(status, {"error": {"message": f"not with {KEY}"}})
    with vendor(lambda _: play) as server:
        with pytest.raises(TargetError) as raised:
            look(settings(server.url, dialect="auto", api_key_env="KEY"))
        assert len(bodies(server)) == posts

    assert f"(HTTP {status[:3]}): not with" in str(raised.value)
    assert KEY not in str(raised.value)


def test_auto_does_not_mind_a_busy_server() -> None:
    """A 503 says nothing about the request; the run will see for itself."""
    with vendor(lambda _: refused("503 Busy", {})) as server:
        seen = look(settings(server.url, dialect="auto"))

    assert seen.endpoint.dialect == DIALECTS["generic"]

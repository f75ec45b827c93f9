"""Dialects: what each asks for, and how one is told from the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadgen.dialects import (
    DIALECTS,
    GENERIC,
    Evidence,
    apply_dialect,
    dialect_of_host,
    from_spec,
    recognise,
)
from loadgen.target import parse_target

LOCAL = parse_target("http://localhost:8000")
BODY: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "stream": True,
    "stream_options": {"include_usage": True},
}


def test_the_dialects_asked_for_are_there() -> None:
    """Each under its own name, so that --dialect takes it."""
    assert set(DIALECTS) >= {
        *("openai", "azure", "vllm", "sglang", "tgi", "tensorrt-llm", "llama.cpp", "ollama"),
        *("litellm", "openrouter", "helicone", "portkey", "anthropic", "gemini", "vertex"),
        *("bedrock", "groq", "deepseek", "mistral", "together", "fireworks"),
    }


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://mine.openai.azure.com", "azure"),
        ("https://mine.openai.azure.com/openai/v1/", "azure-v1"),
        ("https://api.anthropic.com/v1", "anthropic"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini"),
        ("https://us-central1-aiplatform.googleapis.com/v1/projects/p/endpoints/openapi", "vertex"),
        ("https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1", "bedrock"),
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://api.deepseek.com", "deepseek"),
        ("https://api.mistral.ai/v1", "mistral"),
        ("https://api.together.xyz/v1", "together"),
        ("https://api.fireworks.ai/inference/v1", "fireworks"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://ai-gateway.helicone.ai", "helicone"),
        ("https://api.portkey.ai/v1", "portkey"),
        ("http://localhost:8000", "generic"),
        ("https://api.openai.com.evil.example", "generic"),
    ],
)
def test_a_hosted_api_is_told_by_its_host(url: str, name: str) -> None:
    """Before anything is asked; a host that only looks like one is nobody's."""
    assert dialect_of_host(parse_target(url)).name == name


@pytest.mark.parametrize(
    ("evidence", "name", "because"),
    [
        (Evidence(target=LOCAL), "generic", ""),
        (Evidence(target=LOCAL, owners=frozenset({"vllm"})), "vllm", "models owned by 'vllm'"),
        (Evidence(target=LOCAL, owners=frozenset({"sglang"})), "sglang", "models owned by"),
        (Evidence(target=LOCAL, owners=frozenset({"tensorrt_llm"})), "tensorrt-llm", "models"),
        (Evidence(target=LOCAL, owners=frozenset({"library"})), "ollama", "models owned by"),
        (Evidence(target=LOCAL, headers={"server": "llama.cpp"}), "llama.cpp", "header server"),
        (Evidence(target=LOCAL, headers={"server": "uvicorn"}), "generic", ""),
        (Evidence(target=LOCAL, pages={"/info": {"model_id": "m"}}), "tgi", "page /info"),
        (Evidence(target=LOCAL, pages={"/version": {"version": "0.33"}}), "vllm", "page /version"),
        (Evidence(target=LOCAL, pages={"/version": {"other": 1}}), "generic", ""),
        (
            Evidence(target=LOCAL, pages={"/props": {"default_generation_settings": {}}}),
            "llama.cpp",
            "page /props",
        ),
        (Evidence(target=LOCAL, pages={"/api/version": {"version": "1"}}), "ollama", "page"),
        (
            Evidence(
                target=LOCAL,
                headers={"x-litellm-version": "1"},
                owners=frozenset({"vllm"}),
            ),
            "litellm",
            "header x-litellm-version",
        ),
        (
            Evidence(target=parse_target("https://api.openai.com"), owners=frozenset({"vllm"})),
            "openai",
            "host api.openai.com",
        ),
    ],
)
def test_what_gives_a_server_away(evidence: Evidence, name: str, because: str) -> None:
    """A host outweighs a header, a header an owner, an owner a page; a gateway what is behind."""
    dialect, reason = recognise(evidence)

    assert dialect.name == name
    assert reason.startswith(because)
    assert bool(reason) == (name != "generic")


@pytest.mark.parametrize(
    ("name", "api", "path"),
    [
        ("generic", "chat", "/v1/chat/completions"),
        ("vllm", "completions", "/v1/completions"),
        (
            "azure",
            "chat",
            "/openai/deployments/a%20b/chat/completions?api-version=2024-10-21",
        ),
        ("azure", "embeddings", "/openai/deployments/a%20b/embeddings?api-version=2024-10-21"),
        ("azure-v1", "chat", "/v1/chat/completions"),
        ("gemini", "chat", "/chat/completions"),
        ("vertex", "chat", "/chat/completions"),
        ("anthropic", "messages", "/v1/messages"),
    ],
)
def test_a_path(name: str, api: str, path: str) -> None:
    """A model in it is quoted."""
    assert DIALECTS[name].path(api, "a b") == path


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_can_be_asked(name: str) -> None:
    """It has a path for chat, which begins with a slash, and says nothing of a key without one."""
    dialect = DIALECTS[name]

    assert dialect.path("chat", "m").startswith("/")
    assert "secret" in "".join(dialect.auth("secret").values())
    assert dialect.auth_header not in dialect.auth("")
    assert dialect.limit_field in ("max_tokens", "max_completion_tokens")
    assert from_spec(dialect.spec()) == dialect


@pytest.mark.parametrize(
    ("name", "headers"),
    [
        ("generic", {"Authorization": "Bearer k"}),
        ("azure", {"api-key": "k"}),
        ("anthropic", {"x-api-key": "k", "anthropic-version": "2023-06-01"}),
        ("portkey", {"x-portkey-api-key": "k"}),
    ],
)
def test_where_the_key_goes(name: str, headers: dict[str, str]) -> None:
    """Each in its own header."""
    assert DIALECTS[name].auth("k") == headers


@pytest.mark.parametrize("name", ["generic", "vllm", "sglang", "llama.cpp", "ollama", "tgi"])
def test_servers_of_ones_own_are_asked_as_ever(name: str) -> None:
    """Recognising one changes no byte of a request."""
    assert apply_dialect(BODY, DIALECTS[name], "chat") == BODY


def test_the_token_limit_has_another_name_for_chats_alone() -> None:
    """The other APIs have a field of their own, whoever serves them."""
    chat = apply_dialect(BODY, DIALECTS["openai"], "chat")

    assert chat["max_completion_tokens"] == 9
    assert "max_tokens" not in chat
    assert apply_dialect(BODY, DIALECTS["openai"], "completions") == BODY


def test_the_usage_option_is_left_out_where_it_is_refused() -> None:
    """The body given stays as it was."""
    assert "stream_options" not in apply_dialect(BODY, DIALECTS["mistral"], "chat")
    assert "stream_options" in BODY


@pytest.mark.parametrize(
    ("name", "headers", "status"),
    [
        ("helicone", {"helicone-cache": "HIT"}, "hit"),
        ("helicone", {"helicone-cache": "MISS"}, "miss"),
        ("helicone", {}, None),
        ("portkey", {"x-portkey-cache-status": "SEMANTIC HIT"}, "hit"),
        ("portkey", {"x-portkey-cache-status": "SEMANTIC MISS"}, "miss"),
        ("portkey", {"x-portkey-cache-status": "DISABLED"}, None),
        ("generic", {"helicone-cache": "HIT"}, None),
    ],
)
def test_a_gateway_that_answered_from_its_cache(
    name: str, headers: dict[str, str], status: str | None
) -> None:
    """No model was asked then; one that says nothing of its cache is taken for nothing."""
    assert DIALECTS[name].cache_status(headers) == status


def test_a_dialect_travels_with_what_was_learned() -> None:
    """Plain values, from the process that looked to those that ask."""
    learned = replace(GENERIC, limit_field="max_completion_tokens", include_usage=False)

    assert from_spec(learned.spec()) == learned

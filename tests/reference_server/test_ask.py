"""What a client asks for, and what vLLM would refuse."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.ask import (
    API_OF_PATH,
    CHAT_PATH,
    COMPLETIONS_PATH,
    Ask,
    Limits,
    read_ask,
    read_asks,
)
from reference_server.embeddings import embeddings_body, read_embedding_ask
from reference_server.errors import RefusedError
from reference_server.script import Speech, write_script

LIMITS = Limits(model="tiny", max_model_len=100, default_tokens=32)
MESSAGES = [{"role": "user", "content": "How are you?"}]  # 3 tokens + 4 + 3


def ask(path: str = CHAT_PATH, *, limits: Limits = LIMITS, **fields: Any) -> Ask:
    if path == CHAT_PATH:
        fields.setdefault("messages", MESSAGES)
    else:
        fields.setdefault("prompt", "one two three")
    return read_ask(path, "application/json", json.dumps(fields).encode(), limits)


def test_what_is_not_said_is_taken_as_vllm_takes_it() -> None:
    """Not streamed, no usage, the default length; a length as asked is told apart from that."""
    plain = ask()

    assert (plain.stream, plain.usage, plain.running_usage) == (False, False, False)
    assert (plain.max_tokens, plain.max_tokens_asked) == (32, None)
    assert plain.prompt_tokens == 10


def test_the_newer_name_of_the_length_comes_first() -> None:
    """``max_completion_tokens`` overrides the deprecated ``max_tokens``."""
    assert ask(max_tokens=5).max_tokens == 5
    assert ask(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_running_usage_needs_usage() -> None:
    """``continuous_usage_stats`` alone does nothing."""
    alone = ask(stream=True, stream_options={"continuous_usage_stats": True})
    both = ask(stream=True, stream_options={"continuous_usage_stats": True, "include_usage": True})

    assert (alone.usage, alone.running_usage) == (False, False)
    assert (both.usage, both.running_usage) == (True, True)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("one two three", 4), ([5, 6, 7], 3), (["one"], 1), ([[5, 6]], 2)],
)
def test_a_prompt_is_text_or_token_ids(prompt: Any, tokens: int) -> None:
    """Or a list of one of these; ids count as they are."""
    assert ask(COMPLETIONS_PATH, prompt=prompt).prompt_tokens == tokens


def test_the_parts_of_a_message_count_together() -> None:
    """Text parts are read, others (images) pass without a token."""
    parts = [
        {"type": "text", "text": "How are"},
        {"type": "image_url"},
        {"type": "text", "text": "you?"},
    ]

    assert ask(messages=[{"role": "user", "content": parts}]).prompt_tokens == 10


def test_an_answer_fits_into_what_the_context_leaves() -> None:
    """90 tokens of prompt leave 10 of 100; one that is too long gets what there is room for."""
    assert ask(COMPLETIONS_PATH, prompt=[1] * 90).max_tokens == 10
    assert ask(COMPLETIONS_PATH, prompt=[1] * 90, max_tokens=11).max_tokens == 10


def test_unknown_fields_pass() -> None:
    """As with vLLM: a client's vendor fields are not an error."""
    assert ask(temperature=0, top_k=5, chat_template_kwargs={}, whatever=1).max_tokens == 32


@pytest.mark.parametrize(
    ("fields", "status", "says", "param"),
    [
        (
            {"model": "nope"},
            404,
            "The model `nope` does not exist. Valid aliases: tiny.",
            "model",
        ),
        ({"max_tokens": 0}, 400, "max_tokens must be at least 1, got 0.", "max_tokens"),
        (
            {"max_tokens": 101},
            400,
            "max_tokens=101 cannot be greater than max_model_len=100",
            "max_tokens",
        ),
        (
            {"messages": [{"role": "user", "content": "a " * 93}]},
            400,
            "This model's maximum context length is 100 tokens. However, your prompt contains 100",
            "input_tokens",
        ),
        ({"messages": []}, 400, "Cannot apply chat template to an empty", "messages"),
        ({"messages": None}, 400, "Field required", "messages"),
        ({"messages": "hi"}, 400, "valid list", "messages"),
        (
            {"stream_options": {"include_usage": True}},
            400,
            "Stream options can only be defined when `stream=True`.",
            "stream_options",
        ),
        ({"max_tokens": 5, "min_tokens": 6}, 400, "max_tokens=5, got 6", "min_tokens"),
        ({"max_tokens": "5"}, 400, "valid integer", "max_tokens"),
        ({"stream": "yes"}, 400, "valid boolean", "stream"),
        ({"n": 2}, 400, "n must be 1", "n"),
    ],
)
def test_what_is_wrong_is_refused_as_vllm_refuses_it(
    fields: dict[str, Any], status: int, says: str, param: str
) -> None:
    """Status, message and the part at fault."""
    with pytest.raises(RefusedError) as caught:
        ask(**fields)

    assert caught.value.status == status
    assert says in caught.value.message
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", ["", [], "   ", [1.5], [[]], ["one", ""], ["one", [1]]])
def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    """Empty, not a prompt at all, or one of several is."""
    with pytest.raises(RefusedError, match="prompt"):
        ask(COMPLETIONS_PATH, prompt=prompt)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[1]", b"[" * 100_000, b""])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    """Cut off, not UTF-8, a list, nested without end, nothing."""
    with pytest.raises(RefusedError) as caught:
        read_ask(CHAT_PATH, "application/json", body, LIMITS)

    assert (caught.value.status, caught.value.kind) == (400, "Bad Request")


def test_a_body_must_say_that_it_is_json() -> None:
    """As vLLM does, it asks for the header."""
    with pytest.raises(RefusedError, match="Only 'application/json' is allowed"):
        read_ask(CHAT_PATH, "text/plain", b"{}", LIMITS)
    read_ask(
        CHAT_PATH,
        "Application/JSON; charset=utf-8",
        json.dumps({"messages": MESSAGES}).encode(),
        LIMITS,
    )


def test_the_seed_follows_from_the_request() -> None:
    """The same request gives the same answer; another seed or prompt another one."""
    seeds = [ask().seed, ask(seed=1).seed, ask(messages=[{"role": "user", "content": "x"}]).seed]

    assert ask().seed == seeds[0]
    assert len(set(seeds)) == 3


def asks(**fields: Any) -> list[Ask]:
    body = json.dumps(fields).encode()
    limits = dataclasses.replace(LIMITS, max_choices=4)
    return read_asks(COMPLETIONS_PATH, "application/json", body, limits)


def test_there_are_so_many_answers_to_each_prompt() -> None:
    """Prompt by prompt, each of the length that its own prompt leaves."""
    found = asks(prompt=["one two", "a " * 90], n=2)

    assert [each.prompt_tokens for each in found] == [2, 2, 90, 90]
    assert [each.max_tokens for each in found] == [32, 32, 10, 10]
    assert len({each.seed for each in found}) == 4
    assert [each.prompt_tokens for each in asks(prompt=[[5, 6], [7, 8, 9]])] == [2, 3]


def test_the_second_answer_is_the_next_seeds_first() -> None:
    """As vLLM counts the seeds of a request's answers up."""
    together = [each.seed for each in asks(prompt="one", n=3, seed=7)]

    assert together == [asks(prompt="one", seed=seed)[0].seed for seed in (7, 8, 9)]


def test_a_server_of_one_answer_takes_one_prompt() -> None:
    """The metronome renders an answer before it is due, and one only."""
    with pytest.raises(RefusedError, match="one prompt a request"):
        ask(COMPLETIONS_PATH, prompt=["one", "two"])


_KEYS = (
    *("role", "content", "type", "text", "function", "name", "parameters", "input"),
    *("budget_tokens", "effort"),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
_FIELDS = (
    *("messages", "prompt", "input", "model", "stream", "stream_options", "n", "stop", "logprobs"),
    *("top_logprobs", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"),
    *("seed", "tools", "tool_choice", "reasoning", "reasoning_effort", "chat_template_kwargs"),
    *("include_reasoning", "instructions", "stream_interval", "return_token_ids", "ignore_eos"),
    *("dimensions", "encoding_format", "system", "stop_sequences", "thinking", "output_config"),
)


@given(
    st.sampled_from(sorted(API_OF_PATH)),
    st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=8),
    st.booleans(),
)
def test_whatever_a_client_sends_is_understood_or_refused(
    path: str, fields: dict[str, Any], valid: bool
) -> None:
    """No value of any field, in any API, is a fault of the server's."""
    if valid:  # so that what follows the prompt is reached
        fields |= {"messages": MESSAGES, "prompt": "one", "input": "one", "model": "tiny"}
        fields |= {"max_tokens": 5}
    body = json.dumps(fields).encode()
    try:
        asked = read_ask(path, "application/json", body, dataclasses.replace(LIMITS, max_choices=4))
    except RefusedError:
        return
    script = write_script(
        Speech(
            seed=asked.seed,
            max_tokens=asked.max_tokens,
            min_tokens=asked.min_tokens,
            stop=asked.stop,
            reasons=asked.reasons,
            function=asked.function,
        )
    )
    assert len(list(script.pieces)) == script.length <= asked.max_tokens
    assert len(asked.prompt.ids()) == asked.prompt_tokens


@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4))
def test_whatever_is_to_be_embedded_is_understood_or_refused(fields: dict[str, Any]) -> None:
    """Likewise for embeddings."""
    try:
        asked = read_embedding_ask("application/json", json.dumps(fields).encode(), LIMITS)
    except RefusedError:
        return
    assert embeddings_body(asked, "embd-1", "m", 1)

"""Prompts: how long they are, and what they begin like."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reference_server.prompt import chat_prompt, plain_prompts
from reference_server.text import answer_id, count_tokens

MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}
    ),
    min_size=1,
)


def chat(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in messages]}


@given(MESSAGES)
def test_ids_and_spans_are_as_many_as_the_prompt_has_tokens(messages: list[dict[str, str]]) -> None:
    """Three ways to count the same."""
    prompt = chat_prompt({"messages": messages})

    assert len(prompt.ids()) == prompt.tokens
    assert sum(tokens for _, tokens in prompt.spans) == prompt.tokens


def test_a_prompt_of_ids_is_these() -> None:
    """They are told as they came."""
    assert [prompt.ids() for prompt in plain_prompts({"prompt": [5, 6, 7]})] == [[5, 6, 7]]


def test_prompts_that_begin_alike_have_spans_that_do() -> None:
    """A shared system message, and two different questions."""
    system = ("system", "be brief " * 40)
    first = chat_prompt(chat(system, ("user", "one"))).spans
    second = chat_prompt(chat(system, ("user", "two"))).spans
    alike = [a == b for a, b in zip(first, second, strict=True)]

    assert all(alike[:6])
    assert not all(alike)


def test_the_next_turn_begins_with_this_turn_and_its_answer() -> None:
    """What was generated stands where it stood, so a prefix cache would have it."""
    now = chat_prompt(chat(("user", "How are you?"))).spans
    answer = "as well as ever"
    later = chat_prompt(
        chat(("user", "How are you?"), ("assistant", answer), ("user", "Good."))
    ).spans

    assert later[: len(now) + 1] == [*now, (answer_id(answer), count_tokens(answer))]

"""The prompt of a request: how many tokens it has, which ids, and what it begins like.

Pure. The rule for a text is in text.py. A chat adds, as chat templates do, three tokens before
each message and one after it, and three more that open the answer; so an answer that comes back
as a message of the next turn stands where it stood when it was generated.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reference_server.errors import RefusedError
from reference_server.fields import Fields, bad, missing
from reference_server.text import (
    TOKENS_OF_OPENING,
    TOKENS_PER_MESSAGE,
    answer_id,
    count_tokens,
    token_strings,
    tokenize,
)

_SPAN_TOKENS = 16  # prompts are told apart in steps of so many, the smallest block in use


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat, as far as it counts."""

    role: str
    text: str


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: a chat's messages, a text, or token ids.

    Attributes:
        content: one of the three.
        tokens: how many.
    """

    content: tuple[Message, ...] | str | tuple[int, ...]
    tokens: int

    def ids(self) -> list[int]:
        """Its tokens; made up but stable, see text.py."""
        if isinstance(self.content, str):
            return tokenize(self.content)
        if not self.content or isinstance(self.content[0], int):
            return [token for token in self.content if isinstance(token, int)]
        ids: list[int] = []
        for message in self.content:
            assert isinstance(message, Message)
            ids += [*_opening(message.role), *tokenize(message.text), 4]
        return [*ids, *_opening("assistant")]

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """Rows of tokens, each as (what it follows from, how many); alike rows are alike tokens.

        An assistant's message is one row, as it was when it was generated.
        """
        if isinstance(self.content, str):
            return list(_rows(token_strings(self.content)))
        if not self.content or isinstance(self.content[0], int):
            return list(_rows(self.ids()))
        spans: list[tuple[int, int]] = []
        for message in self.content:
            assert isinstance(message, Message)
            spans += _rows(_opening(message.role))
            if message.role == "assistant":
                if length := count_tokens(message.text):
                    spans.append((answer_id(message.text), length))
            else:
                spans += _rows(token_strings(message.text))
            spans.append((4, 1))
        return [*spans, *_rows(_opening("assistant"))]

    @cached_property
    def seed(self) -> int:
        """A number that follows from what is asked, and nothing else."""
        return zlib.crc32(repr(self.content).encode(errors="replace"))


def chat_prompt(fields: Fields) -> Prompt:
    """The prompt in a chat's ``messages``.

    Raises:
        RefusedError: there are none, or they are no messages.
    """
    messages = fields.get("messages")
    if messages is None:
        raise missing("Field required", "messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise missing("Input should be a valid list", "messages")
    if not messages:
        raise bad(
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
            "messages",
        )
    content = tuple(
        Message(str(m.get("role", "user")), text_of(m.get("content"))) for m in messages
    )
    tokens = TOKENS_OF_OPENING + sum(
        TOKENS_PER_MESSAGE + count_tokens(message.text) for message in content
    )
    return Prompt(content, tokens)


def plain_prompts(fields: Fields) -> list[Prompt]:
    """The prompts of a completion: a text or a list of token ids, or several of these.

    Raises:
        RefusedError: there are none, one is neither, or one is empty.
    """
    prompt = fields.get("prompt")
    if prompt is None:
        raise missing("Field required", "prompt")
    if prompt == []:
        raise RefusedError(400, "You must pass at least one prompt", "BadRequestError")
    several = isinstance(prompt, list) and any(
        all(isinstance(each, kind) for each in prompt) for kind in (str, list)
    )
    return [one_prompt(each, "prompt") for each in (prompt if several else [prompt])]


def one_prompt(prompt: Any, name: str) -> Prompt:
    """A text or a list of token ids.

    Args:
        prompt: as it came.
        name: of the field it came in.

    Raises:
        RefusedError: it is neither, or empty.
    """
    if isinstance(prompt, str):
        found = Prompt(prompt, count_tokens(prompt))
    elif isinstance(prompt, list) and all(type(token) is int for token in prompt):
        found = Prompt(tuple(prompt), len(prompt))
    else:
        raise bad(f"{name} must be one string or one list of token ids.", name)
    if not found.tokens:
        raise RefusedError(400, "The decoder prompt cannot be empty", "BadRequestError")
    return found


def text_of(content: Any) -> str:
    """A message's text: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return " ".join(part for part in parts if isinstance(part, str))
    return ""


def _opening(role: str) -> list[int]:
    """The three tokens before a message of that role."""
    return [1, zlib.crc32(role.encode(errors="replace")) % 1000, 2]


def _rows(tokens: Sequence[int] | Sequence[str]) -> Iterator[tuple[int, int]]:
    for start in range(0, len(tokens), _SPAN_TOKENS):
        row = tokens[start : start + _SPAN_TOKENS]
        yield zlib.crc32(repr(row).encode(errors="replace")), len(row)

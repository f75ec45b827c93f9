"""Token counts made here: of what, and what they come to. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from collectors.records import RequestRecord, TokenSource
from loadgen.reply import REASONING
from loadgen.tokenizer import Tokenizer


class Counts(NamedTuple):
    """Tokens of one request; ``None`` is unknown.

    Attributes:
        input: of the prompt.
        output: of all that was said.
        reasoning: of that part of it that was reasoning; ``None`` where none was shown.
    """

    input: int | None
    output: int | None
    reasoning: int | None


class Task(NamedTuple):
    """What to count.

    Attributes:
        prompt: the prompt as the server gets it; "" where its tokens are not to be told from it.
        said: kind and text of all that was said.
    """

    prompt: str
    said: list[tuple[int, str]]

    @property
    def chars(self) -> int:
        """How long all of it is."""
        return len(self.prompt) + sum(len(text) for _, text in self.said)


NOTHING = Counts(None, None, None)


class Counter(Protocol):
    """Counts for a client, and never keeps it waiting."""

    def count(self, task: Task, then: Callable[[Counts], None]) -> None:
        """Count, and call ``then`` with the result."""


class Inline:
    """Counts while its caller waits: for a few requests off the clock."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def count(self, task: Task, then: Callable[[Counts], None]) -> None:
        """Count, and call ``then`` with the result; a text it cannot take is left uncounted."""
        try:
            counts = count_tokens(self._tokenizer, task)
        except Exception:  # noqa: BLE001  # the package raises nothing more special
            counts = NOTHING
        then(counts)


def count_tokens(tokenizer: Tokenizer, task: Task) -> Counts:
    """The tokens of one request; takes as long as it takes."""
    prompt = tokenizer.count([task.prompt], special=True)[0] if task.prompt else None
    tokens = tokenizer.count([text for _, text in task.said]) if task.said else []
    thought = [n for (kind, _), n in zip(task.said, tokens, strict=True) if kind == REASONING]
    return Counts(
        input=prompt,
        output=sum(tokens) if tokens else None,
        reasoning=sum(thought) if thought else None,
    )


def with_counts(record: RequestRecord, counts: Counts) -> RequestRecord:
    """The record with what was counted here; what it knows already stands."""
    counted: dict[str, Any] = {}
    if record.input_tokens is None:
        counted["input_tokens"] = counts.input
    if record.output_tokens is None and counts.output is not None:
        counted |= {"output_tokens": counts.output, "token_source": TokenSource.TOKENIZER}
        if record.reasoning_tokens is None:
            counted["reasoning_tokens"] = counts.reasoning
    if record.token_source is None and counts.input is not None:  # embeddings put nothing out
        counted["token_source"] = TokenSource.TOKENIZER
    return replace(record, **counted)

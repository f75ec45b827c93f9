"""What an answer says, one piece a token.

Pure. The same request gives the same words. The order is that of real models: reasoning first
where it was asked for (half of the answer), then the text, or a tool call instead of it.

- **Length.** As asked for, unless the answer ends of itself (`answer_length`) or at a stop string.
- **Stop strings.** The first one that appears ends the answer; as in vLLM the text before it is all
  that is shown, and so many characters are held back until it is sure that none has begun.
- **Tool calls.** vLLM's parsers keep a call's first tokens to themselves until the name is known:
  these come without an event. Then come the name, and token by token the arguments. The call is
  spun out to the length asked for; where that is too short for one, the answer is cut within it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple

from reference_server.text import answer_id, answer_length, words

TOKENS_BEFORE_CALL = 4
"""Tokens of a tool call up to the one that completes its name; only then is anything shown."""


class Kind(StrEnum):
    """What a token is part of."""

    TEXT = "text"
    REASONING = "reasoning"
    NAME = "name"  # of the tool that is called
    ARGUMENTS = "arguments"
    HELD = "held"  # nothing is shown of it


class Piece(NamedTuple):
    """One token.

    Attributes:
        kind: what it is part of.
        shown: what is sent when it is there; held-back text comes with a later one.
        token: its own text.
    """

    kind: Kind
    shown: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A tool that an answer calls, and the one argument it gives."""

    name: str
    argument: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What decides what an answer says.

    Attributes:
        seed: its words follow from this.
        max_tokens: its length at most.
        min_tokens: it does not end of itself before.
        eos_probability: chance of ending after each token.
        stop: strings that end it.
        reasons: it begins with reasoning.
        shows_reasoning: and that is shown.
        function: the tool it calls; None: it is text.
    """

    seed: int
    max_tokens: int
    min_tokens: int = 0
    eos_probability: float = 0.0
    stop: tuple[str, ...] = ()
    reasons: bool = False
    shows_reasoning: bool = True
    function: Function | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """An answer as it will be.

    Attributes:
        pieces: one a token, `length` of them.
        length: tokens.
        reasoning_tokens: of these, reasoning.
        finish_reason: ``length``, ``stop`` or ``tool_calls``.
        stop_reason: the stop string that ended it.
        function: the tool it calls.
        text_id: what its tokens follow from, where it is nothing but text; None: it is not, or
            nobody asked (`written_out`).
    """

    pieces: Iterator[Piece]
    length: int
    reasoning_tokens: int
    finish_reason: str
    stop_reason: str | None = None
    function: Function | None = None
    text_id: int | None = None

    def written_out(self) -> Script:
        """The same, with an id that the same text has as a message of a later prompt."""
        pieces = list(self.pieces)
        plain = all(piece.kind is Kind.TEXT for piece in pieces) and self.stop_reason is None
        text = "".join(piece.token for piece in pieces)
        return replace(self, pieces=iter(pieces), text_id=answer_id(text) if plain else None)


def write_script(speech: Speech) -> Script:
    """An answer, from what decides it."""
    length, finish = answer_length(
        speech.seed, speech.max_tokens, speech.min_tokens, speech.eos_probability
    )
    reasoning = length // 2 if speech.reasons else 0
    spoken = words(speech.seed)
    shown = reasoning and speech.shows_reasoning
    thoughts = [
        Piece(Kind.REASONING, word, word) if shown else Piece(Kind.HELD, "", word)
        for word in islice(spoken, reasoning)
    ]
    stop_reason = None
    rest: Iterable[Piece]
    if speech.function is not None:
        rest, whole = _call(spoken, speech.function, length - reasoning)
        finish = "tool_calls" if whole else "length"
    elif speech.stop:
        rest, stop_reason = until_stop(
            list(islice(spoken, length - reasoning)), speech.stop, speech.min_tokens - reasoning
        )
        length = reasoning + len(rest)
        finish = finish if stop_reason is None else "stop"
    else:
        rest = map(_text_piece, islice(spoken, length - reasoning))
    return Script(
        pieces=chain(thoughts, rest),
        length=length,
        reasoning_tokens=reasoning,
        finish_reason=finish,
        stop_reason=stop_reason,
        function=speech.function,
    )


@lru_cache(maxsize=1024)
def _text_piece(word: str) -> Piece:
    """A token of text; there are as many as the vocabulary has words."""
    return Piece(Kind.TEXT, word, word)


def until_stop(
    tokens: Sequence[str], stop: Sequence[str], min_tokens: int = 0
) -> tuple[list[Piece], str | None]:
    """A text up to the first stop string, with what is held back on the way.

    Args:
        tokens: the text, if nothing stops it.
        stop: none of them empty.
        min_tokens: what stands in so many first tokens does not stop it.

    Returns:
        One piece a token up to the one that completes the stop string, and that string, or None.
    """
    held = max(map(len, stop)) - 1
    pieces: list[Piece] = []
    text, shown = "", 0
    for number, token in enumerate(tokens, start=1):
        before, text = len(text), text + token
        since = max(0, before - held)
        found = min(
            ((at, word) for word in stop if (at := text.find(word, since)) >= 0), default=None
        )
        last = found is not None and number >= min_tokens
        upto = found[0] if last and found else len(text)
        if not last and number < len(tokens):
            upto -= held
        upto = max(upto, shown)
        pieces.append(Piece(Kind.TEXT, text[shown:upto], token))
        shown = upto
        if last and found:
            return pieces, found[1]
    return pieces, None


def _call(spoken: Iterator[str], function: Function, tokens: int) -> tuple[list[Piece], bool]:
    """The tokens of a tool call, and whether it is whole within so many."""
    held = list(islice(spoken, min(tokens, TOKENS_BEFORE_CALL)))
    arguments = list(islice(spoken, tokens - len(held)))
    if arguments:
        arguments[0] = f'{{{json.dumps(function.argument)}: "{arguments[0].lstrip()}'
        arguments[-1] += '"}'
    pieces = [Piece(Kind.HELD, "", word) for word in held]
    if len(held) == TOKENS_BEFORE_CALL:
        pieces[-1] = Piece(Kind.NAME, function.name, held[-1])
    return [*pieces, *(Piece(Kind.ARGUMENTS, word, word) for word in arguments)], bool(arguments)

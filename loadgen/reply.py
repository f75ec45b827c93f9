"""What an answer says: output, tokens, finish, errors. Pure; what all APIs share.

- Output is judged by payload, never by the kind of event alone. What carries none is no token,
  unless the event itself proves one (token ids, growing usage): then it is a *hidden* output event.
- The last usage wins, usage is never summed; all-zero usage beside visible output is absent.
- HTTP 200 is not success: an error anywhere makes the reply failed, and without a finish reason for
  every choice or the end marker it is truncated.
- Unknown shapes are passed over, never guessed at.

One class for each API is in :mod:`loadgen.replies`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import orjson

from collectors.records import FIRST_COALESCED, OutputEvents, TokenSource
from loadgen.fingerprint import AnswerChain
from loadgen.said import Ear, Listener, Said
from loadgen.server_cost import cost_usd
from loadgen.usage import Usage, adds_up, count, output_count, read_usage, tells_tokens

MAX_WORDS = 4096  # longer than a record keeps: what is secret is masked before it is cut
MAX_CHOICES = 1024  # OpenAI's own limit is 128
MAX_REASON = 64  # characters; the longest known has 29
_MAX_RUNGS = 8
_DONE = frozenset({b"[DONE]", b'"[DONE]"'})

ANSWER, REASONING, TOOL, HIDDEN, REFUSAL = 1, 2, 4, 8, 16
"""Bits of what an event carries; a refusal is an answer that is not the one asked for."""

TOOL_NAME = 32
"""In a chain: where a tool call begins. The other kinds of text there are those above."""


class Reply(ABC):
    """Follows one answer. Instants are CLOCK_MONOTONIC seconds of the read that completed an event.

    Attributes:
        ENDING: what a whole answer must have to be one, in words.
        chain: follows what the first choice says; ``None`` where nobody asks.
        said: keeps what all choices say; ``None`` where nobody will count its tokens.
        error: words of an in-band error, or ``None``.
        done: the end marker was seen.
        first_silent_at: the first event without output: a role, news, usage.
        gaps_s: seconds between consecutive output events.
        coalesced: output events that shared a read with the output event before them.
        first_coalesced: the second one did, so that the first may have come earlier than it seems.
        bad_json: events that were no JSON.
    """

    __slots__ = (
        "_asked_choices",
        "_counted",
        "_ear",
        "_finish",
        "_last_read",
        "_proof",
        "_proven_tokens",
        "_usage",
        "_usage_final",
        "_usages_differ",
        "after_done",
        "bad_json",
        "chain",
        "coalesced",
        "done",
        "error",
        "first_answer_at",
        "first_coalesced",
        "first_event_tokens",
        "first_output_at",
        "first_read_delay",
        "first_silent_at",
        "gaps_s",
        "last_output_at",
        "n_answer",
        "n_hidden",
        "n_reasoning",
        "n_tool",
        "said",
        "whole",
    )

    ENDING: ClassVar[str] = "a finish reason"

    def __init__(
        self, choices: int = 1, chain: AnswerChain | None = None, said: Said | None = None
    ) -> None:
        self.chain = chain
        self.said = said
        self._ear: Listener | None = chain if said is None else Ear(said, 0, chain)
        self._asked_choices = choices
        self._finish: dict[int, str] = {}
        self._last_read = -1
        self._proven_tokens = 0  # event by event, by token ids or logprobs
        self._proof: TokenSource | None = None
        self._usage: Mapping[str, Any] | None = None
        self._counted: tuple[Mapping[str, Any], Usage] | None = None  # a usage, as it was read
        self._usage_final = False
        self._usages_differ = False
        self.done = False
        self.after_done = False
        self.error: str | None = None
        self.whole = False  # a JSON body instead of a stream
        self.bad_json = 0
        self.coalesced = 0
        self.first_coalesced = False
        self.n_answer = self.n_reasoning = self.n_tool = self.n_hidden = 0
        self.first_output_at: float | None = None
        self.first_answer_at: float | None = None
        self.first_silent_at: float | None = None
        self.last_output_at: float | None = None
        self.first_read_delay: float | None = None
        self.first_event_tokens: int | None = None
        self.gaps_s: array[float] = array("f")

    # -- events of a stream ------------------------------------------------------------------

    def event(self, name: bytes, data: bytes, at: float, read: int, delay: float | None) -> None:
        """One event.

        Args:
            name: the event's name, empty for the default kind.
            data: its payload, JSON or the end marker.
            at: arrival of the read that completed it, CLOCK_MONOTONIC seconds.
            read: number of that read; events with the same number arrived together.
            delay: how late that read was taken, seconds; ``None`` where the kernel did not say.
        """
        if self.done:  # some servers close every API's stream with the marker of one
            self.after_done |= data.strip() not in _DONE
            return
        try:
            payload = orjson.loads(data)
        except orjson.JSONDecodeError:
            self._not_json(name, data)
            return
        if payload.__class__ is dict and name != b"error" and not _tells_error(payload):
            self._chunk(payload, at, read, delay)
        elif payload == "[DONE]":
            self.done = True
        elif name == b"error" or _tells_error(payload):
            self._fail(error_message(payload))

    @abstractmethod
    def _chunk(self, payload: dict[str, Any], at: float, read: int, delay: float | None) -> None:
        """An event's payload that is no error."""

    def _not_json(self, name: bytes, data: bytes) -> None:
        if data.strip() in _DONE:
            self.done = True
        elif name == b"error":
            self._fail(data.decode("utf-8", "replace"))
        elif data.strip():  # blank data is one more kind of keep-alive
            self.bad_json += 1

    def _fail(self, message: str) -> None:
        if self.error is None:
            self.error = message or "an error without words"

    def _end(self, reason: Any, index: int = 0) -> None:
        """Keep a choice's finish reason, if it is one."""
        if isinstance(reason, str) and reason:
            self._finish[index] = reason[:MAX_REASON]
            if reason == "error":
                self._fail("the server finished with reason 'error'")

    def _prove(self, ids: Any, logprobs: Any) -> int:
        """Tokens that one choice's token ids, or the list of its logprobs, prove."""
        if isinstance(ids, list) and ids:
            proven, self._proof = len(ids), TokenSource.TOKEN_IDS
        elif isinstance(logprobs, list) and logprobs:
            proven, self._proof = len(logprobs), self._proof or TokenSource.LOGPROBS
        else:
            return 0
        self._proven_tokens += proven
        return proven

    def _keep_usage(self, usage: Mapping[str, Any]) -> None:
        """The last one wins; it is final once every choice has finished."""
        if self._usage_final and self._usage is not None and usage != self._usage:
            before, now = output_count(self._usage), output_count(usage)
            self._usages_differ |= (before or 0) != (now or 0)
        if tells_tokens(usage):
            self._usage = usage
            self._usage_final = self._usage_final or self.finished

    def plain_text(self, payload: dict[str, Any]) -> str | None:
        """The text of an event that adds to the first choice's answer and says nothing else.

        ``None`` of any other event, and where the API has no such event.
        """
        del payload
        return None

    def plain(self, text: str, at: float, read: int) -> None:
        """One more event that says only ``text``; its like has been decoded in full before."""
        last_at = self.last_output_at
        assert last_at is not None
        self.gaps_s.append(at - last_at)
        if read == self._last_read:
            self._coalesce()
        self.last_output_at = at
        self._last_read = read
        self.n_answer += 1
        if self._ear is not None:
            self._ear.add(ANSWER, text)

    def repeated(
        self, events: int, shared: tuple[int, bool], gaps: bytes, text: str, at: float, read: int
    ) -> None:
        """Several events as in :meth:`plain`; see `loadgen.exchange.ResponseBody.repeated`."""
        coalesced, is_first = shared
        self.coalesced += coalesced
        self.first_coalesced |= is_first and not self.gaps_s
        self.gaps_s.frombytes(gaps)
        self.last_output_at = at
        self._last_read = read
        self.n_answer += events
        if self._ear is not None:
            self._ear.add(ANSWER, text)

    def _output(self, kinds: int, tokens: int, at: float, read: int, delay: float | None) -> None:
        if self.last_output_at is None:
            self.first_output_at = at
            self.first_read_delay = delay
            self.first_event_tokens = tokens or None
        else:
            self.gaps_s.append(at - self.last_output_at)
            if read == self._last_read:
                self._coalesce()
        self.last_output_at = at
        self._last_read = read
        if kinds & ANSWER:
            self.n_answer += 1
            if self.first_answer_at is None and not kinds & REFUSAL:
                self.first_answer_at = at
        elif kinds & REASONING:
            self.n_reasoning += 1
        elif kinds & TOOL:
            self.n_tool += 1
        else:
            self.n_hidden += 1

    def _coalesce(self) -> None:
        """The output event just now shared a read with the one before."""
        self.coalesced += 1
        if len(self.gaps_s) == 1:
            self.first_coalesced = True

    def _silence(self, at: float) -> None:
        """An event that carried no output."""
        if self.first_silent_at is None:
            self.first_silent_at = at

    def _say(self, kind: int, text: Any, ear: Listener | None = None) -> None:
        """What a choice says, the first one unless told; an object (a tool's input) as JSON."""
        ear = ear or self._ear
        if not text or ear is None:
            return
        if isinstance(text, str):
            ear.add(kind, text)
        elif isinstance(text, dict):
            with suppress(orjson.JSONEncodeError):  # it reads deeper nesting than it writes
                ear.add(kind, orjson.dumps(text).decode())

    # -- a whole JSON answer -----------------------------------------------------------------

    def body(self, data: bytes) -> bool:
        """A JSON answer in one piece; False where it is no JSON object."""
        try:
            payload = orjson.loads(data.strip())
        except orjson.JSONDecodeError:
            return False
        self.whole = True
        if _tells_error(payload):
            self._fail(error_message(payload))
            return True
        if not isinstance(payload, dict):
            return False
        self._whole(payload)
        return True

    @abstractmethod
    def _whole(self, payload: dict[str, Any]) -> None:
        """A whole answer that is no error."""

    # -- what came of it ---------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """The end marker, or a finish reason for every choice asked for."""
        return self.done or self.finished

    @property
    def finished(self) -> bool:
        """A finish reason for every choice asked for."""
        return len(self._finish) >= self._asked_choices

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """One a choice, by index."""
        return tuple(self._finish[i] for i in sorted(self._finish))

    @property
    def output_events(self) -> OutputEvents:
        """Number of output-bearing events by kind; none for a whole answer."""
        if self.whole:
            return OutputEvents()
        return OutputEvents(
            answer=self.n_answer,
            reasoning=self.n_reasoning,
            tool=self.n_tool,
            hidden=self.n_hidden,
        )

    @property
    def has_output(self) -> bool:
        """Anything was generated, as far as the answer shows."""
        return bool(self.n_answer or self.n_reasoning or self.n_tool or self.n_hidden)

    @property
    def cost_usd(self) -> float | None:
        """What the server's usage says the request cost, US dollars; ``None`` where it does not."""
        return None if self._usage is None else cost_usd(self._usage.get("cost"))

    def tokens(self) -> tuple[Usage, TokenSource | None]:
        """Token counts and where they come from; the server's usage first."""
        if self._usage is not None:
            usage = self._read(self._usage)
            if usage.output_tokens or (usage.output_tokens == 0 and not self.has_output):
                final = TokenSource.USAGE if self._usage_final else TokenSource.RUNNING_USAGE
                return usage, final
        else:
            usage = Usage()
        proven = self._proven_tokens or None
        return replace(usage, output_tokens=proven), self._proof if proven else None

    def _read(self, usage: Mapping[str, Any]) -> Usage:
        """What a usage object says; read once, since several ask for the last one."""
        if self._counted is None or self._counted[0] is not usage:
            self._counted = usage, self._read_usage(usage)
        return self._counted[1]

    def _read_usage(self, usage: Mapping[str, Any]) -> Usage:
        """A usage object under this API's names."""
        return read_usage(usage)

    def flags(self) -> Iterator[str]:
        """Oddities beside the outcome."""
        for name, holds in (
            ("coalesced", self.coalesced > 0),
            (FIRST_COALESCED, self.first_coalesced),
            ("no_done", not self.done and not self.whole),
            ("no_finish", self.done and not self.finished),
            ("bad_json", self.bad_json > 0),
            ("after_done", self.after_done),
            ("not_streamed", self.whole),
            ("no_output", not self.has_output),
            ("no_usage", self._usage is None),
            ("usage_conflict", self._usages_differ),
            ("total_mismatch", not self._adds_up()),
        ):
            if holds:
                yield name

    def _adds_up(self) -> bool:
        usage = self._usage
        return usage is None or adds_up(self._read(usage), count(usage, "total_tokens"))


def has_words(parts: Any, *keys: str) -> bool:
    """Whether any part of a list says something under any of the keys."""
    return isinstance(parts, list) and any(
        part.get(key) for part in parts if isinstance(part, dict) for key in keys
    )


def _tells_error(payload: Any) -> bool:
    if payload.__class__ is not dict:
        # Gemini wraps its error in a list.
        payload = payload[0] if isinstance(payload, list) and payload else None
        if not isinstance(payload, dict):
            return False
    get = payload.get
    return bool(get("error")) or get("object") == "error" or get("type") == "error"


def error_message(payload: Any) -> str:
    """The words of an error body of any known shape, at most ``MAX_WORDS`` characters.

    The ladder: first of a list; ``error.message``; ``error`` as text; ``message``; ``detail`` as
    text or FastAPI's list; the first of ``errors``; else the JSON itself.
    """
    for _ in range(_MAX_RUNGS):
        inner = _inner_error(payload)
        if inner is None:
            break
        payload = inner
    if isinstance(payload, str):
        return payload[:MAX_WORDS]
    try:
        return orjson.dumps(payload).decode()[:MAX_WORDS]
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        return "an error nested too deep to show"


def _inner_error(payload: Any) -> Any:
    """One rung down the ladder; ``None`` at its foot."""
    if isinstance(payload, list):
        return payload[0] if payload else None
    if isinstance(payload, dict):
        for key in ("error", "message", "detail", "errors", "msg"):
            value = payload.get(key)
            if value and isinstance(value, str | dict | list):
                return value
    return None

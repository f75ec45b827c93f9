"""What a streamed or whole answer says: output, tokens, finish, errors. Pure.

Covers chat completions and legacy completions as OpenAI-compatible servers send them.

- Output is judged by payload: non-empty content, reasoning, refusal, a tool call's name or
  arguments. A role-only or empty delta is no token, unless the event itself proves one (token ids,
  growing usage): then it is a *hidden* output event.
- The last usage wins, usage is never summed; all-zero usage beside visible output is absent.
- HTTP 200 is not success: an error anywhere makes the reply failed, and without a finish reason for
  every choice or the end marker it is truncated.
- Unknown shapes are counted and passed over, never guessed at.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from collectors.records import OutputEvents, TokenSource

ANSWER, REASONING, TOOL, HIDDEN = "answer", "reasoning", "tool", "hidden"
MAX_WORDS = 4096  # longer than a record keeps: what is secret is masked before it is cut
_MAX_RUNGS = 8
_DONE = frozenset({b"[DONE]", b'"[DONE]"'})


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as a server reports them; ``None`` is "not said", never 0."""

    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None


class Reply:
    """Follows one answer. Instants are CLOCK_MONOTONIC seconds of the read that completed an event.

    Attributes:
        error: words of an in-band error, or ``None``.
        done: the end marker was seen.
        gaps_s: seconds between consecutive output events.
        coalesced: output events that shared a read with the output event before them.
        bad_json: events that were no JSON.
    """

    __slots__ = (
        "_asked_choices",
        "_finish",
        "_last_read",
        "_proof",
        "_proven_tokens",
        "_running_tokens",
        "_usage",
        "_usage_final",
        "_usages_differ",
        "after_done",
        "bad_json",
        "coalesced",
        "done",
        "error",
        "first_answer_at",
        "first_event_tokens",
        "first_output_at",
        "first_read_delay",
        "gaps_s",
        "last_output_at",
        "n_answer",
        "n_hidden",
        "n_reasoning",
        "n_tool",
        "whole",
    )

    def __init__(self, choices: int = 1) -> None:
        self._asked_choices = choices
        self._finish: dict[int, str] = {}
        self._last_read = -1
        self._proven_tokens = 0  # event by event, by token ids or logprobs
        self._proof: TokenSource | None = None
        self._running_tokens: dict[int, int] = {}
        self._usage: Mapping[str, Any] | None = None
        self._usage_final = False
        self._usages_differ = False
        self.done = False
        self.after_done = False
        self.error: str | None = None
        self.whole = False  # a JSON body instead of a stream
        self.bad_json = 0
        self.coalesced = 0
        self.n_answer = self.n_reasoning = self.n_tool = self.n_hidden = 0
        self.first_output_at: float | None = None
        self.first_answer_at: float | None = None
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
        if self.done:
            self.after_done = True
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

    def _chunk(self, payload: dict[str, Any], at: float, read: int, delay: float | None) -> None:
        kinds = tokens = 0
        usage = payload.get("usage")
        choices = payload.get("choices")
        if choices.__class__ is not list:
            choices = ()
        for choice in choices:
            if choice.__class__ is dict:
                kind, proven = self._choice(choice)
                kinds |= kind
                tokens += proven
                usage = usage or choice.get("usage")  # Moonshot's place
        usage = usage or _groq_usage(payload)
        if isinstance(usage, dict):
            grown = self._take_usage(usage, choices, is_output=bool(kinds))
            tokens = tokens or grown
        if tokens and not kinds:
            kinds = _HIDDEN_BIT
        if kinds:
            self._output(kinds, tokens, at, read, delay)

    def _choice(self, choice: dict[str, Any]) -> tuple[int, int]:
        """Bits of the kinds of output in one choice, and the tokens it proves."""
        delta = choice.get("delta")
        if isinstance(delta, dict):
            kinds = _delta_kinds(delta)
        else:
            text = choice.get("text")
            kinds = _ANSWER_BIT if isinstance(text, str) and text else 0
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self._finish[_index(choice)] = reason
            if reason == "error":
                self._fail("the server finished with reason 'error'")
        return kinds, self._prove(choice)

    def _prove(self, choice: dict[str, Any]) -> int:
        """Tokens that one choice's token ids or logprobs prove."""
        ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        if not ids and not logprobs:
            return 0
        if isinstance(ids, list) and ids:
            proven, self._proof = len(ids), TokenSource.TOKEN_IDS
        elif proven := _logprob_tokens(logprobs):
            self._proof = self._proof or TokenSource.LOGPROBS
        self._proven_tokens += proven
        return proven

    def _take_usage(
        self, usage: Mapping[str, Any], choices: Sequence[Any], *, is_output: bool
    ) -> int:
        """Keep ``usage``; the tokens that its growth proves for this event, 0 where it proves none.

        Growth is told from the count before, of the same choice. Where output came without a count,
        the first count covers more than its own event. A count without a choice, or beside a finish
        reason, belongs to the whole answer.
        """
        now = _count(usage, "completion_tokens") or 0
        if self._usage_final and self._usage is not None and usage != self._usage:
            self._usages_differ |= _count(self._usage, "completion_tokens") != now
        if _tells_tokens(usage):
            self._usage = usage
            self._usage_final = self._usage_final or self.finished
        if not choices or not isinstance(choices[0], dict):
            return 0
        index = _index(choices[0])
        if index in self._finish and not is_output:
            return 0
        before = self._running_tokens.get(index, None if self.has_output else 0)
        self._running_tokens[index] = max(now, before or 0)
        return 0 if before is None else max(0, now - before)

    def _output(self, kinds: int, tokens: int, at: float, read: int, delay: float | None) -> None:
        if self.last_output_at is None:
            self.first_output_at = at
            self.first_read_delay = delay
            self.first_event_tokens = tokens or None
        else:
            self.gaps_s.append(at - self.last_output_at)
            if read == self._last_read:
                self.coalesced += 1
        self.last_output_at = at
        self._last_read = read
        if kinds & _ANSWER_BIT:
            self.n_answer += 1
            if self.first_answer_at is None and not kinds & _REFUSAL_BIT:
                self.first_answer_at = at
        elif kinds & _REASONING_BIT:
            self.n_reasoning += 1
        elif kinds & _TOOL_BIT:
            self.n_tool += 1
        else:
            self.n_hidden += 1

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
        choices = payload.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                message = choice.get("message")
                kinds, _ = self._choice(
                    {**choice, "delta": message} if isinstance(message, dict) else choice
                )
                self.n_answer += bool(kinds)
        usage = payload.get("usage") or _groq_usage(payload)
        if isinstance(usage, dict) and _tells_tokens(usage):
            self._usage = usage
            self._usage_final = True
        return True

    # -- what came of it ---------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """The end marker, or a finish reason for every choice asked for."""
        return self.done or len(self._finish) >= self._asked_choices

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

    def tokens(self) -> tuple[Usage, TokenSource | None]:
        """Token counts and where they come from; the server's usage first."""
        if self._usage is not None:
            usage = _normalised(self._usage)
            if usage.output_tokens or (usage.output_tokens == 0 and not self.has_output):
                final = TokenSource.USAGE if self._usage_final else TokenSource.RUNNING_USAGE
                return usage, final
        else:
            usage = Usage()
        proven = self._proven_tokens or None
        return replace(usage, output_tokens=proven), self._proof if proven else None

    def flags(self) -> Iterator[str]:
        """Oddities beside the outcome."""
        for name, holds in (
            ("coalesced", self.coalesced > 0),
            ("no_done", not self.done and not self.whole),
            ("no_finish", self.done and not self.finished),
            ("bad_json", self.bad_json > 0),
            ("after_done", self.after_done),
            ("not_streamed", self.whole),
            ("no_output", not self.has_output),
            ("no_usage", self._usage is None),
            ("usage_conflict", self._usages_differ),
        ):
            if holds:
                yield name


_ANSWER_BIT, _REASONING_BIT, _TOOL_BIT, _HIDDEN_BIT, _REFUSAL_BIT = 1, 2, 4, 8, 16


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _delta_kinds(delta: Mapping[str, Any]) -> int:
    content = delta.get("content")
    if isinstance(content, str):
        if content:
            return _ANSWER_BIT
    elif isinstance(content, list) and (kinds := _part_kinds(content)):
        return kinds
    if delta.get("reasoning_content") or delta.get("reasoning"):
        return _REASONING_BIT
    if _has_words(delta.get("reasoning_details"), "text", "summary", "data"):
        return _REASONING_BIT
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        functions = [call.get("function") for call in calls if isinstance(call, dict)]
        if _has_words(functions, "name", "arguments"):
            return _TOOL_BIT
    if _has_words([delta.get("function_call")], "name", "arguments"):
        return _TOOL_BIT
    if delta.get("refusal"):
        return _ANSWER_BIT | _REFUSAL_BIT
    return _ANSWER_BIT if delta.get("audio") or delta.get("images") else 0


def _has_words(parts: Any, *keys: str) -> bool:
    """Whether any part of a list says something under any of the keys."""
    return isinstance(parts, list) and any(
        part.get(key) for part in parts if isinstance(part, dict) for key in keys
    )


def _part_kinds(parts: list[Any]) -> int:
    """Mistral sends content as a list of parts, thinking among them."""
    kinds = 0
    for part in parts:
        if isinstance(part, dict):
            if part.get("type") == "thinking" and part.get("thinking"):
                kinds |= _REASONING_BIT
            elif part.get("text"):
                kinds |= _ANSWER_BIT
    return kinds


def _logprob_tokens(logprobs: Any) -> int:
    if not isinstance(logprobs, dict):
        return 0
    entries = logprobs.get("content") or logprobs.get("tokens")
    return len(entries) if isinstance(entries, list) else 0


def _groq_usage(payload: Mapping[str, Any]) -> Any:
    groq = payload.get("x_groq")
    return groq.get("usage") if isinstance(groq, dict) else None


_MAX_COUNT = 2**53  # what any store and any reader of JSON can hold


def _count(usage: Mapping[str, Any], *path: str) -> int | None:
    value: Any = usage
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MAX_COUNT else None


def _first(*values: int | None) -> int | None:
    return next((v for v in values if v is not None), None)


def _tells_tokens(usage: Mapping[str, Any]) -> bool:
    """Not one of the all-zero placeholders that some servers send before the real thing."""
    return any(usage.get(k) for k in ("completion_tokens", "prompt_tokens", "total_tokens"))


def _normalised(usage: Mapping[str, Any]) -> Usage:
    return Usage(
        input_tokens=_first(_count(usage, "prompt_tokens"), _count(usage, "input_tokens")),
        cached_input_tokens=_first(
            _count(usage, "prompt_tokens_details", "cached_tokens"),
            _count(usage, "prompt_cache_hit_tokens"),
            _count(usage, "cached_tokens"),
        ),
        output_tokens=_first(_count(usage, "completion_tokens"), _count(usage, "output_tokens")),
        reasoning_tokens=_first(
            _count(usage, "completion_tokens_details", "reasoning_tokens"),
            _count(usage, "reasoning_tokens"),
        ),
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

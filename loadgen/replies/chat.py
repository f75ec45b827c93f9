"""Chat completions and legacy completions, as OpenAI-compatible servers send them.

Both are read alike, since some servers mix their shapes in one stream. Output is non-empty content,
reasoning, refusal, audio, images, or a tool call's name or arguments; a role is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadgen.fingerprint import AnswerChain
from loadgen.reply import (
    ANSWER,
    HIDDEN,
    MAX_CHOICES,
    REASONING,
    REFUSAL,
    TOOL,
    TOOL_NAME,
    Reply,
    has_words,
)
from loadgen.said import Ear, Listener, Said
from loadgen.server_cost import cost_usd
from loadgen.usage import count, usage_of_timings

_MORE = frozenset({"cost", "error", "timings", "usage", "x_groq"})
_MORE_OF_A_CHOICE = frozenset({"finish_reason", "index", "logprobs", "token_ids", "usage"})
"""What an event may say beside its text, if it is not empty."""


class ChatReply(Reply):
    """An answer of one or more choices."""

    __slots__ = ("_last_cost", "_running_tokens")

    def __init__(
        self, choices: int = 1, chain: AnswerChain | None = None, said: Said | None = None
    ) -> None:
        super().__init__(choices, chain, said)
        self._running_tokens: dict[int, int] = {}
        self._last_cost: Any = None  # opencode's place: an event of its own

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
        if "x_groq" in payload or "timings" in payload:
            usage = _with_side_usage(usage, payload)
        if isinstance(usage, dict):
            grown = self._take_usage(usage, choices, is_output=bool(kinds))
            tokens = tokens or grown
        if tokens and not kinds:
            kinds = HIDDEN
        if kinds:
            self._output(kinds, tokens, at, read, delay)
        else:
            self._silence(at)
            self._last_cost = payload.get("cost", self._last_cost)

    @property
    def cost_usd(self) -> float | None:
        """What the server says the request cost, US dollars; ``None`` where it does not."""
        told = super().cost_usd
        return cost_usd(self._last_cost) if told is None else told

    def plain_text(self, payload: dict[str, Any]) -> str | None:
        """The text, where the event has one choice, the first, and that one text."""
        choices = payload.get("choices")
        if _MORE & {key for key, value in payload.items() if value}:
            return None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            return None
        choice = choices[0]
        if _MORE_OF_A_CHOICE & {key for key, value in choice.items() if value}:
            return None
        delta = choice.get("delta")
        text = choice.get("text")
        if isinstance(delta, dict):
            said = {key for key, value in delta.items() if value} - {"role"}
            text = delta["content"] if said == {"content"} else None
        return text if isinstance(text, str) and text else None

    def _choice(self, choice: dict[str, Any]) -> tuple[int, int]:
        """Bits of the kinds of output in one choice, and the tokens it proves."""
        delta = choice.get("delta")
        ear = self._other_ear(choice) if choice.get("index") else self._ear
        if delta.__class__ is not dict:
            text = choice.get("text")
            kinds = ANSWER if isinstance(text, str) and text else 0
            if ear is not None:
                self._say(ANSWER, text, ear)
        elif len(delta) == 1 and (content := delta.get("content")).__class__ is str:  # mostly
            kinds = ANSWER if content else 0
            if kinds and ear is not None:
                ear.add(ANSWER, content)
        else:
            kinds = _delta_kinds(delta)
            if kinds and ear is not None:
                self._say_delta(delta, ear)
        reason = choice.get("finish_reason")
        if reason:
            self._end(reason, _index(choice))
        ids, logprobs = choice.get("token_ids"), choice.get("logprobs")
        if not ids and not logprobs:
            return kinds, 0
        return kinds, self._prove(ids, _logprob_entries(logprobs))

    def _other_ear(self, choice: dict[str, Any]) -> Listener | None:
        """Who follows a choice that is not the first: nobody, unless its tokens may be counted."""
        return None if self.said is None else Ear(self.said, _index(choice))

    def _say_delta(self, delta: dict[str, Any], ear: Listener) -> None:
        """The texts of one event, in the order in which models write them."""
        get = delta.get
        reasoning = get("reasoning_content") or get("reasoning")
        if reasoning:
            self._say(REASONING, reasoning, ear)
        elif details := get("reasoning_details"):  # OpenRouter sends both, with the same text
            for detail in _dicts(details):
                self._say(REASONING, detail.get("text") or detail.get("summary"), ear)
        content = get("content")
        if isinstance(content, list):
            self._say_parts(content, ear)
        else:
            self._say(ANSWER, content, ear)
        if calls := get("tool_calls"):
            for call in _dicts(calls):
                self._say_function(call.get("function"), ear)
        if function := get("function_call"):
            self._say_function(function, ear)
        if refusal := get("refusal"):
            self._say(REFUSAL, refusal, ear)

    def _say_parts(self, parts: list[Any], ear: Listener) -> None:
        """Thinking is a text, or a list of parts itself."""
        for part in _dicts(parts):
            thinking = part.get("thinking") if part.get("type") == "thinking" else None
            if isinstance(thinking, list):
                for each in _dicts(thinking):
                    self._say(REASONING, each.get("text"), ear)
            elif thinking:
                self._say(REASONING, thinking, ear)
            else:
                self._say(ANSWER, part.get("text"), ear)

    def _say_function(self, function: Any, ear: Listener) -> None:
        if isinstance(function, dict):
            self._say(TOOL_NAME, function.get("name"), ear)
            self._say(TOOL, function.get("arguments"), ear)

    def _take_usage(
        self, usage: Mapping[str, Any], choices: Sequence[Any], *, is_output: bool
    ) -> int:
        """Keep ``usage``; the tokens that its growth proves for this event, 0 where it proves none.

        Growth is told from the count before, of the same choice. Where output came without a count,
        the first count covers more than its own event. A count without a choice, or beside a finish
        reason, belongs to the whole answer.
        """
        self._keep_usage(usage)
        if not choices or not isinstance(choices[0], dict):
            return 0
        index = _index(choices[0])
        if index in self._finish and not is_output:
            return 0
        now = count(usage, "completion_tokens") or 0
        before = self._running_tokens.get(index, None if self.has_output else 0)
        self._running_tokens[index] = max(now, before or 0)
        return 0 if before is None else max(0, now - before)

    def _whole(self, payload: dict[str, Any]) -> None:
        choices = payload.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                message = choice.get("message")
                kinds, _ = self._choice(
                    {**choice, "delta": message} if isinstance(message, dict) else choice
                )
                self.n_answer += bool(kinds)
        usage = _with_side_usage(payload.get("usage"), payload)
        if isinstance(usage, dict):
            self._keep_usage(usage)
            self._usage_final = True


def _index(choice: Mapping[str, Any]) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) and 0 <= index < MAX_CHOICES else 0


def _delta_kinds(delta: Mapping[str, Any]) -> int:
    content = delta.get("content")
    if isinstance(content, str):
        if content:
            return ANSWER
    elif isinstance(content, list) and (kinds := _part_kinds(content)):
        return kinds
    if delta.get("reasoning_content") or delta.get("reasoning"):
        return REASONING
    if has_words(delta.get("reasoning_details"), "text", "summary", "data"):
        return REASONING
    calls = delta.get("tool_calls")
    if isinstance(calls, list):
        functions = [call.get("function") for call in calls if isinstance(call, dict)]
        if has_words(functions, "name", "arguments"):
            return TOOL
    if has_words([delta.get("function_call")], "name", "arguments"):
        return TOOL
    if delta.get("refusal"):
        return ANSWER | REFUSAL
    return ANSWER if delta.get("audio") or delta.get("images") else 0


def _part_kinds(parts: list[Any]) -> int:
    """Mistral sends content as a list of parts, thinking among them."""
    kinds = 0
    for part in parts:
        if isinstance(part, dict):
            if part.get("type") == "thinking" and part.get("thinking"):
                kinds |= REASONING
            elif part.get("text"):
                kinds |= ANSWER
    return kinds


def _dicts(items: Any) -> Iterator[dict[str, Any]]:
    """The objects of what may be a list."""
    return (item for item in (items if isinstance(items, list) else ()) if isinstance(item, dict))


def _logprob_entries(logprobs: Any) -> Any:
    """One entry a token, in either API's place."""
    return logprobs.get("content") or logprobs.get("tokens") if isinstance(logprobs, dict) else None


def _with_side_usage(usage: Any, payload: Mapping[str, Any]) -> Any:
    """Usage, or else Groq's; with what llama.cpp's timings alone say (often the cached tokens)."""
    groq, timings = payload.get("x_groq"), payload.get("timings")
    if not usage and isinstance(groq, dict):
        usage = groq.get("usage")
    if not isinstance(timings, dict):
        return usage
    told = {name: n for name, n in usage_of_timings(timings).items() if n is not None}
    return {**told, **usage} if isinstance(usage, dict) else told

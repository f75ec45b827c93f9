"""The OpenAI Responses API.

Output is a non-empty ``delta`` of text, refusal, reasoning (or its summary) or a tool's input, and
an item that starts with something in it (a function's name). Every ``done`` event repeats what was
sent before and counts for nothing; lifecycle news and keep-alives come long before any token. The
terminal event is the end: this API has no other marker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadgen.reply import (
    ANSWER,
    HIDDEN,
    REASONING,
    REFUSAL,
    TOOL,
    TOOL_NAME,
    Reply,
    error_message,
    has_words,
)

_DELTAS = {
    "response.output_text.delta": ANSWER,
    "response.refusal.delta": ANSWER | REFUSAL,
    "response.reasoning_text.delta": REASONING,
    "response.reasoning_summary_text.delta": REASONING,
    "response.function_call_arguments.delta": TOOL,
    "response.custom_tool_call_input.delta": TOOL,
    "response.mcp_call_arguments.delta": TOOL,
    "response.code_interpreter_call_code.delta": TOOL,
    "response.audio.delta": ANSWER,
    "response.audio.transcript.delta": ANSWER,
}
_NO_TEXT = frozenset({"response.audio.delta"})
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_END_STATUSES = frozenset(end.removeprefix("response.") for end in _ENDS)


class ResponsesReply(Reply):
    """An answer of output items, one after another."""

    __slots__ = ()

    def _chunk(self, payload: dict[str, Any], at: float, read: int, delay: float | None) -> None:
        kind = payload.get("type")
        if kind.__class__ is not str:
            return
        tokens = 0
        kinds = _DELTAS.get(kind, 0)
        if kinds:
            delta, logprobs = payload.get("delta"), payload.get("logprobs")
            tokens = self._prove(None, logprobs) if logprobs else 0
            if not delta or delta.__class__ is not str:
                kinds = HIDDEN if tokens else 0
            elif kind not in _NO_TEXT:
                self._say(kinds & REFUSAL or kinds, delta)
        elif kind == "response.output_item.added":
            kinds = self._take_items([payload.get("item")])
        elif isinstance(response := payload.get("response"), dict):
            kinds = self._news(kind, response)
        if kinds:
            self._output(kinds, tokens, at, read, delay)
        else:
            self._silence(at)

    def _news(self, kind: str, response: dict[str, Any]) -> int:
        """The response as it stands; kinds of output that nothing but its end has shown."""
        if kind not in _ENDS:
            self._take_usage(response)
            return 0
        self._conclude(kind.removeprefix("response."), response)
        self.done = True
        return 0 if self.has_output else self._take_items(response.get("output"))

    def _conclude(self, status: str, response: dict[str, Any]) -> None:
        if status == "failed":
            self._fail(error_message(response.get("error") or "the response failed"))
        else:
            details = response.get("incomplete_details")
            reason = details.get("reason") if isinstance(details, dict) else None
            self._end(reason if isinstance(reason, str) and reason else status)
        self._take_usage(response)

    def _take_usage(self, response: dict[str, Any]) -> None:
        usage = response.get("usage")
        if isinstance(usage, dict):
            self._keep_usage(usage)

    def _whole(self, payload: dict[str, Any]) -> None:
        status = payload.get("status")
        self.n_answer += bool(self._take_items(payload.get("output")))
        if isinstance(status, str) and status in _END_STATUSES:
            self._conclude(status, payload)

    def _take_items(self, items: Any) -> int:
        """Kinds of output in whole output items; their texts are said."""
        kinds = 0
        for item in items if isinstance(items, list) else ():
            kind = _item_kinds(item)
            kinds |= kind
            if kind and self._ear is not None:
                for said_as, text in _item_texts(item):
                    self._say(said_as, text)
        return kinds


def _item_kinds(item: Any) -> int:
    """What an output item holds: a message's parts, reasoning, or a tool call."""
    if not isinstance(item, dict):
        return 0
    kind, content = item.get("type"), item.get("content")
    if kind == "reasoning":
        said = has_words(content, "text") or has_words(item.get("summary"), "text")
        return REASONING if said else 0
    if kind == "message":
        if has_words(content, "text", "transcript"):
            return ANSWER
        return ANSWER | REFUSAL if has_words(content, "refusal") else 0
    return TOOL if has_words([item], "name", "arguments", "input", "code") else 0


def _item_texts(item: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """Kind and text of all that an output item says."""
    kind = item.get("type")
    if kind in ("reasoning", "message"):
        said_as = REASONING if kind == "reasoning" else ANSWER
        for parts in (item.get("content"), item.get("summary")):
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict):
                    yield said_as, part.get("text") or part.get("transcript")
                    yield REFUSAL, part.get("refusal")
    else:
        yield TOOL_NAME, item.get("name")
        yield TOOL, item.get("arguments") or item.get("input") or item.get("code")

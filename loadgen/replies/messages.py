"""The Anthropic Messages API, of Anthropic and of the servers that speak it.

Output is a delta of text, of thinking or of a tool's input, and a content block that starts with
something in it (a tool's name). Signatures, citations and pings are none. Usage comes in two parts:
the input at the start, the output, counted up, with the stop reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadgen.reply import ANSWER, REASONING, TOOL, Reply
from loadgen.usage import Usage, read_messages_usage

_DELTAS = {
    "text_delta": ("text", ANSWER),
    "thinking_delta": ("thinking", REASONING),
    "input_json_delta": ("partial_json", TOOL),
}
_BLOCKS = {
    "text": ("text", ANSWER),
    "thinking": ("thinking", REASONING),
    "redacted_thinking": ("data", REASONING),
    "tool_use": ("name", TOOL),
    "server_tool_use": ("name", TOOL),
}


class MessagesReply(Reply):
    """An answer of content blocks, one after another."""

    __slots__ = ()

    def _chunk(self, payload: dict[str, Any], at: float, read: int, delay: float | None) -> None:
        kind = payload.get("type")
        if kind == "content_block_delta":
            kinds = _kinds(payload.get("delta"), _DELTAS)
        elif kind == "content_block_start":
            kinds = _kinds(payload.get("content_block"), _BLOCKS)
        else:
            self._news(kind, payload)
            self._silence(at)
            return
        if kinds:
            self._output(kinds, 0, at, read, delay)
        else:
            self._silence(at)

    def _news(self, kind: Any, payload: dict[str, Any]) -> None:
        if kind == "message_start":
            message = payload.get("message")
            usage = message.get("usage") if isinstance(message, dict) else None
            usage = usage or payload.get("usage")  # where vLLM had it first
            if isinstance(usage, dict):  # its output count is a first guess
                self._merge_usage({k: v for k, v in usage.items() if k != "output_tokens"})
        elif kind == "message_delta":
            delta, usage = payload.get("delta"), payload.get("usage")
            if isinstance(delta, dict):
                self._end(delta.get("stop_reason"))
            if isinstance(usage, dict):
                self._merge_usage(usage)
        elif kind == "message_stop":
            self.done = True

    def _merge_usage(self, usage: Mapping[str, Any]) -> None:
        """Counts are of the whole so far, so later ones win; but a 0 takes nothing back."""
        known = self._usage or {}
        told = {key: value for key, value in usage.items() if value or key not in known}
        self._keep_usage({**known, **told})

    def _read_usage(self, usage: Mapping[str, Any]) -> Usage:
        return read_messages_usage(usage)

    def _whole(self, payload: dict[str, Any]) -> None:
        blocks = payload.get("content")
        for block in blocks if isinstance(blocks, list) else ():
            self.n_answer += bool(_kinds(block, _BLOCKS))
        self._end(payload.get("stop_reason"))
        usage = payload.get("usage")
        if isinstance(usage, dict):
            self._keep_usage(usage)


def _kinds(part: Any, shapes: Mapping[str, tuple[str, int]]) -> int:
    """What a delta or a block carries under the key of its type."""
    if part.__class__ is not dict:
        return 0
    kind = part.get("type")
    key, bit = shapes.get(kind, ("", 0)) if kind.__class__ is str else ("", 0)
    return bit if bit and part.get(key) else 0

"""The Anthropic Messages API, of Anthropic and of the servers that speak it.

Output is a delta of text, of thinking or of a tool's input, and a content block that starts with
something in it (a tool's name). Signatures, citations and pings are none. Usage comes in two parts:
the input at the start, the output, counted up, with the stop reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadgen.reply import ANSWER, REASONING, TOOL, TOOL_NAME, Reply
from loadgen.usage import Usage, read_messages_usage

# By type: the key of what it carries, what that is, and as which kind of text it is said.
_DELTAS = {
    "text_delta": ("text", ANSWER, ANSWER),
    "thinking_delta": ("thinking", REASONING, REASONING),
    "input_json_delta": ("partial_json", TOOL, TOOL),
}
_BLOCKS = {
    "text": ("text", ANSWER, ANSWER),
    "thinking": ("thinking", REASONING, REASONING),
    "redacted_thinking": ("data", REASONING, 0),  # not a text
    "tool_use": ("name", TOOL, TOOL_NAME),
    "server_tool_use": ("name", TOOL, TOOL_NAME),
}
_UNKNOWN = ("", 0, 0)
_MAX_NAMES = 100  # of counts; the API has a dozen


class MessagesReply(Reply):
    """An answer of content blocks, one after another."""

    __slots__ = ()

    def _chunk(self, payload: dict[str, Any], at: float, read: int, delay: float | None) -> None:
        kind = payload.get("type")
        if kind == "content_block_delta":
            kinds = self._take(payload.get("delta"), _DELTAS)
        elif kind == "content_block_start":
            kinds = self._take(payload.get("content_block"), _BLOCKS)
        else:
            self._news(kind, payload)
            self._silence(at)
            return
        if kinds:
            self._output(kinds, 0, at, read, delay)
        else:
            self._silence(at)

    def plain_text(self, payload: dict[str, Any]) -> str | None:
        """The text of a text delta."""
        delta = payload.get("delta")
        if payload.get("type") != "content_block_delta" or not isinstance(delta, dict):
            return None
        text = delta.get("text") if delta.get("type") == "text_delta" else None
        return text if isinstance(text, str) and text else None

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
        """Counts are of the whole so far, so later ones win; but a 0 takes nothing back.

        What comes under ever more names is no usage, and would be copied again and again.
        """
        known = self._usage if self._usage and len(self._usage) < _MAX_NAMES else {}
        told = {key: value for key, value in usage.items() if value or key not in known}
        self._keep_usage({**known, **told})

    def _read_usage(self, usage: Mapping[str, Any]) -> Usage:
        return read_messages_usage(usage)

    def _whole(self, payload: dict[str, Any]) -> None:
        blocks = payload.get("content")
        for block in blocks if isinstance(blocks, list) else ():
            if self._take(block, _BLOCKS):
                self.n_answer += 1
                self._say(TOOL, block.get("input"))
        self._end(payload.get("stop_reason"))
        usage = payload.get("usage")
        if isinstance(usage, dict):
            self._keep_usage(usage)

    def _take(self, part: Any, shapes: Mapping[str, tuple[str, int, int]]) -> int:
        """What a delta or a block carries under the key of its type; a text of it is said."""
        if part.__class__ is not dict:
            return 0
        kind = part.get("type")
        key, bit, said_as = shapes.get(kind, _UNKNOWN) if kind.__class__ is str else _UNKNOWN
        text = part.get(key) if bit else None
        if not text:
            return 0
        if said_as:
            self._say(said_as, text)
        return bit

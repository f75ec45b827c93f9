"""The Anthropic Messages API, as vLLM speaks it beside its own: named events, content blocks.

Pure. vLLM turns a request into a chat and the chat's answer back, so that the engine sees no
difference (vllm/entrypoints/anthropic/serving.py). ``message_start`` comes with the first token.
An answer is a row of blocks (thinking, then text or the use of a tool); each is opened, told in
deltas and closed. The reason for the end and the output's usage come in ``message_delta``.

Errors have two shapes: what the body's schema refuses has vLLM's own, all else Anthropic's.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from reference_server.dialect import Cached, Told, compact, error_body, utf8
from reference_server.errors import RefusedError
from reference_server.fields import Fields, bad, mapping, missing, whole_number
from reference_server.prompt import Prompt, chat_prompt, text_of
from reference_server.quirks import Quirk
from reference_server.script import Kind, Piece, Script

MESSAGES_PATH = "/v1/messages"
COUNT_TOKENS_PATH = "/v1/messages/count_tokens"

_BLOCK_OF = {
    Kind.TEXT: "text",
    Kind.REASONING: "thinking",
    Kind.NAME: "tool_use",
    Kind.ARGUMENTS: "tool_use",
}
_DELTAS = {  # by block: the delta's type, and under which name it has its text
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}
_ROLES = ("user", "assistant", "system")
_LEAST_THINKING = 1024


def messages_as_chat(fields: Fields) -> Fields:
    """A request of this API in the chat API's words.

    Raises:
        RefusedError: a field is missing or has no meaning.
    """
    if fields.get("model") is None:
        raise missing("Field required", "model")
    max_tokens = whole_number(fields, "max_tokens")
    if max_tokens is None:
        raise missing("Field required", "max_tokens")
    if max_tokens < 1:
        raise missing("Value error, max_tokens must be positive", "max_tokens")
    thinking, effort = _thinking(fields, max_tokens)
    return {
        "messages": _chat_messages(fields),
        "max_completion_tokens": max_tokens,
        "stop": fields.get("stop_sequences"),
        "reasoning_effort": effort,
        "include_reasoning": True if thinking else None,
        **_tools(fields),
        **{name: fields.get(name) for name in ("stream", "seed", "chat_template_kwargs")},
    }


def counted_prompt(fields: Fields) -> Prompt:
    """The prompt whose tokens are to be counted.

    Raises:
        RefusedError: there is none.
    """
    return chat_prompt({"messages": _chat_messages(fields)})


def count_body(tokens: int) -> bytes:
    """The body of the reply to a request to count tokens."""
    context = {"original_input_tokens": tokens}
    return compact({"input_tokens": tokens, "context_management": context}).encode()


def messages_error_body(error: RefusedError) -> bytes:
    """The body of an error on this API's routes."""
    if error.kind in {"", "Bad Request"}:  # of the guard, the router, or the body's schema
        return error_body(error)
    said = {"type": error.kind, "message": error.message}
    return utf8(compact({"type": "error", "error": said}))


def _thinking(fields: Fields, max_tokens: int) -> tuple[bool, str | None]:
    """Whether the answer begins with thinking, and the effort asked for."""
    thinking = mapping(fields, "thinking")
    kind = thinking.get("type")
    if kind == "disabled":
        return False, "none"
    if kind == "enabled":
        budget = whole_number(thinking, "budget_tokens")
        if budget is None:
            raise missing("Field required", "thinking.enabled.budget_tokens")
        if budget < _LEAST_THINKING:
            raise missing(
                f"Input should be greater than or equal to {_LEAST_THINKING}",
                "thinking.enabled.budget_tokens",
            )
        if budget >= max_tokens:
            raise missing(
                "Value error, thinking.budget_tokens must be less than max_tokens", "thinking"
            )
    effort = mapping(fields, "output_config").get("effort")
    thinks = kind in ("enabled", "adaptive")  # what came may not be hashable
    return thinks, effort if isinstance(effort, str) else None


def _tools(fields: Fields) -> Fields:
    """The tools, and which of them is to be called."""
    tools = fields.get("tools")
    tools = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    choice = mapping(fields, "tool_choice")
    name = choice.get("name")
    wanted: Any = choice.get("type")
    if wanted == "tool":
        if not any(tool.get("name") == name for tool in tools):
            raise bad(f"The tool with name '{name}' is not found in the tools list.", "tool_choice")
        wanted = {"function": {"name": name}}
    elif wanted == "any":
        wanted = "required" if tools else None  # as vLLM: without tools it is an answer
    functions = [{"name": t.get("name"), "parameters": t.get("input_schema")} for t in tools]
    return {
        "tools": [{"function": function} for function in functions],
        "tool_choice": wanted,
    }


def _chat_messages(fields: Fields) -> list[dict[str, Any]] | None:
    """The conversation in the chat API's words; None: there is none."""
    given = fields.get("messages")
    if given is None:
        return None
    if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
        raise missing("Input should be a valid list", "messages")
    messages = []
    if system := text_of(fields.get("system")):
        messages.append({"role": "system", "content": system})
    for number, message in enumerate(given):
        role = message.get("role")
        if role not in _ROLES:
            raise missing(
                "Input should be 'user', 'assistant' or 'system'", f"messages.{number}.role"
            )
        messages += _as_messages(role, message.get("content"))
    return messages


def _as_messages(role: str, content: Any) -> Iterator[dict[str, Any]]:
    """One message: what tools answered is a message of its own each, before the rest."""
    if not isinstance(content, list):
        yield {"role": role, "content": content}
        return
    blocks = [block for block in content if isinstance(block, dict)]
    results = [block for block in blocks if block.get("type") == "tool_result"]
    for block in results:
        yield {"role": "tool", "content": text_of(block.get("content"))}
    rest = [block for block in blocks if block.get("type") != "tool_result"]
    if rest or not results:
        uses = (block.get("input") for block in rest if block.get("type") == "tool_use")
        text = " ".join(filter(None, [text_of(rest), *map(json.dumps, uses)]))
        yield {"role": role, "content": text}


@dataclass(slots=True, kw_only=True)
class MessagesReply:
    """One answer in this API's words.

    Attributes:
        id: with the prefix that vLLM gives it, that of a chat.
        cached: asked at the end, since it is not known before. None: nothing is told.
        quirks: how it differs from vLLM; only comments and missing usage have a meaning here.
    """

    id: str
    model: str
    prompt_tokens: int
    cached: Callable[[], Cached | None] = lambda: None
    quirks: frozenset[Quirk] = frozenset()
    _told: Told | None = field(default=None, init=False)
    _open: str | None = field(default=None, init=False)  # the block that is being told
    _number: int = field(default=0, init=False)  # of that block, or of the next one

    def at_once(self) -> bytes:
        """Nothing is sent before the engine has begun."""
        return b""

    def opening(self) -> bytes:
        """What is sent with the first token besides it."""
        message: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self.prompt_tokens, "output_tokens": 0},
        }
        return self._event("message_start", message=message)

    def around_text(self) -> tuple[bytes, bytes] | None:
        """See `dialect.Reply.around_text`; only while a block of text is told."""
        if self._open != "text" or self.quirks:
            return None
        before, after = self._delta("text", "*").rsplit(b'"*"', 1)
        return before, after

    def events(self, told: Told, pieces: list[Piece], *, total: int | None = None) -> bytes:
        """The events that carry some tokens, see `dialect.Reply.events`."""
        del total  # there is one choice
        self._told = told
        told.tokens += len(pieces)
        out = b""
        for kind, run in groupby(pieces, key=lambda piece: piece.kind):
            text = "".join(piece.shown for piece in run)
            if kind is not Kind.HELD and text:
                out += b"".join(self._tell(kind, text))
        return out

    def closing(self, tokens: int, reasoning_tokens: int = 0) -> bytes:
        """The end of the last block, and of the message."""
        del reasoning_tokens  # part of the output, and not told apart
        assert self._told is not None
        reason, sequence = _stop_reason(self._told.script)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = {} if Quirk.NO_USAGE in self.quirks else {"usage": self._usage(tokens)}
        return (
            b"".join(self._close())
            + self._event("message_delta", delta=delta, **usage)
            + self._event("message_stop")
        )

    def body(self, choices: Sequence[Told]) -> bytes:
        """The body of a reply that is not streamed."""
        (told,) = choices
        reason, sequence = _stop_reason(told.script)
        message: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": self._content(told),
            "model": self.model,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": None if Quirk.NO_USAGE in self.quirks else self._usage(told.tokens),
        }
        return utf8(compact({name: value for name, value in message.items() if value is not None}))

    def _content(self, told: Told) -> list[dict[str, Any]]:
        """The blocks of a whole reply; one without text, if there is nothing else."""
        blocks: list[dict[str, Any]] = []
        if thinking := told.shown(Kind.REASONING):
            blocks.append({"type": "thinking", "thinking": thinking, "signature": self._signature})
        if text := told.shown(Kind.TEXT):
            blocks.append({"type": "text", "text": text})
        if arguments := told.shown(Kind.ARGUMENTS):
            blocks.append(self._tool_use(told.script) | {"input": json.loads(arguments)})
        return blocks or [{"type": "text", "text": ""}]

    def _tell(self, kind: Kind, text: str) -> Iterator[bytes]:
        """Open the block this belongs to, if it is another one, and tell the text."""
        assert self._told is not None
        wanted = _BLOCK_OF[kind]
        if self._open != wanted:
            yield from self._close()
            self._open = wanted
            block = (
                self._tool_use(self._told.script)
                if wanted == "tool_use"
                else {"type": wanted, wanted: ""}
            )
            yield self._event("content_block_start", content_block=block, index=self._number)
        if kind is not Kind.NAME:
            yield self._delta(wanted, text)

    def _close(self) -> Iterator[bytes]:
        """End the open block; thinking is signed."""
        if self._open is None:
            return
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": self._signature}
            yield self._event("content_block_delta", delta=delta, index=self._number)
        yield self._event("content_block_stop", index=self._number)
        self._open = None
        self._number += 1

    def _delta(self, block: str, text: str) -> bytes:
        kind, name = _DELTAS[block]
        delta = {"type": kind, name: text}
        return self._event("content_block_delta", delta=delta, index=self._number)

    def _tool_use(self, script: Script) -> dict[str, Any]:
        assert script.function is not None
        name = script.function.name
        return {"type": "tool_use", "id": f"chatcmpl-tool-{self._mark}", "name": name, "input": {}}

    def _usage(self, tokens: int) -> dict[str, int]:
        """Input that the cache had to do with is told apart from the rest."""
        cached = self.cached()
        if cached is None:
            return {"input_tokens": self.prompt_tokens, "output_tokens": tokens}
        return {
            "input_tokens": max(0, self.prompt_tokens - cached.found - cached.created),
            "output_tokens": tokens,
            "cache_creation_input_tokens": cached.created,
            "cache_read_input_tokens": cached.found,
        }

    @property
    def _mark(self) -> str:
        """Some digits that follow from the message's id."""
        return f"{zlib.crc32(self.id.encode(errors='replace')):08x}"

    @property
    def _signature(self) -> str:
        """Of the thinking, as long as vLLM's; nobody can check it."""
        return self._mark * 4

    def _event(self, name: str, **more: Any) -> bytes:
        before = ": keep-alive\n\n" if Quirk.COMMENTS in self.quirks else ""
        data = compact({"type": name, **more})
        return utf8(f"{before}event: {name}\ndata: {data}\n\n")


def _stop_reason(script: Script) -> tuple[str, str | None]:
    """Why the message ended, and the stop string that ended it."""
    if script.finish_reason == "length":
        return "max_tokens", None
    if script.finish_reason == "tool_calls":
        return "tool_use", None
    if script.stop_reason is not None:
        return "stop_sequence", script.stop_reason
    return "end_turn", None

"""The Responses API, as vLLM speaks it: named events, no ``[DONE]``, usage in the last event.

Pure. ``response.created`` and ``response.in_progress`` come at once, long before any token. An
answer is a row of output items (reasoning, then a message or a function call); each is opened,
told in deltas, and closed by events that say all of it again. An answer cut at its length is
``incomplete``, which vLLM tells inside ``response.completed``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from reference_server.dialect import Told, compact, utf8
from reference_server.quirks import Quirk
from reference_server.script import Kind, Piece

_ITEM_OF = {
    Kind.TEXT: "message",
    Kind.REASONING: "reasoning",
    Kind.NAME: "function_call",
    Kind.ARGUMENTS: "function_call",
}
_PART_OF = {"message": "output_text", "reasoning": "reasoning_text"}


@dataclass(slots=True, kw_only=True)
class ResponsesReply:
    """One answer in this API's words.

    Attributes:
        id: with its prefix ``resp_``.
        created: seconds since 1970.
        max_tokens: as asked for.
        cached_tokens: of the prompt, found in the prefix cache; asked at the end.
        quirks: how it differs from vLLM; only comments and missing usage have a meaning here.
    """

    id: str
    model: str
    created: int
    prompt_tokens: int
    max_tokens: int
    cached_tokens: Callable[[], int | None] = lambda: None
    quirks: frozenset[Quirk] = frozenset()
    _number: int = field(default=0, init=False)  # of the next event
    _told: Told | None = field(default=None, init=False)
    _items: list[dict[str, Any]] = field(default_factory=list, init=False)
    _open: dict[str, Any] | None = field(default=None, init=False)
    _text: str = field(default="", init=False)  # of the open item so far

    def at_once(self) -> bytes:
        """What is sent before the engine has begun."""
        response = self._response("in_progress", [], None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def opening(self) -> bytes:
        """What is sent with the first token besides it."""
        return b""

    def around_text(self) -> None:
        """Nothing: the events are numbered. See `dialect.Reply.around_text`."""

    def events(self, told: Told, pieces: list[Piece], *, total: int | None = None) -> bytes:
        """The events that carry some tokens, see `dialect.Reply.events`."""
        del total  # there is one choice
        self._told = told
        told.tokens += len(pieces)
        out = b""
        for kind, run in groupby(pieces, key=lambda piece: piece.kind):
            if kind is not Kind.HELD:
                out += b"".join(self._tell(kind, "".join(piece.shown for piece in run)))
        return out

    def closing(self, tokens: int, reasoning_tokens: int = 0) -> bytes:
        """The end of the last item, and of the response."""
        assert self._told is not None
        end = b"".join(self._close())
        script = self._told.script
        response = self._response(
            script.finish_reason, self._items, self._usage(tokens, reasoning_tokens)
        )
        return end + self._event("response.completed", response=response)

    def body(self, choices: Sequence[Told]) -> bytes:
        """The body of a reply that is not streamed."""
        (told,) = choices
        items: list[dict[str, Any]] = []
        for kind in (Kind.REASONING, Kind.TEXT, Kind.ARGUMENTS):
            if text := told.shown(kind):
                item = self._item(told, _ITEM_OF[kind], len(items))
                items.append(_whole(item, text))
        usage = self._usage(told.tokens, told.script.reasoning_tokens)
        return utf8(compact(self._response(told.script.finish_reason, items, usage)))

    def _tell(self, kind: Kind, text: str) -> Iterator[bytes]:
        """Open the item this belongs to, if it is another one, and tell the text."""
        assert self._told is not None
        wanted = _ITEM_OF[kind]
        if self._open is None or self._open["type"] != wanted:
            yield from self._close()
            self._open = self._item(self._told, wanted, len(self._items))
            yield self._event(
                "response.output_item.added", output_index=len(self._items), item=self._open
            )
            if wanted in _PART_OF:
                yield self._in_part("response.content_part.added", part=_part(wanted, ""))
        if kind is Kind.NAME or not text:
            return
        self._text += text
        if wanted == "function_call":
            yield self._in_item("response.function_call_arguments.delta", delta=text)
        elif wanted == "reasoning":
            yield self._in_part("response.reasoning_text.delta", delta=text)
        else:
            yield self._in_part("response.output_text.delta", delta=text, logprobs=[])

    def _close(self) -> Iterator[bytes]:
        """Say the whole of the open item again."""
        if self._open is None:
            return
        item, text = self._open, self._text
        kind = item["type"]
        if kind == "function_call":
            yield self._in_item("response.function_call_arguments.done", arguments=text)
        else:
            yield self._in_part(f"response.{_PART_OF[kind]}.done", text=text)
            yield self._in_part("response.content_part.done", part=_part(kind, text))
        whole = _whole(item, text)
        yield self._event("response.output_item.done", output_index=len(self._items), item=whole)
        self._items.append(whole)
        self._open, self._text = None, ""

    def _in_item(self, name: str, **more: Any) -> bytes:
        assert self._open is not None
        return self._event(name, item_id=self._open["id"], output_index=len(self._items), **more)

    def _in_part(self, name: str, **more: Any) -> bytes:
        return self._in_item(name, content_index=0, **more)

    def _event(self, name: str, **more: Any) -> bytes:
        data = compact({"type": name, "sequence_number": self._number, **more})
        self._number += 1
        before = ": keep-alive\n\n" if Quirk.COMMENTS in self.quirks else ""
        return utf8(f"{before}event: {name}\ndata: {data}\n\n")

    def _item(self, told: Told, kind: str, number: int) -> dict[str, Any]:
        """An output item as it begins."""
        mark = f"{zlib.crc32(self.id.encode(errors='replace'), number):08x}"
        if kind == "message":
            return {
                "id": f"msg_{mark}",
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
                "content": [],
            }
        if kind == "reasoning":
            return {
                "id": f"rs_{mark}",
                "type": "reasoning",
                "status": "in_progress",
                "summary": [],
                "content": None,
            }
        assert told.script.function is not None
        return {
            "id": f"fc_{mark}",
            "type": "function_call",
            "call_id": f"call_{mark}",
            "name": told.script.function.name,
            "arguments": "",
            "status": "in_progress",
        }

    def _usage(self, tokens: int, reasoning_tokens: int) -> dict[str, Any] | None:
        if Quirk.NO_USAGE in self.quirks:
            return None
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens() or 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
            "total_tokens": self.prompt_tokens + tokens,
        }

    def _response(
        self, finish: str, items: list[dict[str, Any]], usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The response as it stands; ``finish`` is the script's reason once it has ended."""
        status = {"in_progress": "in_progress", "length": "incomplete"}.get(finish, "completed")
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "incomplete_details": cut,
            "error": None,
            "model": self.model,
            "max_output_tokens": self.max_tokens,
            "output": items,
            "parallel_tool_calls": True,
            "usage": usage,
        }


def _part(kind: str, text: str) -> dict[str, Any]:
    part: dict[str, Any] = {"type": _PART_OF[kind], "text": text}
    return part if kind == "reasoning" else {**part, "annotations": [], "logprobs": []}


def _whole(item: dict[str, Any], text: str) -> dict[str, Any]:
    """The item as it ends."""
    said = (
        {"arguments": text}
        if item["type"] == "function_call"
        else {"content": [_part(item["type"], text)]}
    )
    return {**item, "status": "completed", **said}

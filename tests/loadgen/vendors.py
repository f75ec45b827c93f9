"""Servers of other makes, as far as a look at them can tell: pages, refusals, streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from reference_server.byteserver import ByteServer, Play, Received
from tests.loadgen.cases import chunk, content, counts, finish, sse
from tests.loadgen.wiring import HEAD, chunked, raw, sized

JSON = "Content-Type: application/json"
DONE = b"data: [DONE]\n\n"
ROLE = sse(chunk({"role": "assistant", "content": ""}))
USAGE = sse({"choices": [], "usage": counts(40, 2)})
NOT_FOUND = raw(sized("404 Not Found", b'{"detail":"Not Found"}', JSON))


def page(payload: Any, *headers: str) -> Play:
    """A page of JSON."""
    return raw(sized("200 OK", json.dumps(payload).encode(), JSON, *headers))


def model_list(*ids: str, owner: str = "someone", headers: tuple[str, ...] = ()) -> Play:
    """A list of models."""
    return page({"data": [{"id": i, "owned_by": owner} for i in ids]}, *headers)


def refusal(status: str, payload: Any) -> Play:
    """A refusal with a JSON body."""
    return raw(sized(status, json.dumps(payload).encode(), JSON))


def stream(*events: bytes, head: bytes = HEAD + b"Transfer-Encoding: chunked\r\n\r\n") -> Play:
    """A stream whose events are two milliseconds apart."""
    return chunked(tuple((2.0 * n, event) for n, event in enumerate(events)), head=head)


ANSWER = stream(ROLE, content("a"), content("b"), finish(), USAGE, DONE)
WHOLE = page(
    {
        "choices": [{"message": {"content": "ab"}, "finish_reason": "stop"}],
        "usage": counts(40, 2),
    }
)


def answer(asked: Mapping[str, Any]) -> Play:
    """The usual answer, streamed or whole."""
    return ANSWER if asked.get("stream") else WHOLE


def vendor(
    reply: Callable[[dict[str, Any]], Play] = answer,
    *,
    pages: Mapping[str, Play] | None = None,
    **options: Any,
) -> ByteServer:
    """A server with these pages, whose replies depend on the body of the request."""
    known = pages or {}

    def choose(request: Received) -> Play:
        if request.method == "GET":
            return known.get(request.path, NOT_FOUND)
        return reply(json.loads(request.body))

    return ByteServer(choose=choose, **options)


def bodies(server: ByteServer) -> list[dict[str, Any]]:
    """What was asked by POST, in order."""
    return [json.loads(r.body) for r in server.requests if r.method == "POST"]

"""Answers as servers stream them, and what must be read out of each.

Every case is a list of writes: milliseconds after the request, and the body bytes written then. An
event's instant is that of the write that completes it. ``R`` is a chunk with nothing but a role,
``C`` one of content, ``F`` a finish reason, ``U`` usage, ``D`` the end marker.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from collectors.records import Outcome, OutputEvents, TokenSource

Writes = tuple[tuple[float, bytes], ...]
_ONE, _TWO = OutputEvents(answer=1), OutputEvents(answer=2)


class Finish(StrEnum):
    """How the stream of a case ends."""

    END = "end"  # the response's own end
    RESET = "reset"  # the connection breaks
    HOLD = "hold"  # the socket stays open, and silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One answer and its reading; instants and durations in milliseconds.

    Attributes:
        ttfa_ms: ``None`` where it is the same as ``ttft_ms``, -1 where there is none.
        flags: all of them, as written; the other deliveries may add ``coalesced``.
        input_tokens: where the case is about them.
        texts: content by choice, where the case is about it.
        idle_ms: the limit between outputs.
    """

    name: str
    writes: Writes
    ttft_ms: float | None
    ttfa_ms: float | None = None
    events: OutputEvents = _TWO
    tokens: int | None = 2
    source: TokenSource | None = TokenSource.USAGE
    first_event_tokens: int | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    finish: tuple[str, ...] = ("stop",)
    outcome: Outcome = Outcome.OK
    detail: str | None = None
    flags: frozenset[str] = frozenset()
    texts: tuple[str, ...] | None = None
    tpot_ms: float | None = None
    done_ms: float | None = None
    api: str = "chat"
    choices: int = 1
    content_type: str = "text/event-stream"
    ending: Finish = Finish.END
    idle_ms: float | None = None


def sse(payload: Any) -> bytes:
    """One event with a JSON payload."""
    return b"data: " + _json(payload) + b"\n\n"


def typed(kind: str, **fields: Any) -> bytes:
    """An event named by its type, as in the Responses and Messages APIs."""
    return f"event: {kind}\n".encode() + sse({"type": kind, **fields})


def news(kind: str, **response: Any) -> bytes:
    """An event of the Responses API that says how the whole stands."""
    return typed(
        f"response.{kind}",
        response={"object": "response", "status": kind, "error": None, "usage": None, **response},
    )


def block_delta(**delta: Any) -> bytes:
    """An event of the Messages API with a piece of a block."""
    return typed("content_block_delta", index=0, delta=delta)


def chunk(delta: Any, *, index: int = 0, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    """A chat completion chunk with one choice."""
    return _envelope(choices=[{"index": index, "delta": delta, "finish_reason": finish}], **extra)


def delta(index: int = 0, **fields: Any) -> bytes:
    """An event whose one choice has this delta."""
    return sse(chunk(fields, index=index))


def content(text: str, index: int = 0, **extra: Any) -> bytes:
    """An event with a piece of the answer."""
    return sse(chunk({"content": text}, index=index, **extra))


def finish(reason: str = "stop", index: int = 0, **extra: Any) -> bytes:
    """An event with nothing but a finish reason."""
    return sse(chunk({}, index=index, finish=reason, **extra))


def counts(prompt: int, completion: int, **details: Any) -> dict[str, Any]:
    """A usage object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **details,
    }


def usage(prompt: int, completion: int, **details: Any) -> bytes:
    """An event with no choices and the usage."""
    return sse(_envelope(choices=[], usage=counts(prompt, completion, **details)))


def text_chunk(text: str, reason: str | None = None, **extra: Any) -> bytes:
    """An event of the legacy completions API."""
    choices = [{"index": 0, "text": text, "finish_reason": reason}]
    return sse(_envelope(choices=choices, **extra) | {"object": "text_completion"})


def in_seven_byte_pieces(data: bytes) -> Iterator[bytes]:
    """The same bytes, seven at a time."""
    return (data[i : i + 7] for i in range(0, len(data), 7))


def all_in_one(writes: Writes) -> Writes:
    """The whole answer in the last write."""
    return ((writes[-1][0], b"".join(data for _, data in writes)),)


def one_byte_a_write(writes: Writes) -> Writes:
    """Every byte on its own."""
    return tuple((at, data[i : i + 1]) for at, data in writes for i in range(len(data)))


def random_cuts(writes: Writes, seed: int) -> Writes:
    """Pieces of any length, borders of the writes kept or not."""
    draw = random.Random(seed)
    data = b"".join(data for _, data in writes)
    edges = sorted(draw.sample(range(1, len(data)), min(len(data) - 1, draw.randint(1, 40))))
    pieces = [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]
    return tuple((float(at), piece) for at, piece in enumerate(pieces, start=1))


def _json(payload: Any) -> bytes:
    return json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()


def _envelope(**fields: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", **fields}


def _with_usage(event: bytes, prompt: int, completion: int) -> bytes:
    payload = json.loads(event.removeprefix(b"data: "))
    return sse(payload | {"usage": counts(prompt, completion)})


R = delta(role="assistant", content="")
C = content
F = finish
U = usage
D = b"data: [DONE]\n\n"
PING = b": ping\n\n"

_PLAIN: Writes = (
    (5, R),
    (300, C("aa")),
    (320, C("bb")),
    (340, F()),
    (341, U(7, 2)),
    (342, D),
)
_START = _PLAIN[:3]
_NO_USAGE = frozenset({"no_usage"})
_CUT = frozenset({"no_usage", "no_done"})
_ERROR = {"message": "the engine died", "type": "InternalServerError", "param": None, "code": 500}


def _tail(at_ms: float) -> tuple[float, bytes]:
    return (at_ms, F() + U(7, 2) + D)


def _replaced(old: bytes, new: bytes) -> Writes:
    return tuple((at, data.replace(old, new)) for at, data in _PLAIN)


def _cut(data: bytes, size: int, at_ms: float, then_ms: float) -> Writes:
    return ((at_ms, data[:size]), (then_ms, data[size:]))


_WIDE = "a\u2028b\u0085c\u2029d!"
_EMOJI = C("é€😀")
_EMOJI_CUT = _EMOJI.index("😀".encode()) + 2
_CRLF_AA = C("aa").replace(b"\n", b"\r\n")
_USAGE_TWICE = (
    F().removesuffix(b"}\n\n") + b',"x_groq":' + _json({"usage": counts(7, 2)}) + b"}\n\n"
)
_WHOLE = _json(
    {
        "id": "c1",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "aabb"},
                "finish_reason": "stop",
            }
        ],
        "usage": counts(7, 2),
    }
)

CASES = (
    Case(name="01-plain", writes=_PLAIN, ttft_ms=300, texts=("aabb",), done_ms=342),
    Case(
        name="02-one-segment",
        writes=((300, R + C("aa") + C("bb") + F() + U(7, 2) + D),),
        ttft_ms=300,
        flags=frozenset({"coalesced", "first_coalesced"}),
    ),
    Case(
        name="03-split-json",
        writes=((5, R), *_cut(C("aa"), 40, 300, 350), (370, C("bb")), _tail(380)),
        ttft_ms=350,
        texts=("aabb",),
    ),
    Case(
        name="04-split-utf8",
        writes=((5, R), *_cut(_EMOJI, _EMOJI_CUT, 300, 350), (370, C("bb")), _tail(380)),
        ttft_ms=350,
        texts=("é€😀bb",),
    ),
    Case(name="05-crlf", writes=_replaced(b"\n", b"\r\n"), ttft_ms=300, texts=("aabb",)),
    Case(
        name="06-crlf-cut",
        writes=(
            (5, R.replace(b"\n", b"\r\n")),
            (300, _CRLF_AA[:-1]),
            (350, b"\n" + C("bb").replace(b"\n", b"\r\n")),
            (380, (F() + U(7, 2) + D).replace(b"\n", b"\r\n")),
        ),
        ttft_ms=300,
        texts=("aabb",),
    ),
    Case(name="07-no-space", writes=_replaced(b"data: ", b"data:"), ttft_ms=300, texts=("aabb",)),
    Case(
        name="08-comment",
        writes=(
            (50, b": PROCESSING\n\n"),
            (150, b": PROCESSING\n\n"),
            (290, R),
            (300, C("aa")),
            (320, b":\n\n" + C("bb")),
            _tail(340),
        ),
        ttft_ms=300,
        texts=("aabb",),
    ),
    Case(
        name="09-fields",
        writes=_replaced(b"data: ", b"event: message\nid: 7\nretry: 9\ndata: "),
        ttft_ms=300,
        texts=("aabb",),
    ),
    Case(
        name="10-no-data-events",
        writes=(
            (5, R),
            (100, b"event: ping\n\n"),
            (200, b"id: 4\n\n\n"),
            (300, C("aa")),
            (310, b'event: ping\ndata: {"type":"ping"}\n\n'),
            (320, C("bb")),
            _tail(340),
        ),
        ttft_ms=300,
        texts=("aabb",),
    ),
    Case(
        name="11-multi-line",
        writes=_replaced(
            b',"choices":[{"index":0,"delta":{"content":"aa',
            b',\ndata: "choices":[{"index":0,"delta":{"content":"aa',
        ),
        ttft_ms=300,
        texts=("aabb",),
    ),
    Case(
        name="12-u2028",
        writes=((300, C(_WIDE)), (320, C("bb")), _tail(340)),
        ttft_ms=300,
        texts=(_WIDE + "bb",),
    ),
    Case(
        name="13-unterminated",
        writes=(*_START, (340, F() + U(7, 2).removesuffix(b"\n\n"))),
        ttft_ms=300,
        flags=frozenset({"no_done", "unterminated_event"}),
    ),
    Case(name="14-no-done", writes=_PLAIN[:5], ttft_ms=300, flags=frozenset({"no_done"})),
    Case(
        name="15-clean-cut",
        writes=_START,
        ttft_ms=300,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.TRUNCATED,
        flags=_CUT,
    ),
    Case(
        name="16-reset",
        writes=_START,
        ending=Finish.RESET,
        ttft_ms=300,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.RESET,
        detail="the connection was closed",
        flags=_CUT,
    ),
    Case(
        name="17-after-done",
        writes=(*_PLAIN, (400, C("zz") + F())),
        ttft_ms=300,
        flags=frozenset({"after_done"}),
        done_ms=342,
    ),
    Case(
        name="18-done-held-open",
        writes=_PLAIN,
        ending=Finish.HOLD,
        ttft_ms=300,
        done_ms=342,
    ),
    Case(
        name="19-idle-comments",
        writes=((5, R), (300, C("aa")), *((300 + 100 * n, PING) for n in range(1, 9))),
        ending=Finish.HOLD,
        idle_ms=500,
        ttft_ms=300,
        events=_ONE,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.TIMEOUT,
        detail="idle",
        flags=_CUT,
    ),
    Case(
        name="20-huge",
        writes=((5, R), (300, C("x" * 1_000_000)), (320, C("bb")), _tail(340)),
        ttft_ms=300,
    ),
    Case(
        name="21-role-early",
        writes=((5, R), (500, C("aa")), (520, C("bb")), _tail(530)),
        ttft_ms=500,
    ),
    Case(
        name="22-role-null",
        writes=(
            (5, sse(chunk({"role": "assistant", "content": None}, prompt_progress={"total": 7}))),
            (200, delta(role=None)),
            (500, C("aa")),
            (520, C("bb")),
            _tail(530),
        ),
        ttft_ms=500,
    ),
    Case(
        name="23-role-in-content",
        writes=(
            (300, delta(role="assistant", content="aa")),
            (320, delta(role="assistant", content="bb")),
            _tail(340),
        ),
        ttft_ms=300,
    ),
    Case(
        name="24-empty-deltas",
        writes=(
            (5, R),
            (300, C("")),
            (320, C("aa")),
            (340, C("")),
            (360, C("bb")),
            (380, F() + U(7, 4) + D),
        ),
        ttft_ms=320,
        tokens=4,
    ),
    Case(
        name="25-hidden-token-ids",
        writes=(
            (5, R),
            (
                300,
                sse(
                    _envelope(
                        choices=[
                            {
                                "index": 0,
                                "delta": {"content": ""},
                                "token_ids": [11],
                                "finish_reason": None,
                            }
                        ]
                    )
                ),
            ),
            (
                320,
                sse(
                    _envelope(
                        choices=[{"index": 0, "delta": {"content": "aa"}, "token_ids": [12, 13]}]
                    )
                ),
            ),
            (
                340,
                sse(
                    _envelope(choices=[{"index": 0, "delta": {"content": "bb"}, "token_ids": [14]}])
                ),
            ),
            (360, F() + D),
        ),
        ttft_ms=300,
        ttfa_ms=320,
        events=OutputEvents(answer=2, hidden=1),
        tokens=4,
        source=TokenSource.TOKEN_IDS,
        first_event_tokens=1,
        flags=_NO_USAGE,
    ),
    Case(
        name="26-reasoning-content",
        writes=(
            (5, R),
            (300, delta(reasoning_content="hm")),
            (320, delta(reasoning_content="ah")),
            (400, C("aa")),
            (420, C("bb")),
            (440, F() + U(7, 4, completion_tokens_details={"reasoning_tokens": 2}) + D),
        ),
        ttft_ms=300,
        ttfa_ms=400,
        events=OutputEvents(answer=2, reasoning=2),
        tokens=4,
        reasoning_tokens=2,
    ),
    Case(
        name="27-reasoning-name",
        writes=((5, R), (300, delta(reasoning="hm")), (400, C("aa")), _tail(440)),
        ttft_ms=300,
        ttfa_ms=400,
        events=OutputEvents(answer=1, reasoning=1),
    ),
    Case(
        name="28-tool-only",
        writes=(
            (5, R),
            (300, delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}])),
            (320, delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}])),
            (340, delta(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}])),
            (360, F("tool_calls") + U(7, 9) + D),
        ),
        ttft_ms=300,
        ttfa_ms=-1,
        events=OutputEvents(tool=3),
        tokens=9,
        finish=("tool_calls",),
    ),
    Case(
        name="29-finish-with-content",
        writes=(
            (5, R),
            (300, C("aa")),
            (320, sse(chunk({"content": "bb"}, finish="length"))),
            (330, U(7, 2) + D),
        ),
        ttft_ms=300,
        finish=("length",),
    ),
    Case(
        name="30-usage-on-finish",
        writes=(*_START, (340, F(usage=counts(7, 2)) + D)),
        ttft_ms=300,
    ),
    Case(
        name="31-usage-every-chunk",
        writes=(
            (5, R),
            (300, C("aaaa", usage=counts(7, 3))),
            (320, C("bbbb", usage=counts(7, 6))),
            (340, C("cc", usage=counts(7, 8))),
            (350, F(usage=counts(7, 8)) + D),
        ),
        ttft_ms=300,
        events=OutputEvents(answer=3),
        tokens=8,
        first_event_tokens=3,
        tpot_ms=40 / 5,
    ),
    Case(
        name="32-usage-twice",
        writes=(*_START, (340, _USAGE_TWICE), (341, U(7, 2)), (342, D)),
        ttft_ms=300,
    ),
    Case(
        name="33-usage-absent",
        writes=(*_START, (340, F() + D)),
        ttft_ms=300,
        tokens=None,
        source=None,
        flags=_NO_USAGE,
    ),
    Case(
        name="34-choices-odd",
        writes=(
            (5, sse({"choices": [], "id": "", "prompt_filter_results": [{"prompt_index": 0}]})),
            (10, sse({"choices": None})),
            (15, sse({"id": "c1"})),
            (20, R),
            (300, C("aa")),
            (310, sse({"choices": [{"index": 0, "content_filter_offsets": {"check": 3}}]})),
            (320, C("bb")),
            _tail(340),
        ),
        ttft_ms=300,
    ),
    Case(
        name="35-n2",
        writes=(
            (5, R + delta(1, role="assistant", content="")),
            (300, C("aa")),
            (310, C("xx", 1)),
            (320, C("bb")),
            (330, C("yy", 1)),
            (340, F() + F("length", 1) + U(7, 4) + D),
        ),
        choices=2,
        ttft_ms=300,
        events=OutputEvents(answer=4),
        tokens=4,
        finish=("stop", "length"),
        texts=("aabb", "xxyy"),
    ),
    Case(
        name="36-multi-token",
        writes=(
            (300, C("one two three ", usage=counts(7, 3))),
            (360, C("four five six ", usage=counts(7, 6))),
            (420, C("seven eight nine", usage=counts(7, 9))),
            (421, F() + U(7, 9) + D),
        ),
        ttft_ms=300,
        events=OutputEvents(answer=3),
        tokens=9,
        first_event_tokens=3,
        tpot_ms=20,
    ),
    Case(
        name="37-content-list",
        writes=(
            (
                300,
                delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}]),
            ),
            (320, delta(content=[{"type": "text", "text": "aa"}])),
            (340, C("bb")),
            (360, F() + U(7, 3) + D),
        ),
        ttft_ms=300,
        ttfa_ms=320,
        events=OutputEvents(answer=2, reasoning=1),
        tokens=3,
    ),
    Case(
        name="38-post-finish-chunks",
        writes=(
            *_START,
            (340, F()),
            (341, sse(chunk({"hidden_states": [[0.5, 0.25]]}))),
            (342, sse({"choices": [], "sglext": {"routed_experts": "x"}})),
            (343, U(7, 2)),
            (344, sse({"choices": [], "cost": "0"})),
            (345, D),
        ),
        ttft_ms=300,
    ),
    Case(
        name="39-cached-openai",
        writes=(*_START, (340, F() + U(9, 2, prompt_tokens_details={"cached_tokens": 6}) + D)),
        ttft_ms=300,
        cached_tokens=6,
    ),
    Case(
        name="40-zero-output",
        writes=((5, R), (300, F() + U(7, 0) + D)),
        ttft_ms=None,
        events=OutputEvents(),
        tokens=0,
        flags=frozenset({"no_output"}),
    ),
    Case(
        name="41-err-object",
        writes=((5, R), (300, C("aa")), (320, sse({"error": _ERROR})), (321, D)),
        ttft_ms=300,
        events=_ONE,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.IN_BAND_ERROR,
        detail="the engine died",
        flags=frozenset({"no_usage", "no_finish"}),
    ),
    Case(
        name="42-err-string",
        writes=((5, R), (300, C("aa")), (320, sse({"error": "boom"}))),
        ttft_ms=300,
        events=_ONE,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.IN_BAND_ERROR,
        detail="boom",
        flags=_CUT,
    ),
    Case(
        name="43-err-flat",
        writes=(
            (5, R),
            (300, C("aa")),
            (320, sse({"object": "error", "message": "boom", "code": 500}) + D),
        ),
        ttft_ms=300,
        events=_ONE,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.IN_BAND_ERROR,
        detail="boom",
        flags=frozenset({"no_usage", "no_finish"}),
    ),
    Case(
        name="44-err-field",
        writes=((5, R), (300, C("aa")), (320, b"error: " + _json(_ERROR) + b"\n\n")),
        ttft_ms=300,
        events=_ONE,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.IN_BAND_ERROR,
        detail="the engine died",
        flags=_CUT,
    ),
    Case(
        name="45-err-first",
        writes=((5, sse({"error": _ERROR}) + D),),
        ttft_ms=None,
        events=OutputEvents(),
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.IN_BAND_ERROR,
        detail="the engine died",
    ),
    Case(
        name="46-json-200",
        writes=((400, _WHOLE),),
        content_type="application/json",
        ttft_ms=None,
        events=OutputEvents(),
        flags=frozenset({"not_streamed"}),
        done_ms=400,
    ),
    Case(
        name="47-legacy",
        api="completions",
        writes=(
            (300, text_chunk("aa")),
            (320, text_chunk("bb")),
            (340, text_chunk("cc", "length", usage=counts(7, 3)) + D),
        ),
        ttft_ms=300,
        events=OutputEvents(answer=3),
        tokens=3,
        finish=("length",),
    ),
    Case(
        name="48-responses",
        api="responses",
        writes=(
            (5, news("created") + news("in_progress")),
            (
                290,
                typed("response.output_item.added", item={"type": "message", "content": []})
                + typed("response.content_part.added", part={"type": "output_text", "text": ""}),
            ),
            (300, typed("response.output_text.delta", delta="aa")),
            (310, sse({"type": "keepalive", "sequence_number": 5})),
            (320, typed("response.output_text.delta", delta="bb")),
            (
                340,
                news(
                    "completed",
                    usage={
                        "input_tokens": 7,
                        "input_tokens_details": {"cached_tokens": 4},
                        "output_tokens": 2,
                        "output_tokens_details": {"reasoning_tokens": 0},
                        "total_tokens": 9,
                    },
                ),
            ),
        ),
        ttft_ms=300,
        input_tokens=7,
        cached_tokens=4,
        reasoning_tokens=0,
        finish=("completed",),
        done_ms=340,
    ),
    Case(
        name="49-messages",
        api="messages",
        writes=(
            (
                5,
                typed(
                    "message_start",
                    message={
                        "type": "message",
                        "content": [],
                        "stop_reason": None,
                        "usage": {
                            "input_tokens": 3,
                            "cache_read_input_tokens": 6,
                            "cache_creation_input_tokens": 0,
                            "output_tokens": 1,
                        },
                    },
                ),
            ),
            (
                6,
                typed("content_block_start", content_block={"type": "thinking", "thinking": ""})
                + typed("ping"),
            ),
            (300, block_delta(type="thinking_delta", thinking="hm")),
            (310, block_delta(type="signature_delta", signature="EqQB")),
            (400, block_delta(type="text_delta", text="aa")),
            (
                420,
                typed(
                    "message_delta",
                    delta={"stop_reason": "end_turn"},
                    usage={"output_tokens": 5},
                )
                + typed("message_stop"),
            ),
        ),
        ttft_ms=300,
        ttfa_ms=400,
        events=OutputEvents(answer=1, reasoning=1),
        tokens=5,
        input_tokens=9,
        cached_tokens=6,
        finish=("end_turn",),
        done_ms=420,
    ),
)

"""Answers of the APIs beside chat completions, as servers send them; see :mod:`cases`."""

from __future__ import annotations

import json
from typing import Any

from collectors.records import Outcome, OutputEvents, TokenSource
from tests.loadgen.cases import Case, D, block_delta, counts, news, typed

_ONE, _NONE = OutputEvents(answer=1), OutputEvents()
_NO_USAGE = frozenset({"no_usage"})
_NOT_STREAMED = frozenset({"not_streamed"})


def _spent(given: int, made: int, **details: Any) -> dict[str, Any]:
    return {
        "input_tokens": given,
        "output_tokens": made,
        "total_tokens": given + made,
        **details,
    }


def _text(piece: str, **fields: Any) -> bytes:
    return typed("response.output_text.delta", delta=piece, **fields)


def _message(text: str) -> dict[str, Any]:
    return {"type": "message", "content": [{"type": "output_text", "text": text}]}


def _json(payload: Any) -> bytes:
    return json.dumps(payload).encode()


_CREATED = (5, news("created") + news("in_progress"))
_COMPLETED = news("completed", output=[_message("aabb")], usage=_spent(7, 2))

RESPONSES_CASES = (
    Case(
        name="r01-what-is-done-is-not-said-twice",
        api="responses",
        writes=(
            _CREATED,
            (300, _text("aa")),
            (320, _text("bb")),
            (
                330,
                typed("response.output_text.done", text="aabb")
                + typed("response.content_part.done", part={"type": "output_text", "text": "aabb"})
                + typed("response.output_item.done", item=_message("aabb")),
            ),
            (340, _COMPLETED),
        ),
        ttft_ms=300,
        finish=("completed",),
    ),
    Case(
        name="r02-reasoning-summary",
        api="responses",
        writes=(
            _CREATED,
            (250, typed("response.reasoning_summary_part.added", part={"text": ""})),
            (300, typed("response.reasoning_summary_text.delta", delta="hm")),
            (310, typed("response.reasoning_summary_text.done", text="hm")),
            (400, _text("aa")),
            (
                440,
                news(
                    "completed", usage=_spent(7, 40, output_tokens_details={"reasoning_tokens": 39})
                ),
            ),
        ),
        ttft_ms=300,
        ttfa_ms=400,
        events=OutputEvents(answer=1, reasoning=1),
        tokens=40,
        reasoning_tokens=39,
        finish=("completed",),
    ),
    Case(
        name="r03-tool-only",
        api="responses",
        writes=(
            _CREATED,
            (
                300,
                typed(
                    "response.output_item.added",
                    item={"type": "function_call", "name": "f", "arguments": ""},
                ),
            ),
            (320, typed("response.function_call_arguments.delta", delta='{"a":')),
            (340, typed("response.function_call_arguments.delta", delta="1}")),
            (350, typed("response.function_call_arguments.done", arguments='{"a":1}')),
            (360, news("completed", usage=_spent(7, 9))),
        ),
        ttft_ms=300,
        ttfa_ms=-1,
        events=OutputEvents(tool=3),
        tokens=9,
        finish=("completed",),
    ),
    Case(
        name="r04-refusal",
        api="responses",
        writes=(
            _CREATED,
            (300, typed("response.refusal.delta", delta="no")),
            (340, news("completed", usage=_spent(7, 1))),
        ),
        ttft_ms=300,
        ttfa_ms=-1,
        events=_ONE,
        tokens=1,
        finish=("completed",),
    ),
    Case(
        name="r05-incomplete",
        api="responses",
        writes=(
            _CREATED,
            (300, _text("aa")),
            (320, _text("bb")),
            (
                340,
                news(
                    "incomplete",
                    incomplete_details={"reason": "max_output_tokens"},
                    usage=_spent(7, 2),
                ),
            ),
        ),
        ttft_ms=300,
        finish=("max_output_tokens",),
    ),
    Case(
        name="r06-failed",
        api="responses",
        writes=(
            _CREATED,
            (300, _text("aa")),
            (
                320,
                news("failed", error={"code": "server_error", "message": "the engine died"}),
            ),
        ),
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
        name="r07-error-event",
        api="responses",
        writes=(
            _CREATED,
            (300, _text("aa")),
            (320, typed("error", code="rate_limit_exceeded", message="slow down", param=None)),
        ),
        ttft_ms=300,
        events=_ONE,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.IN_BAND_ERROR,
        detail="slow down",
        flags=frozenset({"no_usage", "no_done"}),
    ),
    Case(
        name="r08-clean-cut",
        api="responses",
        writes=(
            _CREATED,
            (300, _text("aa")),
            (320, _text("bb")),
            (330, typed("response.output_text.done", text="aabb")),
        ),
        ttft_ms=300,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.TRUNCATED,
        flags=frozenset({"no_usage", "no_done"}),
    ),
    Case(
        name="r09-all-in-the-end",
        api="responses",
        writes=(_CREATED, (340, _COMPLETED)),
        ttft_ms=340,
        events=_ONE,
        finish=("completed",),
    ),
    Case(
        name="r10-chat-marker-behind",
        api="responses",
        writes=(_CREATED, (300, _text("aa")), (320, _text("bb")), (340, _COMPLETED), (341, D)),
        ttft_ms=300,
        finish=("completed",),
        done_ms=340,
    ),
    Case(
        name="r11-logprobs",
        api="responses",
        writes=(
            _CREATED,
            (300, _text("aa", logprobs=[{"token": "a"}, {"token": "a"}])),
            (310, _text("", logprobs=[{"token": ""}])),
            (320, _text("bb", logprobs=[{"token": "bb"}])),
            (340, news("completed")),
        ),
        ttft_ms=300,
        events=OutputEvents(answer=2, hidden=1),
        tokens=4,
        source=TokenSource.LOGPROBS,
        first_event_tokens=2,
        finish=("completed",),
        flags=_NO_USAGE,
    ),
    Case(
        name="r12-nothing-said",
        api="responses",
        writes=(_CREATED, (340, news("completed", output=[], usage=_spent(7, 0)))),
        ttft_ms=None,
        events=_NONE,
        tokens=0,
        finish=("completed",),
        flags=frozenset({"no_output"}),
    ),
    Case(
        name="r13-json-200",
        api="responses",
        writes=(
            (
                400,
                _json(
                    {
                        "object": "response",
                        "status": "completed",
                        "error": None,
                        "output": [{"type": "reasoning", "summary": []}, _message("aabb")],
                        "usage": _spent(7, 2, input_tokens_details={"cached_tokens": 0}),
                    }
                ),
            ),
        ),
        content_type="application/json",
        ttft_ms=None,
        events=_NONE,
        input_tokens=7,
        cached_tokens=0,
        finish=("completed",),
        flags=_NOT_STREAMED,
        done_ms=400,
    ),
    Case(
        name="r14-json-in-progress",
        api="responses",
        writes=((400, _json({"object": "response", "status": "queued", "output": []})),),
        content_type="application/json",
        ttft_ms=None,
        events=_NONE,
        tokens=None,
        source=None,
        finish=(),
        outcome=Outcome.MALFORMED,
        detail="a JSON body without a finish reason",
    ),
)


def _start(**usage: Any) -> bytes:
    message = {"type": "message", "content": [], "stop_reason": None}
    return typed("message_start", message=message | {"usage": usage})


def _block(**block: Any) -> bytes:
    return typed("content_block_start", index=0, content_block=block)


def _stop(reason: str, **usage: Any) -> bytes:
    return typed("message_delta", delta={"stop_reason": reason}, usage=usage)


_STARTED = (5, _start(input_tokens=7, output_tokens=1) + _block(type="text", text=""))
_AA = block_delta(type="text_delta", text="aa")
_BB = block_delta(type="text_delta", text="bb")
_END = typed("message_stop")

MESSAGES_CASES = (
    Case(
        name="m01-plain",
        api="messages",
        writes=(
            _STARTED,
            (300, _AA),
            (310, block_delta(type="citations_delta", citation={"cited_text": "x"})),
            (320, _BB),
            (330, typed("content_block_stop", index=0)),
            (340, _stop("max_tokens", output_tokens=2) + _END),
        ),
        ttft_ms=300,
        input_tokens=7,
        finish=("max_tokens",),
        done_ms=340,
    ),
    Case(
        name="m02-tool-only",
        api="messages",
        writes=(
            (5, _start(input_tokens=7, output_tokens=1)),
            (300, _block(type="tool_use", id="t1", name="f", input={})),
            (310, block_delta(type="input_json_delta", partial_json="")),
            (320, block_delta(type="input_json_delta", partial_json='{"a":')),
            (340, block_delta(type="input_json_delta", partial_json="1}")),
            (360, _stop("tool_use", output_tokens=9) + _END),
        ),
        ttft_ms=300,
        ttfa_ms=-1,
        events=OutputEvents(tool=3),
        tokens=9,
        finish=("tool_use",),
    ),
    Case(
        name="m03-counted-at-the-end",  # vLLM: nothing known at the start, chat's marker behind
        api="messages",
        writes=(
            (5, typed("message_start", message={"content": []}, usage={"input_tokens": 0})),
            (300, _AA),
            (320, _BB),
            (340, _stop("end_turn", input_tokens=7, output_tokens=2) + _END),
            (341, D),
        ),
        ttft_ms=300,
        input_tokens=7,
        finish=("end_turn",),
        done_ms=340,
    ),
    Case(
        name="m04-zeros-take-nothing-back",
        api="messages",
        writes=(
            (5, _start(input_tokens=3, cache_read_input_tokens=4, output_tokens=1)),
            (300, _AA),
            (320, _BB),
            (330, typed("message_delta", delta={}, usage={"output_tokens": 1})),
            (
                340,
                _stop("end_turn", input_tokens=0, cache_read_input_tokens=0, output_tokens=2)
                + _END,
            ),
        ),
        ttft_ms=300,
        input_tokens=7,
        cached_tokens=4,
        finish=("end_turn",),
    ),
    Case(
        name="m05-overloaded",
        api="messages",
        writes=(
            _STARTED,
            (300, _AA),
            (320, typed("error", error={"type": "overloaded_error", "message": "Overloaded"})),
        ),
        ttft_ms=300,
        events=_ONE,
        tokens=None,
        source=None,
        input_tokens=7,
        finish=(),
        outcome=Outcome.IN_BAND_ERROR,
        detail="Overloaded",
        flags=frozenset({"no_done"}),
    ),
    Case(
        name="m06-clean-cut",  # the start's guess of one output token is no count
        api="messages",
        writes=(_STARTED, (300, _AA), (320, _BB), (330, typed("content_block_stop", index=0))),
        ttft_ms=300,
        tokens=None,
        source=None,
        input_tokens=7,
        finish=(),
        outcome=Outcome.TRUNCATED,
        flags=frozenset({"no_done"}),
    ),
    Case(
        name="m07-no-stop-event",
        api="messages",
        writes=(_STARTED, (300, _AA), (320, _BB), (340, _stop("end_turn", output_tokens=2))),
        ttft_ms=300,
        finish=("end_turn",),
        flags=frozenset({"no_done"}),
    ),
    Case(
        name="m08-redacted-thinking",
        api="messages",
        writes=(
            (5, _start(input_tokens=7, output_tokens=1)),
            (300, _block(type="redacted_thinking", data="EmwK")),
            (400, _AA),
            (420, _stop("end_turn", output_tokens=5) + _END),
        ),
        ttft_ms=300,
        ttfa_ms=400,
        events=OutputEvents(answer=1, reasoning=1),
        tokens=5,
        finish=("end_turn",),
    ),
    Case(
        name="m09-nothing-said",
        api="messages",
        writes=(_STARTED, (340, _stop("end_turn", output_tokens=0) + _END)),
        ttft_ms=None,
        events=_NONE,
        tokens=0,
        finish=("end_turn",),
        flags=frozenset({"no_output"}),
    ),
    Case(
        name="m10-json-200",
        api="messages",
        writes=(
            (
                400,
                _json(
                    {
                        "type": "message",
                        "content": [{"type": "text", "text": "aabb"}],
                        "stop_reason": "end_turn",
                        "usage": {
                            "input_tokens": 1,
                            "cache_creation_input_tokens": 2,
                            "cache_read_input_tokens": 4,
                            "output_tokens": 2,
                        },
                    }
                ),
            ),
        ),
        content_type="application/json",
        ttft_ms=None,
        events=_NONE,
        input_tokens=7,
        cached_tokens=4,
        finish=("end_turn",),
        flags=_NOT_STREAMED,
        done_ms=400,
    ),
)


def _embeddings(name: str, payload: dict[str, Any], **reading: Any) -> Case:
    reading = {
        "tokens": None,
        "source": TokenSource.USAGE,
        "input_tokens": 7,
        "done_ms": 400,
        **reading,
    }
    return Case(
        name=name,
        api="embeddings",
        writes=((400, _json(payload)),),
        content_type="application/json",
        ttft_ms=None,
        events=_NONE,
        finish=(),
        **reading,
    )


def _vectors(*vectors: Any, **fields: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    return {"object": "list", "data": data, **fields}


_GIVEN = {"prompt_tokens": 7, "total_tokens": 7}

EMBEDDINGS_CASES = (
    _embeddings("e01-plain", _vectors([0.25, -0.5], usage=_GIVEN)),
    _embeddings("e02-base64", _vectors("AACAPgAAAL8=", usage=counts(7, 0))),
    _embeddings("e03-batch", _vectors([0.25], [0.5], [0.75], usage=_GIVEN)),
    _embeddings("e04-no-usage", _vectors([0.25]), source=None, input_tokens=None, flags=_NO_USAGE),
    _embeddings(
        "e05-error",
        {"error": {"message": "too long"}},
        source=None,
        input_tokens=None,
        outcome=Outcome.IN_BAND_ERROR,
        detail="too long",
    ),
    _embeddings(
        "e06-no-vectors",
        _vectors(),
        source=None,
        input_tokens=None,
        outcome=Outcome.MALFORMED,
        detail="a JSON body without an embedding",
    ),
    _embeddings(
        "e07-empty-vector",
        _vectors([]),
        source=None,
        input_tokens=None,
        outcome=Outcome.MALFORMED,
        detail="a JSON body without an embedding",
    ),
)

API_CASES = (*RESPONSES_CASES, *MESSAGES_CASES, *EMBEDDINGS_CASES)

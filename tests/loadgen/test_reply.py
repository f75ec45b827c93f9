"""What single chunks and whole bodies say, odd ones included."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.records import OutputEvents, TokenSource
from loadgen.client import API_PATHS
from loadgen.replies import make_reply
from loadgen.reply import MAX_WORDS, Reply, error_message
from loadgen.usage import Usage
from tests.loadgen.cases import chunk, counts

ANSWER, REASONING = OutputEvents(answer=1), OutputEvents(reasoning=1)
TOOL, HIDDEN, NOTHING = OutputEvents(tool=1), OutputEvents(hidden=1), OutputEvents()


def read(*payloads: Any, choices: int = 1, api: str = "chat") -> Reply:
    """The reply after these events, a second apart."""
    reply = make_reply(api, choices)
    for number, payload in enumerate(payloads):
        data = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        reply.event(b"", data, float(number), number, None)
    return reply


def whole(*choices: Any, **fields: Any) -> Reply:
    """The reply that a JSON body gives."""
    reply = make_reply("chat")
    assert reply.body(orjson.dumps({"choices": list(choices), **fields}))
    return reply


@pytest.mark.parametrize(
    ("delta", "events"),
    [
        ({"content": "a"}, ANSWER),
        ({"content": " "}, ANSWER),
        ({"content": "\ufffd"}, ANSWER),
        ({"content": ""}, NOTHING),
        ({"content": None}, NOTHING),
        ({"content": 7}, NOTHING),
        ({"role": "assistant"}, NOTHING),
        ({"role": "assistant", "content": ""}, NOTHING),
        ({"role": "", "content": "a"}, ANSWER),
        ({}, NOTHING),
        (None, NOTHING),
        ([], NOTHING),
        ("a", NOTHING),
        ({"reasoning_content": "a", "content": None}, REASONING),
        ({"reasoning_content": "a", "reasoning": "a", "content": ""}, REASONING),
        ({"reasoning_content": ""}, NOTHING),
        ({"reasoning_content": None, "content": "a"}, ANSWER),
        ({"reasoning_content": "a", "content": "b"}, ANSWER),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "a"}]}, REASONING),
        ({"reasoning_details": [{"type": "reasoning.text", "text": ""}]}, NOTHING),
        ({"reasoning_details": []}, NOTHING),
        ({"content": [{"type": "text", "text": "a"}]}, ANSWER),
        ({"content": [{"type": "thinking", "thinking": []}]}, NOTHING),
        ({"content": []}, NOTHING),
        ({"content": [], "tool_calls": [{"function": {"name": "f"}}]}, TOOL),
        ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}, TOOL),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, TOOL),
        ({"tool_calls": [{"index": 0, "function": {"name": "", "arguments": ""}}]}, NOTHING),
        ({"tool_calls": [{"index": 0, "id": "call_1"}]}, NOTHING),
        ({"tool_calls": []}, NOTHING),
        ({"tool_calls": 5}, NOTHING),
        ({"tool_calls": [None, 5, {"function": "f"}]}, NOTHING),
        ({"function_call": {"name": "f", "arguments": ""}}, TOOL),
        ({"function_call": {"name": "", "arguments": ""}}, NOTHING),
        ({"refusal": "no"}, ANSWER),
        ({"refusal": None}, NOTHING),
        ({"audio": {"data": "UklGRg=="}}, ANSWER),
        ({"images": [{"url": "x"}]}, ANSWER),
        ({"annotations": [{"url": "x"}]}, NOTHING),
        ({"obfuscation": "xxxx"}, NOTHING),
    ],
)
def test_output_is_judged_by_payload(delta: Any, events: OutputEvents) -> None:
    """What a delta carries decides its kind; a role, a blank or news of other things is none."""
    assert read(chunk(delta)).output_events == events


def test_a_refusal_is_output_but_no_answer() -> None:
    """TTFA is of the first content."""
    reply = read(chunk({"refusal": "no"}), chunk({"content": "a"}))

    assert (reply.first_output_at, reply.first_answer_at) == (0.0, 1.0)


@pytest.mark.parametrize(
    "payload",
    [
        {"choices": 5},
        {"choices": True},
        {"choices": "abc"},
        {"choices": {"index": 0}, "usage": {"completion_tokens": 1}},
        {"choices": [5, None, "a", [], True]},
        {"choices": [5], "usage": counts(7, 2)},
        {"choices": [{"index": [0], "delta": {"content": "a"}}], "usage": counts(7, 2)},
        {"choices": [{"index": "x", "finish_reason": "stop"}]},
        {"choices": [{"finish_reason": {"type": "stop"}}]},
        {"choices": [{"token_ids": 5, "logprobs": 5}]},
        {"choices": [{"token_ids": "ab", "logprobs": {"content": 5}}]},
        {"choices": [{"logprobs": {"content": None, "tokens": {}}}]},
        {"choices": [{"usage": 5}]},
        {"usage": 5},
        {"usage": []},
        {"usage": {"completion_tokens": "12"}},
        {"usage": {"completion_tokens": -1, "prompt_tokens": 1.5}},
        {"usage": {"prompt_tokens": 1, "prompt_tokens_details": 5}},
        {"x_groq": 5},
        {"error": {}},
        {"error": False},
        {"object": "error"},
        {"type": "error"},
        [],
        [[]],
        [{}],
        "text",
        5,
        None,
        True,
        {},
        {"choices": [{"delta": {"content": {"a": 1}}}]},
        {"choices": [{"delta": {"reasoning_details": 5, "function_call": 5}}]},
        {"choices": [{"text": 5}]},
        {"timings": 5},
        {"timings": {"predicted_n": "2", "prompt_n": -1, "cache_n": None}},
        {"type": ["response.completed"]},
        {"type": {"a": 1}, "response": {}},
        {"type": "response.completed"},
        {"type": "response.completed", "response": 5},
        {"type": "response.completed", "response": {"output": 5, "usage": 5}},
        {"type": "response.completed", "response": {"output": [5, {"type": []}, None]}},
        {"type": "response.completed", "response": {"output": [{"content": 5, "summary": "x"}]}},
        {"type": "response.incomplete", "response": {"incomplete_details": "x"}},
        {"type": "response.incomplete", "response": {"incomplete_details": {"reason": [1]}}},
        {"type": "response.failed", "response": {"error": 5}},
        {"type": "response.output_text.delta", "delta": {"text": "a"}, "logprobs": 5},
        {"type": "response.output_item.added", "item": "x"},
        {"status": ["completed"], "output": {"a": 1}},
        {"type": "message_start", "message": 5, "usage": 5},
        {"type": "message_start", "message": {"usage": [1]}},
        {"type": "message_delta", "delta": 5, "usage": "x"},
        {"type": "message_delta", "delta": {"stop_reason": ["x"]}, "usage": {"output_tokens": {}}},
        {"type": "content_block_delta", "delta": {"type": ["text_delta"], "text": "a"}},
        {"type": "content_block_start", "content_block": [5]},
        {"content": [5, None, {"type": 5}], "stop_reason": 5},
        {"content": 5, "usage": 5},
        {"data": 5},
        {"data": [5, None, {"embedding": 5}], "usage": []},
    ],
    ids=repr,
)
@pytest.mark.parametrize("api", API_PATHS)
def test_unknown_shapes_never_raise(payload: Any, api: str) -> None:
    """Neither streamed nor whole; what they say otherwise is a matter of the other tests."""
    reply = read(payload, api=api)
    reply.event(b"error", orjson.dumps(payload), 1.0, 1, None)
    body = make_reply(api)
    body.body(orjson.dumps(payload))
    body.tokens()
    list(body.flags())
    reply.tokens()
    list(reply.flags())

    assert reply.error is not None or reply.after_done


@pytest.mark.parametrize(
    "shape", [(b"[", b"]"), (b'{"error":', b"}"), (b'{"choices":[', b"]}"), (b'{"a":', b"}")]
)
@pytest.mark.parametrize("name", [b"", b"error"])
def test_deep_nesting_never_raises(shape: tuple[bytes, bytes], name: bytes) -> None:
    """As deep as a parser goes."""
    opening, closing = shape
    depth = 1020 // opening.count(b"[") if b"[" in opening and b"{" not in opening else 500
    data = opening * depth + b"1" + closing * depth
    orjson.loads(data)
    reply = make_reply("chat")
    reply.event(name, data, 0.0, 0, None)
    make_reply("chat").body(data)

    assert (reply.error is not None) == (name == b"error" or b"error" in opening)


KEYS = (
    "choices delta message content usage error finish_reason index tool_calls function reasoning "
    "logprobs token_ids completion_tokens text type object x_groq reasoning_details timings "
    "response output item status message stop_reason content_block output_tokens input_tokens "
    "data embedding cache_read_input_tokens incomplete_details reason name"
)
WORDS = (
    "response.completed response.incomplete response.failed response.output_text.delta "
    "response.output_item.added response.in_progress message_start message_delta message_stop "
    "content_block_start content_block_delta text_delta text message reasoning tool_use completed"
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 99)
    | st.text(max_size=3)
    | st.sampled_from(WORDS.split()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(JSON, max_size=4), st.integers(1, 3), st.sampled_from(sorted(API_PATHS)))
def test_any_json_is_read_to_the_end(payloads: list[Any], choices: int, api: str) -> None:
    """Whatever the shapes, a reply is either complete, failed or neither, and its figures exist."""
    reply = read(*payloads, choices=choices, api=api)
    for payload in payloads:
        make_reply(api).body(orjson.dumps(payload))
    spread, source = reply.tokens()

    assert len(reply.gaps_s) == max(0, reply.output_events.total - 1)
    assert (spread.output_tokens is None) or spread.output_tokens >= 0
    assert source is None or spread.output_tokens is not None or api == "embeddings"
    assert all(isinstance(flag, str) for flag in reply.flags())


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_are_read_to_the_end(payloads: list[bytes]) -> None:
    """Data that is no JSON is counted, unless it is blank."""
    reply = read(*payloads)

    assert reply.bad_json <= len(payloads)


@pytest.mark.parametrize(
    ("data", "bad"),
    [(b"{oops", 1), (b"nonsense", 1), (b"\xff\xfe", 1), (b"", 0), (b"  ", 0), (b"{}", 0)],
)
def test_bad_json_is_counted(data: bytes, bad: int) -> None:
    """And flagged; blank data is a keep-alive."""
    reply = read(data)

    assert reply.bad_json == bad
    assert ("bad_json" in list(reply.flags())) == bool(bad)


@pytest.mark.parametrize("marker", [b"[DONE]", b"[DONE] ", b" [DONE]\t", b'"[DONE]"'])
def test_the_end_marker_in_every_spelling(marker: bytes) -> None:
    """Blanks around it and quotes do not matter."""
    assert read(marker).done


@pytest.mark.parametrize("data", [b"[done]", b"DONE", b'["[DONE]"]', b'{"a":"[DONE]"}'])
def test_nothing_else_is_the_end_marker(data: bytes) -> None:
    """It is compared whole."""
    assert not read(data).done


@pytest.mark.parametrize(
    ("reasons", "asked", "complete"),
    [
        (["stop"], 1, True),
        (["length"], 1, True),
        ([""], 1, False),
        ([None], 1, False),
        (["stop"], 2, False),
        (["stop", "stop"], 2, True),
    ],
)
def test_complete_takes_a_reason_for_every_choice(
    reasons: list[str | None], asked: int, complete: bool
) -> None:
    """An empty reason is none."""
    events = [chunk({}, index=i, finish=reason) for i, reason in enumerate(reasons)]

    assert read(*events, choices=asked).complete is complete


def test_a_finish_reason_error_is_an_error() -> None:
    """OpenRouter ends a failed answer so."""
    assert read(chunk({"content": "a"}, finish="error")).error is not None


# -- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "usage"),
    [
        ({"usage": counts(7, 2)}, Usage(input_tokens=7, output_tokens=2)),
        ({"x_groq": {"usage": counts(7, 2)}}, Usage(input_tokens=7, output_tokens=2)),
        (
            {
                "choices": [
                    {"index": 0, "delta": {}, "finish_reason": "stop", "usage": counts(7, 2)}
                ]
            },
            Usage(input_tokens=7, output_tokens=2),
        ),
        (
            {"usage": counts(9, 2, prompt_cache_hit_tokens=6)},
            Usage(input_tokens=9, output_tokens=2, cached_input_tokens=6),
        ),
        (
            {"usage": counts(9, 2, cached_tokens=6)},
            Usage(input_tokens=9, output_tokens=2, cached_input_tokens=6),
        ),
        (
            {"usage": counts(9, 2, prompt_tokens_details={"cached_tokens": 0})},
            Usage(input_tokens=9, output_tokens=2, cached_input_tokens=0),
        ),
        (
            {"usage": counts(9, 2, prompt_tokens_details=None)},
            Usage(input_tokens=9, output_tokens=2),
        ),
        (
            {"usage": counts(9, 2, reasoning_tokens=1)},
            Usage(input_tokens=9, output_tokens=2, reasoning_tokens=1),
        ),
        (
            {"choices": [], "timings": {"cache_n": 6, "prompt_n": 3, "predicted_n": 2}},
            Usage(input_tokens=9, output_tokens=2, cached_input_tokens=6),
        ),
        (
            {"choices": [], "timings": {"prompt_n": 3, "predicted_n": 2}},
            Usage(output_tokens=2),
        ),
        (
            {"usage": counts(9, 2), "timings": {"predicted_n": 3}},
            Usage(input_tokens=9, output_tokens=2),
        ),
        ({"usage": None}, Usage()),
        ({"usage": counts(0, 0)}, Usage()),
        ({"usage": {"prompt_tokens": 7}}, Usage(input_tokens=7)),
        ({"usage": {"prompt_tokens": 7, "completion_tokens": True}}, Usage(input_tokens=7)),
    ],
)
def test_usage_is_found_where_servers_put_it(payload: Any, usage: Usage) -> None:
    """Absent is None, and an all-zero placeholder beside output is absent."""
    reply = read(chunk({"content": "a"}), chunk({}, finish="stop"), payload)

    assert reply.tokens()[0] == usage


def test_a_zero_that_contradicts_the_output_is_absent() -> None:
    """Zero output tokens beside visible output is a placeholder, the input count is not."""
    usage, source = read(chunk({"content": "a"}), {"usage": counts(7, 0)}).tokens()

    assert (usage.input_tokens, usage.output_tokens, source) == (7, None, None)


@pytest.mark.parametrize(
    ("first", "second", "tokens", "conflict"),
    [((7, 2), (7, 2), 2, False), ((7, 2), (7, 3), 3, True), ((7, 2), (0, 0), 2, True)],
)
def test_the_last_usage_wins_and_a_conflict_is_flagged(
    first: tuple[int, int], second: tuple[int, int], tokens: int, conflict: bool
) -> None:
    """Usage is never summed."""
    reply = read(
        chunk({"content": "a"}),
        chunk({}, finish="stop", usage=counts(*first)),
        {"choices": [], "usage": counts(*second)},
    )

    assert reply.tokens()[0].output_tokens == tokens
    assert ("usage_conflict" in list(reply.flags())) is conflict


def test_running_usage_of_two_choices_is_no_conflict() -> None:
    """Each choice counts for itself until the sum at the end."""
    reply = read(
        chunk({"content": "a"}, index=0, usage=counts(7, 1)),
        chunk({"content": "x"}, index=1, usage=counts(7, 1)),
        chunk({}, index=0, finish="stop", usage=counts(7, 2)),
        chunk({"content": "y"}, index=1, usage=counts(7, 5)),
        chunk({}, index=1, finish="stop", usage=counts(7, 5)),
        {"choices": [], "usage": counts(7, 7)},
        choices=2,
    )
    usage, source = reply.tokens()

    assert (usage.output_tokens, source) == (7, TokenSource.USAGE)
    assert reply.output_events == OutputEvents(answer=3)


def test_llama_cpps_timings_prove_tokens_event_by_event() -> None:
    """Where every event has them, as with ``timings_per_token``."""
    reply = read(
        chunk({"content": "a"}, timings={"predicted_n": 2}),
        chunk({"content": ""}, timings={"predicted_n": 3}),
    )

    assert (reply.first_event_tokens, reply.output_events) == (2, OutputEvents(answer=1, hidden=1))


@pytest.mark.parametrize(
    ("usage", "flagged"),
    [
        (counts(7, 2), False),
        ({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 12}, True),
        ({"prompt_tokens": 7, "completion_tokens": 2}, False),
        ({"prompt_tokens": 7, "total_tokens": 7}, False),
    ],
)
def test_a_total_that_is_not_the_sum_is_flagged(usage: dict[str, int], flagged: bool) -> None:
    """Some Gemini paths leave thinking out of the output but not of the total."""
    reply = read(chunk({"content": "a"}, finish="stop"), {"choices": [], "usage": usage})

    assert ("total_mismatch" in list(reply.flags())) is flagged


def test_usage_of_a_cut_stream_is_running() -> None:
    """Without a finish the count is of what had come so far."""
    usage, source = read(chunk({"content": "a"}, usage=counts(7, 3))).tokens()

    assert (usage.output_tokens, source) == (3, TokenSource.RUNNING_USAGE)


@pytest.mark.parametrize(
    ("payloads", "events"),
    [
        ([chunk({"role": "assistant"}, usage=counts(7, 0))], NOTHING),
        ([chunk({"content": ""}, usage=counts(7, 1))], HIDDEN),
        (
            [
                chunk({"content": "a"}, usage=counts(7, 1)),
                chunk({"content": ""}, usage=counts(7, 2)),
            ],
            OutputEvents(answer=1, hidden=1),
        ),
        (
            [
                chunk({"content": "a"}, usage=counts(7, 1)),
                chunk({"content": ""}, usage=counts(7, 1)),
            ],
            ANSWER,
        ),
        ([chunk({"content": "a"}), {"choices": [], "usage": counts(7, 2)}], ANSWER),
        ([chunk({"content": "a"}), chunk({}, usage=counts(7, 2))], ANSWER),
        ([chunk({"content": "a"}), chunk({}, finish="stop", usage=counts(7, 2))], ANSWER),
    ],
    ids=[
        "role before any token",
        "first token without text",
        "later token without text",
        "padding",
        "usage before finish",
        "first count after output",
        "finish",
    ],
)
def test_growing_usage_proves_a_token_only_of_its_own_event(
    payloads: list[Any], events: OutputEvents
) -> None:
    """A count that first comes after output says how much there was, not that more came."""
    assert read(*payloads).output_events == events


@pytest.mark.parametrize(
    ("choice", "tokens", "source"),
    [
        ({"token_ids": [1, 2, 3]}, 3, TokenSource.TOKEN_IDS),
        ({"logprobs": {"content": [{}, {}]}}, 2, TokenSource.LOGPROBS),
        ({"logprobs": {"tokens": ["a", "b"]}}, 2, TokenSource.LOGPROBS),
        ({"token_ids": [1], "logprobs": {"content": [{}, {}]}}, 1, TokenSource.TOKEN_IDS),
        ({"token_ids": [], "logprobs": {"content": []}}, None, None),
    ],
)
def test_tokens_that_an_event_proves(
    choice: dict[str, Any], tokens: int | None, source: TokenSource | None
) -> None:
    """They count where usage is absent, and make the event's own count known."""
    reply = read({"choices": [{"index": 0, "delta": {"content": "a"}, **choice}]})
    usage, found = reply.tokens()

    assert (usage.output_tokens, found, reply.first_event_tokens) == (tokens, source, tokens)


# -- a body in one piece -----------------------------------------------------------------------


def test_a_whole_answer_has_no_instants() -> None:
    """Nothing was streamed, so there is no first token and no event."""
    reply = whole(
        {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}, usage=counts(7, 2)
    )

    assert (reply.first_output_at, reply.output_events) == (None, NOTHING)
    assert (reply.complete, reply.has_output) == (True, True)
    assert list(reply.flags()) == ["not_streamed"]
    assert reply.tokens() == (Usage(input_tokens=7, output_tokens=2), TokenSource.USAGE)


@pytest.mark.parametrize(
    ("choice", "has_output"),
    [
        ({"message": {"content": "a"}}, True),
        ({"message": {"content": None, "tool_calls": [{"function": {"name": "f"}}]}}, True),
        ({"message": {"reasoning": "a", "content": ""}}, True),
        ({"message": {"content": ""}}, False),
        ({"text": "a"}, True),
        ({"text": ""}, False),
        ({}, False),
    ],
)
def test_output_of_a_whole_answer(choice: dict[str, Any], has_output: bool) -> None:
    """Of any kind, in either API."""
    assert whole({**choice, "finish_reason": "stop"}).has_output is has_output


def test_a_zero_placeholder_in_a_whole_answer_is_absent() -> None:
    """As in a stream."""
    reply = whole({"message": {"content": "a"}, "finish_reason": "stop"}, usage=counts(0, 0))

    assert reply.tokens() == (Usage(), None)


@pytest.mark.parametrize("body", [b"\n\n {}", b"{}\n"])
def test_blank_lines_around_a_body_do_not_matter(body: bytes) -> None:
    """DeepSeek sends them to keep a connection alive."""
    assert make_reply("chat").body(body)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b'"text"', b"null", b"{}\n{}"])
def test_what_is_no_json_object_is_no_answer(body: bytes) -> None:
    """Lists, words and several objects included."""
    assert not make_reply("chat").body(body)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"error": {"message": "boom", "code": 500}}, "boom"),
        ({"error": "boom"}, "boom"),
        ({"error": {"message": "boom", "http_status_code": 422}}, "boom"),
        ({"object": "error", "message": "boom", "code": 500}, "boom"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "boom"}}, "boom"),
        ([{"error": {"message": "boom"}}], "boom"),
        ({"detail": "boom"}, "boom"),
        ({"detail": [{"loc": ["body", "x"], "msg": "boom"}]}, "boom"),
        ({"errors": ["boom"]}, "boom"),
        ({"error": True, "message": "boom"}, "boom"),
        ({"error": {"code": 500}}, '{"code":500}'),
        ({"error": {"message": ""}}, '{"message":""}'),
        ({"a": 1}, '{"a":1}'),
        ([], "[]"),
        ("boom", "boom"),
        (5, "5"),
    ],
)
def test_the_words_of_an_error(payload: Any, words: str) -> None:
    """Down the ladder of shapes, else the JSON itself."""
    assert error_message(payload) == words


@pytest.mark.parametrize("payload", ["x" * 10_000, {"error": "x" * 10_000}, {"a": "x" * 10_000}])
def test_an_error_of_any_length_is_short(payload: Any) -> None:
    """A page of HTML inside an error does not fill memory."""
    assert len(error_message(payload)) == MAX_WORDS


@pytest.mark.parametrize(
    "payload",
    [
        {"error": {"message": "boom"}},
        {"error": "boom"},
        {"object": "error", "message": "boom"},
        [{"error": {"message": "boom"}}],
        {"type": "error", "error": {"message": "boom"}},
        {"choices": [], "error": {"message": "boom"}},
    ],
)
def test_an_error_is_seen_wherever_it_comes(payload: Any) -> None:
    """Inside a stream after a good start, even after a finish, and as the whole body."""
    streamed = read(chunk({"content": "a"}, finish="stop"), payload)
    body = make_reply("chat")
    body.body(orjson.dumps(payload))

    assert (streamed.error, body.error) == ("boom", "boom")


@pytest.mark.parametrize("error", [None, False, {}, "", []])
def test_an_empty_error_is_none(error: Any) -> None:
    """Some servers send the field in every chunk."""
    assert read(chunk({"content": "a"}, error=error)).error is None


def test_the_first_error_is_kept() -> None:
    """What follows is mostly its consequence."""
    assert read({"error": "first"}, {"error": "second"}).error == "first"


@pytest.mark.parametrize(("data", "words"), [(b"boom", "boom"), (b"", "an error without words")])
def test_an_error_event_need_not_be_json(data: bytes, words: str) -> None:
    """Its name is enough."""
    reply = make_reply("chat")
    reply.event(b"error", data, 0.0, 0, None)

    assert reply.error == words


# -- instants ----------------------------------------------------------------------------------


def test_events_of_one_read_are_coalesced() -> None:
    """Their gaps are 0, and it is said that they came together."""
    reply = make_reply("chat")
    for at, number in ((1.0, 1), (1.0, 1), (1.5, 2), (1.5, 3)):
        reply.event(b"", orjson.dumps(chunk({"content": "a"})), at, number, 0.001)

    assert list(reply.gaps_s) == [0.0, 0.5, 0.0]
    assert reply.coalesced == 1
    assert reply.first_read_delay == 0.001


def test_nothing_after_the_marker_counts() -> None:
    """It is flagged, whatever it is."""
    reply = read(chunk({"content": "a"}, finish="stop"), b"[DONE]", {"error": "x"}, b"{oops")

    assert (reply.error, reply.bad_json, reply.output_events) == (None, 0, ANSWER)
    assert "after_done" in list(reply.flags())

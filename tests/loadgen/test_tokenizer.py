"""Counts by a tokenizer file: right, off the loop, bounded, and refused where they cannot be."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models

from collectors.records import Outcome, RequestRecord, TokenSource
from loadgen import counting, said, tokenizer
from loadgen.client import Ask
from loadgen.counting import TokenCounter
from loadgen.counts import NOTHING, Counts, Task, count_tokens
from loadgen.errors import OptionError
from loadgen.reply import ANSWER, REASONING, TOOL, TOOL_NAME
from loadgen.said import Said
from loadgen.tokenizer import Tokenizer, read_tokenizer
from tests.loadgen.cases import CASES, C, D, F, R, U, chunk, delta, sse
from tests.loadgen.playing import DUE_AT, PlayedTransport, make_client
from tests.loadgen.tokenizer_files import byte_tokenizer, saved, word_tokenizer

PATIENCE_S = 20.0


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    """A token a word, and one before every prompt."""
    return read_tokenizer(saved(word_tokenizer(starts=True), tmp_path))


# -- files -------------------------------------------------------------------------------------


def test_each_text_is_counted_by_itself(words: Tokenizer) -> None:
    """With the tokens around a text only where they are wanted."""
    texts = ["Hello world", "a b c.", "", "neverseen"]

    assert words.count(texts) == [2, 4, 0, 1]
    assert words.count(texts, special=True) == [3, 5, 1, 2]


def test_bytes_are_what_a_byte_tokenizer_counts(tmp_path: Path) -> None:
    """Any character is so many tokens as it has bytes."""
    counter = read_tokenizer(saved(byte_tokenizer(), tmp_path))

    assert counter.count(["abc", "\u00e4\U0001f600", " \n"]) == [3, 6, 2]


def test_a_limit_in_the_file_limits_no_count(tmp_path: Path) -> None:
    """Files say to which length texts are cut and filled up in training."""
    counter = read_tokenizer(saved(word_tokenizer(limit=3), tmp_path))

    assert counter.count(["a b c a b c", "a"]) == [6, 1]


def test_a_file_is_known_by_name_and_content(tmp_path: Path) -> None:
    """Not by where it lies."""
    one = read_tokenizer(saved(word_tokenizer(), tmp_path))
    again = read_tokenizer(saved(word_tokenizer(), tmp_path))
    other = read_tokenizer(saved(byte_tokenizer(), tmp_path))

    assert one.name == "tokenizer.json"
    assert one.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"", "expected a Hugging Face tokenizer.json"),
        (b"{}", "Model missing"),
        (b"[1]", "expected a Hugging Face tokenizer.json"),
        (b'{"tokenizer_class": "LlamaTokenizer"}', "expected a Hugging Face tokenizer.json"),
        (b"\xff\xfe\x00", "expected a Hugging Face tokenizer.json"),
        (Engine(models.BPE()).to_str().encode(), "it makes no token of plain text"),
        (Engine(models.WordLevel({"a": 0}, "?")).to_str().encode(), "Missing [UNK] token"),
    ],
    ids=["none", "empty", "no model", "a list", "its config", "no text", "no tokens", "no unknown"],
)
def test_what_is_no_tokenizer_is_refused_in_one_sentence(
    content: bytes | None, words: str, tmp_path: Path
) -> None:
    """What was expected and what was found; one that could not count is refused as well."""
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError) as refused:
        read_tokenizer(str(path))

    assert words in str(refused.value)
    assert str(refused.value).startswith("--tokenizer: ")
    assert "\n" not in str(refused.value)


def test_a_folder_is_refused_with_what_to_name(tmp_path: Path) -> None:
    """Models come as folders."""
    with pytest.raises(OptionError, match=r"it is a folder; name the tokenizer.json in it"):
        read_tokenizer(str(tmp_path))


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are easily named by mistake."""
    path = saved(word_tokenizer(), tmp_path)
    monkeypatch.setattr(tokenizer, "_MAX_BYTES", 10)
    with pytest.raises(OptionError, match="is too large for one"):
        read_tokenizer(path)


def test_without_the_package_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra."""
    path = saved(word_tokenizer(), tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(OptionError, match=r"pip install 'streamgauge\[tokenizer\]'"):
        read_tokenizer(path)


# -- what was said -----------------------------------------------------------------------------


def test_texts_are_kept_by_choice_and_kind() -> None:
    """However they came: tokens reach neither across choices nor from thinking to answer."""
    heard = Said()
    for index, kind, text in (
        (0, REASONING, "th"),
        (1, ANSWER, "x"),
        (0, REASONING, "ink"),
        (0, ANSWER, "a"),
        (1, ANSWER, "y"),
        (0, TOOL_NAME, "f"),
        (0, TOOL, "{"),
        (0, TOOL, "}"),
        (0, TOOL_NAME, "g"),
    ):
        heard.add(index, kind, text)

    assert heard.texts() == [
        (REASONING, "think"),
        (ANSWER, "a"),
        (TOOL_NAME, "f"),
        (TOOL, "{}"),
        (TOOL_NAME, "g"),
        (ANSWER, "xy"),
    ]


@pytest.mark.parametrize("kinds", [[ANSWER], [ANSWER, REASONING]], ids=["long", "in bits"])
def test_too_much_text_is_let_go(kinds: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of an answer has no count of the whole, so nothing is kept of it."""
    monkeypatch.setattr(said, "MAX_SAID_CHARS", 1000 if len(kinds) > 1 else 600)
    heard = Said()
    for n in range(100):
        heard.add(0, kinds[n % len(kinds)], "a")

    assert heard.texts() == []
    assert heard._texts == {}


def test_reasoning_is_counted_apart_where_it_is_shown(words: Tokenizer) -> None:
    """Without any it is unknown: it may be hidden. A prompt is counted as a server does."""
    thought = Task("", [(REASONING, "a b"), (ANSWER, "Hello world.")])

    assert count_tokens(words, thought) == Counts(None, 5, 2)
    assert count_tokens(words, Task("a b", [(ANSWER, "c")])) == Counts(3, 1, None)
    assert count_tokens(words, Task("a b", [])) == Counts(3, None, None)


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=9)), max_size=20))
def test_how_a_text_was_cut_changes_no_count(pieces: list[tuple[int, str]]) -> None:
    """Pieces of one choice and kind are one text again."""
    cut, whole = Said(), Said()
    for index, text in pieces:
        cut.add(index, ANSWER, text)
    for index in dict.fromkeys(index for index, _ in pieces):
        whole.add(index, ANSWER, "".join(text for i, text in pieces if i == index))

    assert cut.texts() == whole.texts()


# -- beside the load ---------------------------------------------------------------------------


class Slow(Tokenizer):
    """Takes its time, as a long text does, and can be told when to go on."""

    def __init__(self) -> None:
        super().__init__("slow", b"", None)
        self.go_on = threading.Event()

    def count(self, texts: object, *, special: bool = False) -> list[int]:
        """One token a text, once it may."""
        assert self.go_on.wait(PATIENCE_S)
        assert isinstance(texts, list)
        return [1] * len(texts)


class Failing(Tokenizer):
    """Takes no text."""

    def __init__(self) -> None:
        super().__init__("failing", b"", None)

    def count(self, texts: object, *, special: bool = False) -> list[int]:
        """Refuse."""
        raise RuntimeError(texts, special)


SAID = Task("", [(ANSWER, "a")])


def test_while_tokens_are_counted_everybody_else_goes_on() -> None:
    """The one who hands a text in does not wait, and no other greenlet does."""
    slow, found = Slow(), list[Counts]()
    counter = TokenCounter(slow)
    counter.count(SAID, found.append)
    for _ in range(5):
        gevent.sleep(0.001)
    assert found == []

    slow.go_on.set()
    counter.close(PATIENCE_S)
    assert found == [Counts(None, 1, None)]
    assert counter.report() == {
        "counted": 1,
        "given_up": 0,
        "cpu_s": pytest.approx(0.0, abs=1.0),
        "lag_max_s": pytest.approx(counter.lag_max_s),
    }
    assert counter.lag_max_s >= 0.005


def test_a_real_tokenizer_leaves_the_interpreter_free(tmp_path: Path) -> None:
    """Half a second's worth of text, and the loop is never away for as long as a tenth of that."""
    counter = TokenCounter(read_tokenizer(saved(byte_tokenizer(), tmp_path)))
    found, gaps = list[Counts](), list[float]()
    text = "Hello world. " * 100_000
    counter.count(Task("", [(ANSWER, text)]), found.append)
    began = last = time.monotonic()
    while not found:
        gevent.sleep(0.001)
        now = time.monotonic()
        gaps.append(now - last)
        last = now
    counter.close(PATIENCE_S)

    assert found[0].output == len(text)
    assert max(gaps) < (last - began) / 2
    assert len(gaps) > 10


def test_what_cannot_be_counted_stays_unknown() -> None:
    """And the next one is counted all the same."""
    counter, found = TokenCounter(Failing()), list[Counts]()
    counter.count(SAID, found.append)
    counter.count(SAID, found.append)
    counter.close(PATIENCE_S)

    assert found == [NOTHING, NOTHING]
    assert (counter.counted, counter.given_up) == (0, 2)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond that a count is given up at once; counted ones make room."""
    monkeypatch.setattr(counting, "MAX_WAITING_CHARS", 2)
    slow, found = Slow(), list[Counts]()
    counter = TokenCounter(slow)
    for _ in range(3):
        counter.count(SAID, found.append)
    assert found == [NOTHING]

    slow.go_on.set()
    with gevent.Timeout(PATIENCE_S):
        while len(found) < 3:
            gevent.sleep(0.001)
    counter.count(SAID, found.append)
    counter.close(PATIENCE_S)
    assert found.count(NOTHING) == counter.given_up == 1
    assert counter.counted == 3


def test_the_end_waits_for_counts_but_not_for_long() -> None:
    """Everything handed in comes out exactly once, counted or not."""
    slow, found = Slow(), list[Counts]()
    counter = TokenCounter(slow)
    for _ in range(3):
        counter.count(SAID, found.append)
    threading.Timer(0.2, slow.go_on.set).start()  # the thread itself cannot be left
    counter.close(0.05)

    assert found == [NOTHING] * 3
    assert counter.given_up == 3


# -- a client's records ------------------------------------------------------------------------


class AtOnce:
    """Counts while its caller waits, and keeps what it was asked."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tasks: list[Task] = []
        self._tokenizer = tokenizer

    def count(self, task: Task, then: Callable[[Counts], None]) -> None:
        """Count."""
        self.tasks.append(task)
        then(count_tokens(self._tokenizer, task))


PLAIN = next(case for case in CASES if case.name == "01-plain")
TOLD = R + C("Hello ") + C("world") + F() + U(7, 9) + D
UNTOLD = R + delta(reasoning="a b") + C("Hello ") + C("world.") + F() + D


def asked(
    words: Tokenizer, data: bytes, ask: Ask | None = None, *, api: str = "chat", **case: Any
) -> tuple[RequestRecord, list[Task]]:
    """The record of a request that was answered so, and what was counted for it."""
    counter, records = AtOnce(words), list[RequestRecord]()
    transport = PlayedTransport(replace(PLAIN, **case), ((5, data),))
    client = make_client(transport, records, api=api, counter=counter)
    client.ask(ask or Ask(task="t", prompt="a b c"), DUE_AT)
    assert client.counting == {}
    (record,) = records
    return record, counter.tasks


def test_what_the_server_told_is_not_counted(words: Tokenizer) -> None:
    """Usage is better than any count of ours."""
    record, tasks = asked(words, TOLD)

    assert (record.output_tokens, record.token_source, tasks) == (9, TokenSource.USAGE, [])


@pytest.mark.parametrize(
    ("proof", "source"),
    [
        ({"token_ids": [1, 2]}, TokenSource.TOKEN_IDS),
        ({"logprobs": {"content": [{}, {}]}}, TokenSource.LOGPROBS),
    ],
)
def test_what_events_proved_is_not_counted(
    words: Tokenizer, proof: dict[str, Any], source: TokenSource
) -> None:
    """Ids and logprobs come from the engine itself."""
    event = chunk({"content": "Hello world a b"})
    event["choices"][0] |= proof
    record, _ = asked(words, sse(event) + F() + D)

    assert (record.output_tokens, record.token_source) == (2, source)


def test_visible_text_is_counted_where_nobody_told(words: Tokenizer) -> None:
    """Answer and reasoning, the latter apart; a chat's prompt stays unknown: it has a template."""
    record, _ = asked(words, UNTOLD)

    assert (record.output_tokens, record.reasoning_tokens) == (5, 2)
    assert record.token_source is TokenSource.TOKENIZER
    assert record.input_tokens is None
    assert "no_usage" in record.flags


def test_every_choice_and_every_kind_of_text_is_counted(words: Tokenizer) -> None:
    """Choices by themselves, a tool's name and its arguments."""
    call = {"index": 0, "function": {"name": "a", "arguments": ""}}
    data = (
        C("Hello wor") + C("a ", 1) + C("ld") + C("b c", 1) + sse(chunk({"tool_calls": [call]}))
        + F() + F(index=1) + D
    )  # fmt: skip
    record, _ = asked(words, data, Ask(task="t", prompt="a", extra={"n": 2}))

    assert record.output_tokens == 2 + 3 + 1


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (Ask(task="t", prompt="a b c"), 4),
        (Ask(task="t", prompt="a b c", extra={"prompt": "a"}), 2),
        (Ask(task="t", prompt="a b c", extra={"prompt": [1, 2]}), None),
    ],
)
def test_a_prompt_that_is_sent_as_it_is_can_be_counted(
    words: Tokenizer, ask: Ask, expected: int | None
) -> None:
    """With the token that this tokenizer starts a text with, as the server's does."""
    text = sse({"choices": [{"index": 0, "text": "Hello", "finish_reason": "stop"}]})
    record, _ = asked(words, text + D, ask, api="completions")

    assert (record.input_tokens, record.output_tokens) == (expected, 1)


def test_embeddings_without_usage_have_their_input_counted(words: Tokenizer) -> None:
    """They put no tokens out, so that the source is of the input."""
    body = orjson.dumps({"data": [{"embedding": [0.1]}]})
    record, _ = asked(words, body, api="embeddings", content_type="application/json")

    assert (record.input_tokens, record.output_tokens) == (4, None)
    assert record.token_source is TokenSource.TOKENIZER


@pytest.mark.parametrize(
    ("data", "outcome", "tokens"),
    [
        (C("Hello world"), Outcome.TRUNCATED, 2),
        (b"", Outcome.MALFORMED, None),
        (sse({"error": "boom"}) + D, Outcome.IN_BAND_ERROR, None),
    ],
)
def test_what_came_of_a_failed_request_is_counted(
    words: Tokenizer, data: bytes, outcome: Outcome, tokens: int | None
) -> None:
    """The server made it; where nothing came nothing is counted, not even a prompt."""
    record, tasks = asked(words, data, api="completions")

    assert (record.outcome, record.output_tokens) == (outcome, tokens)
    assert bool(tasks) is (tokens is not None)


def test_a_count_says_nothing_about_how_long_an_answer_had_to_be(words: Tokenizer) -> None:
    """It is a little low, so that it proves no missing token."""
    ask = Ask(task="t", prompt="a", max_tokens=9, extra={"ignore_eos": True})
    record, _ = asked(words, UNTOLD, ask)

    assert record.output_tokens == 5
    assert "fewer_tokens" not in record.flags


def test_a_request_being_counted_is_not_lost_from_sight() -> None:
    """It is no longer in flight, and not yet recorded, but known to be there."""
    slow, records = Slow(), list[RequestRecord]()
    counter = TokenCounter(slow)
    transport = PlayedTransport(PLAIN, ((5, UNTOLD),))
    client = make_client(transport, records, counter=counter)
    returned = client.ask(Ask(task="t", prompt="a"), DUE_AT)

    assert (returned.output_tokens, records) == (None, [])
    assert (list(client.open), list(client.counting)) == ([], [0])
    slow.go_on.set()
    counter.close(PATIENCE_S)
    assert client.counting == {}
    assert [r.output_tokens for r in records] == [2]
    assert records[0] == replace(
        returned, output_tokens=2, reasoning_tokens=1, token_source=TokenSource.TOKENIZER
    )

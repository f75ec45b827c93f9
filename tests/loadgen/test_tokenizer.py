"""Counts by a tokenizer file: right, off the loop, bounded, and refused where they cannot be."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models

from loadgen import counting, tokenizer
from loadgen.counting import NOTHING, Counts, Task, TokenCounter, count_tokens
from loadgen.errors import OptionError
from loadgen.reply import ANSWER, REASONING, TOOL, TOOL_NAME
from loadgen.tokenizer import Said, Tokenizer, read_tokenizer
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
    said = Said()
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
        said.add(index, kind, text)

    assert said.texts() == [
        (REASONING, "think"),
        (ANSWER, "a"),
        (TOOL_NAME, "f"),
        (TOOL, "{}"),
        (TOOL_NAME, "g"),
        (ANSWER, "xy"),
    ]


def test_too_much_text_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of an answer has no count of the whole, so nothing is kept of it."""
    monkeypatch.setattr(tokenizer, "MAX_SAID_CHARS", 10)
    said = Said()
    for _ in range(3):
        said.add(0, ANSWER, "abcd")
    said.add(0, ANSWER, "a")

    assert said.texts() == []
    assert said._texts == {}


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

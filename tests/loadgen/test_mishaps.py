"""What Locust swallows is heard, counted and told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import pytest
from locust.event import EventHook

from loadgen.live import count_values
from loadgen.mishaps import (
    MAX_WORDS,
    Kind,
    Mishaps,
    SwallowedExceptions,
    is_ours,
    sentences,
    words_of,
)
from loadgen.target import parse_target

KEY = "sk-canary-0123456789"


def caught(message: str = "boom") -> ValueError:
    """An exception that was raised."""
    try:
        raise ValueError(message)  # noqa: TRY301 it is to have been raised here
    except ValueError as error:
        return error


@pytest.fixture
def heard() -> Iterator[Mishaps]:
    """What is heard on the root logger while the test runs."""
    mishaps = Mishaps()
    root = logging.getLogger()
    before = root.level, list(root.handlers), [h.level for h in root.handlers]
    SwallowedExceptions(mishaps).listen()
    yield mishaps
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for handler, level in zip(before[1], before[2], strict=True):
        handler.setLevel(level)


def test_the_first_words_of_a_kind_are_kept_and_all_are_counted() -> None:
    """A flood of exceptions is one count and one sentence."""
    mishaps = Mishaps()
    for number in range(3):
        mishaps.note(Kind.TASK, caught(f"number {number}"))
    assert mishaps.has(Kind.TASK)
    assert not mishaps.has(Kind.OWN)
    told = mishaps.told()
    assert told["task_errors"]["count"] == 3
    (said,) = sentences(told)
    assert "raised 3 exceptions" in said
    assert "ValueError: number 0 in caught, test_mishaps.py:" in said


def test_what_workers_tell_is_added_up() -> None:
    """Counts of several processes are summed; the first words heard stay."""
    mishaps = Mishaps()
    mishaps.add({"task_errors": {"count": 2, "first": "one"}})
    mishaps.add(
        {"task_errors": {"count": 3, "first": "two"}, "own_errors": {"count": 1, "first": "three"}}
    )
    assert mishaps.told() == {
        "task_errors": {"count": 5, "first": "one"},
        "own_errors": {"count": 1, "first": "three"},
    }
    assert any(
        said.startswith("Streamgauge itself failed 1 time;") for said in sentences(mishaps.told())
    )
    mishaps.clear()
    assert mishaps.told() == {}


def test_secrets_leave_the_words() -> None:
    """An exception that quotes the key, or what looks like one, is told without it."""
    mishaps = Mishaps()
    mishaps.note(Kind.LISTENER, caught(f"refused {KEY} and hunter2hunter2"))
    first = mishaps.told(("hunter2hunter2",))["listener_errors"]["first"]
    assert KEY not in first
    assert "hunter2" not in first
    assert first.startswith("ValueError: refused ***")


def test_words_are_one_line_and_not_a_book() -> None:
    """A message of many lines and much text is cut to one line."""
    words = words_of(caught("a\nb " + "x" * 5000))
    assert "\n" not in words
    assert len(words) < MAX_WORDS + 60
    assert words.startswith("ValueError: a b xxx")
    assert words_of(KeyError("never raised")) == "KeyError: 'never raised'"


def test_whose_fault_it_is_is_told_by_who_raised() -> None:
    """Ours where our code or a library it called raised; not a scenario, nor where we say no."""
    found: list[BaseException] = []

    def catch(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 whatever it is
            found.append(error)

    catch(lambda: count_values("no numbers"))  # type: ignore[arg-type] raised in numpy, called by us
    catch(lambda: parse_target("ftp://x"))  # a sentence for the user
    catch(lambda: json.loads("{"))  # a library, called by the scenario
    found.append(caught())
    found.append(KeyError("never raised"))
    assert [is_ours(error) for error in found] == [True, False, False, False, False]


def test_a_listener_that_raises_is_heard(heard: Mishaps) -> None:
    """Locust's own hook catches it; the handler hears the line and takes the exception."""
    hook = EventHook()

    def listener(**_: object) -> None:
        raise caught("in a listener")

    hook.add_listener(listener)
    hook.fire(name="chat")
    hook.fire(name="chat")
    told = heard.told()["listener_errors"]
    assert told["count"] == 2
    assert told["first"].startswith("ValueError: in a listener in ")


def test_other_errors_in_the_log_are_none_of_ours(heard: Mishaps) -> None:
    """A line with or without an exception behind it that Locust did not write so is left alone."""
    root = logging.getLogger()
    root.error("something else")
    root.error("Uncaught exception in event handler: but nothing is being handled")
    try:
        raise caught()
    except ValueError:
        root.exception("a user's own line")
    assert heard.told() == {}


def test_a_log_level_does_not_make_it_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --loglevel CRITICAL listeners are heard, and the log shows what it showed before."""
    shown: list[str] = []

    class Showing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [Showing()])
    monkeypatch.setattr(root, "level", logging.CRITICAL)
    mishaps = Mishaps()
    try:
        SwallowedExceptions(mishaps).listen()
        hook = EventHook()
        hook.add_listener(lambda: 1 / 0)
        hook.fire()
    finally:
        root.setLevel(logging.WARNING)
    assert mishaps.told()["listener_errors"]["count"] == 1
    assert shown == []

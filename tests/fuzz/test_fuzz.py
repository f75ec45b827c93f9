"""A little fuzzing each time, always the same; ``make fuzz`` does more of it."""

from __future__ import annotations

import random
import sys
from itertools import product
from pathlib import Path

import pytest

from loadgen.sse import SseDecoder, SseEvent
from tests.fuzz import __main__ as command
from tests.fuzz import engine, targets
from tests.fuzz.mutate import MAX_BYTES, Mutator

CASES = {"decoder": 250, "answer": 250, "packed": 500, "response": 250, "framed": 250}
SEPARATOR = "\u2028".encode()
KEPT = [path for target in targets.TARGETS for path in engine.corpus(target)]


@pytest.mark.parametrize("path", KEPT, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_what_once_broke_a_promise_is_mended(path: Path) -> None:
    """Each input that fuzzing found is played again."""
    engine.play(engine.target_of(path), path.read_bytes())


@pytest.mark.parametrize("target", targets.TARGETS)
def test_nothing_breaks_a_promise(target: str) -> None:
    """The same few hundred inputs each time, the seeds among them."""
    tally = engine.fuzz(target, 20, cases=CASES[target])

    assert tally.failures == {}
    assert tally.cases == CASES[target] > len(targets.seeds(target))


def test_the_same_seed_makes_the_same_inputs() -> None:
    """So a number of cases can be fuzzed again; they are bounded, and another seed's are others."""
    pool = targets.seeds("answer")
    first, again, other = (
        [mutator.make() for _ in range(200)]
        for mutator in (Mutator(random.Random(seed), pool) for seed in (1, 1, 2))
    )

    assert first == again != other
    assert max(map(len, first)) <= MAX_BYTES


class Sloppy(SseDecoder):
    """Takes a line separator of Unicode's for the end of a line."""

    def feed(self, chunk: bytes) -> list[SseEvent]:
        return super().feed(chunk.replace(SEPARATOR, b"\n"))


class Leaky(SseDecoder):
    """Fails on a word."""

    def feed(self, chunk: bytes) -> list[SseEvent]:
        if b"[DONE]" in chunk:
            raise IndexError
        return super().feed(chunk)


@pytest.mark.parametrize(("broken", "least"), [(Sloppy, b"data" + SEPARATOR), (Leaky, b"[DONE]")])
def test_a_broken_decoder_is_found_out(
    broken: type, least: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong event and an exception alike; what is kept is small and fails again."""
    monkeypatch.setattr(targets, "SseDecoder", broken)
    tally = engine.fuzz("decoder", 1, cases=120)

    assert tally.failures
    shortest = min(tally.failures.values(), key=len)
    assert len(shortest) <= len(least) + 2
    with pytest.raises((AssertionError, IndexError)):
        engine.play("decoder", shortest)


def test_a_case_without_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one that takes too long."""

    def busy(_: bytes) -> targets.Reading:
        while True:
            pass

    monkeypatch.setitem(targets.TARGETS, "decoder", busy)
    monkeypatch.setattr(engine, "HANG_S", 0.05)
    with pytest.raises(engine.HangError):
        engine.play("decoder", b"")
    monkeypatch.setitem(targets.TARGETS, "decoder", lambda _: ())
    monkeypatch.setattr(engine, "MAX_CPU_S", 0.0)
    with pytest.raises(engine.SlowError):
        engine.play("decoder", b"")


def test_a_failure_is_kept_and_can_be_played_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says how, ends with 1, and 0 once it is mended."""
    monkeypatch.chdir(tmp_path)
    words = ["fuzz", "--seconds", "0.5", "--seed", "1", "--only", "decoder"]
    with monkeypatch.context() as patch:
        patch.setattr(targets, "SseDecoder", Leaky)
        patch.setattr(sys, "argv", words)
        assert command.main() == 1
    out = capsys.readouterr().out
    path = out.split("--replay ")[1].split()[0]

    assert "seed 1, 0.5 s over decoder" in out
    assert "IndexError" in out
    monkeypatch.setattr(sys, "argv", ["fuzz", "--replay", path])
    assert command.main() == 0
    assert engine.target_of(Path(path)) == "decoder"


def test_nothing_is_left_of_where_reads_end() -> None:
    """Pieces are the bytes again, none of them empty, the same ones each time."""
    for data, most in product((b"", b"a", b"ab", b"abcdefgh"), (0, 1, 20)):
        pieces = targets.cut(data, targets.dice(data), most)
        assert b"".join(pieces) == data
        assert all(pieces)
        assert len(pieces) <= most + 1
        assert pieces == targets.cut(data, targets.dice(data), most)
    for data in (b"", b"a", b"a\n\n", b"a\n\nb\nc\n\n\nd"):
        assert b"".join(targets.event_by_event(data)) == data
    assert targets.event_by_event(b"a\nb\n\nc\n\n") == (b"a\nb\n\n", b"c\n\n")

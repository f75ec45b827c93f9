"""The fuzzer: makes inputs, plays them, keeps what is read anew, shrinks what fails.

Guided by what comes out: an input that is read as none before it joins the pool that others are
made of. Seeded, so that a number of cases is the same each time; a budget of seconds is not.
"""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import TARGETS, Reading, seeds

CORPUS = Path(__file__).resolve().parent / "corpus"
HANG_S = 10.0
MAX_CPU_S = 1.0  # of one case, a few milliseconds as a rule
MAX_POOL = 20_000
_SHRINKING_CASES = 400


class HangError(AssertionError):
    """A case did not come to its end."""


class SlowError(AssertionError):
    """A case took far longer than its size explains."""


@dataclass(slots=True)
class Tally:
    """What came of fuzzing one target.

    Attributes:
        readings: different readings, those of the seeds included.
        slowest_s: CPU time of the slowest case.
        failures: shrunken inputs by what they break.
    """

    target: str
    cases: int = 0
    seconds: float = 0.0
    readings: set[Reading] = field(default_factory=set)
    slowest_s: float = 0.0
    failures: dict[str, bytes] = field(default_factory=dict)


def corpus(target: str) -> list[Path]:
    """The files that once broke a target, in the folder of its name."""
    return sorted((CORPUS / target).glob("*"))


def play(target: str, data: bytes) -> tuple[Reading, float]:
    """One case: what was read, and the CPU seconds it took.

    Raises:
        Exception: whatever shows that a promise is broken.
    """
    began = time.process_time()
    with _no_hang():
        reading = TARGETS[target](data)
    took_s = time.process_time() - began
    if took_s > MAX_CPU_S:
        raise SlowError(f"{took_s:.1f} s for {len(data)} bytes")
    return reading, took_s


def fuzz(
    target: str, seed: int, *, cases: int | None = None, seconds: float | None = None
) -> Tally:
    """Play the seeds, the corpus, and then new inputs until so many cases or seconds are over."""
    tally, began = Tally(target), time.monotonic()
    pool = seeds(target) + [path.read_bytes() for path in corpus(target)]
    mutator = Mutator(random.Random(f"{seed}/{target}"), pool)
    start = list(pool)
    while True:
        tally.seconds = time.monotonic() - began
        if tally.cases == cases or (seconds is not None and tally.seconds > seconds):
            return tally
        data = start.pop() if start else mutator.make()
        is_new = _case(tally, data)
        if is_new and len(pool) < MAX_POOL:
            pool.append(data)


def _case(tally: Tally, data: bytes) -> bool:
    """Play one; whether it was read as none before."""
    tally.cases += 1
    try:
        reading, took_s = play(tally.target, data)
    except Exception as error:  # noqa: BLE001  # which ones there are is what is to be found out
        kind = kind_of(error)
        if kind not in tally.failures:
            tally.failures[kind] = shrunk(tally.target, data, kind)
        return False
    tally.slowest_s = max(tally.slowest_s, took_s)
    is_new = reading not in tally.readings
    tally.readings.add(reading)
    return is_new


def kind_of(error: BaseException) -> str:
    """An exception's type and the line it comes from: the same fault has the same."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{where}"


def shrunk(target: str, data: bytes, kind: str) -> bytes:
    """As little of ``data`` as still fails in the same way, as far as a few tries tell."""
    tries, size = _SHRINKING_CASES, max(1, len(data) // 2)
    while size and tries > 0:
        start = 0
        while start < len(data) and tries > 0:
            less, tries = data[:start] + data[start + size :], tries - 1
            if _fails(target, less, kind):
                data = less
            else:
                start += size
        size //= 2
    return data


def _fails(target: str, data: bytes, kind: str) -> bool:
    try:
        play(target, data)
    except Exception as error:  # noqa: BLE001  # as above
        return kind_of(error) == kind
    return False


def keep(target: str, data: bytes, folder: Path) -> Path:
    """Write a failing input to where :func:`target_of` finds out what it belongs to."""
    path = folder / target / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def target_of(path: Path) -> str:
    """The target that a kept input belongs to."""
    return path.resolve().parent.name


@contextmanager
def _no_hang() -> Iterator[None]:
    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise HangError(f"no end in {HANG_S} s")

    usual = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)

"""Counts tokens beside the load: in a thread of its own, so that nobody's tokens wait to be read.

The thread counts one answer after another, so it takes one core at most, and the interpreter's lock
only for moments (:meth:`loadgen.tokenizer.Tokenizer.count`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.threadpool import ThreadPool

from loadgen.counts import NOTHING, Counts, Task, count_tokens
from loadgen.tokenizer import Tokenizer

MAX_WAITING_CHARS = 64 * 1024 * 1024
"""Texts that wait to be counted; beyond that a count is given up rather than memory."""


Then = Callable[[Counts], None]


class TokenCounter:
    """Counts for one load process.

    Attributes:
        counted: requests counted.
        given_up: requests whose texts were not counted: too much waited, or the tokenizer failed.
        cpu_s: processor seconds the counts took.
        lag_max_s: longest time from handing a request in to its count.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.counted = self.given_up = 0
        self.cpu_s = 0.0
        self.lag_max_s = 0.0
        self._tokenizer = tokenizer
        self._pool = ThreadPool(1)
        self._waiting: dict[gevent.Greenlet, Then] = {}
        self._waiting_chars = 0

    def count(self, task: Task, then: Then) -> None:
        """Count, and call ``then`` with the result, in a greenlet of its own; never waits."""
        if self._waiting_chars + task.chars > MAX_WAITING_CHARS:
            self.given_up += 1
            then(NOTHING)
            return
        self._waiting_chars += task.chars
        greenlet = gevent.Greenlet(self._run, task, then, time.monotonic())
        self._waiting[greenlet] = then
        greenlet.start()

    def close(self, patience_s: float) -> None:
        """Wait for the counts under way, but not for long; what is left goes out uncounted."""
        gevent.joinall(list(self._waiting), timeout=patience_s)
        left, self._waiting = self._waiting, {}
        gevent.killall(list(left), block=True)
        for then in left.values():
            self.given_up += 1
            then(NOTHING)
        self._pool.kill()

    def report(self) -> dict[str, Any]:
        """How it went, as the run keeps it."""
        return {
            "counted": self.counted,
            "given_up": self.given_up,
            "cpu_s": self.cpu_s,
            "lag_max_s": self.lag_max_s,
        }

    def _run(self, task: Task, then: Then, asked_at: float) -> None:
        counts = NOTHING
        try:
            counts, cpu_s = self._pool.apply(self._timed, (task,))
        except Exception:  # noqa: BLE001  # a text that this tokenizer cannot take
            self.given_up += 1
        else:
            self.counted += 1
            self.cpu_s += cpu_s
        finally:
            self._waiting_chars -= task.chars
        if self._waiting.pop(gevent.getcurrent(), None) is not None:
            self.lag_max_s = max(self.lag_max_s, time.monotonic() - asked_at)
            then(counts)

    def _timed(self, task: Task) -> tuple[Counts, float]:
        """In the thread."""
        began = time.thread_time()
        return count_tokens(self._tokenizer, task), time.thread_time() - began

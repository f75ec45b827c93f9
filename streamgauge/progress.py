"""A run's progress for people: one line rewritten on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

PLAIN_EVERY_S = 5.0


class ProgressLine:
    """Shows the lines that a run reports (see :class:`loadgen.progress.Snapshot`).

    Args:
        out: where to write.
        duration_s: the asked duration, to show beside the elapsed time.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        out: TextIO = sys.stderr,
        duration_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out = out
        self._duration_s = duration_s
        self._clock = clock
        self._rewrite = out.isatty()
        self._shown_at: float | None = None

    def __call__(self, line: dict[str, Any]) -> None:
        """Take one line of the run's."""
        event = line.get("event")
        if event == "begun":
            self._say(f"run {line['run_id']} has begun")
        elif event == "ended":
            self._show(line)
            if self._rewrite:
                self._out.write("\n")
        elif event == "progress":
            now = self._clock()
            due = self._shown_at is None or now - self._shown_at >= PLAIN_EVERY_S
            if self._rewrite or due:
                self._shown_at = now
                self._show(line)
        self._out.flush()

    def _say(self, text: str) -> None:
        self._out.write(text + "\n")

    def _show(self, line: dict[str, Any]) -> None:
        text = describe(line, self._duration_s)
        self._out.write(f"\r\x1b[2K{text}" if self._rewrite else text + "\n")


def describe(line: dict[str, Any], duration_s: float | None) -> str:
    """One progress line in words; a dash for what is not known yet."""
    elapsed = f"{line['elapsed_s']:.0f} s"
    if duration_s is not None:
        elapsed = f"{line['elapsed_s']:.0f}/{duration_s:.0f} s"
    rate, ttft_s = line["output_tokens_per_s"], line["ttft_p95_s"]
    tokens = "-" if rate is None else f"{rate:,.0f}"
    ttft = "-" if ttft_s is None else f"{ttft_s * 1000:,.0f} ms (n={line['ttft_n']})"
    return (
        f"{elapsed}  running {line['running']}  done {line['done']}  failed {line['failed']}  "
        f"tok/s {tokens}  TTFT p95 {ttft}"
    )

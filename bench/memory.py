"""What an open stream costs in memory: the load process beside itself with fewer streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from streamgauge.campaigns.calibrate import Source, measure_client

STREAMS, FEW = 256, 16
TOKENS, ITL_S = 2_000, 0.010
SAMPLE_S = 0.1


def bytes_per_stream() -> float:
    """Peak resident bytes of the load process for each further stream of `TOKENS` tokens.

    Every stream is asked once and is open to its last token at the peak; what the process needs
    without streams cancels out.
    """
    peaks = [_peak_bytes(streams) for streams in (FEW, STREAMS)]
    return (peaks[1] - peaks[0]) / (STREAMS - FEW)


def _peak_bytes(streams: int) -> int:
    source = Source(itl_s=ITL_S, tokens=TOKENS)
    with _watched() as peak:
        measure_client(streams, duration_s=int(TOKENS * ITL_S) + 3, ramp_s=2.0, source=source)
    return peak[0]


@contextmanager
def _watched() -> Iterator[list[int]]:
    """The highest resident size of a Locust child of this process meanwhile."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_S):
            peak[0] = max(peak[0], _locust_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _locust_bytes() -> int:
    for child in psutil.Process().children():
        try:
            if "locust" in child.cmdline():
                return int(child.memory_info().rss)
        except psutil.Error:  # it ended meanwhile
            continue
    return 0

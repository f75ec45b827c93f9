"""A small load process for the tests that kill one: ``python -m tests.collectors.feeding DB``.

It feeds two batches, the second of which names two requests as open, waits until both are
committed, prints the recorder's process id, and then does what the line it reads says: ``finish``
ends the run; ``fork`` leaves a child that holds the recorder's line open.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from collectors.batches import OpenRequest
from collectors.errors import StoreError
from collectors.feed import RecorderFeed
from collectors.runs import RunStatus
from tests.collectors.examples import a_batch, a_run

OPEN = [
    OpenRequest(seq=3, due_at_s=2.5, sent_at_s=2.6, first_token_at_s=2.7, last_token_at_s=3.5),
    OpenRequest(seq=4, due_at_s=2.9, task="ask"),
]


def main(db: str) -> int:
    """Feed a run to a recorder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    feed = RecorderFeed(db, a_run(began_wall_s=time.time(), began_mono_s=time.monotonic()))
    try:
        feed.start()
    except StoreError as error:
        print(error)
        return error.exit_code
    feed.put(a_batch(0, range(2), at_s=2.0))
    feed.put(a_batch(1, range(2, 3), at_s=4.0, open=OPEN))
    while feed._pending:
        time.sleep(0.01)
    assert feed._process is not None
    print(feed._process.pid, flush=True)
    order = sys.stdin.readline().strip()
    if order == "fork" and os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    if order == "finish":
        ended = {"stopped_at_s": 4.0, "ended_at_s": 5.0, "client": {"stamp": "kernel"}}
        return 0 if feed.finish(status=RunStatus.COMPLETE, **ended) else 1
    print("forked", flush=True)
    sys.stdin.readline()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

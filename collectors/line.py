"""What the feed and the recorder say to each other: framed msgpack arrays, the kind first.

What the feed numbers is answered with that number: DONE after its commit, or REFUSED.
"""

from __future__ import annotations

from typing import Any

import msgpack

from collectors.batches import framed

# From the feed
HELLO = "hello"  # database, fields of the run, whether a run is taken up again
BATCH = "batch"  # number, bytes of the batch
UPDATE = "update"  # number, changed fields of the run
FINISH = "finish"  # number, last changes of the run

# From the recorder
READY = "ready"  # salt of the database, which has the run
FAILED = "failed"  # sentence: the database does not serve
DONE = "done"  # numbers, all committed
REFUSED = "refused"  # number, sentence: can never be committed


def message(*parts: Any) -> bytes:
    """A message as it goes onto the line."""
    return framed(msgpack.packb(parts, default=str, unicode_errors="replace"))

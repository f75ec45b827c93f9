"""The bundled chat in a load process whose loop is blocked for 20 ms of every 40.

What a garbage collection, a long task of a scenario or a neighbour on the core does, made regular.
"""

from __future__ import annotations

from typing import Any

import gevent
from gevent import monkey
from locust import events

from scenarios.chat import ChatUser

__all__ = ["ChatUser"]  # the users that Locust finds here

STALL_S, REST_S = 0.020, 0.020


def start_stalling(**_: Any) -> None:
    """Block the loop from now on."""
    gevent.spawn(stall)


events.test_start.add_listener(start_stalling)


def stall() -> None:
    """Never gives way while it blocks."""
    block = monkey.get_original("time", "sleep")
    while True:
        block(STALL_S)
        gevent.sleep(REST_S)

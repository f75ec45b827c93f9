"""The selector under the simulator's loop."""

from __future__ import annotations

import selectors
import socket
import time

from reference_server.kernel import PreciseSelector


def test_every_ready_socket_is_told_of_but_one_at_a_time() -> None:
    """So that a loop looks at its clock between two requests; none is told of twice in a row."""
    pairs = [socket.socketpair() for _ in range(5)]
    with PreciseSelector() as selector:
        for ours, theirs in pairs:
            selector.register(ours, selectors.EVENT_READ, data=theirs)
            theirs.send(b"x")
        told = []
        while ready := selector.select(0):
            ((key, events),) = ready
            assert events == selectors.EVENT_READ
            told.append(key.fd)
            socket.socket.recv(key.fileobj, 1)  # type: ignore[arg-type]  # it was registered as one
        assert sorted(told) == sorted(ours.fileno() for ours, _ in pairs)

        writer = pairs[0][0]
        selector.modify(writer, selectors.EVENT_READ | selectors.EVENT_WRITE)
        ((key, events),) = selector.select(None)
        assert (key.fileobj, events) == (writer, selectors.EVENT_WRITE)
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_a_wait_is_good_to_microseconds() -> None:
    """Not rounded up to whole milliseconds, as epoll's own are."""
    with PreciseSelector() as selector:
        waits = []
        for _ in range(20):
            began = time.perf_counter()
            assert selector.select(200e-6) == []
            waits.append(time.perf_counter() - began)

    assert min(waits) >= 200e-6
    assert min(waits) < 1e-3, "a busy machine makes some late, never all"

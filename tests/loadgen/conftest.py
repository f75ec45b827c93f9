"""Fixtures for tests over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadgen.wire import WireTransport


@pytest.fixture
def transport() -> Iterator[WireTransport]:
    """A transport whose connections are closed with the test."""
    transport = WireTransport()
    yield transport
    transport.close()

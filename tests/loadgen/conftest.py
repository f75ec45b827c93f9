"""Fixtures for tests over real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loadgen.wire import WireTransport
from tests.loadgen.unpatched import locust

assert locust  # imported here, before a test module could import it in the ordinary way


@pytest.fixture
def transport() -> Iterator[WireTransport]:
    """A transport whose connections are closed with the test."""
    transport = WireTransport()
    yield transport
    transport.close()

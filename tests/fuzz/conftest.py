"""What the targets keep open is closed after the last test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.targets import close_wires


@pytest.fixture(scope="session", autouse=True)
def _wires() -> Iterator[None]:
    yield
    close_wires()

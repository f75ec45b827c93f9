"""How late steps are written, and how long writing one takes."""

from __future__ import annotations

import pytest

from reference_server.steps import StepWatch


def test_the_first_write_of_a_step_is_its_lateness_and_the_last_its_spread() -> None:
    """Two steps by hand; a straggler of the first one, after the second has begun, is neither."""
    late: list[float] = []
    spread: list[float] = []
    watch = StepWatch(late.append, spread.append)
    for due_at, written_at in [(1.0, 1.1), (1.0, 1.4), (2.0, 2.2), (1.0, 2.3), (2.0, 2.25)]:
        watch.note(due_at, written_at)
    watch.close()
    watch.close()

    assert late == pytest.approx([0.1, 0.2])
    assert spread == pytest.approx([0.3, 0.05])

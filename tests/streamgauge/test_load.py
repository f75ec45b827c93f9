"""A load run as a subprocess: signals reach it whenever they come."""

from __future__ import annotations

import signal
import subprocess

import pytest

from streamgauge.load import Relay


@pytest.mark.parametrize("early", [True, False])
def test_a_signal_reaches_the_run_even_from_before_it_was_started(early: bool) -> None:
    """Ctrl-C while the process is being made ends it as one a moment later would: gently."""
    relay = Relay()
    if early:
        relay.hear(signal.SIGINT)
    with subprocess.Popen(["sleep", "60"]) as process:
        relay.attach(process)
        if not early:
            relay.hear(signal.SIGINT)
        assert process.wait(10) == -signal.SIGTERM
    assert relay.received == [signal.SIGINT]


def test_a_second_signal_kills() -> None:
    """Who asks twice does not want to wait."""
    relay = Relay()
    with subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo on; exec sleep 60"], stdout=-1
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        relay.attach(process)
        relay.hear(signal.SIGINT)
        relay.hear(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGKILL

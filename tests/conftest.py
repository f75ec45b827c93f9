"""What the machine must have for some tests, and what happens where it is missing.

A test says ``@pytest.mark.needs("browser")``. Where the machine lacks it the test is skipped by
name, and the run closes with a count; ``STREAMGAUGE_REQUIRE=browser,postgres,cc`` turns such a
skip into a failure, so that CI cannot quietly test less than it says.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference_server import vllm_env

ROOT = Path(__file__).resolve().parent.parent


def _find_browser() -> str | None:
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


def _find_postgres() -> str | None:
    on_path = shutil.which("initdb")
    found = (
        [on_path] if on_path else sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))
    )
    return str(Path(found[-1]).parent) if found else None


def _find_vllm() -> str | None:
    place = ROOT / ".venv-vllm"
    return str(place / "bin" / "python") if vllm_env.is_ready(place) else None


FINDERS = {
    "browser": _find_browser,
    "postgres": _find_postgres,
    "cc": lambda: shutil.which("cc") or shutil.which("gcc"),
    "openssl": lambda: shutil.which("openssl"),
    "vllm": _find_vllm,
}
_missing: Counter[str] = Counter()


def required() -> set[str]:
    """What STREAMGAUGE_REQUIRE names."""
    return {n.strip() for n in os.environ.get("STREAMGAUGE_REQUIRE", "").split(",") if n.strip()}


def find(need: str) -> str | None:
    """Path of what a test needs (for postgres the folder with initdb), or None."""
    return FINDERS[need]()


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a shell: what the tests start must still know Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "needs(name): what the machine must have: browser, postgres, cc, openssl, vllm"
    )
    unknown = required() - set(FINDERS)
    if unknown:
        raise pytest.UsageError(
            f"STREAMGAUGE_REQUIRE names {sorted(unknown)}; known are {sorted(FINDERS)}"
        )


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A test that runs a program in this process leaves the handlers of signals as they were."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def logs_apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What servers print goes where pytest tidies up, also in what the test starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("logs")))
    monkeypatch.setattr("tempfile.tempdir", None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for need in mark.args:
            if find(need) is None:
                _missing[need] += 1
                reason = f"this machine has no {need}"
                if need in required():
                    pytest.fail(f"{reason}, and STREAMGAUGE_REQUIRE asks for it", pytrace=False)
                pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _missing:
        counts = ", ".join(f"{need} ({count} tests)" for need, count in sorted(_missing.items()))
        terminalreporter.write_line(f"left out for what this machine lacks: {counts}")

"""The command and its server, from outside: when it answers, to whom, and how it ends."""

from __future__ import annotations

import http.client
import importlib.util
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from click.testing import CliRunner

from collectors.store import Store
from dashboard.errors import AddressError
from dashboard.server import listen, url_of
from streamgauge.commands.dashboard import command as dashboard_command
from tests.dashboard.serving import Serving, command, dashboard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty database."""
    path = tmp_path_factory.mktemp("work")
    Store.open(str(path / "runs.db"), create=True).close()
    return path


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Serving]:
    """A dashboard on it."""
    with dashboard(folder, "--db", "runs.db") as found:
        yield found


def ask(serving: Serving, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of one request."""
    address = urlsplit(serving.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port or 0, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read() if response.status != 101 else b""
    finally:
        connection.close()


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def test_it_answers_once_it_says_so(serving: Serving) -> None:
    """The printed address serves the pages at once."""
    status, body = ask(serving, "/")
    assert status == 200
    assert b"<html" in body
    assert ask(serving, "/_stcore/health")[0] == 200


def test_it_listens_on_the_loopback_address_alone(serving: Serving) -> None:
    """Nobody else can reach it."""
    process = psutil.Process(serving.process.pid)
    listening = [c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
    assert [(a.ip, a.port) for a in listening] == [("127.0.0.1", urlsplit(serving.url).port)]
    assert not process.children()


def test_requests_for_another_host_are_refused(serving: Serving) -> None:
    """A site that points its name at 127.0.0.1 reads nothing."""
    port = urlsplit(serving.url).port
    for host, status in ((f"evil.example:{port}", 400), ("", 400), (f"localhost:{port}", 200)):
        assert ask(serving, "/", Host=host)[0] == status


def test_sockets_opened_by_other_sites_are_refused(serving: Serving) -> None:
    """Figures travel by WebSocket, which browsers let any page open: only ours may."""
    own = serving.url
    for origin, status in ((own, 101), ("http://evil.example", 403), ("null", 403)):
        assert ask(serving, "/_stcore/stream", Origin=origin, **UPGRADE)[0] == status


def test_options_are_the_safe_ones() -> None:
    """Nothing is told to Streamlit's makers, no traceback to a page, no file watched."""
    from dashboard.server import OPTIONS  # noqa: PLC0415  # beside what is claimed of it

    assert OPTIONS["browser.gatherUsageStats"] is False
    assert OPTIONS["client.showErrorDetails"] == "none"
    assert OPTIONS["server.enableXsrfProtection"] is OPTIONS["server.enableCORS"] is True
    assert OPTIONS["server.fileWatcherType"] == "none"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_frees_the_port(folder: Path, number: signal.Signals) -> None:
    """At once, with exit code 0, without a word and without a process left."""
    with dashboard(folder, "--db", "runs.db") as found:
        children = psutil.Process(found.process.pid).children(recursive=True)
        found.process.send_signal(number)
        _, errors = found.process.communicate(timeout=15)
        assert (found.process.returncode, errors, children) == (0, "", [])
        with pytest.raises(ConnectionRefusedError):
            ask(found, "/")


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A command that must fail by itself."""
    return subprocess.run(
        command(*options), cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def expect_one_sentence(done: subprocess.CompletedProcess[str], what: str) -> None:
    """Exit code 2, and one line that says ``what``."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert what in done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_a_port_in_use_is_one_sentence(folder: Path) -> None:
    """With what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        expect_one_sentence(
            run(folder, "--db", "runs.db", "--port", port), "Address already in use"
        )


def test_bad_input_is_one_sentence(folder: Path) -> None:
    """A missing database is not made, a missing SLA file is said, before anything is served."""
    expect_one_sentence(run(folder, "--db", "none.db", "--port", "0"), "no database at none.db")
    assert not (folder / "none.db").exists()
    missing_sla = run(folder, "--db", "runs.db", "--sla", "none.yaml", "--port", "0")
    expect_one_sentence(missing_sla, "no SLA file none.yaml")


def test_an_address_that_is_not_ours_is_one_sentence() -> None:
    """Not a traceback from the kernel."""
    with pytest.raises(AddressError, match=r"Cannot listen on 192\.0\.2\.1:0: .+; give another"):
        listen("192.0.2.1", 0)  # reserved for documentation


def test_without_the_extra_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence with the command to type."""
    find_spec = importlib.util.find_spec

    def without_streamlit(name: str, package: str | None = None) -> Any:
        return None if name == "streamlit" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_streamlit)
    done = CliRunner().invoke(dashboard_command, ["--db", str(folder / "runs.db")])
    assert done.exit_code == 2
    assert 'needs streamlit; pip install "streamgauge[dashboard]".' in done.output


def test_addresses_for_browsers() -> None:
    """Every address is no address to go to; a colon needs brackets."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener, "127.0.0.1") == f"http://127.0.0.1:{port}"
        assert url_of(listener, "0.0.0.0") == f"http://127.0.0.1:{port}"
        assert url_of(listener, "::1") == f"http://[::1]:{port}"


def test_the_command_keeps_quiet_about_a_password(folder: Path) -> None:
    """A database URL that cannot be reached is named without its password."""
    environment = {**os.environ, "STREAMGAUGE_DB": "postgresql://me:hunter2@127.0.0.1:1/runs"}
    done = subprocess.run(
        command("--port", "0"),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "hunter2" not in done.stdout + done.stderr

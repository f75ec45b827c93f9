"""Servers that are not ours, with a stand-in that starts at once and misbehaves on request."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reference_server import launch as launching
from reference_server.errors import StartError
from reference_server.failures import VLLM_STAGES
from reference_server.launch import Launch, LaunchedServer, expect_free, free_port, loopback
from tests.reference_server.standins import expect_gone, pids_in, write_server

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., LaunchedServer]


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's helper never ends by itself; nobody should wait seconds for it."""
    monkeypatch.setattr(launching, "STOP_TIMEOUT_S", 0.3)


@pytest.fixture
def stand_in(tmp_path: Path) -> Make:
    """Makes a launcher of the stand-in in some mood, not yet started."""
    script = write_server(tmp_path)

    def make(mood: str = "serves", **changes: object) -> LaunchedServer:
        port = free_port()
        plan = Launch(
            name="The stand-in",
            command=[sys.executable, str(script), "--port", str(port)],
            ready_url=f"http://127.0.0.1:{port}/health",
            environ={"STAND_IN": mood},
            ready_timeout_s=20.0,
        )
        return LaunchedServer(replace(plan, **changes), log=tmp_path / "log")  # type: ignore[arg-type]

    return make


def test_it_serves_when_entered_and_leaves_nothing_behind(stand_in: Make) -> None:
    """Inside the block it answers; after it neither server nor its deaf helper runs."""
    with stand_in() as server:
        assert urllib.request.urlopen(server.url + "/health", timeout=5).status == 200
        assert server.how_it_ended() is None
        pids = pids_in(server.log).values()
    assert server.pid is None
    expect_gone(*pids)


def test_it_keeps_to_the_cores_it_was_given(stand_in: Make) -> None:
    """A client on the same machine can have a core that the server leaves alone."""
    core = max(os.sched_getaffinity(0))
    with stand_in(cores=[core]) as server:
        for pid in pids_in(server.log).values():
            assert os.sched_getaffinity(pid) == {core}


def test_a_server_that_dies_is_told_with_the_reason_and_its_log(stand_in: Make) -> None:
    """The sentence carries exit code, reason and log, and the orphaned helper is ended."""
    server = stand_in("dies")
    told = rf"exit code 1 before it was ready: it said 'ValueError: no such thing'; .*{server.log}"
    with pytest.raises(StartError, match=told), server:
        pass
    expect_gone(pids_in(server.log)["helper"])


def test_only_what_this_start_printed_is_read(stand_in: Make) -> None:
    """An older failure in the same log is not told for the new one."""
    server = stand_in("dies")
    server.log.write_text("CUDA error: out of memory\n")
    with pytest.raises(StartError, match="no such thing"), server:
        pass
    assert server.log.read_text().startswith("CUDA error")


def test_a_server_that_is_never_ready_is_given_up(stand_in: Make) -> None:
    """After the time limit it is stopped, and the sentence names the limit."""
    server = stand_in("is never ready", ready_timeout_s=2.0)
    with pytest.raises(StartError, match=r"did not answer .*/health within 2 s"), server:
        pass
    expect_gone(*pids_in(server.log).values())


def test_on_its_way_it_says_how_far_it_is(stand_in: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is the elapsed time and the stage that the log shows."""
    monkeypatch.setattr(launching, "TELL_EVERY_S", 0.1)

    class EnoughError(Exception):
        pass

    def say(line: str) -> None:
        elapsed, stage = line.split("  ")
        assert elapsed.endswith(" s")
        if stage == "loading weights":
            raise EnoughError
        assert stage.startswith("waiting for http://127.0.0.1:")

    server = stand_in("is never ready", stages=VLLM_STAGES)
    server._say = say
    with pytest.raises(EnoughError), server:
        pass
    expect_gone(*pids_in(server.log).values())


def test_a_program_that_is_not_there_is_named(stand_in: Make) -> None:
    """127 comes from us, and says which program."""
    server = stand_in(command=["no-such-server", "--port", "1"])
    with pytest.raises(StartError, match="there is no program no-such-server"), server:
        pass


def test_a_taken_port_is_said_before_anything_starts(stand_in: Make) -> None:
    """What listens there already would be measured in the server's place."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/health"
        server = stand_in(ready_url=url)
        with pytest.raises(StartError, match=r"Address already in use.*choose another"), server:
            pass
    assert not server.log.exists()


def test_a_log_that_cannot_be_written_is_said(stand_in: Make, tmp_path: Path) -> None:
    """The folder must be there; the sentence names the file."""
    server = LaunchedServer(stand_in().launch, log=tmp_path / "none" / "log")
    with pytest.raises(StartError, match=r"Cannot write the log .*none/log"), server:
        pass


@pytest.mark.parametrize(
    "url", ["https://example.com/health", "127.0.0.1:8000", "http://127.0.0.1:99999/", "ftp://::1/"]
)
def test_a_url_that_is_not_on_this_machine_is_refused(url: str) -> None:
    """A server that we start is waited for here and nowhere else."""
    with pytest.raises(StartError, match="Expected a URL on this machine"):
        expect_free(url)


def test_host_and_port_of_a_url() -> None:
    """Names of this machine, with the scheme's port where none is given."""
    assert loopback("http://localhost:81/x") == ("127.0.0.1", 81)
    assert loopback("https://[::1]/health") == ("::1", 443)


def test_a_server_that_ends_while_it_serves_is_told(stand_in: Make) -> None:
    """A server should not end by itself; waiting for that ends with a sentence."""
    with stand_in() as server:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(server.url + "/quit", timeout=5)
        with pytest.raises(StartError, match="exit code 3 while it was serving"):
            server.wait()


def test_a_deaf_server_is_killed_when_its_time_is_up(stand_in: Make) -> None:
    """SIGTERM is a request; after the grace nothing of it runs."""
    with stand_in("is deaf") as server:
        pids = pids_in(server.log).values()
    expect_gone(*pids)


def test_a_shell_in_front_of_a_server_is_no_way_out(stand_in: Make) -> None:
    """The shell ends at SIGTERM without passing it on; the server behind it ends all the same."""
    server = stand_in()
    shell = " ".join(server.launch.command) + "; true"  # not its last, so that it cannot exec
    with LaunchedServer(
        replace(server.launch, command=["sh", "-c", shell]), log=server.log
    ) as server:
        pids = pids_in(server.log).values()
    expect_gone(*pids)


def test_a_killed_tether_takes_the_server_along(stand_in: Make) -> None:
    """Even ``kill -9`` of the process between leaves no server running."""
    with stand_in() as server:
        assert server.pid is not None
        pids = pids_in(server.log)
        os.kill(server.pid, signal.SIGKILL)
        expect_gone(pids["self"])
    os.kill(pids["helper"], signal.SIGKILL)  # a session of its own, and nobody left to see it


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_dies_with_the_process_that_started_it(
    how: signal.Signals, stand_in: Make, tmp_path: Path
) -> None:
    """Ctrl-C, SIGTERM and ``kill -9`` of the parent leave no process of the family running."""
    server = stand_in()
    code = (
        "import signal; from pathlib import Path; from reference_server import launch\n"
        "launch.STOP_TIMEOUT_S = 0.3\n"
        f"it = launch.Launch(name='it', command={server.launch.command!r},\n"
        f"    ready_url={server.launch.ready_url!r})\n"
        f"with launch.LaunchedServer(it, log=Path({str(server.log)!r})):\n"
        "    print('ready', flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        pids = pids_in(server.log).values()
        try:
            parent.send_signal(how)
            parent.wait(30)
            expect_gone(*pids)
        finally:
            parent.kill()


def test_a_second_signal_cuts_the_grace_short(
    stand_in: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is impatient need not wait until a deaf server's time is up."""
    monkeypatch.setattr(launching, "STOP_TIMEOUT_S", 60.0)
    server = stand_in("is deaf")
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        pids = pids_in(server.log).values()
        process = server._process
        assert process is not None
        begun = time.monotonic()
        for _ in range(3):  # end it; cut its grace, and that of what it leaves
            process.terminate()
            time.sleep(0.3)
        process.wait(20)
        assert time.monotonic() - begun < 20
    expect_gone(*pids)


def test_ready_means_200_and_nothing_else(stand_in: Make) -> None:
    """A 503 while it loads is no sign of being ready."""
    with stand_in() as server:
        assert launching.answers(server.launch.ready_url)
    assert not launching.answers(server.launch.ready_url)
    with contextlib.suppress(StartError), stand_in("is never ready", ready_timeout_s=0.5) as other:
        pytest.fail(f"{other.url} is not ready")


def test_the_tether_passes_on_how_the_command_ended() -> None:
    """An exit code as it is, a signal as 128 and its number."""
    tether = [sys.executable, "-P", str(ROOT / "reference_server" / "tether.py")]
    words = [str(os.getpid()), "1", ",".join(map(str, os.sched_getaffinity(0)))]
    codes = []
    for end in ("exit 5", "kill -9 $$"):
        done = subprocess.run([*tether, *words, "sh", "-c", end], check=False, timeout=30)
        codes.append(done.returncode)
    assert codes == [5, 128 + 9]

"""``serve vllm``, ``serve cmd`` and ``run --serve`` as a user runs them, with stand-in servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from collectors.runs import RunStatus
from collectors.store import Store
from reference_server.gpus import Gpu
from reference_server.launch import answers
from reference_server.vllm_python import look
from streamgauge.cli import main
from streamgauge.serving import serving, shown
from tests.reference_server.standins import (
    expect_gone,
    pids_in,
    wait_until,
    write_server,
    write_vllm_python,
)

pytestmark = pytest.mark.usefixtures("logs_apart")
PATIENCE_S = 60.0
STREAMGAUGE = [sys.executable, "-m", "streamgauge"]
METRONOME = f"cmd:{sys.executable} -m streamgauge serve sim --metronome --ttft 5ms --itl 1ms"
QUICK = ["--users", "2", "--think-time", "50ms", "--max-tokens", "5", "--no-calibrate"]


def streamgauge(
    *words: str, mood: str = "serves", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    return subprocess.run(
        [*STREAMGAUGE, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "STAND_IN": mood, "STAND_IN_HELPER": "hears"},
    )


@contextmanager
def started(*words: str, mood: str = "serves", **more: object) -> Iterator[subprocess.Popen[str]]:
    """The command line while it runs; killed in the end if it still does."""
    with subprocess.Popen(
        [*STREAMGAUGE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "STAND_IN": mood, "STAND_IN_HELPER": "hears"},
        **more,  # type: ignore[call-overload]
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def refusal(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one sentence with which the command line, run in this process, refuses some words."""
    monkeypatch.setattr(sys, "argv", ["streamgauge", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in said
    return line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_is_served_until_it_is_told_to_stop(
    number: signal.Signals, tmp_path: Path
) -> None:
    """One line once it answers, the log's name beside it; a signal ends it and all it started."""
    script, log = write_server(tmp_path), tmp_path / "log"
    ready = ("--ready-url", "http://127.0.0.1:{port}/health", "--port", "0", "--log", str(log))
    words = ("serve", "cmd", *ready, "--", sys.executable, str(script), "--port", "{port}")
    with started(*words) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:")
        assert answers(line.removeprefix("serving on ").strip() + "/health")
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert f"its log is {log}" in err
    expect_gone(*pids_in(log).values())


def test_vllm_is_served_from_the_python_named(tmp_path: Path) -> None:
    """Its version is told, its name and port are given to it, and it is stopped."""
    python, log = write_vllm_python(tmp_path), tmp_path / "log"
    words = ("serve", "vllm", "--python", str(python), "--model", "org/m", "--port", "0")
    with started(*words, "--log", str(log), "--", "--seed", "3") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("serving on ")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert f"vLLM 9.9+cpu of {python}, profile cpu" in err
    expect_gone(*pids_in(log).values())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_starts_leaves_nothing_running(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Nobody need wait for a model to be loaded before leaving."""
    python, log = write_vllm_python(tmp_path), tmp_path / "log"
    words = ("serve", "vllm", "--python", str(python), "--model", "m", "--port", "0")
    with started(*words, "--log", str(log), mood="never listens") as process:
        wait_until(log, "helper")
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    expect_gone(*pids_in(log).values())


def test_setting_up_where_it_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where pip finds no build of torch for this CPU, nothing is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    words = ["serve", "vllm", "--setup", "--profile", "tiny"]
    assert "vLLM on a CPU needs torch" in refusal(words, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def test_variants_are_listed() -> None:
    """Without a vLLM, without a model."""
    done = streamgauge("serve", "vllm", "--variant", "list")
    assert done.returncode == 0
    assert "tensor-parallel=N" in done.stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["vllm", "--python", "PY"], "Which model"),
        (["vllm", "--python", "PY", "--model", "m", "--variant", "fp9"], "no variant 'fp9'"),
        (["vllm", "--python", "PY", "--model", "m", "--variant", "fp8"], "fp8 needs an NVIDIA"),
        (["vllm", "--python", "/no/python", "--model", "m"], "Python with vLLM at /no/python"),
        (["vllm", "--model", "m", "fp8"], "'fp8' where vLLM's own flags go; those stand after --"),
        (["vllm", "--url", "http://127.0.0.1:1", "--model", "m"], "--url starts no vLLM"),
        (["vllm", "--setup", "--python", "PY"], "leave it or --python out"),
        (["cmd", "--", "srv"], "Which URL says that it is ready"),
        (["cmd", "--ready-url", "http://127.0.0.1:1/"], "Which command"),
        (["cmd", "--ready-url", "http://example.com/", "--", "srv"], "URL on this machine"),
        (["cmd", "--preset", "sglang"], "SGLang needs --model"),
        (["cmd", "--preset", "nope", "--model", "m"], "no preset 'nope'"),
        (["cmd", "--preset", "tgi", "--ready-url", "http://127.0.0.1:1/"], "a preset has its own"),
        (["cmd", "--model", "m", "--ready-url", "http://127.0.0.1:1/"], "--model is for a --pres"),
    ],
)
def test_bad_input_of_serve_is_one_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2 before anything is started."""
    python = str(write_vllm_python(tmp_path))
    words = [python if word == "PY" else word for word in words]
    assert sentence in refusal(["serve", *words], monkeypatch, capsys)


def test_a_vllm_that_dies_while_loading_is_told_from_its_log(tmp_path: Path) -> None:
    """The reason that the log gives, and where the log is."""
    python, log = write_vllm_python(tmp_path), tmp_path / "log"
    words = ("--python", str(python), "--model", "m", "--port", "0", "--log", str(log))
    done = streamgauge("serve", "vllm", *words, mood="dies")
    assert done.returncode == 2
    told = done.stderr.splitlines()[-1]
    assert told.startswith("Error: vLLM ended with exit code 1 before it was ready: it said")
    assert told.endswith(f"'ValueError: no such thing'; its log is {log}.")
    expect_gone(pids_in(log)["helper"])


def test_one_that_runs_already_is_waited_for_and_named(tmp_path: Path) -> None:
    """With --url nothing is started: what is there is told, and the command ends."""
    script, log = write_server(tmp_path), tmp_path / "log"
    ready = ("--ready-url", "http://127.0.0.1:{port}/health", "--port", "0", "--log", str(log))
    words = ("serve", "cmd", *ready, "--", sys.executable, str(script), "--port", "{port}")
    with started(*words) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("serving on ").strip()
        done = streamgauge("serve", "vllm", "--url", f"{url}/v1")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert done.returncode == 0
    assert done.stdout == f"serving on {url}  version 7.7  models stand-in\n"


@pytest.mark.slow
def test_a_run_serves_its_own_endpoint_and_labels_it(tmp_path: Path) -> None:
    """Started, measured, judged, stopped; the user's own label wins over ours."""
    db, sla = tmp_path / "runs.db", tmp_path / "one.sla.yaml"
    sla.write_text("sla: one\nobjectives:\n  error_ratio: < 50 %\n", encoding="utf-8")
    words = ("--duration", "2s", *QUICK, "--db", str(db), "--sla", str(sla))
    spec = METRONOME + " --port {port}"
    done = streamgauge("run", "chat", "--serve", spec, *words, "--label", "gpu=none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verdict: held" in done.stdout
    with Store.open(str(db)) as store:
        run = store.find_run("last")
    assert run.status is RunStatus.COMPLETE
    assert run.labels["server"] == "cmd"
    assert run.labels["model"] == "sim-8b"
    assert run.labels["gpu"] == "none"
    assert "serve sim --metronome" in run.labels["server_flags"]
    assert not answers(run.target + "/v1/models")


def test_the_simulator_is_served_with_options_of_its_own() -> None:
    """`--serve 'sim:...'` passes them on, and the model is the one the load asks for."""
    served = serving("sim:--metronome --ttft 5ms --itl 1ms", "big")
    with served.running() as (url, labels):
        assert answers(url + "/v1/models")
    assert not answers(url + "/v1/models")
    assert labels["server"] == "sim"
    assert labels["model"] == "big"
    assert labels["server_flags"] == "--metronome --ttft 5ms --itl 1ms --model big"


@pytest.mark.parametrize("phase", ["starting", pytest.param("running", marks=pytest.mark.slow)])
def test_ctrl_c_leaves_no_server_behind(phase: str, tmp_path: Path) -> None:
    """While the server starts, and while the load runs."""
    db, pids = tmp_path / "runs.db", tmp_path / "pids"
    script = write_server(tmp_path)
    if phase == "starting":
        spec = f"cmd:sh -c 'echo self $$ helper $$ > {pids}; exec {sys.executable} {script} $0' "
    else:
        spec = f"cmd:sh -c 'echo self $$ helper $$ > {pids}; exec {METRONOME[4:]} --port $0' "
    words = ("run", "chat", "--serve", spec + "{port}", "--duration", "60s", *QUICK)
    with started(*words, "--db", str(db), mood="never listens") as process:
        assert process.stderr is not None
        if phase == "running":
            for line in process.stderr:
                if "has begun" in line:
                    break
        else:
            wait_until(pids, "helper")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    expect_gone(*pids_in(pids).values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Give --host URL, or have one started: --serve"),
        (["--serve", "sim", "--host", "http://127.0.0.1:1"], "leave --host out"),
        (["--serve", "ollama"], "expected one of sim, vllm, cmd:COMMAND, sglang"),
        (["--serve", "cmd:srv"], "a command with {port}"),
        (["--serve", "cmd:srv 'x"], "No closing quotation"),
        (["--serve", "sglang"], "SGLang needs --model"),
        (["--serve", "sim", "--temperature", "hot"], "--temperature: expected"),
    ],
)
def test_bad_input_of_run_serve_is_one_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, and no database."""
    line = ["run", "chat", *words, *QUICK, "--db", str(tmp_path / "runs.db")]
    assert sentence in refusal(line, monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_start_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    """Its sentence, exit code 2, and no database."""
    words = ("--serve", "cmd:no-such-server {port}", *QUICK, "--db", str(tmp_path / "runs.db"))
    done = streamgauge("run", "chat", *words)
    assert done.returncode == 2
    assert "there is no program no-such-server" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--max-tokens", "5", "--tokenizer", "x"], "--max-tokens 5 --tokenizer x"),
        (["--api-key", "abc", "-x"], "--api-key '***' -x"),
        (["--hf_token=abcdef"], "'--hf_token=***'"),
        (["--api-key-env", "NAME"], "--api-key-env NAME"),
        (["--speculative-config", '{"num_speculative_tokens": 4}'], 'num_speculative_tokens": 4'),
    ],
)
def test_a_label_tells_the_flags_without_the_secrets(words: list[str], text: str) -> None:
    """Flags make runs comparable; keys are nobody's business."""
    assert text in shown(words)
    assert "abc" not in shown(words)


def test_vllm_is_labelled_with_what_makes_it_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version, profile, variants, flags; the model is the one that the load asks for."""
    python = write_vllm_python(tmp_path)
    monkeypatch.setattr("streamgauge.serving.find", lambda: look(python))
    monkeypatch.setattr("streamgauge.serving.find_gpus", tuple)
    served = serving("vllm:kv-fp8,no-prefix-cache --seed 1", "org/m", lambda _line: None)
    assert served.model == "org/m"
    assert served.labels == {
        "server": "vllm",
        "server_version": "9.9+cpu",
        "server_profile": "cpu",
        "server_variants": "kv-fp8,no-prefix-cache",
        "server_flags": "--kv-cache-dtype fp8 --no-enable-prefix-caching --seed 1",
    }


def test_the_cost_of_a_run_counts_the_gpus_that_vllm_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as its variants say, named in the label; none on a CPU."""
    h200 = Gpu(name="NVIDIA H200", capability=(9, 0))
    python = write_vllm_python(tmp_path, "9.9")
    monkeypatch.setattr("streamgauge.serving.find", lambda: look(python))
    monkeypatch.setattr("streamgauge.serving.find_gpus", lambda: (h200,) * 4)
    served = serving("vllm:fp8,tensor-parallel=2", "org/m", lambda _line: None)
    assert served.gpus == 2
    assert served.labels["gpu"] == "2 x NVIDIA H200"
    on_cpu = write_vllm_python(tmp_path / "cpu")
    monkeypatch.setattr("streamgauge.serving.find", lambda: look(on_cpu))
    served = serving("vllm", "org/m", lambda _line: None)
    assert served.gpus is None
    assert "gpu" not in served.labels

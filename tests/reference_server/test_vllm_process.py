"""What a vLLM server is started with, and the launcher of our own, with a stand-in for vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_server.errors import ReferenceServerError, SettingsError, StartError
from reference_server.gpus import Gpu
from reference_server.vllm_process import VllmProcess, make_tiny_model, plan
from reference_server.vllm_python import Vllm
from tests.reference_server.standins import expect_gone, pids_in, write_vllm_python

ON_CPU = Vllm(python=Path("py"), version="0.32.0+cpu", on_cpu=True)
ON_GPU = Vllm(python=Path("py"), version="0.32.0", on_cpu=False)
H200 = Gpu(name="NVIDIA H200", capability=(9, 0))
T4 = Gpu(name="Tesla T4", capability=(7, 5))


def test_a_gpu_server_has_its_model_its_variants_and_the_flags_by_hand_last() -> None:
    """Later flags win, so the user's own stand at the end; nothing of the CPU is there."""
    chosen = plan(ON_GPU, model="org/m", variants=["fp8"], flags=["--seed", "1"], gpus=[H200])
    launch = chosen.launch(8123)
    assert list(launch.command) == [
        *("py", "-m", "vllm.entrypoints.cli.main", "serve", "org/m"),
        *("--served-model-name", "org/m", "--host", "127.0.0.1", "--port", "8123"),
        *("--disable-uvicorn-access-log", "--quantization", "fp8", "--seed", "1"),
    ]
    assert launch.ready_url == "http://127.0.0.1:8123/health"
    assert launch.url == "http://127.0.0.1:8123"
    assert "HF_HUB_OFFLINE" not in launch.environ
    assert launch.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_a_checkpoint_is_loaded_under_the_name_of_its_model() -> None:
    """Scenarios ask for the same model whichever variant of it is served."""
    chosen = plan(ON_GPU, model="org/m", variants=["awq=org/m-awq"], gpus=[H200])
    command = list(chosen.launch(1).command)
    assert command[command.index("serve") + 1] == "org/m-awq"
    assert command[command.index("--served-model-name") + 1] == "org/m"


def test_on_a_cpu_the_executor_that_spins_is_left_out() -> None:
    """`uni` needs a variable of its own, else the CPU platform turns it into `mp` again."""
    launch = plan(ON_CPU, model="org/m").launch(1)
    command = list(launch.command)
    assert command[command.index("--distributed-executor-backend") + 1] == "uni"
    assert launch.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "OMP_NUM_THREADS" not in launch.environ


def test_the_tiny_profile_needs_no_hub(tmp_path: Path) -> None:
    """It loads a folder, offline, and is called tiny."""
    chosen = plan(ON_CPU, profile="tiny")
    launch = chosen.launch(1, tmp_path)
    assert chosen.model == "tiny"
    assert str(tmp_path) in launch.command
    assert launch.environ["HF_HUB_OFFLINE"] == "1"
    assert plan(ON_GPU, profile="tiny").launch(1, tmp_path).environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("vllm", "words", "sentence"),
    [
        (ON_GPU, {}, "Which model"),
        (ON_CPU, {"profile": "gpu", "model": "m"}, "is a build for CPUs"),
        (ON_GPU, {"profile": "cpu", "model": "m"}, "is a build for GPUs"),
        (ON_CPU, {"profile": "tiny", "model": "m"}, "serves its own model 'tiny'"),
        (ON_CPU, {"profile": "tiny", "variants": ["w8a8=x"]}, "has no other checkpoint"),
        (ON_CPU, {"model": "m", "variants": ["fp8"]}, "fp8 needs an NVIDIA GPU"),
        (ON_GPU, {"model": "m", "variants": ["fp9"]}, "There is no variant 'fp9'"),
        (
            ON_GPU,
            {"model": "m", "variants": ["attn-flash"], "gpus": [T4]},
            r"needs a GPU of compute capability 8\.0 or higher, and Tesla T4 has 7\.5",
        ),
        (
            ON_GPU,
            {"model": "m", "variants": ["fp8"], "flags": ["--quantization=awq"]},
            "--quantization is what a --variant sets already",
        ),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    vllm: Vllm, words: dict[str, object], sentence: str
) -> None:
    """Before minutes of loading, and with the exit code of bad input."""
    with pytest.raises(SettingsError, match=sentence) as raised:
        plan(vllm, **words)  # type: ignore[arg-type]
    assert raised.value.exit_code == 2


def test_our_own_vllm_serves_with_its_limits(tmp_path: Path) -> None:
    """What measurements ask for stands on the command line, after the profile's own."""
    python = write_vllm_python(tmp_path)
    log = tmp_path / "log"
    with VllmProcess(
        model=tmp_path, environment=python.parent.parent, log=log, kv_cache_bytes=5
    ) as server:
        command = list(server.launch.command)
        pids = pids_in(log)
    expect_gone(pids["self"])
    positions = [at for at, word in enumerate(command) if word == "--kv-cache-memory-bytes"]
    assert command[positions[-1] + 1] == "5"


def test_without_an_environment_it_says_how_to_get_one(tmp_path: Path) -> None:
    """The error names the make target."""
    server = VllmProcess(model=tmp_path, environment=tmp_path / "none", log=tmp_path / "log")
    with pytest.raises(StartError, match="make demo-vllm"), server:
        pass


def test_a_tiny_model_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    """An interpreter without torch ends the attempt, and leaves no half a model."""
    python = write_vllm_python(tmp_path)
    with pytest.raises(ReferenceServerError, match="The tiny model could not be made"):
        make_tiny_model(python, tmp_path / "cache" / "model")
    assert list((tmp_path / "cache").iterdir()) == []

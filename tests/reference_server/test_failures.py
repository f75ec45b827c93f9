"""Why a server did not start, read from real logs (each names its source in its first line)."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_server.failures import COMMON, VLLM, VLLM_STAGES, reason

SAMPLES = Path(__file__).parent / "fixtures" / "failures"
MEANT = {
    "gated": "set HF_TOKEN",
    "gpu_busy": "7.34 of the GPU's 139.72 GiB are free and it wants 125.75",
    "gpu_busy_named": "19.77 of the GPU's 22.05 GiB are free and it wants 19.84",
    "gpu_memory": "does not fit the GPU's memory",
    "kv_small": "its KV cache (0.0 GiB) cannot hold one request",
    "max_len": "--max-model-len 100000 is longer than the model's own limit of 8192",
    "no_cache_blocks": "the weights leave nothing for the KV cache",
    "no_driver": "no GPU with a working driver",
    "no_folder": "there is no such model",
    "no_such_model": "there is no such model",
    "not_cached": "not on this machine and cannot be fetched",
    "old_driver": "the NVIDIA driver is too old for its PyTorch (it offers CUDA 11.4)",
    "old_gpu": "method fp8 needs a GPU of compute capability 9.0 and this one has 8.6",
    "old_gpu_scheme": "scheme needs a GPU of compute capability 8.0 and this one has 7.5",
    "port_taken": "the port is taken",
    "quant_awq": "not quantized with awq",
    "too_few_gpus": "it is to use 4 GPUs and this machine has 1",
    "unknown_flag": "it does not know the flag --no-such-flag",
}


def test_each_sample_has_its_meaning() -> None:
    """No sample lies about unread, and none is missing."""
    assert {path.stem for path in SAMPLES.glob("*.txt")} == set(MEANT)


@pytest.mark.parametrize("name", MEANT)
def test_a_real_log_is_told_in_one_clause(name: str) -> None:
    """What went wrong and what to do, whatever else the log holds."""
    told = reason((SAMPLES / f"{name}.txt").read_text(), 1, VLLM)
    assert told is not None
    assert MEANT[name] in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        ("all is well\n", 1, None),
        ("", 137, "it was killed (signal 9), as the kernel does where memory runs out"),
        ("tether: a b: Permission denied\n", 127, "the program a b cannot be run (Permission den"),
        ("KeyError: 1\nOSError: last\n", 1, "it said 'OSError: last'"),
        ("ERROR 1 [a.py:1] ValueError: in the engine\n", 1, "it said 'ValueError: in the engine'"),
        ("a warning of `OSError: many files` in words\n", 1, None),
        ("ValueError: {braces} stay\n", 1, "it said 'ValueError: {braces} stay'"),
        (f"ValueError: {'x' * 999}\n", 1, "x ...'"),
        ("error: unrecognized arguments: secret --api-kye abc\n", 2, "the flag --api-kye;"),
    ],
)
def test_any_other_log(log: str, code: int, told: str | None) -> None:
    """The last error a Python program names, a killed process, or nothing rather than a guess."""
    found = reason(log, code, COMMON)
    assert found is None if told is None else told in str(found)


def test_the_stages_are_told_in_their_order() -> None:
    """The last stage in the table that a log of a finished start shows is its end."""
    log = "Resolved architecture: X\nStarting to load model m...\ninit engine (profile) took 1 s"
    assert [words for pattern, words in VLLM_STAGES if pattern.search(log)] == [
        "the model is known; starting the engine",
        "loading weights",
        "the engine is ready; starting the HTTP server",
    ]

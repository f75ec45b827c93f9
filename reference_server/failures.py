"""Why a server did not start, read from its log: one clause for each thing that goes wrong.

A log of hundreds of lines ends in a traceback that names the place in the program, not the thing
to do. Each row is a pattern and what it means; the first that is found anywhere in the log counts,
so the rows stand from the particular to the general. Samples of real logs, with their sources, are
in ``tests/reference_server/fixtures/failures``, one for each row.
"""

from __future__ import annotations

import re
from typing import Final

Hints = tuple[tuple[re.Pattern[str], str], ...]
"""Patterns, and what each means; ``{name}`` stands for the pattern's group of that name."""


def _row(pattern: str, meaning: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.MULTILINE), meaning


_FIRST: Final = (
    _row(
        r"(?i)address already in use",
        "the port is taken; stop what listens there, or choose another with --port",
    ),
    _row(
        r"error: unrecognized arguments:(?: [^-\s]\S*)* (?P<flag>-[\w-]+)",
        "it does not know the flag {flag}; see its own --help",
    ),
    _row(
        r"^tether: (?P<program>.+): No such file or directory$",
        "there is no program {program} on the PATH",
    ),
    _row(
        r"^tether: (?P<program>.+): (?P<said>.+)$", "the program {program} cannot be run ({said})"
    ),
    _row(
        r"NVIDIA driver on your system is too old \(found version (?P<major>\d+)0(?P<minor>\d)0\)",
        "the NVIDIA driver is too old for its PyTorch (it offers CUDA {major}.{minor}); update "
        "the driver, or install a build for that CUDA",
    ),
    _row(
        r"Found no NVIDIA driver|No CUDA GPUs are available|Failed to infer device type",
        "it sees no GPU with a working driver; see whether nvidia-smi lists one",
    ),
    _row(
        r"Free memory on device \S* ?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on startup is less "
        r"than desired GPU memory utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)",
        "no memory: {free} of the GPU's {total} GiB are free and it wants {wanted}; stop what uses "
        "the GPU, or give it less with --gpu-memory-utilization (now {share})",
    ),
    _row(
        r"OutOfMemoryError: CUDA out of memory|CUDA error: out of memory",
        "no memory: the model does not fit the GPU's memory; try a quantized variant, more GPUs "
        "(tensor-parallel=N), or a smaller --max-model-len",
    ),
)
_LAST: Final = (
    _row(
        r"Cannot allocate memory|std::bad_alloc|^MemoryError|DefaultCPUAllocator: (?:can't|not en)",
        "no memory: the machine has too little for this model",
    ),
    _row(
        r"\A(?s:.*)^(?:\([^)\n]*\) )?(?:ERROR [^\]\n]*\] )?"  # the last, after vLLM's prefix
        r"(?P<said>[\w.]*(?:Error|Exception): .+)$",
        "it said {said!r}",
    ),
)
COMMON: Final[Hints] = (*_FIRST, *_LAST)
"""What any server may say; a Python one above all."""

VLLM: Final[Hints] = (
    *_FIRST,
    _row(
        r"larger than the available KV cache memory \((?P<has>[\d.]+) GiB\)",
        "no memory: its KV cache ({has} GiB) cannot hold one request of the model's full length; "
        "set a smaller --max-model-len, or give it more memory",
    ),
    _row(
        r"No available memory for the cache blocks",
        "no memory: the weights leave nothing for the KV cache; raise --gpu-memory-utilization, or "
        "take a smaller or quantized model",
    ),
    _row(
        r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs "
        r"\((?P<has>\d+)\)",
        "it is to use {wanted} GPUs and this machine has {has}",
    ),
    _row(
        r"(?P<what>[Tt]he quantization method [\w-]+|Quantization scheme) is not supported for\W+"
        r"the current GPU\.\W+Min(?:imum)? capability: (?P<wanted>\d+)(?P<w>\d)\.\W+"
        r"Current capability: (?P<has>\d+)(?P<h>\d)",
        "{what} needs a GPU of compute capability {wanted}.{w} and this one has {has}.{h}",
    ),
    _row(
        r"Cannot find the config file for (?P<method>[\w-]+)",
        "the model's files are not quantized with {method}; name a checkpoint that is, such as "
        "--variant {method}=CHECKPOINT",
    ),
    _row(
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len"
        r" \(max_position_embeddings=(?P<most>\d+)",
        "--max-model-len {asked} is longer than the model's own limit of {most}",
    ),
    _row(
        r"outgoing traffic has been disabled|couldn't connect to '?https://huggingface\.co",
        "the model is not on this machine and cannot be fetched; give the path of its folder, or "
        "let it reach the hub (HF_HUB_OFFLINE, proxies)",
    ),
    _row(
        r"Repo id must be in the form|not a local folder and is not a valid model identifier|"
        r"Repository Not Found for url|RepositoryNotFoundError",
        "there is no such model; name a folder that exists, or a model of the hub",
    ),
    _row(
        r"access a gated repo|Cannot access gated repo",
        "the hub gives this model only to those whom its owner admits; ask for access there and "
        "set HF_TOKEN",
    ),
    _row(r"Value error, (?P<said>[^\n]+?)(?:\. | \[type=|$)", "it said {said!r}"),
    _row(
        r"No module named '?vllm", "there is no vLLM in that Python; --setup makes an environment"
    ),
    *_LAST,
)
"""What vLLM says, 0.9 to 0.32."""

VLLM_STAGES: Final[Hints] = (
    _row(r"Resolved architecture", "the model is known; starting the engine"),
    _row(r"Starting to load model", "loading weights"),
    _row(r"Loading weights took", "weights are loaded"),
    _row(r"torch\.compile took", "compiled"),
    _row(r"KV cache size", "making the KV cache"),
    _row(r"Capturing CUDA graphs", "capturing CUDA graphs"),
    _row(r"init engine \(", "the engine is ready; starting the HTTP server"),
)
"""What vLLM says on its way, in this order."""

_KILLED = 128 + 9


def reason(log: str, code: int, hints: Hints) -> str | None:
    """What a log and an exit code say went wrong, as a clause; None where they say nothing."""
    for pattern, meaning in hints:
        if found := pattern.search(log):
            said = {name: _brief(text) for name, text in found.groupdict(default="?").items()}
            return meaning.format(**said)
    if code == _KILLED:
        return "it was killed (signal 9), as the kernel does where memory runs out"
    return None


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:200]} ..."

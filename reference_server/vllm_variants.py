"""Variants of a vLLM server: the changes that are worth a run of their own, as data.

A variant is the flags it means, what it needs, and a sentence. What only *vLLM* can tell (whether
this model has a kernel for that GPU) is left to vLLM; what can be told before minutes of loading
is told here: names, contradictions, GPUs that are missing or too old.

Sources: the capabilities are ``get_min_capability`` and ``supports_compute_capability`` in vLLM
0.32's ``model_executor/layers/quantization`` and ``v1/attention/backends``; the flags are those of
its ``engine/arg_utils.py``. What 8-bit arithmetic needs is NVIDIA's table of compute capabilities.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from reference_server.errors import SettingsError
from reference_server.gpus import Gpu

CHECKPOINT: Final = "CHECKPOINT"
NUMBER: Final = "N"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One change to a server.

    Attributes:
        name: what ``--variant`` calls it.
        about: a sentence.
        flags: of ``vllm serve``; ``{value}`` stands for what follows the name and an equals sign.
        takes: what follows it, `CHECKPOINT` or `NUMBER`; None for nothing.
        value_needed: whether it makes no sense without.
        families: of two variants of one family only one can be had.
        capability: the least compute capability of an NVIDIA GPU; None where it does not matter.
        on_cpu: whether vLLM on a CPU has it.
    """

    name: str
    about: str
    flags: tuple[str, ...] = ()
    takes: str | None = None
    value_needed: bool = False
    families: tuple[str, ...] = ()
    capability: tuple[int, int] | None = None
    on_cpu: bool = True

    @property
    def form(self) -> str:
        """How it is written on the command line."""
        if self.takes is None:
            return self.name
        return f"{self.name}={self.takes}" if self.value_needed else f"{self.name}[={self.takes}]"

    @property
    def needs(self) -> str:
        """What it needs, in words; empty for nothing."""
        gpu = "" if self.on_cpu and not self.capability else "an NVIDIA GPU"
        if self.capability:
            gpu += f" of compute capability {_dotted(self.capability)}"
        return f"a CPU or {gpu}" if gpu and self.on_cpu else gpu


def _ngram(tokens: int) -> str:
    return json.dumps({"method": "ngram", "num_speculative_tokens": tokens, "prompt_lookup_max": 4})


VARIANTS: Final = {
    variant.name: variant
    for variant in (
        Variant(
            name="fp8",
            about="8-bit floating point weights, made while loading; 8-bit arithmetic from 8.9 up.",
            flags=("--quantization", "fp8"),
            families=("weights",),
            capability=(7, 5),
            on_cpu=False,
        ),
        Variant(
            name="int8",
            about="8-bit integer weights, one scale a channel, made while loading.",
            flags=("--quantization", "int8_per_channel_weight_only"),
            families=("weights",),
            capability=(7, 5),
            on_cpu=False,
        ),
        Variant(
            name="w8a8",
            about="8-bit integer weights and activations, of a checkpoint made so.",
            takes=CHECKPOINT,
            families=("weights", "checkpoint"),
            capability=(7, 5),
        ),
        Variant(
            name="awq",
            about="4-bit weights of a checkpoint made with AWQ.",
            takes=CHECKPOINT,
            families=("weights", "checkpoint"),
            capability=(7, 5),
        ),
        Variant(
            name="gptq",
            about="4- or 8-bit weights of a checkpoint made with GPTQ.",
            takes=CHECKPOINT,
            families=("weights", "checkpoint"),
            capability=(6, 0),
        ),
        Variant(
            name="pruned",
            about="Another checkpoint of the model, with weights or layers left out.",
            takes=CHECKPOINT,
            value_needed=True,
            families=("checkpoint",),
        ),
        Variant(
            name="kv-fp8",
            about="KV cache in 8-bit floating point: twice the tokens in the same memory.",
            flags=("--kv-cache-dtype", "fp8"),
            families=("KV cache",),
            capability=(8, 9),
        ),
        Variant(
            name="spec-ngram",
            about="Speculate N tokens (4) that followed the same words before; needs no model.",
            flags=("--speculative-config", "{value}"),
            takes=NUMBER,
            families=("speculation",),
        ),
        Variant(
            name="spec-draft",
            about="Speculate 4 tokens with a small draft model.",
            flags=("--speculative-config", "{value}"),
            takes=CHECKPOINT,
            value_needed=True,
            families=("speculation",),
        ),
        Variant(
            name="prefix-cache",
            about="Reuse the KV cache of a prompt's beginning; vLLM's default for most models.",
            flags=("--enable-prefix-caching",),
            families=("prefix cache",),
        ),
        Variant(
            name="no-prefix-cache",
            about="Compute every prompt anew.",
            flags=("--no-enable-prefix-caching",),
            families=("prefix cache",),
        ),
        Variant(
            name="no-chunked-prefill",
            about="A prompt is computed in one step, while the answers under way wait.",
            flags=("--no-enable-chunked-prefill",),
        ),
        Variant(
            name="eager",
            about="No CUDA graphs and no compilation: starts sooner, answers slower.",
            flags=("--enforce-eager",),
        ),
        Variant(
            name="attn-flash",
            about="Attention by FlashAttention.",
            flags=("--attention-backend", "FLASH_ATTN"),
            families=("attention backend",),
            capability=(8, 0),
            on_cpu=False,
        ),
        Variant(
            name="attn-flashinfer",
            about="Attention by FlashInfer.",
            flags=("--attention-backend", "FLASHINFER"),
            families=("attention backend",),
            capability=(8, 0),
            on_cpu=False,
        ),
        Variant(
            name="attn-triton",
            about="Attention by vLLM's own kernels in Triton.",
            flags=("--attention-backend", "TRITON_ATTN"),
            families=("attention backend",),
            on_cpu=False,
        ),
        Variant(
            name="attn-flex",
            about="Attention by PyTorch's FlexAttention.",
            flags=("--attention-backend", "FLEX_ATTENTION"),
            families=("attention backend",),
            on_cpu=False,
        ),
        Variant(
            name="tensor-parallel",
            about="Each layer split over N GPUs.",
            flags=("--tensor-parallel-size", "{value}"),
            takes=NUMBER,
            value_needed=True,
            on_cpu=False,
        ),
        Variant(
            name="data-parallel",
            about="N copies of the model behind one address.",
            flags=("--data-parallel-size", "{value}"),
            takes=NUMBER,
            value_needed=True,
            on_cpu=False,
        ),
    )
}
_SPECULATED = 4
_GPUS_EACH = ("tensor-parallel", "data-parallel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Variants chosen together, checked.

    Attributes:
        flags: of ``vllm serve``.
        checkpoint: what is loaded in the model's place; None for the model itself.
        gpus: how many GPUs it takes.
        names: the variants as they were written.
    """

    flags: tuple[str, ...] = ()
    checkpoint: str | None = None
    gpus: int = 1
    names: tuple[str, ...] = ()


def choose(words: Iterable[str], *, on_cpu: bool, gpus: Sequence[Gpu] = ()) -> Choice:
    """The variants that ``words`` name, such as ``fp8`` or ``tensor-parallel=2``.

    Args:
        words: one for each variant.
        on_cpu: whether the server runs on a CPU.
        gpus: those of this machine, as far as they are seen; none seen means none is checked.

    Raises:
        SettingsError: a name is unknown, a value is wrong or missing, two contradict each other,
            or this machine cannot have one.
    """
    words = tuple(words)
    parts = [_parse(word) for word in words]
    _refuse_rivals([variant for variant, _ in parts])
    for variant, _ in parts:
        _refuse_machine(variant, on_cpu=on_cpu, gpus=gpus)
    flags: list[str] = []
    checkpoint, wanted = None, 1
    for variant, value in parts:
        flags += [flag.format(value=_filled(variant, value)) for flag in variant.flags]
        if variant.takes == CHECKPOINT and not variant.flags:
            checkpoint = value or None
        if variant.name in _GPUS_EACH:
            wanted *= int(value)
    if gpus and wanted > len(gpus):
        raise SettingsError(
            f"--variant {' '.join(words)} takes {wanted} GPUs and this machine has {len(gpus)}."
        )
    return Choice(flags=tuple(flags), checkpoint=checkpoint, gpus=wanted, names=words)


def refuse_doubles(choice: Choice, flags: Sequence[str]) -> None:
    """Return if no flag is given both by a variant and by hand.

    Raises:
        SettingsError: one is; the second would win without a word.
    """
    given = {flag.split("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    both = given & {flag for flag in choice.flags if flag.startswith("--")}
    if both:
        raise SettingsError(
            f"{min(both)} is what a --variant sets already; leave one of the two out."
        )


def listed() -> str:
    """The variants, a line each, for people."""
    width = max(len(variant.form) for variant in VARIANTS.values())
    lines = []
    for variant in VARIANTS.values():
        needs = f" Needs {variant.needs}." if variant.needs else ""
        flags = " ".join(variant.flags).replace("{value}", "...")
        lines.append(f"{variant.form:<{width}}  {variant.about}{needs}")
        if flags:
            lines.append(f"{'':<{width}}  {flags}")
    return "\n".join(lines)


def _parse(word: str) -> tuple[Variant, str]:
    name, equals, value = word.partition("=")
    variant = VARIANTS.get(name)
    if variant is None:
        raise SettingsError(
            f"There is no variant {name!r}; `streamgauge serve vllm --variant list` shows those "
            "there are."
        )
    if (equals and not value) or (equals and variant.takes is None):
        raise SettingsError(f"--variant {word}: expected {variant.form}.")
    if not equals and variant.value_needed:
        raise SettingsError(f"--variant {word}: expected {variant.form}.")
    if variant.takes == NUMBER and equals and not (value.isdecimal() and int(value) > 0):
        raise SettingsError(f"--variant {word}: expected a number from 1 up after the =.")
    return variant, value


def _filled(variant: Variant, value: str) -> str:
    """What stands for ``{value}`` in the flags."""
    if variant.name == "spec-ngram":
        return _ngram(int(value or _SPECULATED))
    if variant.name == "spec-draft":
        return json.dumps({"model": value, "num_speculative_tokens": _SPECULATED})
    return value


def _refuse_rivals(variants: Sequence[Variant]) -> None:
    taken: dict[str, Variant] = {}
    for index, variant in enumerate(variants):
        if variant in variants[:index]:
            raise SettingsError(f"--variant {variant.name} is given twice.")
        for family in variant.families:
            rival = taken.setdefault(family, variant)
            if rival is not variant:
                raise SettingsError(
                    f"--variant {rival.name} and {variant.name} cannot be had together: a server "
                    f"has one choice of {family}."
                )


def _refuse_machine(variant: Variant, *, on_cpu: bool, gpus: Sequence[Gpu]) -> None:
    if on_cpu and not variant.on_cpu:
        raise SettingsError(f"--variant {variant.name} needs an NVIDIA GPU; vLLM has it on no CPU.")
    if on_cpu or variant.capability is None:
        return
    for gpu in gpus:
        if gpu.capability is not None and gpu.capability < variant.capability:
            raise SettingsError(
                f"--variant {variant.name} needs a GPU of compute capability "
                f"{_dotted(variant.capability)} or higher, and {gpu.name} has "
                f"{_dotted(gpu.capability)}."
            )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"

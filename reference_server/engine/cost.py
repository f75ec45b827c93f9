"""What a step takes: two models of cost, both straight lines over the tokens in the KV cache.

A step decodes for some sequences, verifies the tokens drafted for them, and computes prompts. What
it takes is a straight line over the KV tokens that the decoding sequences attend to, with a base
and a slope that depend on nothing but the rest of the batch. The fast path rests on that: while
the batch stays the same, the times of its steps are an arithmetic series.

**Linear** is five figures and no physics, for a quick server and for fitting what cannot be
explained:

    decode_base + decode_per_sequence x D (1 + k) + decode_per_kv_token x K      if D > 0
  + prefill_base + prefill_per_token x P                                         if P > 0

where D sequences decode, each verifying k drafted tokens, attending to K tokens in the cache, and
P prompt tokens are computed.

**Roofline** is a machine's data sheet, used in part. With T = D (1 + k) + P tokens in the batch on
G GPUs that share the work:

    overhead + per_sequence x (D + prompts)                     the scheduler, launches, sampling
  + max(2 N T / (G F c), W / (G M b))                           the layers' matrices
  + max(2 H S / (G F c), 2 H / (G M b))                         the output head, 16 bits
  + E K / (M b)                                                 attention while decoding
  + max(4 L h d pairs / (G F c), E context / (M b))             attention of prompts
  + 2 L (l + 2 (G - 1) / G x 2 w T / link)                      adding up between GPUs, if G > 1
  + k max(2 n D / (G F c), V / (G M b))                         drafting, where a model drafts

    N   weights of the layers that a token passes, times the share left by pruning
    W   bytes of the layers' weights that the batch reads, likewise: in a mixture of X experts with
        x a token, the share 1 - (1 - x / X)^T of the experts, as if they were chosen evenly
    H   weights of the output head; S tokens are sampled: D (1 + k) and one a prompt
    E   bytes of the KV cache a token and GPU
    pairs    of a prompt's token and a token it attends to; context: tokens of earlier steps
             that its tokens attend to, cached ones included
    L, h, d, w   layers, query heads, width of a head, width of the model
    n, V     weights and bytes of the drafting model
    F, M     operations and bytes a second by the data sheet; c and b: the shares of them reached
    l        latency of one exchange between GPUs; link: bytes a second to a neighbour

Sources. Two operations a weight and token, weights read once a step, and the larger of computing
and reading: kipp.ly/transformer-inference-arithmetic; Pope et al., Efficiently Scaling Transformer
Inference (arXiv 2211.05102). Two exchanges a layer: Shoeybi et al., Megatron-LM (arXiv 1909.08053);
a ring moves 2 (G - 1) / G of the bytes: PERFORMANCE.md of NVIDIA/nccl-tests. Drafting, verifying:
Leviathan et al. (arXiv 2211.17192).

The shares c and b, the overhead and the cost of a sequence are what `fit.py` finds from a measured
run. Until then they are assumptions: c = 0.7 and an exchange's 8 us are those of llm-analysis
(github.com/cli99/llm-analysis: "up to 0.7 for inference"); b = 0.8 lies in the 0.70 to 0.85 that
open-source-ai.tech gives for vLLM (llm-analysis calls 0.9 an aggressive target); the overhead of
0.5 ms is the order of what a profile of vLLM 0.27's loop found (openfabric-systems/simllm, pull
request 204: 0.54 ms).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, Protocol

from reference_server.engine.hardware import Device
from reference_server.engine.models import Model
from reference_server.errors import SettingsError


class Prompts(NamedTuple):
    """What a step computes of prompts.

    Attributes:
        parts: prompts, or parts of prompts.
        tokens: their tokens that are computed.
        pairs: of such a token and one it attends to, itself included.
        context: tokens computed earlier that they attend to.
    """

    parts: int = 0
    tokens: int = 0
    pairs: int = 0
    context: int = 0


NO_PROMPTS: Final = Prompts()


class Line(NamedTuple):
    """Seconds a step takes: a base, and so many for each KV token the decoding attend to."""

    base_s: float
    per_kv_token_s: float

    def at(self, kv_tokens: int) -> float:
        """Seconds with so many KV tokens."""
        return self.base_s + self.per_kv_token_s * kv_tokens


class Bound(NamedTuple):
    """Seconds that computing and reading would take at the data sheet's full rates.

    They go on at the same time, so that a step takes the longer of the two.
    """

    compute_s: float
    reading_s: float

    def takes(self, compute_ratio: float, bandwidth_ratio: float) -> float:
        """Seconds, where those shares of the rates are reached."""
        return max(self.compute_s / compute_ratio, self.reading_s / bandwidth_ratio)


class StepCost(Protocol):
    """What the engine asks a model of cost."""

    def line(self, decodes: int, prompts: Prompts = NO_PROMPTS, drafts: int = 0) -> Line:
        """What a step takes.

        Args:
            decodes: sequences that decode.
            prompts: what is computed of prompts.
            drafts: drafted tokens that each decoding sequence verifies.
        """
        ...

    def swap_s(self, tokens: int) -> float:
        """Seconds to move the KV cache of so many tokens to the host's memory, or back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearCost:
    """Five figures (see the module's docstring).

    With the defaults a lone request of 200 prompt tokens is answered after 60 ms and then every
    8 ms; with 32 running, a decode step takes some 20 ms.

    Attributes:
        prefill_base_s: cost of a step that computes prompt tokens at all.
        prefill_per_token_s: cost of each prompt token.
        decode_base_s: cost of a step that decodes at all.
        decode_per_sequence_s: cost of each sequence that decodes.
        decode_per_kv_token_s: cost of each token those sequences attend to.
        swap_per_token_s: cost of moving one token's KV cache: 131,072 bytes at 32 GB/s.
    """

    prefill_base_s: float = 0.020
    prefill_per_token_s: float = 0.0002
    decode_base_s: float = 0.0075
    decode_per_sequence_s: float = 0.0003
    decode_per_kv_token_s: float = 0.35e-6
    swap_per_token_s: float = 4.1e-6

    def __post_init__(self) -> None:
        prefill = (self.prefill_base_s, self.prefill_per_token_s)
        decode = (self.decode_base_s, self.decode_per_sequence_s, self.decode_per_kv_token_s)
        if min(*prefill, *decode, self.swap_per_token_s) < 0 or not max(prefill) or not max(decode):
            raise SettingsError(
                "A prefill step and a decode step must each take some time, and no cost may be "
                "negative."
            )

    def line(self, decodes: int, prompts: Prompts = NO_PROMPTS, drafts: int = 0) -> Line:
        """See `StepCost`."""
        base_s = 0.0
        if decodes:
            base_s += self.decode_base_s + self.decode_per_sequence_s * decodes * (1 + drafts)
        if prompts.tokens:
            base_s += self.prefill_base_s + self.prefill_per_token_s * prompts.tokens
        return Line(base_s, self.decode_per_kv_token_s)

    def swap_s(self, tokens: int) -> float:
        """See `StepCost`."""
        return self.swap_per_token_s * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the layers' weights are kept. The embedding and the output head keep their 16 bits.

    Attributes:
        name: by which it is asked for.
        weight_bits: bits a weight, its share of scales included.
        arithmetic: what is multiplied: 16-bit numbers, 8-bit floats or 8-bit integers. A device
            without units for 8-bit floats keeps such weights small, but multiplies 16 bits.
        source: where the bits are from.
    """

    name: str
    weight_bits: float
    arithmetic: str
    source: str

    def flops(self, device: Device) -> float:
        """Operations a second that a device does on the layers' matrices."""
        if self.arithmetic == "float8":
            return device.flops_8 or device.flops_16
        return device.ops_8 if self.arithmetic == "int8" else device.flops_16


_INT4: Final = (
    "4 bits, and for each group of 128 weights a scale of 16 bits and a zero of 4 "
    "(the groups of Lin et al., AWQ, arXiv 2306.00978, and Frantar et al., GPTQ, arXiv 2210.17323)."
)
QUANTIZATIONS: Final[dict[str, Quantization]] = {
    quantization.name: quantization
    for quantization in (
        Quantization(
            name="none", weight_bits=16, arithmetic="float16", source="Weights as published."
        ),
        Quantization(
            name="fp8",
            weight_bits=8,
            arithmetic="float8",
            source="Weights and activations of 8 bits; vLLM's fp8.",
        ),
        Quantization(
            name="int8",
            weight_bits=8,
            arithmetic="int8",
            source="Weights and activations of 8 bits (Xiao et al., SmoothQuant, 2211.10438).",
        ),
        Quantization(name="awq", weight_bits=4 + 20 / 128, arithmetic="float16", source=_INT4),
        Quantization(name="gptq", weight_bits=4 + 20 / 128, arithmetic="float16", source=_INT4),
    )
}


def quantization_named(name: str) -> Quantization:
    """The quantization of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in QUANTIZATIONS:
        raise SettingsError(
            f"The quantization {name!r} is not known; choose one of {', '.join(QUANTIZATIONS)}."
        )
    return QUANTIZATIONS[name]


@dataclass(frozen=True, kw_only=True)
class RooflineCost:
    """A model on a machine (see the module's docstring).

    Attributes:
        model: what runs.
        device: what it runs on.
        gpus: devices that share every layer (tensor parallelism).
        quantization: how the layers' weights are kept.
        kv_bits: bits of one number in the KV cache.
        pruned_ratio: share of the layers' weights taken out, so that neither their bytes nor their
            operations remain (structured pruning).
        draft: the model that drafts tokens; None: drafting costs nothing (n-grams of the prompt).
        overhead_s: what every step takes besides.
        per_sequence_s: what every sequence of a step takes besides.
        compute_ratio: share of the device's operations reached.
        bandwidth_ratio: share of the device's memory bandwidth reached.
        link_latency_s: of one exchange between GPUs.
    """

    model: Model
    device: Device
    gpus: int = 1
    quantization: Quantization = QUANTIZATIONS["none"]
    kv_bits: int = 16
    pruned_ratio: float = 0.0
    draft: Model | None = None
    overhead_s: float = 0.5e-3
    per_sequence_s: float = 0.0
    compute_ratio: float = 0.7
    bandwidth_ratio: float = 0.8
    link_latency_s: float = 8e-6

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise SettingsError(f"A model runs on at least one GPU, got {self.gpus}.")
        if not 0 <= self.pruned_ratio < 1:
            raise SettingsError(
                f"The share pruned must be at least 0 and below 1, got {self.pruned_ratio:g}."
            )
        if self.kv_bits not in {8, 16}:
            raise SettingsError(f"The KV cache keeps 8 or 16 bits a number, got {self.kv_bits}.")
        if self.overhead_s < 0 or self.per_sequence_s < 0 or self.link_latency_s < 0:
            raise SettingsError("No cost of a step may be negative.")
        if self.compute_ratio <= 0 or self.bandwidth_ratio <= 0:
            raise SettingsError(
                "The shares reached of computing and of bandwidth must be above 0, got "
                f"{self.compute_ratio:g} and {self.bandwidth_ratio:g}."
            )

    @cached_property
    def kv_bytes_per_token(self) -> float:
        """Bytes of the KV cache a token and GPU; a head is not split, but kept twice if need be."""
        heads = -(-self.model.kv_heads // self.gpus)
        return 2 * self.model.layers * heads * self.model.head_dim * self.kv_bits / 8

    @cached_property
    def weight_bytes(self) -> float:
        """Bytes of all weights together: layers, embedding and head."""
        layers = self._kept * self.model.layer_parameters * self.quantization.weight_bits / 8
        return layers + 2 * (self.model.parameters - self.model.layer_parameters)

    @cached_property
    def draft_bytes(self) -> float:
        """Bytes of the drafting model's weights; 0 without one."""
        return 2.0 * self.draft.parameters if self.draft else 0.0

    @cached_property
    def _kept(self) -> float:
        return 1 - self.pruned_ratio

    @cached_property
    def _layer_flops_per_s(self) -> float:
        """Operations a second on the layers' matrices by the data sheet, all GPUs together."""
        return self.quantization.flops(self.device) * self.gpus

    @cached_property
    def _flops_per_s(self) -> float:
        """The same on 16-bit numbers."""
        return self.device.flops_16 * self.gpus

    @cached_property
    def _weights_per_s(self) -> float:
        """Bytes a second of weights, which are split over all GPUs, by the data sheet."""
        return self.device.memory_bytes_per_s * self.gpus

    def line(self, decodes: int, prompts: Prompts = NO_PROMPTS, drafts: int = 0) -> Line:
        """See `StepCost`."""
        base_s = self.overhead_s + self.per_sequence_s * (decodes + prompts.parts)
        for bound in self.bounds(decodes, prompts, drafts):
            base_s += bound.takes(self.compute_ratio, self.bandwidth_ratio)
        base_s += self.exchange_s(decodes * (1 + drafts) + prompts.tokens)
        return Line(base_s, self.kv_token_s / self.bandwidth_ratio)

    def bounds(self, decodes: int, prompts: Prompts, drafts: int) -> tuple[Bound, ...]:
        """The parts of a step that take what computing or reading takes, whichever is longer."""
        verified = decodes * (1 + drafts)
        return (
            self.layers(verified + prompts.tokens),
            self.head(verified + prompts.parts),
            self.attention(prompts),
            self.drafting(decodes, drafts),
        )

    def swap_s(self, tokens: int) -> float:
        """See `StepCost`; each GPU moves its own part over its own bus."""
        return self.kv_bytes_per_token * tokens / self.device.bus_bytes_per_s

    def layers(self, tokens: int) -> Bound:
        """The layers' matrices, for so many tokens."""
        flops = 2.0 * self._kept * self.model.active_parameters * tokens
        read = self.layer_bytes(tokens)
        return Bound(flops / self._layer_flops_per_s, read / self._weights_per_s)

    def head(self, sampled: int) -> Bound:
        """The output head, for so many tokens."""
        weights = self.model.head_parameters
        flops = 2.0 * weights * sampled
        return Bound(flops / self._flops_per_s, 2.0 * weights / self._weights_per_s)

    def attention(self, prompts: Prompts) -> Bound:
        """Attention of prompts: scores and sums, two operations a head, its width and a pair."""
        model = self.model
        flops = 4.0 * model.layers * model.heads * model.head_dim * prompts.pairs
        return Bound(flops / self._flops_per_s, self.kv_token_s * prompts.context)

    def drafting(self, decodes: int, drafts: int) -> Bound:
        """Drafting so many tokens, one after the other, for each of so many sequences."""
        if self.draft is None or not decodes:
            return Bound(0.0, 0.0)
        flops = 2.0 * self.draft.parameters * decodes * drafts
        return Bound(flops / self._flops_per_s, self.draft_bytes * drafts / self._weights_per_s)

    def exchange_s(self, tokens: int) -> float:
        """Adding up between GPUs, twice a layer."""
        if self.gpus == 1:
            return 0.0
        moved = 2 * (self.gpus - 1) / self.gpus * 2 * self.model.hidden * tokens
        once_s = self.link_latency_s + moved / self.device.link_bytes_per_s
        return 2 * self.model.layers * once_s

    @cached_property
    def kv_token_s(self) -> float:
        """Reading the KV cache of one token, by the data sheet."""
        return self.kv_bytes_per_token / self.device.memory_bytes_per_s

    def layer_bytes(self, tokens: int) -> float:
        """Bytes of the layers' weights that so many tokens need."""
        model = self.model
        missed = (1 - model.experts_per_token / model.experts) ** tokens
        experts = model.experts * model.expert_parameters * (1 - missed)
        weights = model.shared_parameters + experts
        return self._kept * weights * self.quantization.weight_bits / 8

"""The options that describe the simulated engine, and the engine they describe.

Without `--gpu` a step takes what five figures say (`LinearCost`); with it, what a model takes on a
machine (`RooflineCost`), whose memory then says how much the KV cache holds.
"""

from __future__ import annotations

from typing import Any

import click

from reference_server.engine import (
    EngineConfig,
    LinearCost,
    Preemption,
    RooflineCost,
    Scheduling,
    Speculation,
)
from reference_server.engine.cost import QUANTIZATIONS, quantization_named
from reference_server.engine.hardware import DEVICES, device_named
from reference_server.engine.machine import MEMORY_RATIO, Machine
from reference_server.engine.models import MODELS, model_named
from reference_server.engine.routing import Routing
from reference_server.errors import SettingsError
from streamgauge.commands._settings import COUNT, SHARE, Duration, Setting, chosen, given

UNNAMED_MODEL = "sim-8b"
"""What the simulated model is called where nobody names one; no machine is known to run it."""

_ENGINE = EngineConfig()
_COST = LinearCost()
_ROOFLINE = RooflineCost(model=MODELS["llama-3.1-8b"], device=DEVICES["h200"])  # for its defaults
_SPECULATION = Speculation()

ENGINE_SETTINGS = (
    Setting("--max-num-seqs", "max_num_seqs", COUNT, _ENGINE.max_num_seqs,
             "requests that run at once; more wait."),
    Setting("--max-num-queued-reqs", "max_queued", click.IntRange(0), _ENGINE.max_queued,
             "requests that may wait; more are refused with 503. Without it: any number."),
    Setting("--max-num-batched-tokens", "max_batched_tokens", COUNT, _ENGINE.max_batched_tokens,
             "tokens computed in one step at most. With --gpu this and --max-num-seqs are vLLM's "
             "for that GPU."),
    Setting("--kv-cache-tokens", "kv_cache_tokens", COUNT, _ENGINE.kv_cache_tokens,
             "tokens the KV cache holds; with --gpu what the weights leave of its memory."),
    Setting("--block-size", "block_tokens", COUNT, _ENGINE.block_tokens,
            "tokens a block of the KV cache holds."),
    Setting("--prefix-caching", "prefix_caching", bool, False,
            "keep blocks after use, to be found by prompts that begin alike."),
    Setting("--preemption", "preemption", click.Choice([mode.value for mode in Preemption]),
            _ENGINE.preemption.value, "what becomes of the cache of a preempted sequence."),
    Setting("--scheduling-policy", "scheduling",
            click.Choice([policy.value for policy in Scheduling]), _ENGINE.scheduling.value,
            "who comes first: in the order they came, or by the priority that requests give."),
)  # fmt: skip
COST_SETTINGS = (
    Setting("--prefill-base", "prefill_base_s", Duration(), _COST.prefill_base_s,
             "cost of a step that computes prompt tokens."),
    Setting("--prefill-per-token", "prefill_per_token_s", Duration(), _COST.prefill_per_token_s,
             "cost of each prompt token."),
    Setting("--decode-base", "decode_base_s", Duration(), _COST.decode_base_s,
             "cost of a step that generates tokens."),
    Setting("--decode-per-sequence", "decode_per_sequence_s", Duration(),
             _COST.decode_per_sequence_s, "cost of each sequence that gets one."),
    Setting("--decode-per-kv-token", "decode_per_kv_token_s", Duration(),
             _COST.decode_per_kv_token_s, "cost of each token in the KV cache those look at."),
)  # fmt: skip
SPECULATION_SETTINGS = (
    Setting("--draft-tokens", "draft_tokens", click.IntRange(0), 0,
            "tokens drafted a step and sequence (speculative decoding); 0: none."),
    Setting("--acceptance-ratio", "acceptance_ratio", SHARE, _SPECULATION.acceptance_ratio,
            "chance that a drafted token is accepted where those before it were."),
)  # fmt: skip
MACHINE_SETTINGS = (
    Setting("--gpu", "gpu", str, None,
            f"simulate --model on this device: {', '.join(DEVICES)}. The models: "
            f"{', '.join(MODELS)}."),
    Setting("--tensor-parallel-size", "gpus", COUNT, 1, "GPUs that share every layer."),
    Setting("--quantization", "quantization", str, "none",
            f"how the weights are kept: {', '.join(QUANTIZATIONS)}."),
    Setting("--kv-cache-dtype", "kv_cache_dtype", click.Choice(["auto", "fp8"]), "auto",
            "16 or 8 bits a number in the KV cache."),
    Setting("--pruned", "pruned_ratio", click.FloatRange(0, 1, max_open=True), 0.0,
            "share of the layers' weights taken out."),
    Setting("--draft-model", "draft_model", str, None,
            "the model that drafts; without it drafting costs nothing (n-grams of the prompt)."),
    Setting("--gpu-memory-utilization", "memory_ratio", SHARE, MEMORY_RATIO,
            "share of a GPU's memory that may be used."),
    Setting("--compute-ratio", "compute_ratio", SHARE, _ROOFLINE.compute_ratio,
            "share of the data sheet's operations that is reached."),
    Setting("--bandwidth-ratio", "bandwidth_ratio", SHARE, _ROOFLINE.bandwidth_ratio,
            "share of the data sheet's memory bandwidth that is reached."),
    Setting("--step-overhead", "overhead_s", Duration(), _ROOFLINE.overhead_s,
            "what every step takes besides."),
    Setting("--sequence-overhead", "per_sequence_s", Duration(), _ROOFLINE.per_sequence_s,
            "what every sequence of a step takes besides."),
)  # fmt: skip
FLEET_SETTINGS = (
    Setting("--replicas", "replicas", COUNT, 1, "engines behind a router, all alike."),
    Setting("--routing", "routing", click.Choice([way.value for way in Routing]),
            Routing.LEAST_LOADED.value, "how requests are spread over them."),
)  # fmt: skip
ALL_SETTINGS = (
    *ENGINE_SETTINGS,
    *COST_SETTINGS,
    *SPECULATION_SETTINGS,
    *MACHINE_SETTINGS,
    *FLEET_SETTINGS,
)


def engine_of(ctx: click.Context, model: str, options: dict[str, Any]) -> EngineConfig:
    """The engine that a command line describes.

    Args:
        ctx: which options stand on it.
        model: name of the model served; with `--gpu` one whose shape is known.
        options: the values of `ALL_SETTINGS`, by field.

    Raises:
        click.UsageError: an option that would have no effect.
        SettingsError: settings that contradict each other, names that are not known.
    """
    _refuse_options_without_effect(ctx, options)
    drafts = options["draft_tokens"]
    speculation = Speculation(**chosen(options, SPECULATION_SETTINGS)) if drafts else None
    engine = chosen(options, ENGINE_SETTINGS) | {
        "preemption": Preemption(options["preemption"]),
        "scheduling": Scheduling(options["scheduling"]),
        "speculation": speculation,
    }
    if options["gpu"] is None:
        return EngineConfig(**engine, cost=LinearCost(**chosen(options, COST_SETTINGS)))
    on_line = {setting.field for setting in given(ctx, ENGINE_SETTINGS)}
    for name in {"max_num_seqs", "max_batched_tokens", "kv_cache_tokens"} - on_line:
        del engine[name]  # the machine has its own
    return _machine(model, options).engine(**engine)


def _machine(model: str, options: dict[str, Any]) -> Machine:
    draft = options["draft_model"]
    device = device_named(options["gpu"])
    if model == UNNAMED_MODEL:
        raise SettingsError(f"--gpu needs --model, one of {', '.join(MODELS)}.")
    cost = RooflineCost(
        model=model_named(model),
        device=device,
        gpus=options["gpus"],
        quantization=quantization_named(options["quantization"]),
        kv_bits=8 if options["kv_cache_dtype"] == "fp8" else 16,
        pruned_ratio=options["pruned_ratio"],
        draft=None if draft is None else model_named(draft),
        overhead_s=options["overhead_s"],
        per_sequence_s=options["per_sequence_s"],
        compute_ratio=options["compute_ratio"],
        bandwidth_ratio=options["bandwidth_ratio"],
    )
    return Machine(cost=cost, memory_ratio=options["memory_ratio"])


def _refuse_options_without_effect(ctx: click.Context, options: dict[str, Any]) -> None:
    """An option that would do nothing is a misunderstanding, so it is said."""
    if options["gpu"] is None:
        for setting in given(ctx, MACHINE_SETTINGS):
            raise click.UsageError(f"{setting.flag} needs --gpu.")
    else:
        for setting in given(ctx, COST_SETTINGS):
            raise click.UsageError(f"{setting.flag} has no effect with --gpu.")
    if not options["draft_tokens"]:
        speculative = {"acceptance_ratio", "draft_model"}
        for setting in given(ctx, (*SPECULATION_SETTINGS, *MACHINE_SETTINGS)):
            if setting.field in speculative:
                raise click.UsageError(f"{setting.flag} needs --draft-tokens.")
    if options["replicas"] == 1:
        for setting in given(ctx, FLEET_SETTINGS):
            if setting.field == "routing":
                raise click.UsageError(f"{setting.flag} needs --replicas.")

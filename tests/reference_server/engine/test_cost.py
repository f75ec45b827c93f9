"""The models of cost: what each part of a machine, a model and a batch does to a step's time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.engine.cost import (
    QUANTIZATIONS,
    LinearCost,
    Prompts,
    RooflineCost,
    quantization_named,
)
from reference_server.engine.hardware import DEVICES
from reference_server.engine.machine import Machine
from reference_server.engine.models import MODELS
from reference_server.errors import SettingsError

LLAMA = RooflineCost(model=MODELS["llama-3.1-8b"], device=DEVICES["h100"])


def prompt(tokens: int, context: int = 0) -> Prompts:
    """One prompt's part of so many tokens, after so many in the cache."""
    pairs = tokens * context + tokens * (tokens + 1) // 2
    return Prompts(parts=1, tokens=tokens, pairs=pairs, context=context)


def test_a_lone_decode_step_reads_the_weights_once() -> None:
    """8.03e9 weights less the embedding, two bytes each, at 80 % of 3.35 TB/s, and 0.5 ms."""
    weights = 8_030_261_248 - 128_256 * 4096
    expected_s = 0.5e-3 + 2 * weights / (0.8 * 3.35e12)

    assert LLAMA.line(1).base_s == pytest.approx(expected_s)
    assert LLAMA.line(1).per_kv_token_s == pytest.approx(131_072 / (0.8 * 3.35e12))


def test_a_long_prompt_is_bound_by_computing() -> None:
    """Two operations a weight and token at 70 % of 989 TFLOPS, attention, the head once."""
    tokens = 4096
    layers = 2 * (8_030_261_248 - 2 * 128_256 * 4096) * tokens
    attention = 4 * 32 * 32 * 128 * tokens * (tokens + 1) / 2
    head_s = 2 * 128_256 * 4096 / (0.8 * 3.35e12)  # one token is sampled: reading is slower
    expected_s = 0.5e-3 + (layers + attention) / (0.7 * 989.4e12) + head_s

    assert LLAMA.line(0, prompt(tokens)).base_s == pytest.approx(expected_s)


@given(st.integers(1, 512), st.integers(0, 4), st.integers(0, 4096), st.integers(0, 8192))
def test_more_work_never_takes_less(decodes: int, drafts: int, tokens: int, context: int) -> None:
    """One more sequence, token, draft or context token makes no step faster."""
    cost = replace(LLAMA, gpus=2, draft=MODELS["llama-3.2-1b"], per_sequence_s=1e-6)
    before = cost.line(decodes, prompt(tokens, context), drafts).base_s

    assert cost.line(decodes + 1, prompt(tokens, context), drafts).base_s >= before
    assert cost.line(decodes, prompt(tokens + 1, context), drafts).base_s >= before
    assert cost.line(decodes, prompt(tokens, context + 1), drafts).base_s >= before
    assert cost.line(decodes, prompt(tokens, context), drafts + 1).base_s >= before


@pytest.mark.parametrize(
    ("change", "faster"),
    [
        ({"device": DEVICES["h200"]}, "decode"),
        ({"quantization": QUANTIZATIONS["fp8"]}, "both"),
        ({"quantization": QUANTIZATIONS["awq"]}, "decode"),
        ({"pruned_ratio": 0.5}, "both"),
        ({"gpus": 2}, "both"),
        ({"kv_bits": 8}, "cache"),
    ],
)
def test_what_each_variant_makes_faster(change: dict[str, Any], faster: str) -> None:
    """4-bit weights speed up reading, not computing; a smaller cache its own part alone."""
    there = replace(LLAMA, **change)
    decode = there.line(1).base_s < LLAMA.line(1).base_s
    prefill = there.line(0, prompt(4096)).base_s < LLAMA.line(0, prompt(4096)).base_s
    cache = there.line(1).per_kv_token_s < LLAMA.line(1).per_kv_token_s

    expected = {
        "decode": (True, False),
        "both": (True, True),
        "cache": (False, False),
    }[faster]
    # A prompt samples one token, whose head is read: a faster memory shows there a little.
    computing_alone = there.layers(4096).compute_s < LLAMA.layers(4096).compute_s
    assert (decode, computing_alone) == expected
    assert cache == (faster == "cache" or "gpus" in change or "device" in change)
    assert prefill == computing_alone or "device" in change


def test_fp8_on_an_a100_saves_bytes_and_no_operations() -> None:
    """It has no units for 8-bit floats."""
    a100 = replace(LLAMA, device=DEVICES["a100"])
    fp8 = replace(a100, quantization=QUANTIZATIONS["fp8"])

    assert fp8.layers(1).reading_s == pytest.approx(a100.layers(1).reading_s / 2)
    assert fp8.layers(8192).compute_s == a100.layers(8192).compute_s


def test_two_gpus_are_less_than_twice_as_fast() -> None:
    """They have to add up their parts, 64 times a step of 32 layers."""
    two = replace(LLAMA, gpus=2)
    alone_s = LLAMA.line(1).base_s - LLAMA.overhead_s
    shared_s = two.line(1).base_s - two.overhead_s

    assert shared_s == pytest.approx(alone_s / 2 + two.exchange_s(1))
    assert two.exchange_s(1) == pytest.approx(64 * (8e-6 + 2 * 4096 / 450e9))


def test_more_gpus_than_heads_keep_a_head_twice() -> None:
    """Eight heads on sixteen GPUs: each GPU keeps one, not a half."""
    assert replace(LLAMA, gpus=8).kv_bytes_per_token == 16_384
    assert replace(LLAMA, gpus=16).kv_bytes_per_token == 16_384


def test_a_batch_of_a_mixture_reads_more_experts_than_a_token() -> None:
    """One token reads two of eight; a hundred read all of them."""
    mixtral = replace(LLAMA, model=MODELS["mixtral-8x7b"])
    expert = 2 * mixtral.model.expert_parameters
    shared = 2 * mixtral.model.shared_parameters

    assert mixtral.layer_bytes(1) == pytest.approx(shared + 2 * expert)
    assert mixtral.layer_bytes(100) == pytest.approx(shared + 8 * expert)


def test_drafting_costs_what_the_drafting_model_reads() -> None:
    """Three tokens drafted by a model of 1.2e9 weights; n-grams of the prompt cost nothing."""
    drafted = replace(LLAMA, draft=MODELS["llama-3.2-1b"])
    more_s = drafted.line(1, drafts=3).base_s - LLAMA.line(1, drafts=3).base_s

    assert more_s == pytest.approx(3 * 2 * 1_235_814_400 / (0.8 * 3.35e12))


def test_swapping_goes_over_the_bus() -> None:
    """A thousand tokens of 131,072 bytes at 64 GB/s."""
    assert LLAMA.swap_s(1000) == pytest.approx(131_072_000 / 64e9)


def test_the_linear_defaults_are_those_of_the_documentation() -> None:
    """200 prompt tokens alone take 60 ms, a decode step alone 8 ms, with 32 running 20 ms."""
    cost = LinearCost()

    assert cost.line(0, prompt(200)).base_s == pytest.approx(0.060)
    assert cost.line(1).at(250) == pytest.approx(0.008, abs=0.0002)
    assert cost.line(32).at(32 * 250) == pytest.approx(0.020, abs=0.0005)


def test_the_cache_gets_what_the_weights_leave() -> None:
    """92 % of 80 GB, less 2 GB, less 16.06 GB of weights, by 131,072 bytes a token."""
    expected = (0.92 * 80e9 - 2e9 - 2 * 8_030_261_248) // 131_072

    assert Machine(cost=LLAMA).kv_cache_tokens == expected


def test_an_engine_has_vllms_defaults_for_its_gpu() -> None:
    """Large ones take 1,024 sequences and 8,192 tokens a step; others, and an A100, less."""
    large = Machine(cost=LLAMA).engine()
    small = Machine(cost=replace(LLAMA, device=DEVICES["a10g"])).engine(max_num_seqs=7)

    assert (large.max_num_seqs, large.max_batched_tokens) == (1024, 8192)
    assert (small.max_num_seqs, small.max_batched_tokens) == (7, 2048)
    assert large.kv_cache_tokens == Machine(cost=LLAMA).kv_cache_tokens
    assert Machine(cost=replace(LLAMA, device=DEVICES["a100"])).engine().max_num_seqs == 256


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gpus": 0}, "at least one GPU"),
        ({"pruned_ratio": 1.0}, "below 1"),
        ({"kv_bits": 4}, "8 or 16 bits"),
        ({"overhead_s": -1.0}, "negative"),
        ({"compute_ratio": 0.0}, "above 0"),
    ],
)
def test_costs_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SettingsError, match=says):
        replace(LLAMA, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"decode_base_s": -0.001}, {"prefill_base_s": 0.0, "prefill_per_token_s": 0.0}],
)
def test_a_step_that_takes_no_time_is_refused(wrong: dict[str, float]) -> None:
    """An engine that could stand still for ever is not built."""
    with pytest.raises(SettingsError, match="take some time"):
        LinearCost(**wrong)


def test_a_model_that_does_not_fit_is_refused() -> None:
    """In one sentence that says what would help."""
    large = replace(LLAMA, model=MODELS["llama-3.1-70b"])
    with pytest.raises(SettingsError, match=r"141\.1 GB of weights a GPU, 71\.6 GB usable"):
        Machine(cost=large)
    with pytest.raises(SettingsError, match="share of memory"):
        Machine(cost=LLAMA, memory_ratio=0)


def test_a_quantization_that_is_not_known_is_refused() -> None:
    """With those that are."""
    with pytest.raises(SettingsError, match="choose one of none, fp8, int8, awq, gptq"):
        quantization_named("q4_k_m")

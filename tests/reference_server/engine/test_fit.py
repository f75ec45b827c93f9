"""Fitting finds the parameters that made the samples, through noise too."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from reference_server.engine import Engine, EngineConfig, LinearCost, RooflineCost, Sequence
from reference_server.engine.cost import NO_PROMPTS, Prompts
from reference_server.engine.fit import (
    Sample,
    Work,
    alone,
    fit_linear,
    fit_roofline,
    predicted_s,
    steady,
)
from reference_server.engine.hardware import DEVICES
from reference_server.engine.models import MODELS
from reference_server.errors import SettingsError

LINEAR = LinearCost(
    prefill_base_s=0.004,
    prefill_per_token_s=3e-5,
    decode_base_s=0.006,
    decode_per_sequence_s=1.2e-4,
    decode_per_kv_token_s=8e-8,
)
ROOFLINE = RooflineCost(
    model=MODELS["llama-3.1-8b"],
    device=DEVICES["a100"],
    overhead_s=0.0013,
    per_sequence_s=2.2e-5,
    compute_ratio=0.52,
    bandwidth_ratio=0.71,
)


def steps(cost: LinearCost | RooflineCost, noise: float, *, count: int = 300) -> list[Sample]:
    """Steps of all kinds, and what they take, off by so much of it."""
    draw = random.Random(4)
    samples = []
    for _ in range(count):
        decodes = draw.choice([0, 1, 4, 16, 64, 200])
        kv_tokens = decodes * draw.randint(100, 4000)
        tokens = draw.choice([0, 1, 100, 1000, 4000]) if decodes else draw.randint(1, 8000)
        context = draw.choice([0, 0, 2000])
        pairs = tokens * context + tokens * (tokens + 1) // 2
        prompts = Prompts(1, tokens, pairs, context) if tokens else NO_PROMPTS
        work = Work(decodes, kv_tokens, prompts)
        exact = Sample((work,), 1.0)
        seconds = predicted_s(cost, exact) * draw.lognormvariate(0, noise)
        samples.append(Sample((work,), seconds))
    return samples


@pytest.mark.parametrize(("noise", "within"), [(0.0, 1e-3), (0.05, 0.1)])
def test_the_linear_parameters_are_found_again(noise: float, within: float) -> None:
    """From defaults that are far off; 5 % of noise moves none by more than 10 %."""
    fit = fit_linear(LinearCost(), steps(LINEAR, noise))

    for name in ("prefill_base_s", "prefill_per_token_s", "decode_base_s", "decode_per_sequence_s"):
        assert getattr(fit.cost, name) == pytest.approx(getattr(LINEAR, name), rel=within), name
    assert fit.error_ratio_p50 <= noise + 1e-3


@pytest.mark.parametrize(("noise", "within"), [(0.0, 1e-3), (0.05, 0.1)])
def test_the_roofline_parameters_are_found_again(noise: float, within: float) -> None:
    """Overhead, cost of a sequence, and the shares of computing and of bandwidth."""
    start = RooflineCost(model=ROOFLINE.model, device=ROOFLINE.device)
    fit = fit_roofline(start, steps(ROOFLINE, noise))

    for name in ("compute_ratio", "bandwidth_ratio", "overhead_s", "per_sequence_s"):
        assert getattr(fit.cost, name) == pytest.approx(getattr(ROOFLINE, name), rel=within), name
    assert fit.error_ratio_p50 <= noise + 1e-3
    assert fit.samples == 300


def test_what_requests_saw_is_enough() -> None:
    """Latencies of the engine itself, as a client measures them, lead back to its cost."""
    config = EngineConfig(cost=ROOFLINE, max_num_seqs=128)
    budget = config.max_batched_tokens
    samples = [alone(prompt, _ttft_s(config, prompt), budget) for prompt in (100, 1000, 3000, 7000)]
    samples += [
        steady(concurrency, prompt, 100, _itl_s(config, concurrency, prompt))
        for concurrency in (1, 8, 32, 96)
        for prompt in (50, 600)
    ]
    start = RooflineCost(model=ROOFLINE.model, device=ROOFLINE.device)
    fit = fit_roofline(start, samples)

    assert fit.error_ratio_max < 0.01
    assert fit.cost.compute_ratio == pytest.approx(ROOFLINE.compute_ratio, rel=0.02)
    assert fit.cost.bandwidth_ratio == pytest.approx(ROOFLINE.bandwidth_ratio, rel=0.02)


def _ttft_s(config: EngineConfig, prompt: int) -> float:
    engine = Engine(config)
    engine.submit(Sequence("a", prompt, 1))
    total = 0.0
    while not engine.idle:
        total += engine.step().duration_s
    return total


def _itl_s(config: EngineConfig, concurrency: int, prompt: int) -> float:
    """Mean step of a hundred tokens each, once all decode."""
    engine = Engine(config)
    for number in range(concurrency):
        engine.submit(Sequence(number, prompt, 100))
    decoding = []
    while not engine.idle:
        step = engine.step()
        if not step.prefill_tokens and len(step.tokens) == concurrency:
            decoding.append(step.duration_s)
    return sum(decoding) / len(decoding)


def test_what_the_samples_do_not_tell_stays_as_it_was() -> None:
    """Decode steps alone say nothing of prompts."""
    samples = [
        steady(c, p, 100, predicted_s(LINEAR, steady(c, p, 100, 1.0)))
        for c in (1, 8, 32)
        for p in (100, 900)
    ]
    fit = fit_linear(LinearCost(), samples)

    assert fit.cost.prefill_base_s == pytest.approx(LinearCost().prefill_base_s)
    assert fit.cost.decode_base_s == pytest.approx(LINEAR.decode_base_s, rel=0.01)


def test_no_parameter_becomes_negative() -> None:
    """A machine without any cost of a sequence, measured with noise."""
    flat = replace(LINEAR, decode_per_sequence_s=0.0, prefill_base_s=0.0)
    fit = fit_linear(LinearCost(), steps(flat, 0.2, count=60))

    assert fit.cost.decode_per_sequence_s >= 0
    assert fit.cost.prefill_base_s >= 0


def test_two_gpus_are_fitted_with_their_exchange() -> None:
    """What they say to each other is taken as given."""
    there = replace(ROOFLINE, gpus=2)
    start = RooflineCost(model=there.model, device=there.device, gpus=2)
    fit = fit_roofline(start, steps(there, 0.02))

    assert fit.cost.bandwidth_ratio == pytest.approx(there.bandwidth_ratio, rel=0.05)


@pytest.mark.parametrize("samples", [[], [Sample((Work(decodes=1),), 0.0)]])
def test_nothing_measured_is_refused(samples: list[Sample]) -> None:
    """In one sentence."""
    with pytest.raises(SettingsError, match="took some time"):
        fit_linear(LinearCost(), samples)

"""Fitting the models of cost to a measured run, by least squares.

A sample is some steps and how long they took together: one step, if a server tells of its steps;
the decode steps of a steady load, from its inter-token latency (`steady`); the prompt of a request
that had the machine to itself, from its time to first token (`alone`). What a step takes is linear
in the parameters, the roofline's in the overheads and in the inverse of the shares that it reaches,
once it is known which parts are bound by computing and which by reading. So that is assumed, the
parameters are solved for, and what is bound by what is looked at again, until nothing changes.

Errors are weighted by the time measured, so that a short step counts as much as a long one. No
parameter may become negative, and no share above 1, which the data sheet gives. Those that the
samples say nothing about stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from reference_server.engine.cost import NO_PROMPTS, LinearCost, Prompts, RooflineCost
from reference_server.errors import SettingsError

C = TypeVar("C", LinearCost, RooflineCost)
Vector = npt.NDArray[np.float64]

_PULL: Final = 1e-4  # weight of staying as it was, beside a sample's 1
_ROUNDS: Final = 50


class Work(NamedTuple):
    """What a step does; or what each of several steps does on average.

    Attributes:
        decodes: sequences that decode.
        kv_tokens: tokens they attend to, together.
        prompts: what is computed of prompts.
        drafts: drafted tokens that each decoding sequence verifies.
        steps: how many steps do that.
    """

    decodes: int = 0
    kv_tokens: float = 0.0
    prompts: Prompts = NO_PROMPTS
    drafts: int = 0
    steps: int = 1


class Sample(NamedTuple):
    """Some steps, and the seconds they took together."""

    works: tuple[Work, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit(Generic[C]):
    """A fitted cost.

    Attributes:
        cost: with the parameters found.
        samples: how many it was fitted to.
        error_ratio_p50: median of |predicted - measured| / measured over the samples.
        error_ratio_max: the largest of them.
    """

    cost: C
    samples: int
    error_ratio_p50: float
    error_ratio_max: float


def steady(concurrency: int, prompt_tokens: int, output_tokens: int, itl_s: float) -> Sample:
    """The decode steps of so many requests that run side by side all the time.

    Args:
        concurrency: how many.
        prompt_tokens: of each.
        output_tokens: of each, at least 2.
        itl_s: mean time from token to token.
    """
    kv_tokens = concurrency * (prompt_tokens + output_tokens / 2)  # from p + 1 to p + o - 1
    return Sample((Work(decodes=concurrency, kv_tokens=kv_tokens),), itl_s)


def alone(prompt_tokens: int, ttft_s: float, max_batched_tokens: int) -> Sample:
    """The prompt of a request that had the machine to itself.

    Args:
        prompt_tokens: its length; none of it was cached.
        ttft_s: its time to first token.
        max_batched_tokens: the machine's token budget.
    """
    works = []
    for context in range(0, prompt_tokens, max_batched_tokens):
        tokens = min(max_batched_tokens, prompt_tokens - context)
        pairs = tokens * context + tokens * (tokens + 1) // 2
        works.append(Work(prompts=Prompts(1, tokens, pairs, context)))
    return Sample(tuple(works), ttft_s)


def fit_linear(cost: LinearCost, samples: Sequence[Sample]) -> Fit[LinearCost]:
    """The five figures that predict the samples best.

    Args:
        cost: where to begin.
        samples: what was measured.

    Raises:
        SettingsError: no sample, or one that took no time.
    """
    measured = _measured(samples)
    names = (
        "prefill_base_s",
        "prefill_per_token_s",
        "decode_base_s",
        "decode_per_sequence_s",
        "decode_per_kv_token_s",
    )
    rows = [_sum(sample, _linear_features) for sample in samples]
    before = np.array([getattr(cost, name) for name in names])
    found = _solve(np.array(rows), measured, before)
    fitted = replace(cost, **{name: float(x) for name, x in zip(names, found, strict=True)})
    return judged(fitted, samples)


def fit_roofline(cost: RooflineCost, samples: Sequence[Sample]) -> Fit[RooflineCost]:
    """The overheads and the shares reached that predict the samples best.

    Args:
        cost: the model and the machine, and where to begin.
        samples: what was measured.

    Raises:
        SettingsError: no sample, or one that took no time.
    """
    measured = _measured(samples)
    best = judged(cost, samples)
    for _ in range(_ROUNDS):
        features_of = partial(_roofline_features, cost)
        rows = np.array([_sum(sample, features_of) for sample in samples])
        features = rows[:, 1:]
        # What the data sheet's full rates take is certain; a share adds its inverse less 1 to it.
        fixed = rows[:, 0] + features[:, 2] + features[:, 3]
        more = (1 / cost.compute_ratio - 1, 1 / cost.bandwidth_ratio - 1)
        before = np.array([cost.overhead_s, cost.per_sequence_s, *more])
        found = _solve(features, measured - fixed, before, scale=measured)
        overhead_s, per_sequence_s, compute, reading = (float(x) for x in found)
        cost = replace(
            cost,
            overhead_s=overhead_s,
            per_sequence_s=per_sequence_s,
            compute_ratio=1 / (1 + compute),
            bandwidth_ratio=1 / (1 + reading),
        )
        tried = judged(cost, samples)
        if tried.error_ratio_p50 < best.error_ratio_p50:
            best = tried
        if np.allclose(found, before, rtol=1e-6):
            break
    return best


def _linear_features(work: Work) -> list[float]:
    """What each parameter is multiplied with."""
    tokens = work.prompts.tokens
    return [
        float(tokens > 0),
        tokens,
        float(work.decodes > 0),
        work.decodes * (1 + work.drafts),
        work.kv_tokens,
    ]


def _roofline_features(cost: RooflineCost, work: Work) -> list[float]:
    """What needs no parameter, then what each is multiplied with, as the parts are bound now."""
    computing, reading = 0.0, cost.kv_token_s * work.kv_tokens
    for bound in cost.bounds(work.decodes, work.prompts, work.drafts):
        if bound.compute_s / cost.compute_ratio > bound.reading_s / cost.bandwidth_ratio:
            computing += bound.compute_s
        else:
            reading += bound.reading_s
    tokens = work.decodes * (1 + work.drafts) + work.prompts.tokens
    sequences = work.decodes + work.prompts.parts
    return [cost.exchange_s(tokens), 1.0, sequences, computing, reading]


def _sum(sample: Sample, features_of: Callable[[Work], list[float]]) -> Vector:
    """The features of all steps of a sample together."""
    rows = [work.steps * np.array(features_of(work)) for work in sample.works]
    total: Vector = np.sum(rows, axis=0)
    return total


def _solve(
    features: Vector, seconds: Vector, before: Vector, scale: Vector | None = None
) -> Vector:
    """The least squares, none negative; what is not determined stays as it was.

    Args:
        features: a row a sample, a column a parameter.
        seconds: measured, less what needs no parameter.
        before: the parameters so far.
        scale: what an error is measured against; `seconds` unless given.
    """
    weight = 1 / (seconds if scale is None else scale)
    # A row a parameter that pulls it to where it was, in the unit of its share in the samples.
    share = np.abs(features * weight[:, None]).mean(axis=0)
    pull = _PULL * np.diag(np.where(share > 0, share, 1.0))
    matrix = np.vstack([features * weight[:, None], pull])
    target = np.concatenate([seconds * weight, pull @ before])
    found = np.zeros(len(before))
    free = np.ones(len(before), dtype=bool)
    while free.any():
        solved = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
        if (solved >= 0).all():
            found[free] = solved
            break
        free[np.flatnonzero(free)[solved < 0]] = False
    return found


def _measured(samples: Sequence[Sample]) -> Vector:
    measured = np.array([sample.seconds for sample in samples])
    if not len(samples) or not (measured > 0).all():
        raise SettingsError(
            "A cost can be fitted only to samples that took some time, at least one; got "
            f"{len(samples)}, the shortest {min(measured, default=0.0):g} s."
        )
    return measured


def predicted_s(cost: LinearCost | RooflineCost, sample: Sample) -> float:
    """What a sample's steps take by a model of cost."""
    total = 0.0
    for work in sample.works:
        line = cost.line(work.decodes, work.prompts, work.drafts)
        kv_tokens = work.kv_tokens if work.decodes else 0.0
        total += work.steps * (line.base_s + line.per_kv_token_s * kv_tokens)
    return total


def judged(cost: C, samples: Sequence[Sample]) -> Fit[C]:
    """How well a cost predicts the samples, as it is.

    Raises:
        SettingsError: no sample, or one that took no time.
    """
    measured = _measured(samples)
    predicted = np.array([predicted_s(cost, sample) for sample in samples])
    error = np.abs(predicted - measured) / measured
    return Fit(
        cost=cost,
        samples=len(measured),
        error_ratio_p50=float(np.median(error)),
        error_ratio_max=float(error.max()),
    )

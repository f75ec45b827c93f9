"""What recorded runs tell of the cost of a step: samples for `reference_server.engine.fit`.

Two kinds of request are evidence. One that had the server to itself until its first token tells
what its prompt takes. Any answer of two tokens or more tells what its decode steps take: as many as
it has tokens after the first, with as many sequences and tokens in the KV cache as were decoded
beside it on average, and among them those steps that computed the prompts of others, which are the
ones whose first tokens came meanwhile.

Taken from outside, so three things are assumed: a step yields one token a sequence, first tokens
that come within half a step of each other are of one step, and the way through HTTP takes no time
(it is counted as the server's). Requests that failed are left out, and what they cost with them.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from collectors.figures import window_span
from collectors.runs import Run
from collectors.table import Floats, RequestTable
from reference_server.engine.cost import NO_PROMPTS, Prompts
from reference_server.engine.fit import Sample, Work, alone

SAMPLES_A_KIND: Final = 50
"""Requests of a run taken as evidence of a kind, evenly over its window; more tell little more."""


def samples_of(run: Run, table: RequestTable, max_batched_tokens: int) -> list[Sample]:
    """The evidence of one run; empty where no request of its window tells anything.

    Args:
        run: as stored; what was due outside its window, its warm-up above all, is no evidence.
        table: all of its requests.
        max_batched_tokens: the server's token budget a step, by which long prompts were cut.
    """
    seen = _Seen(table)
    start_s, end_s = window_span(run, table)
    inside = (seen.due_at_s >= start_s) & (seen.due_at_s <= end_s)
    prompts = [i for i in np.flatnonzero(inside & (seen.cached == 0)) if seen.was_alone(int(i))]
    answers = np.flatnonzero(inside & (seen.steps >= 1) & (seen.decode_s > 0))
    return [
        *(
            alone(int(seen.input_tokens[i]), float(seen.ttft_s[i]), max_batched_tokens)
            for i in _spread(np.array(prompts, dtype=np.int64))
        ),
        *(seen.decoding(i, max_batched_tokens) for i in _spread(answers)),
    ]


class _Seen:
    """The successes of a run that tell their tokens, as columns."""

    def __init__(self, table: RequestTable) -> None:
        told = (
            table.sent_at_s
            + table.first_token_at_s
            + table.last_token_at_s
            + table.input_tokens
            + table.output_tokens
        )
        table = table.select(table.is_ok & np.isfinite(told))
        self.due_at_s: Floats = table.due_at_s
        self.sent_at_s: Floats = table.sent_at_s
        self.first_at_s: Floats = table.first_token_at_s
        self.last_at_s: Floats = table.last_token_at_s
        self.input_tokens: Floats = table.input_tokens
        self.output_tokens: Floats = table.output_tokens
        self.cached: Floats = np.nan_to_num(table.cached_input_tokens)
        in_first = np.where(np.isnan(table.first_event_tokens), 1, table.first_event_tokens)
        self.steps: Floats = table.output_tokens - in_first
        self.ttft_s: Floats = self.first_at_s - self.sent_at_s
        self.decode_s: Floats = self.last_at_s - self.first_at_s

    def was_alone(self, i: int) -> bool:
        """Whether no other request was under way until the first token."""
        beside = (self.sent_at_s < self.first_at_s[i]) & (self.last_at_s > self.sent_at_s[i])
        return bool(beside.sum() == 1 and self.ttft_s[i] > 0)

    def decoding(self, i: int, max_batched_tokens: int) -> Sample:
        """The decode steps of one request."""
        begin = np.maximum(self.first_at_s, self.first_at_s[i])
        end = np.minimum(self.last_at_s, self.last_at_s[i])
        share = np.maximum(end - begin, 0) / self.decode_s[i]  # of the time, by each request
        # Each cache has grown from its prompt on, here to the middle of the time shared.
        lasted = np.maximum(self.decode_s, 1e-9)
        grown = ((begin + end) / 2 - self.first_at_s) / lasted
        cache = self.input_tokens + self.output_tokens * np.clip(grown, 0, 1)
        decodes, kv_tokens = max(1, round(float(share.sum()))), float((share * cache).sum())
        steps = int(self.steps[i])
        computed = self._prompts(i, max_batched_tokens)[:steps]
        works = [Work(decodes, kv_tokens, prompts) for prompts in computed]
        if steps > len(computed):
            works.append(Work(decodes, kv_tokens, NO_PROMPTS, steps=steps - len(computed)))
        return Sample(tuple(works), float(self.decode_s[i]))

    def _prompts(self, i: int, max_batched_tokens: int) -> list[Prompts]:
        """What was computed of others' prompts, step by step, while one request decoded."""
        came = (self.first_at_s > self.first_at_s[i]) & (self.first_at_s <= self.last_at_s[i])
        others = np.flatnonzero(came)
        others = others[np.argsort(self.first_at_s[others])]
        apart_s = self.decode_s[i] / self.steps[i] / 2
        steps: list[Prompts] = []
        last_at_s = -np.inf
        for j in others:
            parts = self._parts(int(j), max_batched_tokens)
            fits = steps and len(parts) == 1
            fits = fits and steps[-1].tokens + parts[0].tokens <= max_batched_tokens
            if fits and self.first_at_s[j] - last_at_s < apart_s:
                pairs = zip(steps[-1], parts[0], strict=True)
                steps[-1] = Prompts(*(a + b for a, b in pairs))
            else:
                steps.extend(parts)
            last_at_s = self.first_at_s[j]
        return steps

    def _parts(self, j: int, max_batched_tokens: int) -> list[Prompts]:
        """One prompt, less what a cache had of it, in the parts it was computed in."""
        cached, until = int(self.cached[j]), int(self.input_tokens[j])
        parts = []
        for context in range(cached, until, max_batched_tokens):
            tokens = min(max_batched_tokens, until - context)
            pairs = tokens * context + tokens * (tokens + 1) // 2
            parts.append(Prompts(1, tokens, pairs, context))
        return parts


def _spread(chosen: np.typing.NDArray[np.int64]) -> list[int]:
    """At most `SAMPLES_A_KIND` of them, evenly."""
    if len(chosen) <= SAMPLES_A_KIND:
        return [int(i) for i in chosen]
    places = np.linspace(0, len(chosen) - 1, SAMPLES_A_KIND).round().astype(int)
    return [int(i) for i in chosen[places]]

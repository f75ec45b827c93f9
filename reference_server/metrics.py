"""The simulator's ``/metrics``: vLLM's names, types, labels and bucket edges.

Written by hand, since the page is the contract. Only what the simulated engine has is on it: there
is no multi-modal input, no cache beside the engine's own and no estimate of operations, so their
counters are absent, not zero, and those of drafted tokens are there only where tokens are drafted.
What vLLM does not have begins with ``sim:``. Durations are in the engine's time (see timeline.py),
which the process keeps up to the lateness on the page. As in vLLM, an aborted request leaves no
trace in the histograms of requests.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from reference_server.engine import EngineConfig, Step

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"

_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
_CHOICES = (1, 2, 5, 10, 20)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# fmt: off
_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
           20, 40, 80, 160, 640, 2560)
_ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20,
          40, 80)
_REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
              1920, 7680)
_LATENESS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1)
# fmt: on


class Gauge:
    """A value that goes up and down.

    Args:
        name: as on the page.
        about: what it tells.
        others: a further label, which kind `value` is of, and the kinds that are always 0.
        labels: the labels that all share.
    """

    def __init__(
        self,
        name: str,
        about: str,
        others: tuple[str, str, tuple[str, ...]] | None = None,
        **labels: str,
    ) -> None:
        self.value = 0.0
        self._name, self._about, self._labels, self._others = name, about, labels, others

    def lines(self) -> Iterator[str]:
        """Its part of the page."""
        yield from _header(self._name, self._about, "gauge")
        if self._others is None:
            yield _sample(self._name, self._labels, self.value)
            return
        label, kind, none = self._others
        yield _sample(self._name, self._labels | {label: kind}, self.value)
        for other in none:
            yield _sample(self._name, self._labels | {label: other}, 0.0)


class Counter:
    """Values that only go up, one for each value of one further label; or just one.

    Args:
        name: without the ``_total`` that the page adds.
        about: what it counts.
        by: the further label, if any, and the values it takes; all are shown from the start.
        labels: the labels that all share.
    """

    def __init__(
        self, name: str, about: str, by: tuple[str, tuple[str, ...]] | None = None, **labels: str
    ) -> None:
        self._name, self._about = name, about
        self._label = by[0] if by else ""
        self._values = dict.fromkeys(by[1] if by else ("",), 0.0)
        self._labels = labels
        self._created = time.time()

    def add(self, amount: float, kind: str = "") -> None:
        """Count so much more, of that kind."""
        self._values[kind] += amount

    def lines(self) -> Iterator[str]:
        """Its part of the page."""
        name, created = f"{self._name}_total", f"{self._name}_created"
        yield from _header(name, self._about, "counter")
        for kind, value in self._values.items():
            yield _sample(name, self._with(kind), value)
        yield from _header(created, self._about, "gauge")
        for kind in self._values:
            yield _sample(created, self._with(kind), self._created)

    def _with(self, kind: str) -> dict[str, str]:
        return self._labels | ({self._label: kind} if kind else {})


class Histogram:
    """How often values fell where."""

    def __init__(self, name: str, about: str, edges: Sequence[float], **labels: str) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._edges = [float(edge) for edge in edges]
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0
        self._created = time.time()

    def observe(self, value: float, times: int = 1) -> None:
        """Note a value; an edge belongs to the bucket below it."""
        self._counts[bisect_left(self._edges, value)] += times
        self._sum += value * times

    def observe_all(self, ordered: Sequence[float]) -> None:
        """Note many values at once, given in ascending order."""
        before = 0
        for bucket, edge in enumerate(self._edges):
            upto = bisect_right(ordered, edge)
            self._counts[bucket] += upto - before
            before = upto
        self._counts[-1] += len(ordered) - before
        self._sum += sum(ordered)

    def lines(self) -> Iterator[str]:
        """Its part of the page."""
        name = self._name
        yield from _header(name, self._about, "histogram")
        edges = [*(str(edge) for edge in self._edges), "+Inf"]
        for edge, count in zip(edges, accumulate(self._counts), strict=True):
            yield _sample(f"{name}_bucket", self._labels | {"le": edge}, count)
        yield _sample(f"{name}_count", self._labels, sum(self._counts))
        yield _sample(f"{name}_sum", self._labels, self._sum)
        yield from _header(f"{name}_created", self._about, "gauge")
        yield _sample(f"{name}_created", self._labels, self._created)


class Metrics:
    """All that is on the page."""

    def __init__(self, model: str, config: EngineConfig) -> None:
        names = {"engine": "0", "model_name": model}

        def gauge(
            name: str,
            about: str,
            others: tuple[str, str, tuple[str, ...]] | None = None,
            **more: str,
        ) -> Gauge:
            return Gauge(f"vllm:{name}", about, others, **names, **more)

        def counter(
            name: str, about: str, by: tuple[str, tuple[str, ...]] | None = None
        ) -> Counter:
            return Counter(f"vllm:{name}", about, by, **names)

        def histogram(name: str, about: str, edges: Sequence[float]) -> Histogram:
            return Histogram(f"vllm:{name}", about, edges, **names)

        self.running = gauge("num_requests_running", "Requests in the batch.")
        self.waiting = gauge("num_requests_waiting", "Requests in the queue.")
        self.waiting_for_capacity = gauge(
            "num_requests_waiting_by_reason",
            "Requests in the queue, by reason.",
            ("reason", "capacity", ("deferred",)),
        )
        self.awake = gauge(
            "engine_sleep_state",
            "Whether the engine is awake.",
            ("sleep_state", "awake", ("weights_offloaded", "discard_all")),
        )
        self.awake.value = 1.0
        self.kv_usage = gauge("kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.")
        self.cache_config = gauge(
            "cache_config_info",
            "Size of the KV cache.",
            block_size=str(config.block_tokens),
            num_gpu_blocks=str(config.blocks),
            kv_cache_size_tokens=str(config.blocks * config.block_tokens),
            enable_prefix_caching=str(config.prefix_caching),
        )
        self.cache_config.value = 1.0
        self.preemptions = counter(
            "num_preemptions", "Sequences that had to give up their place in the KV cache."
        )
        self.cache_queries = counter(
            "prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache."
        )
        self.cache_hits = counter("prefix_cache_hits", "Tokens of these that were found there.")
        self.prompt_tokens = counter(
            "prompt_tokens", "Prompt tokens, computed or found in a cache."
        )
        self.prompt_tokens_by_source = counter(
            "prompt_tokens_by_source",
            "Prompt tokens, by where their keys and values came from.",
            ("source", ("local_compute", "local_cache_hit", "external_kv_transfer")),
        )
        self.cached_tokens = counter("prompt_tokens_cached", "Prompt tokens found in a cache.")
        self.cached_tokens_by_source = counter(
            "prompt_tokens_cached_by_source",
            "Prompt tokens found in a cache, by which.",
            ("source", ("device", "host", "p2p", "disk", "external_unspecified")),
        )
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.finished = counter(
            "request_success",
            "Requests that ended well, by why they ended.",
            ("finished_reason", ("stop", "length", "abort", "error", "repetition")),
        )
        self.rejections = Counter(
            "vllm:admission_rejections",
            "Requests refused because the queue was full, by its limit.",
            ("reason", ("max_num_queued_reqs", "max_num_queued_tokens")),
            model_name=model,  # vLLM gives this one no engine
        )
        self.request_prompt_tokens = histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", _TOKENS
        )
        self.request_generation_tokens = histogram(
            "request_generation_tokens", "Tokens generated for a request.", _TOKENS
        )
        self.step_tokens = histogram(
            "iteration_tokens_total", "Tokens computed in one step of the engine.", _STEP_TOKENS
        )
        self.request_preemptions = histogram(
            "request_num_preemptions", "How often a request lost its place.", _PREEMPTIONS
        )
        self.request_computed_tokens = histogram(
            "request_prefill_kv_computed_tokens",
            "Prompt tokens of a request that were not found in a cache.",
            _TOKENS,
        )
        self.request_longest = histogram(
            "request_max_num_generation_tokens",
            "Tokens of the longest answer to a request.",
            _TOKENS,
        )
        self.request_n = histogram("request_params_n", "n as asked for.", _CHOICES)
        self.request_max_tokens = histogram(
            "request_params_max_tokens", "max_tokens as asked for.", _TOKENS
        )
        self.ttft_s = histogram("time_to_first_token_seconds", "Read to first token.", _TTFT_S)
        self.itl_s = histogram("inter_token_latency_seconds", "Token to token.", _ITL_S)
        self.tpot_s = histogram(
            "request_time_per_output_token_seconds",
            "First to last token, over the tokens after the first.",
            _ITL_S,
        )
        self.e2e_s = histogram("e2e_request_latency_seconds", "Read to last token.", _REQUEST_S)
        self.queue_s = histogram(
            "request_queue_time_seconds", "Read to admission into the batch.", _REQUEST_S
        )
        self.inference_s = histogram(
            "request_inference_time_seconds", "Admission to last token.", _REQUEST_S
        )
        self.prefill_s = histogram(
            "request_prefill_time_seconds", "Admission to first token.", _REQUEST_S
        )
        self.decode_s = histogram("request_decode_time_seconds", "First to last token.", _REQUEST_S)
        self.lateness_s = Histogram(
            "sim:token_lateness_seconds",
            "Lateness of the simulator itself: a token's write against the engine's schedule.",
            _LATENESS_S,
            model_name=model,
        )
        self.step_lateness_s = Histogram(
            "sim:step_lateness_seconds",
            "The first write of a step's tokens against the engine's schedule.",
            _LATENESS_S,
            model_name=model,
        )
        self.step_spread_s = Histogram(
            "sim:step_spread_seconds",
            "The last write of a step's tokens after the first.",
            _LATENESS_S,
            model_name=model,
        )

        if config.speculation:
            self.drafts = counter("spec_decode_num_drafts", "How often tokens were drafted.")
            self.drafted = counter("spec_decode_num_draft_tokens", "Tokens drafted.")
            self.accepted = counter("spec_decode_num_accepted_tokens", "Of these, accepted.")
            self.accepted_by_position = counter(
                "spec_decode_num_accepted_tokens_per_pos",
                "Of these, by their place in the draft.",
                ("position", tuple(map(str, range(config.drafts)))),
            )
        self._drafts_a_step = config.drafts

    def count_step(self, step: Step) -> None:
        """Note what a step did."""
        generated = sum(emitted.tokens for emitted in step.tokens)
        self.prompt_tokens.add(step.prefill_tokens + step.cache_hits)
        self.prompt_tokens_by_source.add(step.prefill_tokens, "local_compute")
        self.prompt_tokens_by_source.add(step.cache_hits, "local_cache_hit")
        self.generation_tokens.add(generated)
        self.step_tokens.observe(step.prefill_tokens + generated)
        self.preemptions.add(len(step.preempted))
        self.cache_queries.add(step.cache_queries)
        self.cache_hits.add(step.cache_hits)
        self.cached_tokens.add(step.cache_hits)
        self.cached_tokens_by_source.add(step.cache_hits, "device")
        if self._drafts_a_step:
            self.drafts.add(step.drafted // self._drafts_a_step)
            self.drafted.add(step.drafted)
            self.accepted.add(step.accepted)
            for emitted in step.tokens:
                for position in range(emitted.tokens - 1):
                    self.accepted_by_position.add(1, str(position))

    def page(self) -> bytes:
        """The page, in Prometheus' text format."""
        metrics = [metric for name, metric in vars(self).items() if not name.startswith("_")]
        lines = [line for metric in metrics for line in metric.lines()]
        return "\n".join([*lines, ""]).encode()


def _header(name: str, about: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{_escaped(labels[key])}"' for key in sorted(labels))
    return f"{name}{{{pairs}}} {float(value)}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

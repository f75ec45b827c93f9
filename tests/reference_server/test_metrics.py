"""The simulator's /metrics against the page of real vLLM 0.32."""

from __future__ import annotations

import re
from collections import defaultdict

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.engine import Engine, EngineConfig, Sequence, Span, Speculation
from reference_server.metrics import Histogram, Metrics
from tests.reference_server.conftest import FIXTURES, chat

SAMPLE = re.compile(r'([a-z0-9:_]+)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)')


NOT_SIMULATED = {
    *("vllm:estimated_flops_per_gpu", "vllm:estimated_read_bytes_per_gpu"),
    "vllm:estimated_write_bytes_per_gpu",
    *("vllm:external_prefix_cache_queries", "vllm:external_prefix_cache_hits"),
    *("vllm:mm_cache_queries", "vllm:mm_cache_hits"),
}


def parse(page: str) -> tuple[dict[str, str], dict[str, list[dict[str, str]]]]:
    """Type of each family, and the labels of each sample by its name; nothing is left over."""
    types, samples = {}, defaultdict(list)
    for line in page.splitlines():
        if line.startswith("# HELP"):
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            types[name] = kind
            continue
        match = SAMPLE.fullmatch(line)
        assert match, f"not a sample: {line}"
        float(match[3])
        labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2]))
        samples[match[1]].append(labels)
    return types, samples


def test_names_types_labels_and_edges_are_vllms() -> None:
    """All that is on the page is on vLLM's with the same type, labels and bucket edges."""
    types, samples = parse(Metrics("tiny", EngineConfig()).page().decode())
    vllm_types, vllm_samples = parse((FIXTURES / "vllm_metrics.txt").read_text())
    ours = {name: kind for name, kind in types.items() if name.startswith("vllm:")}

    assert ours.items() <= vllm_types.items()
    missing = {name for name in vllm_types if name.startswith("vllm:") and name not in ours}
    assert {re.sub(r"(_total|_created)$", "", name) for name in missing} == NOT_SIMULATED
    for name in [n for n in samples if n.startswith("vllm:") and n != "vllm:cache_config_info"]:
        there = vllm_samples[name]
        assert all(labels in there for labels in samples[name]), name
        if name.endswith("_bucket"):
            assert samples[name] == there


def test_the_page_counts_what_was_served(simulator: str) -> None:
    """One more request of 10 prompt tokens and 5 of output: sums and counts grow by just that."""

    def read() -> dict[str, float]:
        lines = httpx.get(f"{simulator}/metrics").text.splitlines()
        return {
            line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("vllm:")
        }

    before = read()
    httpx.post(f"{simulator}/v1/chat/completions", json=chat(max_tokens=5))
    after = read()

    def grew(name: str, more: str = "") -> float:
        key = f'vllm:{name}{{engine="0",{more}model_name="tiny"}}'
        return after[key] - before[key]

    assert grew("prompt_tokens_total") == 10
    assert grew("generation_tokens_total") == 5
    assert grew("request_success_total", 'finished_reason="length",') == 1
    assert grew("inter_token_latency_seconds_count") == 4
    assert grew("time_to_first_token_seconds_count") == 1
    parts = grew("request_queue_time_seconds_sum") + grew("request_inference_time_seconds_sum")
    assert abs(parts - grew("e2e_request_latency_seconds_sum")) < 1e-9
    halves = grew("request_prefill_time_seconds_sum") + grew("request_decode_time_seconds_sum")
    assert abs(halves - grew("request_inference_time_seconds_sum")) < 1e-9


def test_several_answers_are_one_request(simulator: str) -> None:
    """Of so many choices, and as long as the longest; of two prompts they are two."""

    def read(name: str) -> float:
        page = httpx.get(f"{simulator}/metrics").text
        return float(page.split(f'\nvllm:{name}{{engine="0",model_name="tiny"}} ')[1].split()[0])

    names = ["request_params_n_sum", "request_params_n_count"]
    names += ["request_max_num_generation_tokens_sum", "request_generation_tokens_sum"]
    before = [read(name) for name in names]
    fields = {"prompt": ["one", "two"], "n": 2, "max_tokens": 3}
    httpx.post(f"{simulator}/v1/completions", json=fields)

    assert [read(name) - was for name, was in zip(names, before, strict=True)] == [4, 2, 6, 12]


def test_a_value_on_an_edge_belongs_to_the_bucket_below() -> None:
    """``le`` means at most."""
    histogram = Histogram("x", "x", [1, 2])
    for value in (0.5, 1, 1.5, 2, 3):
        histogram.observe(value)
    buckets = [line.split()[-1] for line in histogram.lines() if line.startswith("x_bucket")]

    assert buckets == ["2.0", "4.0", "5.0"]


def test_a_models_name_cannot_break_the_page() -> None:
    """Quotes, backslashes and line ends in a label are escaped."""
    page = Metrics('a"b\\c\nd', EngineConfig()).page().decode()

    assert parse(page)[1]["vllm:num_requests_running"][0]["model_name"] == r"a\"b\\c\nd"


def test_drafted_tokens_are_counted_only_where_tokens_are_drafted() -> None:
    """By the names vLLM gives them; without speculation they are absent, not zero."""
    without = parse(Metrics("tiny", EngineConfig()).page().decode())[0]
    config = EngineConfig(speculation=Speculation(draft_tokens=2, acceptance_ratio=1.0))
    metrics, engine = Metrics("tiny", config), Engine(config)
    engine.submit(Sequence("a", 10, 7))
    while not engine.idle:
        metrics.count_step(engine.step())
    page = metrics.page().decode()
    labels = '{engine="0",model_name="tiny"}'

    assert not any("spec_decode" in name for name in without)
    assert f"vllm:spec_decode_num_drafts_total{labels} 2.0" in page
    assert f"vllm:spec_decode_num_draft_tokens_total{labels} 4.0" in page
    assert f"vllm:spec_decode_num_accepted_tokens_total{labels} 4.0" in page
    for position in "01":
        at = f'{{engine="0",model_name="tiny",position="{position}"}} 2.0'
        assert f"vllm:spec_decode_num_accepted_tokens_per_pos_total{at}" in page


def test_prompt_tokens_are_told_apart_by_source() -> None:
    """Of 40 asked twice, 80 in all, 39 were found the second time."""
    config = EngineConfig(prefix_caching=True, block_tokens=8)
    metrics, engine = Metrics("tiny", config), Engine(config)
    for name in "ab":
        engine.submit(Sequence(name, 40, 1, spans=(Span(1, 40),)))
        metrics.count_step(engine.step())
    page = metrics.page().decode()
    labels = 'engine="0",model_name="tiny"'

    assert f"vllm:prompt_tokens_total{{{labels}}} 80.0" in page
    assert f"vllm:prefix_cache_queries_total{{{labels}}} 80.0" in page
    assert f"vllm:prefix_cache_hits_total{{{labels}}} 39.0" in page
    assert f'by_source_total{{{labels},source="local_compute"}} 41.0' in page
    assert 'enable_prefix_caching="True"' in page


@given(st.lists(st.floats(0, 3)))
def test_many_values_at_once_are_counted_as_one_by_one(values: list[float]) -> None:
    """The same buckets, an edge in the bucket below it; the same sum."""
    singly, at_once = (Histogram("h", "about", (0.5, 1.0, 2.0)) for _ in range(2))
    values = [*values, 0.5, 2.0]
    for value in values:
        singly.observe(value)
    at_once.observe_all(sorted(values))

    assert at_once._counts == singly._counts
    assert at_once._sum == pytest.approx(singly._sum)

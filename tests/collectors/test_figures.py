"""The figures of a run, from hand-made requests with known answers."""

from __future__ import annotations

from array import array
from dataclasses import replace

import numpy as np
import pytest

from collectors.cost import usd_per_token
from collectors.figures import Figures, measure, window_span
from collectors.records import Outcome, RequestRecord, TokenSource
from collectors.runs import RunStatus
from collectors.samples import Sample
from tests.collectors.builders import make_request, make_run, make_table


def _steady(n: int = 100) -> list[RequestRecord]:
    """One request a second from 0.5 s on, each of 4 tokens."""
    return [make_request(i, i + 0.5) for i in range(n)]


def _figures(records: list[RequestRecord], **changes: object) -> Figures:
    return measure(make_run(**changes), make_table(records), [])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"warmup_s": 5.0}, (5.0, 100.0)),
        ({"warmup_s": None}, (10.0, 100.0)),  # 10 % of the duration
        ({"warmup_s": None, "duration_s": 1000.0, "stopped_at_s": 1000.0}, (30.0, 1000.0)),
        ({"warmup_s": None, "duration_s": None, "stopped_at_s": 40.0}, (4.0, 40.0)),
        ({"warmup_s": 5.0, "ramp_s": 20.0}, (20.0, 100.0)),  # the later of the two
        ({"warmup_s": 0.0}, (0.0, 100.0)),
        ({"stopped_at_s": None, "duration_s": None, "warmup_s": 0.0}, (0.0, 7.63)),  # still going
    ],
)
def test_the_window_runs_from_warm_up_or_ramp_to_the_stop(
    asked: dict[str, object], expected: tuple[float, float]
) -> None:
    """The later of warm-up and ramp begins it; by default 10 % of the duration, at most 30 s."""
    run = make_run(**asked)

    assert window_span(run, make_table([make_request(0, 7.5)])) == pytest.approx(expected)


def test_a_request_belongs_to_the_window_by_its_due_instant() -> None:
    """One due in the warm-up is left out though it ended later; every due one is counted once."""
    records = [
        make_request(0, 9.99, ttft_s=5.0),
        make_request(1, 20.0),
        make_request(2, 30.0, ttft_s=None, outcome=Outcome.RATE_LIMITED),
        make_request(3, 40.0, outcome=Outcome.UNFINISHED),
        make_request(4, 50.0, outcome=Outcome.NOT_SENT),
        make_request(5, 60.0, outcome=Outcome.CANCELLED),
        make_request(6, 100.0),
    ]
    window = _figures(records, warmup_s=10.0).window

    assert (window.due, window.ok, window.failed) == (6, 2, 1)
    assert (window.unfinished, window.not_sent, window.cancelled) == (1, 1, 1)


def test_errors_are_failures_of_what_was_answered() -> None:
    """Failures over ok, failed and unfinished: never sent and cancelled ones are not in it."""
    records = [make_request(i, float(i)) for i in range(6)]
    records += [make_request(10 + i, 10.0 + i, outcome=Outcome.TIMEOUT) for i in range(2)]
    records += [make_request(20, 20.0, outcome=Outcome.UNFINISHED)]
    records += [make_request(30 + i, 30.0 + i, outcome=Outcome.NOT_SENT) for i in range(5)]
    records += [make_request(40, 40.0, outcome=Outcome.CANCELLED)]
    figures = _figures(records)

    assert figures.errors is not None
    assert figures.errors.value == pytest.approx(2 / 9)
    assert figures.availability() is not None
    assert figures.by_outcome == {"timeout": 2}


def test_throughput_counts_what_arrived_in_the_window() -> None:
    """One request and four tokens a second, those of the warm-up's requests included."""
    figures = _figures(_steady(), warmup_s=50.25, stopped_at_s=90.25, duration_s=90.25)

    assert figures.requests_per_s is not None
    assert figures.output_tokens_per_s is not None
    assert figures.input_tokens_per_s is not None
    assert figures.requests_per_s.value == pytest.approx(1.0)
    assert figures.output_tokens_per_s.value == pytest.approx(4.0)
    assert figures.input_tokens_per_s.value == pytest.approx(50.0)


def test_tokens_count_by_the_instant_of_their_event() -> None:
    """Of a stream that reaches over the stop, only the events before it count."""
    record = make_request(0, 10.0, ttft_s=1.0, gaps_s=[1.0, 1.0, 17.5, 0.5], output_tokens=10)
    figures = _figures([record], stopped_at_s=20.0, duration_s=20.0)

    assert figures.output_tokens_per_s is not None
    assert figures.output_tokens_per_s.value == pytest.approx(
        6 / 20
    )  # 3 of 5 events, 2 tokens each


def test_without_gaps_tokens_are_spread_evenly() -> None:
    """Where gaps were not kept, events are taken to be evenly spaced, and the report says so."""
    streamed = make_request(0, 0.0, ttft_s=1.0, gaps_s=[1.0] * 9, output_tokens=20)
    bare = replace(streamed, gaps_s=None)
    figures = _figures([bare], stopped_at_s=5.5, duration_s=5.5)

    assert figures.output_tokens_per_s is not None
    assert figures.output_tokens_per_s.value == pytest.approx(10 / 5.5)
    assert any("leaves out 1 streamed" in warning for warning in figures.warnings)
    assert "itl_s" not in figures.latency


def test_unknown_tokens_are_unknown() -> None:
    """Without any token count there is no token figure: None, not 0."""
    records = [
        make_request(i, float(i), output_tokens=None, input_tokens=None, token_source=None)
        for i in range(50)
    ]
    figures = _figures(records)

    assert figures.output_tokens_per_s is None
    assert figures.input_tokens_per_s is None
    assert (figures.tokens.output, figures.tokens.source) == (None, None)
    assert "tpot_s" not in figures.latency
    assert any("leave out 50 requests" in w for w in figures.warnings)


def test_concurrency_is_the_mean_number_in_flight() -> None:
    """Two requests of 25 s each within 100 s are half a request in flight."""
    records = [make_request(i, 10.0 + 40 * i, ttft_s=24.0, gaps_s=[1.0]) for i in range(2)]

    assert _figures(records).achieved == pytest.approx(0.5)


def test_an_open_loop_achieves_what_it_sent() -> None:
    """The rate sent, never-sent ones left out."""
    records = [
        *_steady(50),
        *[make_request(i, i + 0.5, outcome=Outcome.NOT_SENT) for i in range(50, 100)],
    ]
    figures = _figures(records, loop="open", rate=1.0, users=None)

    assert (figures.asked, figures.achieved) == (1.0, 0.5)


def test_goodput_is_of_all_that_was_due() -> None:
    """Good ones over everything due, never sent ones included; None without objectives."""
    records = [
        *_steady(80),
        *[make_request(i, i + 0.5, outcome=Outcome.NOT_SENT) for i in range(80, 100)],
    ]
    good = np.arange(100) < 60
    figures = measure(make_run(), make_table(records), [], good=good)

    assert figures.goodput_ratio is not None
    assert figures.goodput_per_s is not None
    assert figures.goodput_ratio.value == pytest.approx(0.6)
    assert figures.goodput_per_s.value == pytest.approx(0.6)
    assert _figures(records).goodput_ratio is None


def test_cost_is_gpu_hours_over_what_was_served() -> None:
    """Two GPUs at 3.6 usd an hour for 100 s are 0.2 usd: over 100 requests, 400 tokens, 50 good."""
    run = make_run(gpu_hour_price_usd=3.6, gpus=2)
    cost = measure(run, make_table(_steady()), [], good=np.arange(100) < 50).cost

    assert cost.usd == pytest.approx(0.2)
    assert cost.basis == "gpu_hours"
    assert cost.per_request is not None
    assert cost.per_1m_output_tokens is not None
    assert cost.per_good_request is not None
    assert cost.per_request.value == pytest.approx(0.002)
    assert cost.per_1m_output_tokens.value == pytest.approx(500, rel=0.01)
    assert cost.per_good_request.value == pytest.approx(0.004)


def test_without_a_basis_nothing_is_free() -> None:
    """Costs are None without a price, and a price without a number of GPUs is said."""
    assert _figures(_steady()).cost.usd is None
    half = _figures(_steady(), gpu_hour_price_usd=2.0)
    assert half.cost.usd is None
    assert any("number of GPUs" in warning for warning in half.warnings)


def test_a_cost_is_shared_out_by_tokens() -> None:
    """Unknown counts share nothing, and without any token there is no share."""
    unknown = np.array([np.nan, np.nan])

    assert usd_per_token(10.0, np.array([1.0, np.nan]), np.array([3.0, 1.0])) == 2.0
    assert usd_per_token(10.0, unknown, unknown) is None


def test_gpus_are_read_over_the_window() -> None:
    """Means in the window, the highest memory, and the growth of the energy counter."""
    samples = [
        Sample(at, "gpu:GPU-1", name, value)
        for at in range(0, 101, 10)
        for name, value in (
            ("gpu_busy_ratio", 0.0 if at < 50 else 0.8),
            ("gpu_memory_used_bytes", 1e9 + at),
            ("gpu_energy_joules", 5000.0 + 300 * at),
        )
    ]
    run = make_run(warmup_s=50.0, versions={"gpu:GPU-1": "H200"})
    figures = measure(run, make_table(_steady()), samples)
    (gpu,) = figures.gpus

    assert (gpu.uuid, gpu.name) == ("GPU-1", "H200")
    assert gpu.busy_ratio == pytest.approx(0.8)
    assert gpu.memory_bytes == 1e9 + 100
    assert gpu.power_watts is None
    assert gpu.energy_j == figures.energy_j == pytest.approx(15_000)


def test_no_gpu_is_no_energy() -> None:
    """Without a GPU the list is empty and energy unknown; a counter that fell says nothing."""
    assert _figures(_steady()).gpus == []
    assert _figures(_steady()).energy_j is None
    reset = [
        Sample(at, "gpu:G", "gpu_energy_joules", v) for at, v in ((10, 5.0), (20, 9.0), (30, 1.0))
    ]
    assert measure(make_run(), make_table(_steady()), reset).energy_j is None


def test_the_client_is_measured_from_the_requests() -> None:
    """Read delay and share of coalesced events come from the window's requests."""
    records = [
        make_request(i, float(i), read_delay_s=0.001 * i, coalesced_events=1) for i in range(100)
    ]
    client = _figures(records).client

    assert client.stamp == "kernel"
    assert client.read_delay_p99_s == pytest.approx(0.098)
    assert client.coalesced_ratio == pytest.approx(0.25)
    assert client.cpu_ratio is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"status": RunStatus.INTERRUPTED, "stopped_at_s": 60.0},
            "interrupted after 60.0 s of 100.0",
        ),
        ({"stopped_at_s": 60.0}, "cut short"),
        ({"stopped_at_s": 3.0, "warmup_s": 10.0}, "before its window began"),
        ({"status": RunStatus.RUNNING, "stopped_at_s": None}, "still going"),
        ({"notes": ["no GPU seen here"]}, "no GPU seen here"),
    ],
)
def test_a_reader_is_warned(changes: dict[str, object], words: str) -> None:
    """What makes figures doubtful is said in a sentence."""
    assert any(words in warning for warning in _figures(_steady(), **changes).warnings)


def test_a_whole_run_needs_no_warning() -> None:
    """A steady, complete run has nothing to warn of."""
    assert _figures(_steady()).warnings == []


def test_a_run_that_ended_with_its_last_request_was_not_cut_short() -> None:
    """With a number of requests asked for, stopping before the duration is as planned."""
    figures = _figures(_steady(), stopped_at_s=60.0, config={"requests": 100})
    assert not any("cut short" in warning for warning in figures.warnings)


def test_a_run_without_requests_has_figures_without_values() -> None:
    """Everything is absent, nothing is 0, nothing fails."""
    figures = _figures([])

    assert figures.latency == {}
    assert figures.errors is None
    assert figures.goodput_ratio is None
    assert figures.window.due == 0
    assert figures.requests_per_s is not None
    assert figures.requests_per_s.value == 0
    assert any("No request was due" in warning for warning in figures.warnings)


def test_one_request_is_enough_for_figures_without_bounds() -> None:
    """A single request has every latency, and no interval to speak of."""
    figures = _figures([make_request(0, 0.0)], stopped_at_s=0.0, duration_s=None)
    ttft = figures.latency["ttft_s"].percentile(0.5)

    assert ttft.value == pytest.approx(0.1)
    assert ttft.interval() == (0.0, float("inf"))
    assert figures.requests_per_s is None


def test_gap_blobs_of_long_streams_are_counted_in_parts() -> None:
    """More than two million events give the same tokens a second as their sum says."""
    gaps = array("f", [0.00001] * 1_000_000)
    records = [make_request(i, float(i), gaps_s=gaps, output_tokens=1_000_001) for i in range(3)]
    figures = _figures(records)

    assert figures.output_tokens_per_s is not None
    assert figures.output_tokens_per_s.value == pytest.approx(3 * 1_000_001 / 100)


# -- tokens and flags --------------------------------------------------------------------------


def test_parts_of_tokens_are_summed_where_they_are_told() -> None:
    """A part that no request told is unknown, one that some told is theirs."""
    told = make_request(
        0,
        1.0,
        cached_input_tokens=6,
        cache_write_input_tokens=3,
        audio_output_tokens=0,
        reasoning_tokens=2,
    )
    tokens = _figures([told, make_request(1, 2.0, cached_input_tokens=4)]).tokens

    assert (tokens.cached_input, tokens.cache_write, tokens.reasoning) == (10, 3, 2)
    assert (tokens.audio_input, tokens.audio_output) == (None, 0)


def test_delivered_against_asked_is_of_successes_that_tell_both() -> None:
    """4 and 2 of 8 each; what failed, asked for no limit or told no tokens is not in it."""
    records = [
        make_request(0, 1.0, output_tokens=4, asked_output_tokens=8),
        make_request(1, 2.0, output_tokens=2, asked_output_tokens=8),
        make_request(2, 3.0, output_tokens=None, asked_output_tokens=8),
        make_request(3, 4.0, output_tokens=4),
        make_request(4, 5.0, outcome=Outcome.RESET, output_tokens=1, asked_output_tokens=8),
    ]
    tokens = _figures(records).tokens

    assert (tokens.asked_output, tokens.delivered_ratio) == (16, 6 / 16)


@pytest.mark.parametrize("changes", [{}, {"output_tokens": None, "asked_output_tokens": 8}])
def test_without_a_limit_or_a_count_delivery_is_unknown(changes: dict[str, int | None]) -> None:
    """Neither 0 nor all of it."""
    tokens = _figures([make_request(0, 1.0, **changes)]).tokens

    assert (tokens.asked_output, tokens.delivered_ratio) == (None, None)


def _flagged(flag: str, n: int, of: int = 100) -> list[str]:
    records = [make_request(i, i + 0.5, flags=(flag,) if i < n else ()) for i in range(of)]
    return [w for w in _figures(records).warnings if "successes" in w]


@pytest.mark.parametrize(
    ("flag", "n", "says"),
    [
        ("early_head", 100, None),  # of nearly every vLLM run
        ("early_event", 100, None),
        ("no_usage", 1, "1 of 100 successes (1.0%) ended without usage"),
        ("fewer_tokens", 1, "E2E and tokens/s are those of shorter answers"),
        ("no_done", 100, None),
    ],
)
def test_a_flag_that_touches_figures_is_told(flag: str, n: int, says: str | None) -> None:
    """One sentence, with how many and which figure; flags that change nothing are only counted."""
    sentences = _flagged(flag, n)

    assert len(sentences) == (says is not None)
    assert says is None or says in sentences[0]


def test_flags_of_what_did_not_succeed_need_no_explanation() -> None:
    """A stream that broke has no usage because it broke."""
    broken = make_request(0, 1.0, outcome=Outcome.RESET, flags=("no_usage",))
    figures = _figures([broken, *_steady(50)])

    assert not any("without usage" in w for w in figures.warnings)
    assert figures.flags == {"no_usage": 1}


def test_tokens_counted_by_a_tokenizer_are_told() -> None:
    """They are of visible text only."""
    counted = make_request(0, 1.0, token_source=TokenSource.TOKENIZER)
    figures = _figures([counted, make_request(1, 2.0)])

    assert figures.tokens.source == "mixed"
    assert any("tokens of 1 requests were counted here" in w for w in figures.warnings)


# -- the load ----------------------------------------------------------------------------------


def _at_work(name: str, users: float, *, begins: int = 0, ends: int = 101) -> list[Sample]:
    """A sample a second of how long a process's users have been at work."""
    return [
        Sample(float(at), f"worker:{name}", "client_user_seconds_total", users * (at - begins))
        for at in range(begins, ends)
    ]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (_at_work("w0", 4.0), 4.0),
        (_at_work("w0", 1.0) + _at_work("w1", 3.0), 4.0),
        (_at_work("w0", 2.0) + _at_work("w1", 2.0, ends=51), 3.0),
        (_at_work("w0", 2.0) + _at_work("w1", 2.0, begins=50), 3.0),
        (_at_work("w0", 4.0)[::40], 4.0 * 80 / 100),  # unseen after the last sample
        ([], None),
    ],
    ids=["one", "two", "one is lost", "one is late", "few samples", "none"],
)
def test_users_at_work_are_summed_over_processes_and_averaged_over_time(
    samples: list[Sample], expected: float | None
) -> None:
    """From the time they were at work, however seldom that was sampled."""
    figures = measure(make_run(), make_table(_steady()), samples)

    assert figures.users == (None if expected is None else pytest.approx(expected))


def test_users_at_work_are_those_in_the_window() -> None:
    """Two who came at 20 s make 1 on average from 0 to 40 s, and 2 from there on."""
    samples = _at_work("w0", 2.0, begins=20)
    whole = measure(make_run(stopped_at_s=40.0), make_table(_steady(40)), samples)
    later = measure(make_run(warmup_s=40.0), make_table(_steady()), samples)

    assert (whole.users, later.users) == (pytest.approx(1.0), pytest.approx(2.0))


@pytest.mark.parametrize(("users", "is_told"), [(4.0, False), (3.9, False), (3.0, True)])
def test_fewer_users_than_asked_are_told(users: float, is_told: bool) -> None:
    """The load was lighter than asked for."""
    figures = measure(make_run(), make_table(_steady()), _at_work("w0", users))

    assert (f"Only {users:.1f} of 4 users were at work on average." in figures.warnings) is is_told


def test_achieved_is_requests_in_flight() -> None:
    """Two users who are answered in 0.5 s of each second have one request in flight on average."""
    records = [make_request(i, i / 2, ttft_s=0.4, gaps_s=[0.05, 0.05]) for i in range(200)]
    figures = _figures(records)

    assert figures.achieved == pytest.approx(1.0)
    assert (figures.requests_asked, figures.requests_due) == (None, 200)

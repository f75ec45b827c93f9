"""Engines in virtual time: leaping gives what stepping gives, and whole fleets behave."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference_server.engine import Engine, EngineConfig, RooflineCost, Sequence, Span
from reference_server.engine.fleet import Arrival, Fleet
from reference_server.engine.hardware import DEVICES
from reference_server.engine.models import MODELS
from reference_server.engine.replica import Fate, Served
from reference_server.engine.responses import Prompt, ResponseCacheConfig
from reference_server.engine.routing import Routing
from reference_server.engine.sequence import FS
from reference_server.engine.snapshot import Snapshot
from reference_server.errors import SettingsError
from tests.reference_server.engine.workloads import COST, Event, configs, loads, play

SLOWLY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def arrivals(load: list[Event]) -> Iterator[Arrival]:
    """The same load, as a fleet takes it."""
    leaves_at = {event.sequence.id: event.at_fs for event in load if event.leaves}
    for event in load:
        if not event.leaves:
            at_fs = leaves_at.get(event.sequence.id)
            yield Arrival(event.at_fs / FS, event.sequence, None if at_fs is None else at_fs / FS)


def story(served: Served) -> list[Any]:
    """All that is told of a request."""
    return [
        served.sequence.id,
        served.fate,
        served.replica,
        served.arrived_fs,
        served.admitted_fs,
        served.first_fs,
        served.done_fs,
        served.tokens,
        served.cached_tokens,
        served.preemptions,
        [list(instants) for instants in served.instants],
    ]


def by_id(all_served: Iterator[Served]) -> list[list[Any]]:
    return sorted(map(story, all_served), key=lambda told: told[0])


@SLOWLY
@given(
    configs(max_queued=3) | configs(),
    loads(),
    st.integers(1, 3),
    st.sampled_from(Routing),
    st.none()
    | st.builds(ResponseCacheConfig, entries=st.just(3), lookup_s=st.sampled_from([0.0, 0.01])),
)
def test_leaping_gives_what_stepping_gives(
    config: EngineConfig,
    load: list[Event],
    replicas: int,
    routing: Routing,
    responses: ResponseCacheConfig | None,
) -> None:
    """To the femtosecond: who was where, admitted, first token, end, preemptions, every token."""
    come = [a._replace(prompt=Prompt(hash(a.sequence.spans))) for a in arrivals(load)]

    def told(**how: Any) -> tuple[list[list[Any]], list[Snapshot]]:
        fleet = Fleet(config, replicas, routing=routing, responses=responses, instants=True, **how)
        return [story(served) for served in fleet.serve(come)], fleet.snapshots

    (leaping, seen), (stepping, seen_too) = (
        told(look_every_s=0.37),
        told(singly=True, look_every_s=0.37),
    )
    assert leaping == told()[0], "that somebody looks changes nothing"
    assert seen == seen_too
    key = lambda told: (told[6], told[0])  # noqa: E731  # those of one instant in any order
    assert sorted(leaping, key=key) == sorted(stepping, key=key)
    assert [told[6] for told in leaping] == sorted(told[6] for told in leaping)


@SLOWLY
@given(configs(), loads())
def test_a_fleet_of_one_is_an_engine_on_a_clock(config: EngineConfig, load: list[Event]) -> None:
    """First tokens and ends are where the steps of `Engine.step` put them."""
    first: dict[Any, int] = {}
    done: dict[Any, int] = {}
    left = {event.sequence.id: event.sequence.answers for event in load}
    for began_fs, step in play(Engine(config), load):
        ended_fs = began_fs + step.duration_fs
        for emitted in step.tokens:
            first.setdefault(emitted.id, ended_fs)
            left[emitted.id] -= emitted.finished
            if not left[emitted.id]:
                done.setdefault(emitted.id, ended_fs)

    for served in Fleet(config).serve(arrivals(load)):
        name = served.sequence.id
        assert served.first_fs == first.get(name, -1)
        if served.fate is Fate.FINISHED:
            assert served.done_fs == done[name]
        else:
            assert name not in done


@SLOWLY
@given(configs(speculation=None), loads(answers=2))
def test_tokens_are_conserved(config: EngineConfig, load: list[Event]) -> None:
    """Everyone gets what was asked for, unless given up; every token has its instant."""
    fleet = Fleet(config, 2, instants=True)
    seen = list(fleet.serve(arrivals(load)))

    assert sorted(served.sequence.id for served in seen) == sorted(
        event.sequence.id for event in load if not event.leaves
    )
    for served in seen:
        sequence = served.sequence
        if served.fate is Fate.LEFT:
            assert served.tokens < sequence.total_tokens
            continue
        assert served.tokens == sequence.total_tokens
        lengths = [len(instants) for instants in served.instants]
        assert lengths == [sequence.output_tokens, *sequence.others]
        assert min(i[0] for i in served.instants) == served.first_fs / FS
        assert max(i[-1] for i in served.instants) == served.done_fs / FS
        for instants in served.instants:
            assert list(instants) == sorted(instants)


H200 = EngineConfig(
    cost=RooflineCost(model=MODELS["llama-3.1-8b"], device=DEVICES["h200"]),
    max_num_seqs=256,
    max_batched_tokens=8192,
    kv_cache_tokens=851_894,
)


def poisson(count: int, rate: float, *, seed: int = 1, shared: int = 0) -> Iterator[Arrival]:
    """Requests of about 500 + 200 tokens at random times; some begin alike."""
    draw = random.Random(seed)
    at_s = 0.0
    for number in range(count):
        at_s += draw.expovariate(rate)
        own = draw.randint(100, 900)
        spans = (Span(number, own),)
        if shared:
            spans = (Span(-1 - draw.randrange(shared), 1000), *spans)
        prompt = sum(span.tokens for span in spans)
        yield Arrival(at_s, Sequence(number, prompt, draw.randint(100, 300), spans=spans))


def test_a_loaded_fleet_tells_the_same_leaping_and_stepping() -> None:
    """Three replicas of an H200, 150 requests that share a cache too small for them."""
    config = replace(H200, prefix_caching=True, max_num_seqs=24, kv_cache_tokens=12_000)
    for routing in Routing:
        leaping, stepping = (
            by_id(
                Fleet(config, 3, routing=routing, singly=singly).serve(poisson(150, 300, shared=5))
            )
            for singly in (False, True)
        )
        assert leaping == stepping
        assert sum(told[9] for told in leaping) > 0, "no preemption: the test shows less"
        assert sum(told[8] for told in leaping) > 0, "nothing found in the cache"


def test_requests_are_handed_out_in_the_order_they_end() -> None:
    """And each as soon as it has, so that nothing piles up, however many there are."""
    fleet = Fleet(H200, 4)
    latest, kept = 0, []
    for served in fleet.serve(poisson(3000, 100)):
        assert served.done_fs >= latest
        latest = served.done_fs
        kept.append(len(fleet._events) + sum(fleet._in_flight))
    assert max(kept[1500:]) < 1.2 * max(kept[:1500])


def test_more_replicas_make_waiting_shorter() -> None:
    """The same load on one, two and four machines."""

    def mean_e2e_s(replicas: int) -> float:
        config = replace(H200, max_num_seqs=16)
        ended = list(Fleet(config, replicas).serve(poisson(400, 40)))
        return sum(served.e2e_s for served in ended) / len(ended)

    assert mean_e2e_s(1) > 2 * mean_e2e_s(2) > 2 * mean_e2e_s(4)


def test_a_router_that_knows_prefixes_finds_more_in_the_caches() -> None:
    """Forty shared beginnings, eight small caches: each beginning stays where it is known."""
    config = replace(H200, prefix_caching=True, kv_cache_tokens=12_000)

    def cached(routing: Routing) -> float:
        ended = list(Fleet(config, 8, routing=routing).serve(poisson(1500, 40, shared=40)))
        return sum(s.cached_tokens for s in ended) / sum(s.sequence.prompt_tokens for s in ended)

    assert cached(Routing.PREFIX_AWARE) > 1.5 * cached(Routing.ROUND_ROBIN) > 0


def test_a_full_fleet_refuses() -> None:
    """One runs, one waits, the third is refused at once."""
    config = EngineConfig(max_num_seqs=1, max_queued=1, cost=COST)
    come = [Arrival(0.001 * n, Sequence(n, 10, 100)) for n in range(3)]
    fates = {served.sequence.id: served.fate for served in Fleet(config).serve(come)}

    assert fates == {0: Fate.FINISHED, 1: Fate.FINISHED, 2: Fate.REFUSED}


def test_the_same_prompt_is_answered_from_the_response_cache() -> None:
    """Only once its answer is complete, and in the time that a hit takes."""
    responses = ResponseCacheConfig(hit_s=0.002, lookup_s=0.001)
    prompts = [Prompt(7), Prompt(7), Prompt(8), Prompt(7)]
    come = [
        Arrival(at_s, Sequence(n, 10, 5), prompt=prompts[n])
        for n, at_s in enumerate((0.0, 0.001, 10.0, 20.0))
    ]
    ended = sorted(
        Fleet(EngineConfig(cost=COST), responses=responses).serve(come),
        key=lambda served: int(served.sequence.id),
    )

    assert [served.fate for served in ended] == [Fate.FINISHED] * 3 + [Fate.CACHED]
    assert ended[3].e2e_s == ended[3].ttft_s == pytest.approx(0.003)
    assert ended[3].tokens == 5
    assert ended[2].queue_s == pytest.approx(0.001), "looking in vain takes its time too"


@pytest.mark.parametrize(
    ("distance", "fate"), [(None, Fate.FINISHED), (2, Fate.FINISHED), (3, Fate.CACHED)]
)
def test_a_like_prompt_is_answered_from_the_response_cache(
    distance: int | None, fate: Fate
) -> None:
    """If the sketches differ in no more bits than allowed: three, here."""
    prompts = [Prompt(1, 0b0000), Prompt(2, 0b0111)]
    come = [Arrival(10.0 * n, Sequence(n, 10, 5), prompt=prompts[n]) for n in range(2)]
    responses = ResponseCacheConfig(distance=distance)
    *_, last = Fleet(EngineConfig(cost=COST), responses=responses).serve(come)

    assert last.fate is fate


def test_the_response_cache_forgets_what_was_not_used_for_longest() -> None:
    """Two entries: 1, 2, then 1 again, then 3 drives out 2."""
    asked = [1, 2, 1, 3, 1, 2]
    come = [Arrival(10.0 * n, Sequence(n, 10, 5), prompt=Prompt(k)) for n, k in enumerate(asked)]
    responses = ResponseCacheConfig(entries=2)
    ended = Fleet(EngineConfig(cost=COST), responses=responses).serve(come)

    cached = [served.fate is Fate.CACHED for served in ended]
    assert cached == [False, False, True, False, True, False]


def test_who_gives_up_is_told_of_with_the_tokens_made() -> None:
    """Given up after 0.1 s, with some of a hundred tokens; that of the step under way unseen."""
    come = [Arrival(0.0, Sequence("a", 10, 100), leaves_at_s=0.1)]
    (served,) = Fleet(EngineConfig(cost=COST), instants=True).serve(come)

    assert served.fate is Fate.LEFT
    assert served.done_fs == round(0.1 * FS)
    assert 10 < served.tokens < 30
    (instants,) = served.instants
    assert len(instants) == served.tokens - 1
    assert instants[-1] < 0.1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"entries": 0}, "at least one answer"),
        ({"distance": 65}, "0 to 64"),
        ({"hit_s": -1.0}, "less than 0 s"),
    ],
)
def test_response_caches_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    """One sentence each."""
    with pytest.raises(SettingsError, match=says):
        ResponseCacheConfig(**wrong)


def test_a_fleet_is_looked_at_while_something_goes_on() -> None:
    """Two requests of 4 s each, 20 s apart: every second of both, and nothing in between."""
    slow = replace(COST, prefill_base_s=1.0, prefill_per_token_s=0.0, decode_base_s=1.0)
    slow = replace(slow, decode_per_sequence_s=0.0, decode_per_kv_token_s=0.0)
    config = EngineConfig(cost=slow, kv_cache_tokens=160, block_tokens=16, prefix_caching=True)
    spans = (Span(1, 31),)
    come = [Arrival(at_s, Sequence(at_s, 31, 4, spans=spans)) for at_s in (0.5, 20.5)]
    fleet = Fleet(config, look_every_s=1.0)
    list(fleet.serve(come))
    seen = fleet.snapshots

    assert [int(each.at_s) for each in seen] == [1, 2, 3, 4, 5, 21, 22, 23, 24, 25]
    assert [each.running for each in seen] == [1, 1, 1, 0, 0] * 2
    assert [each.generated_tokens for each in seen] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert [each.kv_cache_ratio for each in seen[:4]] == pytest.approx([0.2, 0.2, 0.3, 0])
    last = fleet.snapshots[-1]
    assert (last.finished, last.refused, last.prompt_tokens) == (2, 0, 62)
    assert (last.queried_tokens, last.found_tokens) == (62, 16)


@pytest.mark.parametrize("every_s", [0.0, -1.0])
def test_snapshots_lie_apart(every_s: float) -> None:
    """Or time would stand still."""
    with pytest.raises(SettingsError, match="more than 0 s apart"):
        Fleet(H200, look_every_s=every_s)


def test_a_fleet_of_none_and_a_step_back_in_time_are_refused() -> None:
    """One sentence each."""
    with pytest.raises(SettingsError, match="at least one replica"):
        Fleet(H200, 0)
    fleet = Fleet(H200)
    fleet.submit(Arrival(1.0, Sequence(1, 1, 1)))
    with pytest.raises(SettingsError, match="order of time"):
        fleet.submit(Arrival(0.5, Sequence(2, 1, 1)))


@pytest.mark.slow
def test_a_fleet_of_64_serves_two_thousand_requests_a_second() -> None:
    """Of 200 tokens each, on one core; 30,000 of them take no more memory than 10,000."""
    fleet = Fleet(H200, 64)
    began_s, served, kept = time.process_time(), 0, []
    for _ in fleet.serve(poisson(30_000, 400)):
        served += 1
        kept.append(len(fleet._events) + sum(fleet._in_flight))
    took_s = time.process_time() - began_s

    assert served / took_s > 2000
    assert max(kept[10_000:]) < 1.2 * max(kept[:10_000])

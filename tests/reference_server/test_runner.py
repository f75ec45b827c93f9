"""The engines in real time: answers handed over, a router in front, places freed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from reference_server.engine import Engine, EngineConfig, LinearCost
from reference_server.engine.routing import Routing
from reference_server.metrics import Metrics
from reference_server.prompt import Prompt
from reference_server.runner import AbandonedError, Answer, Runner

COST = LinearCost(
    prefill_base_s=0.001,
    prefill_per_token_s=0.0,
    decode_base_s=0.002,
    decode_per_sequence_s=0.0,
    decode_per_kv_token_s=0.0,
)
CONFIG = EngineConfig(cost=COST, prefix_caching=True, block_tokens=4)


@dataclass
class Asked:
    """As much of a request as the runner looks at."""

    prompt: Prompt = field(default_factory=lambda: Prompt(tuple(range(16)), 16))
    max_tokens: int = 3
    seed: int = 0
    priority: int = 0

    @property
    def prompt_tokens(self) -> int:
        return self.prompt.tokens


def running(config: EngineConfig, replicas: int, scene: Any, **more: Any) -> tuple[Runner, Metrics]:
    """Play a scene beside a runner, then stop it."""
    metrics = Metrics("tiny", config)
    runner = Runner([Engine(config) for _ in range(replicas)], metrics, **more)

    async def play() -> None:
        task = asyncio.create_task(runner.run())
        try:
            async with asyncio.timeout(10):
                await scene(runner)
        finally:
            task.cancel()

    asyncio.run(play())
    return runner, metrics


def ask(runner: Runner, tokens: int = 3, **more: Any) -> Answer:
    now = asyncio.get_running_loop().time()
    return runner.submit(Asked(max_tokens=tokens), tokens, "length", now, **more)  # type: ignore[arg-type]


async def read(answer: Answer) -> list[float]:
    return [token.due_at async for token in answer.tokens()]


def test_several_engines_work_side_by_side() -> None:
    """Four requests on four engines take no longer than one; every token is due on schedule."""
    due: list[list[float]] = []
    answers: list[Answer] = []

    async def scene(runner: Runner) -> None:
        answers.extend(ask(runner) for _ in range(4))
        due.extend(await asyncio.gather(*(read(answer) for answer in answers)))

    running(CONFIG, 4, scene)
    assert sorted(answer.replica for answer in answers) == [0, 1, 2, 3]
    for answer, instants in zip(answers, due, strict=True):
        steps = [b - a for a, b in zip([answer.read_at, *instants], instants, strict=False)]
        assert [round(step, 6) for step in steps] == [0.001, 0.002, 0.002]


def test_an_engine_is_woken_while_another_sleeps() -> None:
    """One decodes in steps of a second; a request to the other is not kept waiting by that."""
    slow = replace(CONFIG, cost=replace(COST, decode_base_s=1.0))

    async def scene(runner: Runner) -> None:
        long = ask(runner, 100)
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()
        await read(ask(runner, 1))
        assert asyncio.get_running_loop().time() - began < 0.5
        runner.abort(long)

    running(slow, 2, scene)


def test_a_prompt_is_found_again_and_told() -> None:
    """The second of two that begin alike has its tokens from the cache."""
    answers: list[Answer] = []

    async def scene(runner: Runner) -> None:
        for _ in range(2):
            answers.append(ask(runner))
            await read(answers[-1])

    running(CONFIG, 1, scene)
    assert [answer.cached_tokens for answer in answers] == [0, 15]


def test_a_preempted_answer_is_told_once_and_whole() -> None:
    """Two that do not fit together: the second gives way, and gets every token all the same."""
    tight = replace(CONFIG, kv_cache_tokens=64, prefix_caching=False)
    answers: list[Answer] = []
    due: list[list[float]] = []

    async def scene(runner: Runner) -> None:
        answers.extend(ask(runner, 30) for _ in range(2))
        due.extend(await asyncio.gather(*(read(answer) for answer in answers)))

    _, metrics = running(tight, 1, scene)
    page = metrics.page().decode()
    assert [len(instants) for instants in due] == [30, 30]
    assert answers[1].preemptions == 1
    assert 'num_preemptions_total{engine="0",model_name="tiny"} 1.0' in page
    assert 'request_num_preemptions_sum{engine="0",model_name="tiny"} 1.0' in page


def test_an_answer_nobody_wants_leaves_the_router_nothing() -> None:
    """In flight is what is under way, on every engine."""

    async def scene(runner: Runner) -> None:
        answers = [ask(runner, 1000) for _ in range(6)]
        assert runner._in_flight == [2, 2, 2]
        for answer in answers[:5]:
            runner.abort(answer)
        assert sum(runner._in_flight) == 1
        runner.close()
        try:
            await read(answers[5])
        except AbandonedError:
            return
        raise AssertionError("it was abandoned")

    runner, _ = running(CONFIG, 3, scene, routing=Routing.ROUND_ROBIN)
    assert runner._in_flight == [0, 0, 0]

"""How fast a fleet is simulated: requests of virtual time a second of one core.

    python -m bench.simulation [REQUESTS]

Each line is one load on a fleet of H200s that serve Llama 3.1 8B: requests/s of one core, the mean
end-to-end latency they had in virtual time, preemptions, and the memory of this process so far.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from reference_server.engine import EngineConfig, RooflineCost, Sequence, Span, Speculation
from reference_server.engine.fleet import Arrival, Fleet
from reference_server.engine.hardware import DEVICES
from reference_server.engine.machine import Machine
from reference_server.engine.models import MODELS
from reference_server.engine.routing import Routing


def main() -> None:
    """Simulate each load and print its line."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    cost = RooflineCost(model=MODELS["llama-3.1-8b"], device=DEVICES["h200"])
    engine = Machine(cost=cost).engine()
    caching = replace(engine, prefix_caching=True)
    drafting = replace(engine, speculation=Speculation())
    line("64 replicas, 400/s", engine, 64, count, 400)
    line("64 replicas, 4,000/s", engine, 64, count, 4000)
    line("64 replicas, 400/s, singly", engine, 64, count // 10, 400, singly=True)
    line("64 replicas, 4,000/s, tokens' instants", engine, 64, count, 4000, instants=True)
    line("1 replica, 30/s", engine, 1, count, 30)
    line("64, prefix-aware, half shared", caching, 64, count, 1000, routing=Routing.PREFIX_AWARE)
    line("64, 3 drafts", drafting, 64, count, 1000)
    line("64, cache of 20,000 tokens", replace(engine, kv_cache_tokens=20_000), 64, count, 4000)


def line(
    name: str, config: EngineConfig, replicas: int, count: int, rate: float, **more: Any
) -> None:
    """Simulate one load and print its line."""
    fleet = Fleet(config, replicas, **more)
    began_s, served, e2e_s, preemptions = time.process_time(), 0, 0.0, 0
    for request in fleet.serve(arrivals(count, rate, shared=config.prefix_caching)):
        served += 1
        e2e_s += request.e2e_s
        preemptions += request.preemptions
    took_s = time.process_time() - began_s
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{name:40} {served / took_s:8,.0f} requests/s   e2e {e2e_s / served:6.2f} s   "
        f"{preemptions:6,} preempted   {memory} MB",
        flush=True,
    )


def arrivals(count: int, rate: float, *, shared: bool) -> Iterator[Arrival]:
    """Poisson arrivals of 100 to 900 prompt tokens and 200 of output; some begin alike."""
    draw = random.Random(1)
    at_s = 0.0
    for number in range(count):
        at_s += draw.expovariate(rate)
        spans = [Span(number, draw.randint(100, 900))]
        if shared:
            spans.insert(0, Span(-1 - draw.randrange(50), 500))
        prompt = sum(span.tokens for span in spans)
        sequence = Sequence(number, prompt, 200, spans=tuple(spans), seed=number)
        yield Arrival(at_s, sequence)


if __name__ == "__main__":
    main()

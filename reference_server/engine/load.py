"""Loads for a fleet in virtual time: what comes, and when. Seeded; the same seed, the same load.

- **Open loop**: requests come at instants that do not depend on the answers: at a constant rate,
  or with gamma-distributed gaps of a given burstiness (1 is a Poisson process, less is burstier;
  the shape parameter, as in vLLM's own benchmark).
- **Closed loop**: so many users; each asks, waits for the answer, thinks, and asks again.

Every request asks something else, or one of so many questions, which are then asked again and
again: in the same words, or in others that are like them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count, takewhile
from typing import NamedTuple

from reference_server.engine.fleet import Arrival, Fleet
from reference_server.engine.replica import Served
from reference_server.engine.responses import Prompt
from reference_server.engine.sequence import FS, Sequence, Span
from reference_server.errors import SettingsError


class Lengths(NamedTuple):
    """Numbers of tokens, all from `low` to `high` equally likely."""

    low: int
    high: int

    @classmethod
    def read(cls, text: str) -> Lengths:
        """From ``500`` or ``100-900``.

        Raises:
            SettingsError: it is neither.
        """
        low, _, high = text.partition("-")
        try:
            lengths = cls(int(low), int(high or low))
        except ValueError:
            lengths = cls(0, 0)
        if not 1 <= lengths.low <= lengths.high:
            raise SettingsError(
                f"A number of tokens is written 500, or 100-900 for a range, got {text!r}."
            )
        return lengths

    def draw(self, rng: random.Random) -> int:
        """One of them."""
        return self.low if self.low == self.high else rng.randint(self.low, self.high)


_INPUT, _OUTPUT = Lengths(500, 500), Lengths(200, 200)
MOST_BITS_REWORDED = 6
"""Of 64 bits of its sketch so many at most differ where a question is asked in other words."""


URGENT = -1
"""Priority of the requests that are more urgent than the others, whose priority is 0."""


class Asked(NamedTuple):
    """A request, and what a cache of answers knows its prompt by."""

    sequence: Sequence
    prompt: Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for.

    Attributes:
        input_tokens: of each prompt, its shared beginning not counted.
        output_tokens: of each answer.
        shared_tokens: with which every prompt begins.
        shared_prompts: so many different such beginnings.
        distinct_prompts: so many different questions, all asked equally often; None: no request
            asks what another one does.
        reworded_ratio: share of the requests that ask one of these in other words: a prompt of its
            own, whose sketch differs from the question's in 1 to `MOST_BITS_REWORDED` bits.
        urgent_ratio: share of the requests that are more urgent than the others.
        patience_s: a request is given up after so long; None: never.
        seed: all draws follow from it.
    """

    input_tokens: Lengths = _INPUT
    output_tokens: Lengths = _OUTPUT
    shared_tokens: int = 0
    shared_prompts: int = 1
    distinct_prompts: int | None = None
    reworded_ratio: float = 0.0
    urgent_ratio: float = 0.0
    patience_s: float | None = None
    seed: int = 0

    @property
    def longest(self) -> Sequence:
        """The longest request that can come, to see whether it fits."""
        return Sequence(0, self.shared_tokens + self.input_tokens.high, self.output_tokens.high)

    def requests(self) -> Iterator[Asked]:
        """Requests without end, numbered from 0."""
        urgent = random.Random(f"urgent {self.seed}").random
        for asked in self._prompts():
            if self.urgent_ratio and urgent() < self.urgent_ratio:
                asked.sequence.priority = URGENT
            yield asked

    def _prompts(self) -> Iterator[Asked]:
        """The same, none more urgent than another."""
        rng = random.Random(self.seed)
        questions = self.distinct_prompts
        for number in count():
            if questions is None:
                sequence = self._sequence(number, rng, number)
                yield Asked(sequence, Prompt(hash(sequence.spans)))
                continue
            question = rng.randrange(questions)
            draw = random.Random(hash((self.seed, question)))  # all that a question is
            text, flipped = question, 0
            if rng.random() < self.reworded_ratio:
                text = questions + number
                bits = rng.sample(range(64), rng.randint(1, MOST_BITS_REWORDED))
                flipped = sum(1 << bit for bit in bits)
            sequence = self._sequence(number, draw, text)
            sketch = draw.getrandbits(64) ^ flipped
            yield Asked(sequence, Prompt(hash(sequence.spans), sketch))

    def _sequence(self, number: int, draw: random.Random, text: int) -> Sequence:
        """A request whose own tokens follow from ``text``, and whose lengths are drawn."""
        own = self.input_tokens.draw(draw)
        spans: tuple[Span, ...] = (Span(text, own),)
        if self.shared_tokens:
            shared = Span(-1 - draw.randrange(self.shared_prompts), self.shared_tokens)
            spans = (shared, *spans)
        output = self.output_tokens.draw(draw)
        prompt = self.shared_tokens + own
        return Sequence(number, prompt, output, spans=spans, seed=number)

    def arrival(self, at_s: float, asked: Asked) -> Arrival:
        """A request at an instant, with what patience there is."""
        leaves_at_s = None if self.patience_s is None else at_s + self.patience_s
        return Arrival(at_s, asked.sequence, leaves_at_s, asked.prompt)


def instants(rate: float, burstiness: float, seed: int) -> Iterator[float]:
    """Seconds at which requests come, without end.

    Args:
        rate: requests a second, on average.
        burstiness: shape of the gamma distribution of the gaps; infinity: all gaps are equal.
        seed: the draws follow from it.
    """
    if math.isinf(burstiness):
        yield from (number / rate for number in count())
    rng = random.Random(f"instants {seed}")
    at_s = 0.0
    while True:
        at_s += rng.gammavariate(burstiness, 1 / (rate * burstiness))
        yield at_s


def open_loop(
    load: Load, at_s: Iterator[float], *, requests: int | None, duration_s: float | None
) -> Iterator[Arrival]:
    """Requests at those instants, until there are so many or it has taken so long."""
    limit = math.inf if duration_s is None else duration_s
    timely = takewhile(lambda at: at < limit, at_s)
    for number, (at, asked) in enumerate(zip(timely, load.requests(), strict=False)):
        if number == requests:
            return
        yield load.arrival(at, asked)


def closed_loop(
    fleet: Fleet,
    load: Load,
    *,
    users: int,
    think_s: float,
    ramp_s: float,
    requests: int | None,
    duration_s: float | None,
) -> Iterator[Served]:
    """Users who ask, wait, think and ask again.

    Args:
        fleet: who answers.
        load: what is asked for.
        users: how many.
        think_s: from an answer's end to the next request.
        ramp_s: over which they begin, evenly.
        requests: after so many nobody asks again; None: no limit.
        duration_s: nor after so long.

    Yields:
        Each request when it has ended, in that order.
    """
    to_ask = load.requests()
    due = [(ramp_s * user / users, user) for user in range(users)]  # a heap of who asks next
    asked_by: dict[str | int, int] = {}
    limit = math.inf if duration_s is None else duration_s
    left = math.inf if requests is None else requests
    while True:
        at_s = due[0][0] if due and left and due[0][0] < limit else None
        served = next(fleet.advance(None if at_s is None else round(at_s * FS)), None)
        if served is not None:
            heappush(due, (served.done_fs / FS + think_s, asked_by.pop(served.sequence.id)))
            yield served
        elif at_s is None:
            return
        else:
            asked = next(to_ask)
            asked_by[asked.sequence.id] = heappop(due)[1]
            left -= 1
            fleet.submit(load.arrival(at_s, asked))

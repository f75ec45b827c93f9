"""Tokens on their way out: read one by one, or taken the moment they are due.

What goes over the wire that way, test_simulator.py and test_apis.py see.
"""

from __future__ import annotations

import asyncio

from reference_server.engine import Sequence
from reference_server.runner import Answer


def test_a_listener_takes_what_comes_but_not_the_last() -> None:
    """Nor anything while there is something to read, so that the order is kept."""

    async def read() -> tuple[list[int], list[int]]:
        answer = Answer(Sequence(1, 1, 5), 0.0, 5, "length")
        taken: list[int] = []
        answer.hand(0.1, 1, finished=False)
        answer.listen(lambda _, so_far: taken.append(so_far))
        answer.hand(0.2, 1, finished=False)
        left = []
        async for token in answer.tokens():
            left.append(token.so_far)
            if token.so_far == 2:
                answer.listen(lambda _, so_far: taken.append(so_far))
                answer.hand(0.3, 1, finished=False)
                answer.hand(0.4, 1, finished=False)
                answer.hand(0.5, 1, finished=True)
        return left, taken

    assert asyncio.run(read()) == ([1, 2, 5], [3, 4])

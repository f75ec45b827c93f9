"""A cache of whole answers in front of the replicas, as semantic caches keep them.

A prompt is known by a key, which is equal for equal prompts, and by a 64-bit sketch, whose bits
differ the less the more alike the prompts are (a SimHash: Charikar 2002; Manku et al. 2007 call
pages near-duplicates up to 3 bits). An answer is kept from the instant it is complete.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reference_server.errors import SettingsError

NEAR_DUPLICATE_BITS = 3
"""Bits in which the sketches of near-duplicates differ at most (Manku et al. 2007)."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseCacheConfig:
    """What the cache is set to.

    Attributes:
        entries: answers kept; the one unused for longest is dropped for a new one.
        distance: bits in which the sketches of two prompts may differ that get the same answer;
            None: only the same prompt gets it.
        lookup_s: what looking costs each request, found or not.
        hit_s: what it takes then to send an answer that was found.
    """

    entries: int = 10_000
    distance: int | None = None
    lookup_s: float = 0.0
    hit_s: float = 0.001

    def __post_init__(self) -> None:
        if self.entries < 1:
            raise SettingsError(f"A response cache keeps at least one answer, got {self.entries}.")
        if self.distance is not None and not 0 <= self.distance <= 64:
            raise SettingsError(
                f"Two sketches of 64 bits differ in 0 to 64 of them, got {self.distance}."
            )
        if self.lookup_s < 0 or self.hit_s < 0:
            raise SettingsError("Neither looking up an answer nor sending it takes less than 0 s.")

    @classmethod
    def read(cls, text: str, entries: int, lookup_s: float) -> ResponseCacheConfig:
        """From ``exact``, ``similar`` or ``similar:BITS``.

        Raises:
            SettingsError: it is none of them.
        """
        kind, _, bits = text.partition(":")
        distance = {"exact": "", "similar": bits or str(NEAR_DUPLICATE_BITS)}.get(kind)
        if distance is None or (bits and kind == "exact") or not (distance + "0").isdecimal():
            raise SettingsError(
                "A response cache is exact, similar or similar:BITS (of the 64 bits of a prompt's "
                f"sketch so many may differ), got {text!r}."
            )
        return cls(entries=entries, distance=int(distance) if distance else None, lookup_s=lookup_s)


class Prompt(NamedTuple):
    """What the cache knows a prompt by; None: it is not looked up, or not by likeness."""

    key: int | None = None
    sketch: int | None = None


class ResponseCache:
    """Answers by prompt (see the module's docstring)."""

    def __init__(self, config: ResponseCacheConfig) -> None:
        self.config = config
        self._slots: OrderedDict[int, int] = OrderedDict()  # by key, the longest unused first
        self._keys = [0] * config.entries
        self._tokens = [0] * config.entries
        self._sketches = np.zeros(config.entries, dtype=np.uint64)
        self._sketched = np.zeros(config.entries, dtype=bool)

    def __len__(self) -> int:
        return len(self._slots)

    def find(self, prompt: Prompt) -> int | None:
        """Tokens of the answer kept for that prompt or one like it; None if there is none."""
        key = prompt.key
        if key not in self._slots:
            key = self._alike(prompt)
        if key is None:
            return None
        self._slots.move_to_end(key)
        return self._tokens[self._slots[key]]

    def keep(self, prompt: Prompt, tokens: int) -> None:
        """Keep an answer of so many tokens."""
        if prompt.key is None:
            return
        slot = self._slots.pop(prompt.key, None)
        if slot is None:
            slot = len(self._slots)
            if slot == self.config.entries:
                slot = self._slots.popitem(last=False)[1]
        self._slots[prompt.key] = slot
        self._keys[slot], self._tokens[slot] = prompt.key, tokens
        self._sketched[slot] = prompt.sketch is not None
        self._sketches[slot] = (prompt.sketch or 0) & _MASK

    def _alike(self, prompt: Prompt) -> int | None:
        """Key of the most alike prompt within the distance; of equals the lowest slot's."""
        distance = self.config.distance
        if distance is None or prompt.sketch is None or not self._slots:
            return None
        count = len(self._slots)
        sketch = np.uint64(prompt.sketch & _MASK)
        differ = np.bitwise_count(self._sketches[:count] ^ sketch)
        differ[~self._sketched[:count]] = 65
        nearest = int(differ.argmin())
        return self._keys[nearest] if differ[nearest] <= distance else None

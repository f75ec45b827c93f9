"""Faults on demand: which request gets which, and how that is asked for.

Pure. A fault delays, refuses or breaks an answer; each is a failure that servers and what stands
before them really show. Quirks, which leave an answer whole, can be asked for the same way. There
are three ways:

- **Rates.** ``reset:0.01`` breaks off one request in a hundred, ``stall:0.005:2s`` delays one in
  two hundred. A plan draws one number a request from a seeded generator, in the order they come, so
  the same requests get the same faults again; a request gets one fault at most, and the rates add
  up to 1 at most.
- **Bursts.** ``429:0.001:5s``: whoever draws it is refused, and so is every other request of the
  next five seconds. ``Retry-After`` tells what is left of it.
- **One request** says itself what it wants (the header ``X-Fault: stall:2s``).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from reference_server.errors import SettingsError
from reference_server.quirks import Quirk


class Fault(StrEnum):
    """One way to fail. What is cut is cut halfway through its tokens."""

    RATE_LIMITED = "429"  # refused, with Retry-After
    UNAVAILABLE = "503"  # likewise
    OVERLOADED = "529"  # likewise, as Anthropic says it
    SERVER_ERROR = "500"  # refused with an HTML page, as gateways do
    REDIRECT = "redirect"  # 307 to another path, as frameworks do
    DROP = "drop"  # the connection ends without a word
    EMPTY = "empty"  # 200 and no body
    HTML = "html"  # 200 and a page to log in
    JSON = "json"  # a whole JSON answer to a request for a stream
    SLOW_HEAD = "slow-head"  # the response head comes late
    STALL = "stall"  # silence halfway
    TRUNCATE = "truncate"  # an orderly end halfway, no finish reason, no [DONE]
    CUT = "cut"  # the connection ends halfway, before the body does
    RESET = "reset"  # the same with a RST
    BAD_JSON = "bad-json"  # an event halfway that is no JSON
    HELD_OPEN = "held-open"  # the whole answer, but the response is not ended for a while
    NO_FINISH = "no-finish"  # [DONE] without a finish reason
    ERROR_FIRST = "error-first"  # an error instead of the first token, inside a 200
    ERROR_OBJECT = "error-object"  # vLLM: {"error": {...}} halfway, then [DONE]
    ERROR_STRING = "error-string"  # TGI: {"error": "..."}
    ERROR_FLAT = "error-flat"  # TensorRT-LLM: {"object": "error", ...}
    ERROR_EVENT = "error-event"  # an event named error
    ERROR_FIELD = "error-field"  # older llama.cpp: a field named error instead of data
    ERROR_ARRAY = "error-array"  # Gemini: [{"error": {...}}]
    ERROR_FINISH = "error-finish"  # OpenRouter: finish reason error


REFUSALS = {
    Fault.RATE_LIMITED: 429,
    Fault.UNAVAILABLE: 503,
    Fault.OVERLOADED: 529,
    Fault.SERVER_ERROR: 500,
}
LATE = {Fault.SLOW_HEAD, Fault.STALL, Fault.HELD_OPEN}
BURSTS = {Fault.RATE_LIMITED, Fault.UNAVAILABLE, Fault.OVERLOADED}
_DEFAULT_LATE_S = 1.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(us|ms|s|)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}


@dataclass(frozen=True, slots=True)
class Mishap:
    """What one request gets.

    Attributes:
        kind: the fault or quirk.
        seconds: how late it makes the answer, or how long a burst lasts; 0 where it does neither.
    """

    kind: Fault | Quirk
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}:{self.seconds:g}s" if self.seconds else str(self.kind)


@dataclass(frozen=True, slots=True)
class Rate:
    """A mishap, and the share of requests that get it."""

    mishap: Mishap
    ratio: float

    def __str__(self) -> str:
        name, _, seconds = str(self.mishap).partition(":")
        return ":".join(filter(None, (name, f"{self.ratio:g}", seconds)))


class Plan:
    """Gives requests their mishaps.

    Args:
        rates: as asked for.
        seed: the same seed gives the same requests the same ones.

    Raises:
        SettingsError: the rates add up to more than 1.
    """

    def __init__(self, rates: Iterable[Rate] = (), seed: int = 0) -> None:
        self.rates = tuple(rates)
        self.seed = seed
        self.given: dict[str, int] = {}  # how often each was given, by the plan or by a header
        self._rng = random.Random(seed)
        self._burst: Mishap | None = None
        self._burst_until = 0.0
        total = math.fsum(rate.ratio for rate in self.rates)
        if total > 1 + 1e-9:
            raise SettingsError(
                f"The rates of all faults must add up to 1 at most, got {total:g}; a request gets "
                "one fault."
            )

    def draw(self, now: float, asked: Mishap | None = None) -> Mishap | None:
        """What the next request gets; None: an answer.

        Args:
            now: instant in seconds, for bursts.
            asked: what the request itself wants; it gets that, and draws nothing.
        """
        mishap = asked or self._draw(now)
        if mishap is not None:
            self.given[mishap.kind] = self.given.get(mishap.kind, 0) + 1
        return mishap

    def _draw(self, now: float) -> Mishap | None:
        number = self._rng.random()  # always, so that a burst does not shift what follows
        if self._burst is not None and now < self._burst_until:
            return Mishap(self._burst.kind, self._burst_until - now)
        for rate in self.rates:
            number -= rate.ratio
            if number < 0:
                if rate.mishap.kind in BURSTS and rate.mishap.seconds:
                    self._burst, self._burst_until = rate.mishap, now + rate.mishap.seconds
                return rate.mishap
        return None

    def to_fields(self) -> dict[str, Any]:
        """The plan as the admin endpoint shows it."""
        return {
            "faults": [str(rate) for rate in self.rates],
            "seed": self.seed,
            "given": dict(sorted(self.given.items())),
        }


def read_plan(fields: Any) -> Plan:
    """A plan as the admin endpoint takes it: ``{"faults": ["reset:0.01"], "seed": 7}``.

    Raises:
        SettingsError: it is none.
    """
    if not isinstance(fields, dict) or not set(fields) <= {"faults", "seed"}:
        raise SettingsError('Expected {"faults": [...], "seed": 0}, nothing else.')
    faults, seed = fields.get("faults", []), fields.get("seed", 0)
    if not isinstance(faults, list) or not all(isinstance(fault, str) for fault in faults):
        raise SettingsError('"faults" must be a list of texts such as "reset:0.01".')
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise SettingsError(f'"seed" must be a whole number, got {seed!r}.')
    return Plan(map(read_rate, faults), seed)


def read_rate(text: str) -> Rate:
    """``NAME:RATE`` or ``NAME:RATE:DURATION``.

    Raises:
        SettingsError: it is neither, nobody knows the name, or the rate is no share.
    """
    name, _, rest = text.partition(":")
    ratio_text, _, duration = rest.partition(":")
    mishap = _mishap(name, duration)
    try:
        ratio = float(ratio_text)
    except ValueError:
        ratio = math.nan
    if not 0 <= ratio <= 1:
        raise SettingsError(
            f"The rate of a fault must lie between 0 and 1, got {ratio_text!r} in {text!r}; "
            "write NAME:RATE, such as reset:0.01."
        )
    return Rate(mishap, ratio)


def read_mishap(text: str) -> Mishap:
    """``NAME`` or ``NAME:DURATION``, as one request asks for it.

    Raises:
        SettingsError: it is neither, or nobody knows the name.
    """
    name, _, duration = text.strip().partition(":")
    return _mishap(name, duration)


def _mishap(name: str, duration: str) -> Mishap:
    kinds: dict[str, Fault | Quirk] = {kind.value: kind for kind in (*Fault, *Quirk)}
    kind = kinds.get(name)
    if kind is None:
        raise SettingsError(f"There is no fault {name!r}; known are: {', '.join(kinds)}.")
    if not duration:
        return Mishap(kind, _DEFAULT_LATE_S if kind in LATE else 0.0)
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise SettingsError(f"{duration!r} is not a duration; write 50ms or 0.05s.")
    if kind not in LATE | BURSTS:
        raise SettingsError(f"The fault {name!r} takes no duration, got {duration!r}.")
    return Mishap(kind, float(match[1]) * _SECONDS[match[2]])

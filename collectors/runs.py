"""One run: what was asked for, on which clock, and how it stands."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

DEFINITIONS_VERSION = 1
"""Raised when a formula changes, so that runs under different formulas are not compared."""

HEARTBEAT_LOST_S = 15.0
"""A run that says "running" without a sign of life for longer than this was interrupted."""


class RunStatus(StrEnum):
    """Where a run stands. Stored."""

    RUNNING = "running"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"  # Ctrl-C, SIGTERM, kill -9, or the recorder lost its feeder


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as stored.

    Attributes:
        id: sorts by time of start, unique: 10 characters of time, 6 of chance.
        target: the endpoint's URL, redacted.
        began_wall_s: the wall clock at instant 0, seconds since the epoch: the only wall time kept.
        began_mono_s: CLOCK_MONOTONIC at instant 0, on the machine named by ``boot_id``.
        loop: "closed" (users) or "open" (rate).
        users, rate: what was asked; the one that does not apply is ``None``.
        duration_s: asked duration; ``None`` where the run was to end otherwise.
        ramp_s: seconds over which users start.
        warmup_s: asked warm-up; ``None`` for the default (10 % of the duration, at most 30 s).
        drain_s: how long open requests may finish after the stop.
        stopped_at_s: instant after which no more requests became due; ``None`` while running.
        ended_at_s: instant at which the last request was over; ``None`` while running.
        heartbeat_wall_s: wall clock of the recorder's last sign of life.
        labels: the user's ``--label k=v``.
        config: every option that shaped the load, secrets left out.
        versions: software versions by name.
        client: health of the load processes, as in the report's ``client``; keys may be missing.
        notes: sentences for the reader, e.g. "no GPU seen here".
        gpu_hour_price_usd, gpus: the GPU-hours cost basis, where given.
        prompts_hash: hash of the prompt generator's settings and seed, or of the data set.
        simulated: True where the requests come from virtual time.
    """

    id: str
    name: str
    scenario: str
    target: str
    model: str | None = None
    api: str | None = None
    status: RunStatus = RunStatus.RUNNING
    began_wall_s: float
    began_mono_s: float
    boot_id: str | None = None
    loop: str = "closed"
    users: int | None = None
    rate: float | None = None
    duration_s: float | None = None
    ramp_s: float | None = None
    warmup_s: float | None = None
    drain_s: float | None = None
    stopped_at_s: float | None = None
    ended_at_s: float | None = None
    heartbeat_wall_s: float | None = None
    labels: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gpu_hour_price_usd: float | None = None
    gpus: int | None = None
    prompts_hash: str | None = None
    simulated: bool = False
    definitions: int = DEFINITIONS_VERSION


_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u


def new_run_id(wall_s: float | None = None) -> str:
    """A run id: milliseconds since the epoch in base 32, then 30 random bits; sorts by time."""
    number = (int((time.time() if wall_s is None else wall_s) * 1000) << 30) | secrets.randbits(30)
    digits = []
    for _ in range(16):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))

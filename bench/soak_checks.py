"""What a soak concludes from records, samples and what was played. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from collectors.records import Outcome, RequestRecord
from reference_server.faults import Expected

Floats = npt.NDArray[np.float64]

Z95 = 1.959964
NEVER_ANSWERED = frozenset({Outcome.NOT_SENT, Outcome.UNFINISHED, Outcome.CONNECT_ERROR})


def flat_kib_per_min(requests_per_min: float) -> float:
    """What may be called flat: a mebibyte an hour or for 100,000 requests, whichever is more."""
    return 1024.0 * max(1 / 60, requests_per_min / 100_000)


# -- request by request ----------------------------------------------------------------------------


@dataclass(slots=True)
class Accounts:
    """Every request that was due, held against what was played.

    Attributes:
        records: how many there are.
        asked: requests that the server was asked.
        outcomes: how many records there are of each expected and recorded outcome.
        faults: requests by the fault that was played.
        wrong: what does not agree, in words; the first hundred.
        wrong_count: how many do not.
    """

    records: int = 0
    asked: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    wrong_count: int = 0

    def complain(self, words: str) -> None:
        """Note what does not agree."""
        self.wrong_count += 1
        if len(self.wrong) < 100:
            self.wrong.append(words)


def reckon(records: Iterable[RequestRecord], expected: Mapping[str, Expected]) -> Accounts:
    """Each request has exactly one record, and it says what was played.

    Args:
        records: all of a run.
        expected: what each request must have become, by its ``X-Request-Id``.
    """
    accounts = Accounts(asked=len(expected))
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    left = set(expected)
    for record in records:
        accounts.records += 1
        numbers[record.worker].append(record.seq)
        name = f"{record.run_id}-{record.worker}-{record.seq}"
        left.discard(name)
        what = expected.get(name)
        accounts.faults[what.fault if what else "(never asked)"] += 1
        accounts.outcomes[what.outcome if what else "-", record.outcome.value] += 1
        wrong = disagreement(what, record)
        if wrong:
            accounts.complain(f"{name}: {wrong}")
    for worker, seqs in numbers.items():
        if sorted(seqs) != list(range(len(seqs))):
            accounts.complain(f"worker {worker}: {len(seqs)} records are not numbered 0, 1, 2 ...")
    for name in sorted(left):
        accounts.complain(f"{name}: asked and not recorded")
    return accounts


def disagreement(expected: Expected | None, record: RequestRecord) -> str | None:
    """What a record says otherwise than was played, in words; ``None`` where it agrees.

    A request that never reached the server has no expectation, and must say so.
    """
    if expected is None:
        never = record.outcome in NEVER_ANSWERED
        return None if never else f"{record.outcome.value}, and the server was never asked"
    events, said = record.output_events.total, record.detail or ""
    for holds, words in (
        (record.outcome == expected.outcome, f"{record.outcome.value} ({record.detail})"),
        (expected.detail in said, f"detail {record.detail!r}"),
        (expected.least_events <= events <= expected.most_events, f"{events} output events"),
        (expected.output_tokens == record.output_tokens, f"{record.output_tokens} output tokens"),
        (set(expected.flags) <= set(record.flags), f"flags {record.flags}"),
        (expected.retries <= record.conn_retries <= 1, f"{record.conn_retries} retries"),
    ):
        if not holds:
            return f"{words}, where {expected} was played"
    return None


# -- over time -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """How a figure moved; all in its unit a minute.

    Attributes:
        low: lower end of the 95 % interval, -inf where there are too few points.
        high: upper end, inf likewise.
    """

    slope: float
    low: float
    high: float

    def is_flat(self, limit: float) -> bool:
        """It does not grow for certain, or by no more than ``limit``."""
        return self.low <= 0.0 or self.slope <= limit


def trend(at_s: Sequence[float], values: Sequence[float], blocks: int = 40) -> Trend:
    """The slope of a figure that jumps about, from the medians of equal blocks of time.

    Theil and Sen's: the median slope of all pairs of points, which a few outliers do not move. Its
    interval takes blocks for independent, which neighbouring samples are not. Source: Sen,
    "Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63 (1968), 1379-1389.
    """
    points = _block_medians(np.asarray(at_s, float), np.asarray(values, float), blocks)
    n = len(points)
    if n < 2:
        return Trend(slope=0.0, low=-np.inf, high=np.inf)
    first, second = np.triu_indices(n, 1)
    rises = (points[second] - points[first]).T
    slopes = np.sort(rises[1] / rises[0]) * 60.0
    half = Z95 * np.sqrt(n * (n - 1) * (2 * n + 5) / 18) / 2
    low, high = int(np.floor(len(slopes) / 2 - half)), int(np.ceil(len(slopes) / 2 + half))
    return Trend(
        slope=float(np.median(slopes)),
        low=float(slopes[low - 1]) if low >= 1 else -np.inf,
        high=float(slopes[high]) if high < len(slopes) else np.inf,
    )


def _block_medians(at_s: Floats, values: Floats, blocks: int) -> Floats:
    """One point (instant, median) for each block of time that has samples."""
    edges = np.linspace(at_s[0], at_s[-1], blocks + 1)[1:-1] if len(at_s) else np.empty(0)
    block_of = np.searchsorted(edges, at_s, side="right")
    return np.array(
        [
            (np.mean(at_s[block_of == block]), np.median(values[block_of == block]))
            for block in np.unique(block_of)
        ]
    )


def quarters(records: Iterable[RequestRecord], expected: Mapping[str, Expected]) -> list[Floats]:
    """TTFT in seconds of plain answers due in the first and in the last quarter, each sorted."""
    plain = [
        (record.due_at_s, record.ttft_s)
        for record in records
        if record.ttft_s is not None
        and (what := expected.get(f"{record.run_id}-{record.worker}-{record.seq}"))
        and what.fault == "plain"
    ]
    if not plain:
        return [np.empty(0), np.empty(0)]
    due, ttft = np.array(plain).T
    first, last = due.min() + np.array((0.25, 0.75)) * (due.max() - due.min())
    return [np.sort(ttft[due <= first]), np.sort(ttft[due >= last])]

"""SLA files: read, checked, and told where they are wrong.

Rules kept here:

- A file is right or refused as a whole; nothing in it is passed over.
- Every message says the file, the line, what was found and what to write instead.
- Values are taken as written: ``95 %`` is no YAML number and ``off`` no boolean here.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import yaml

from sla.errors import SlaFileError
from sla.metrics import MAX, NAMES, any_of
from sla.units import Kind, QuantityError, format_limit, parse_quantity

DEFAULT_CONFIDENCE = 0.95
KEYS = ("sla", "per_request", "objectives", "regression", "confidence", "on_inconclusive")
MAX_BYTES = 1 << 20
PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp")
)


class Op(StrEnum):
    """How a figure must stand to its limit."""

    BELOW = "<"
    AT_MOST = "<="
    ABOVE = ">"
    AT_LEAST = ">="

    @property
    def holds(self) -> Callable[[Any, Any], Any]:
        """Whether a value is within a limit, of numbers or arrays: ``op.holds(value, limit)``."""
        return _COMPARE[self]

    @property
    def is_upper(self) -> bool:
        """The figure must stay below."""
        return self in (Op.BELOW, Op.AT_MOST)


_COMPARE: Mapping[Op, Callable[[Any, Any], Any]] = {
    Op.BELOW: operator.lt,
    Op.AT_MOST: operator.le,
    Op.ABOVE: operator.gt,
    Op.AT_LEAST: operator.ge,
}
_OPS = {
    "at least": Op.AT_LEAST,
    "at most": Op.AT_MOST,
    "<=": Op.AT_MOST,
    ">=": Op.AT_LEAST,
    "\u2264": Op.AT_MOST,
    "\u2265": Op.AT_LEAST,
    "<": Op.BELOW,
    ">": Op.ABOVE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One limit.

    Attributes:
        metric: its name as written; ``ttft`` and ``e2e`` mean by the run's loop what they mean.
        statistic: q of a percentile, "mean", "max", or ``None`` where there is only one.
        op: how the figure must stand to the limit.
        limit: in base units.
        line: of the file.
    """

    metric: str
    statistic: float | str | None
    op: Op
    limit: float
    line: int

    @property
    def kind(self) -> Kind:
        """Unit of the limit."""
        return any_of(self.metric).kind

    @property
    def statistic_text(self) -> str:
        """E.g. "p99.9", "mean", or nothing."""
        return statistic_text(self.statistic)

    @property
    def limit_text(self) -> str:
        """E.g. "< 500 ms"."""
        return f"{self.op} {format_limit(self.limit, self.kind)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegressionLimit:
    """How much worse than a baseline a figure may be: both limits must be passed to regress."""

    metric: str
    statistic: float | str | None
    relative: float | None
    absolute: float | None
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sla:
    """What a run is held to.

    Attributes:
        name: of the agreement.
        source: the file, for messages.
        objectives: at least one.
        per_request: what makes one request good; may be empty.
        regression: limits against a baseline; may be empty.
        confidence: of every interval, e.g. 0.95.
        fail_on_inconclusive: whether "cannot tell" fails the check.
    """

    name: str
    source: str
    objectives: tuple[Objective, ...]
    per_request: tuple[Objective, ...] = ()
    regression: tuple[RegressionLimit, ...] = ()
    confidence: float = DEFAULT_CONFIDENCE
    fail_on_inconclusive: bool = True


def statistic_text(statistic: float | str | None) -> str:
    """E.g. "p99.9", "mean", or nothing."""
    if isinstance(statistic, float):
        return f"p{statistic * 100:.10g}"
    return statistic or ""


def load_sla(path: str | Path) -> Sla:
    """The SLA in a file.

    Raises:
        SlaFileError: it cannot be read or is wrong; says where and how.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise SlaFileError(f"{path} is no SLA file: it has {len(data)} bytes.")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise SlaFileError(f"There is no SLA file {path}.") from None
    except OSError as error:
        raise SlaFileError(f"Cannot read the SLA file {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SlaFileError(f"{path} is no SLA file: it is not UTF-8 text.") from None
    return parse_sla(text, str(path))


def parse_sla(text: str, source: str = "sla") -> Sla:
    """The SLA that ``text`` says.

    Args:
        text: YAML.
        source: what to call it in messages.

    Raises:
        SlaFileError: it is wrong; says where and how.
    """
    return _Reader(source).read(text)


class _Reader:
    """Walks the YAML's nodes, which know their lines."""

    def __init__(self, source: str) -> None:
        self._source = source

    def read(self, text: str) -> Sla:
        root = self._compose(text)
        if root is None:
            raise SlaFileError(f"{self._source} is empty; it needs objectives.")
        top = self._mapping(root, "an SLA file", KEYS)
        if "objectives" not in top:
            self._fail(root, "there are no objectives; name at least one, e.g. 'ttft: p95 < 1 s'")
        per_request = self._objectives(top.get("per_request"), is_per_request=True)
        objectives = self._objectives(top["objectives"])
        for group in (per_request, objectives):
            self._refuse_contradictions(group)
        return Sla(
            name=self._text(top["sla"]) if "sla" in top else Path(self._source).stem,
            source=self._source,
            objectives=objectives,
            per_request=per_request,
            regression=self._regressions(top.get("regression")),
            confidence=self._confidence(top.get("confidence")),
            fail_on_inconclusive=self._on_inconclusive(top.get("on_inconclusive")),
        )

    def _fail(self, where: yaml.Node | int, what: str) -> NoReturn:
        line = where if isinstance(where, int) else where.start_mark.line + 1
        raise SlaFileError(f"{self._source}:{line}: {what}.")

    # YAML

    def _compose(self, text: str) -> yaml.Node | None:
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line if mark else 0
            lines = text.splitlines()
            words = lines[line] if line < len(lines) else ""
            if _starts_folded(error, words):
                self._fail(line + 1, _QUOTE)
            self._fail(line + 1, f"not YAML: {error.problem or error.context}")
        except (yaml.YAMLError, RecursionError) as error:
            raise SlaFileError(f"{self._source}: not YAML: {_one_line(error)}.") from None

    def _mapping(
        self, node: yaml.Node, what: str, known: Iterable[str] | None = None
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, f"{what} must be a list of 'name: value' lines")
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = self._text(key_node)
            if known is not None and key not in known:
                self._fail(key_node, f"unknown {key!r}{_nearest(key, known)}")
            if key in found:
                first = found[key].start_mark.line + 1
                self._fail(key_node, f"{key!r} is there twice, first in line {first}")
            found[key] = value
        return found

    def _text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode) or node.tag not in PLAIN_TAGS:
            self._fail(node, "expected plain text here")
        if node.style == ">":
            self._fail(node, _QUOTE)
        return str(node.value).strip()

    def _texts(self, node: yaml.Node) -> list[tuple[str, int]]:
        """One text or a list of them, each with its line."""
        if isinstance(node, yaml.SequenceNode):
            if not node.value:
                self._fail(node, "the list is empty; write an objective or leave the name out")
            return [(self._text(item), item.start_mark.line + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            self._fail(node, "write objectives as text, e.g. 'p95 < 500 ms', or a list of such")
        return [(self._text(node), node.start_mark.line + 1)]

    # Objectives

    def _objectives(
        self, node: yaml.Node | None, *, is_per_request: bool = False
    ) -> tuple[Objective, ...]:
        if node is None:
            return ()
        allowed = [n for n in NAMES if any_of(n).per_request] if is_per_request else list(NAMES)
        what = "per_request" if is_per_request else "objectives"
        found = [
            self._objective(name, text, line, is_per_request=is_per_request)
            for name, value in self._named(node, what, allowed)
            for text, line in self._texts(value)
        ]
        if not found:
            self._fail(node, f"{what} is empty")
        return tuple(found)

    def _named(
        self, node: yaml.Node, what: str, allowed: list[str]
    ) -> Iterator[tuple[str, yaml.Node]]:
        for name, value in self._mapping(node, what).items():
            if name not in allowed:
                known = name in NAMES
                said = f"{name!r} cannot stand in {what}" if known else f"unknown metric {name!r}"
                self._fail(value, f"{said}{_nearest(name, allowed)}")
            yield name, value

    def _objective(self, name: str, text: str, line: int, *, is_per_request: bool) -> Objective:
        metric = any_of(name)
        before, op, after = self._split(text, name, line)
        statistic = self._statistic(name, before, line, is_per_request=is_per_request)
        try:
            limit = parse_quantity(after, metric.kind)
        except QuantityError as error:
            self._fail(line, f"{name}: {error}")
        objective = Objective(metric=name, statistic=statistic, op=op, limit=limit, line=line)
        self._refuse_impossible(objective)
        return objective

    def _split(self, text: str, name: str, line: int) -> tuple[str, Op, str]:
        match = re.fullmatch(r"(.*?)\s*(at least|at most|[<>]=?|[\u2264\u2265])(.*)", text)
        if match is None:
            example = "p95 < 500 ms" if any_of(name).latency else "at most 1 %"
            self._fail(
                line,
                f"{name}: expected a limit with <, <=, 'at most' or 'at least', e.g. {example!r},"
                f" found {text!r}",
            )
        return match[1], _OPS[match[2]], match[3]

    def _statistic(
        self, name: str, text: str, line: int, *, is_per_request: bool
    ) -> float | str | None:
        metric = any_of(name)
        if is_per_request:
            if text:
                self._fail(line, f"{name}: one request has no {text!r}; write the limit alone")
            return None
        words = metric.statistics
        if not text:
            if metric.latency:
                self._fail(line, f"{name}: say which, e.g. 'p95', 'mean' or 'max'")
            return words[0] if words else None
        if metric.latency and (match := re.fullmatch(r"p(\d+(?:\.\d+)?)", text)):
            percent = float(match[1])
            if not 0 < percent < 100:
                self._fail(line, f"{name}: {text} is no percentile; p1 to p99.99 are, or 'max'")
            return round(percent / 100, 12)
        if text not in words:
            some = ["a percentile like 'p95'"] if metric.latency else []
            some += [repr(word) for word in words] or ["no statistic"]
            self._fail(line, f"{name}: expected {' or '.join(some)}, found {text!r}")
        return text

    def _refuse_impossible(self, objective: Objective) -> None:
        top = 1.0 if objective.kind is Kind.RATIO else None
        name, limit, op = objective.metric, objective.limit, objective.op
        if limit < 0 or (top is not None and limit > top):
            span = "from 0 to 100 %" if top else "0 or more"
            self._fail(objective.line, f"{name} is always {span}, so {objective.limit_text} is not")
        if (op is Op.BELOW and limit == 0) or (op is Op.ABOVE and limit == top):
            word = "at most" if op.is_upper else "at least"
            self._fail(
                objective.line,
                f"{name} can never be {objective.limit_text}; write"
                f" '{word} {format_limit(limit, objective.kind)}'",
            )

    def _refuse_contradictions(self, objectives: tuple[Objective, ...]) -> None:
        for i, one in enumerate(objectives):
            for other in objectives[:i]:
                if one.metric != other.metric:
                    continue
                if one.statistic == other.statistic and one.op.is_upper == other.op.is_upper:
                    what = f"{one.metric} {one.statistic_text}".strip()
                    self._fail(
                        one.line, f"{what} is limited twice, first in line {other.line}; keep one"
                    )
                if _contradict(one, other):
                    self._fail(
                        one.line,
                        f"{one.metric}: {_words(one)} contradicts {_words(other)} of line"
                        f" {other.line}, so that no run could hold both",
                    )

    # The rest

    def _regressions(self, node: yaml.Node | None) -> tuple[RegressionLimit, ...]:
        if node is None:
            return ()
        return tuple(
            self._regression(name, text, line)
            for name, value in self._named(node, "regression", list(NAMES))
            for text, line in self._texts(value)
        )

    def _regression(self, name: str, text: str, line: int) -> RegressionLimit:
        before, within, after = text.partition("within")
        if not within:
            self._fail(line, f"{name}: expected e.g. 'p95 within 10 % and 20 ms', found {text!r}")
        relative = absolute = None
        try:
            for part in re.split(r"\band\b", after):
                if part.strip().endswith("%") and relative is None:
                    relative = parse_quantity(part, Kind.RATIO)
                elif absolute is None:
                    absolute = parse_quantity(part, any_of(name).kind)
                else:
                    self._fail(line, f"{name}: expected one share in % and one amount")
        except QuantityError as error:
            self._fail(line, f"{name}: {error}")
        return RegressionLimit(
            metric=name,
            statistic=self._statistic(name, before.strip(), line, is_per_request=False),
            relative=relative,
            absolute=absolute,
            line=line,
        )

    def _confidence(self, node: yaml.Node | None) -> float:
        if node is None:
            return DEFAULT_CONFIDENCE
        try:
            value = parse_quantity(self._text(node), Kind.RATIO)
        except QuantityError as error:
            self._fail(node, f"confidence: {error}")
        if not 0.5 <= value <= 0.9999:
            self._fail(node, "confidence must lie between 50 % and 99.99 %; 95 % is usual")
        return value

    def _on_inconclusive(self, node: yaml.Node | None) -> bool:
        text = "fail" if node is None else self._text(node)
        if node is not None and text not in ("fail", "pass"):
            self._fail(node, f"on_inconclusive must be fail or pass, not {text!r}")
        return text == "fail"


_QUOTE = "a value that starts with > is YAML for folded text; quote it, or write 'at least'"


def _starts_folded(error: yaml.MarkedYAMLError, words: str) -> bool:
    is_block = "block scalar" in (error.context or "")
    return is_block or ("'>'" in (error.problem or "") and ">" in words)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    if near:
        return f"; perhaps {' or '.join(near)} is meant"
    return f"; known are {', '.join(known)}"


def _words(objective: Objective) -> str:
    return f"{objective.statistic_text} {objective.limit_text}".strip()


def _contradict(one: Objective, other: Objective) -> bool:
    """Whether no sample can meet both: a smaller statistic bounded above a larger one's bound."""
    if one.op.is_upper == other.op.is_upper:
        return False
    upper, lower = (one, other) if one.op.is_upper else (other, one)
    if not _never_exceeds(lower.statistic, upper.statistic):
        return False
    is_strict = upper.op is Op.BELOW or lower.op is Op.ABOVE
    return lower.limit > upper.limit or (is_strict and lower.limit == upper.limit)


def _never_exceeds(small: float | str | None, large: float | str | None) -> bool:
    """Whether the first statistic of any sample is at most the second."""
    if large in (small, MAX):
        return True
    return isinstance(small, float) and isinstance(large, float) and small <= large

"""The JSON Schema of SLA files, for editors; ``python -m sla.schema > sla/sla.schema.json``.

Made from the same tables that the parser uses. The parser knows more (contradictions, limits that
cannot be); a test holds the two against each other.
"""

from __future__ import annotations

import json
import re
from typing import Any

from sla.metrics import NAMES, any_of
from sla.units import UNITS, Kind

_NUMBER = r"[+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
_OP = "(at least|at most|[<>]=?|[\u2264\u2265])"
_PERCENTILE = r"p[0-9]{1,2}(\.[0-9]+)?"


def build_schema() -> dict[str, Any]:
    """The schema, JSON Schema 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Streamgauge SLA file",
        "type": "object",
        "additionalProperties": False,
        "required": ["objectives"],
        "properties": {
            "sla": {"type": "string", "description": "Name of the agreement."},
            "per_request": {
                "description": "What makes one request good: all of these.",
                **_group({n: _limit(any_of(n).kind) for n in NAMES if any_of(n).per_request}),
            },
            "objectives": {
                "description": "What a run is held to.",
                **_group({n: _objective(n) for n in NAMES}),
            },
            "regression": {
                "description": "How much worse than a baseline: beyond both to regress.",
                **_group({n: _regression(n) for n in NAMES}),
            },
            "confidence": {
                "type": "string",
                "pattern": f"^{_quantity(Kind.RATIO)}$",
                "default": "95 %",
                "description": "Of every interval.",
            },
            "on_inconclusive": {"enum": ["fail", "pass"], "default": "fail"},
        },
    }


def _group(patterns: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {name: _one_or_more(pattern) for name, pattern in patterns.items()},
    }


def _one_or_more(pattern: str) -> dict[str, Any]:
    text = {"type": "string", "pattern": f"^\\s*{pattern}\\s*$"}
    return {"anyOf": [text, {"type": "array", "minItems": 1, "items": text}]}


def _quantity(kind: Kind) -> str:
    units = "|".join(re.escape(unit).replace("\\ ", "\\s+") for unit in UNITS[kind] if unit)
    optional = "?" if "" in UNITS[kind] else ""
    return f"{_NUMBER}\\s*({units}){optional}"


def _limit(kind: Kind) -> str:
    return f"{_OP}\\s*{_quantity(kind)}"


def _statistic(name: str) -> str:
    metric = any_of(name)
    words = "|".join(metric.statistics)
    if metric.latency:
        return f"({_PERCENTILE}|{words})"
    return f"({words})?" if words else ""


def _objective(name: str) -> str:
    return f"{_statistic(name)}\\s*{_limit(any_of(name).kind)}"


def _regression(name: str) -> str:
    amount = _quantity(any_of(name).kind)
    share = _quantity(Kind.RATIO)
    return f"{_statistic(name)}\\s*within\\s+({share}|{amount})(\\s+and\\s+({share}|{amount}))?"


if __name__ == "__main__":
    print(json.dumps(build_schema(), indent=2))

"""SLA files: what they may say, and how a wrong one is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla.errors import SlaFileError
from sla.schema import build_schema
from sla.spec import Objective, Op, load_sla, parse_sla

EXAMPLE = """\
sla: interactive chat
per_request:                    # what makes a request good
  ttft: < 500 ms
  tpot: < 50 ms
objectives:
  ttft: [p95 < 500 ms, p99 < 1 s]
  itl: p99 < 80 ms
  error_ratio: < 0.5 %
  goodput_ratio: at least 95 %
  output_tokens_per_s: at least 1500
  cost_per_request: mean < 0.002 usd
regression:                     # against a baseline
  ttft: p95 within 10 % and 20 ms
confidence: 95 %
on_inconclusive: fail           # or pass
"""


def _one(text: str) -> Objective:
    (objective,) = parse_sla(f"objectives:\n  {text}").objectives
    return objective


def test_the_example_of_the_design_is_read() -> None:
    """Every line of it: objectives in order, per-request ones, regression, confidence."""
    sla = parse_sla(EXAMPLE)

    assert sla.name == "interactive chat"
    assert [f"{o.metric} {o.statistic_text} {o.limit_text}" for o in sla.objectives] == [
        "ttft p95 < 500 ms",
        "ttft p99 < 1 s",
        "itl p99 < 80 ms",
        "error_ratio  < 0.5 %",
        "goodput_ratio  >= 95 %",
        "output_tokens_per_s  >= 1,500/s",
        "cost_per_request mean < 0.002 usd",
    ]
    assert [o.metric for o in sla.per_request] == ["ttft", "tpot"]
    (regression,) = sla.regression
    assert (regression.relative, regression.absolute) == (0.1, 0.02)
    assert (sla.confidence, sla.fail_on_inconclusive) == (0.95, True)


@pytest.mark.parametrize(
    ("text", "statistic", "op", "limit"),
    [
        ("ttft: p99.9 <= 1 s", 0.999, Op.AT_MOST, 1.0),
        ("ttft: p50<100ms", 0.5, Op.BELOW, 0.1),
        ("e2e: max at most 30 s", "max", Op.AT_MOST, 30.0),
        ("tpot: mean < 20 ms", "mean", Op.BELOW, 0.02),
        ('goodput_per_s: "> 5"', None, Op.ABOVE, 5.0),
        ("goodput_per_s: '>= 5 requests/s'", None, Op.AT_LEAST, 5.0),
        ("availability: at least 99.9 %", None, Op.AT_LEAST, 0.999),
        ("cost_per_request: at most 0.01 usd", "mean", Op.AT_MOST, 0.01),
        ("error_ratio: at most 0 %", None, Op.AT_MOST, 0.0),
    ],
)
def test_an_objective_says_statistic_operator_and_limit(
    text: str, statistic: float | str | None, op: Op, limit: float
) -> None:
    """Percentiles of any precision, mean and max; signs or words."""
    found = _one(text)

    assert (found.statistic, found.op) == (statistic, op)
    assert found.limit == pytest.approx(limit)


BAD = [
    ("objectives:\n  tfft: p95 < 1 s", "sla:2: unknown metric 'tfft'; perhaps ttft"),
    ("objectives:\n  tokens_per_s: '> 5'", "or output_tokens_per_s is meant"),
    ("objectives:\n  ttft: p95 < 500", "a unit of time"),
    ("objectives:\n  ttft: p95 < 500 %", "'%' is not one of them"),
    ("objectives:\n  error_ratio: < 0.005", "% or ratio"),
    ("objectives:\n  output_tokens_per_s: at least 5 requests/s", "tokens per s"),
    ("objectives:\n  ttft: p95 < nan ms", "expected a number"),
    ("objectives:\n  ttft: p95 < .nan", "expected a number"),
    ("objectives:\n  ttft: p95 500 ms", "expected a limit with <"),
    ("objectives:\n  ttft: < 500 ms", "say which, e.g. 'p95'"),
    ("objectives:\n  ttft: q95 < 500 ms", "found 'q95'"),
    ("objectives:\n  ttft: p100 < 500 ms", "no percentile"),
    ("objectives:\n  ttft: p0 < 500 ms", "no percentile"),
    ("objectives:\n  error_ratio: p95 < 5 %", "expected no statistic, found 'p95'"),
    ("objectives:\n  error_ratio: < 0 %", "can never be < 0 %; write 'at most 0 %'"),
    ("objectives:\n  error_ratio: < 150 %", "always from 0 to 100 %"),
    ("objectives:\n  ttft: p95 < -5 ms", "always 0 or more"),
    ("objectives:\n  ttft:\n    p95: 500 ms", "write objectives as text"),
    ("objectives:\n  ttft: []", "the list is empty"),
    ("objectives: {}", "objectives is empty"),
    ("objectives: p95", "must be a list of 'name: value' lines"),
    ("objectives:", "must be a list of 'name: value' lines"),
    ("sla: x", "there are no objectives"),
    ("", "is empty"),
    ("[1, 2]", "an SLA file must be"),
    ("objectives:\n  ttft: p95 < 1 s\n  ttft: p99 < 2 s", "sla:3: 'ttft' is there twice, first in"),
    ("objectives:\n  ttft: p95 < 1 s\nobjectives:\n  itl: p9 < 1 s", "sla:3: 'objectives' is"),
    ("objective:\n  ttft: p95 < 1 s", "unknown 'objective'; perhaps objectives"),
    ("objectives:\n  ttft: [p95 < 1 s, p95 < 2 s]", "ttft p95 is limited twice"),
    ("objectives:\n  ttft: [p95 < 1 s, 'p95 > 2 s']", "contradicts"),
    ("objectives:\n  ttft: [p50 at least 2 s, p95 < 1 s]", "contradicts"),
    ("objectives:\n  ttft: [mean at least 2 s, max < 1 s]", "contradicts"),
    ("objectives:\n  goodput_per_s: > 5", "quote it, or write 'at least'"),
    ("objectives:\n  goodput_per_s: >5", "quote it, or write 'at least'"),
    ("objectives:\n  goodput_per_s: >= 5", "quote it, or write 'at least'"),
    ("objectives:\n  goodput_per_s: >\n    5", "quote it, or write 'at least'"),
    ("objectives:\n  goodput_per_s: [> 5]", "quote it, or write 'at least'"),
    ("objectives:\n  ttft: p95 < 1 s\n bad", "sla:3: not YAML"),
    ("objectives:\n\tttft: p95 < 1 s", "sla:2: not YAML"),
    ("objectives: {ttft: p95 < 1 s}\n---\nx: 1", "not YAML"),
    ("objectives: &a [*a]", "must be a list of"),
    ("objectives:\n  ttft: !!python/name:os.system x", "expected plain text"),
    ("objectives:\n  ? [a]\n  : b", "expected plain text"),
    ("objectives:\n  ttft: p95 < 1 s\nconfidence: 0.95", "% or ratio"),
    ("objectives:\n  ttft: p95 < 1 s\nconfidence: 100 %", "between 50 % and 99.99 %"),
    ("objectives:\n  ttft: p95 < 1 s\non_inconclusive: maybe", "fail or pass, not 'maybe'"),
    ("per_request:\n  error_ratio: < 1 %\nobjectives:\n  itl: p9 < 1 s", "cannot stand in"),
    ("per_request:\n  ttft: p95 < 1 s\nobjectives:\n  itl: p9 < 1 s", "one request has no 'p95'"),
    ("objectives:\n  itl: p9 < 1 s\nregression:\n  ttft: p95 < 1 s", "within 10 % and 20 ms"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=[words for _, words in BAD])
def test_a_wrong_file_is_refused_in_one_sentence(text: str, words: str) -> None:
    """It says where, what was found and what to write; nothing is passed over."""
    with pytest.raises(SlaFileError) as refused:
        parse_sla(text)

    message = str(refused.value)
    assert words in message
    assert "\n" not in message
    assert message.startswith("sla")


def test_a_range_is_no_contradiction() -> None:
    """A lower and an upper limit that some value meets stand together."""
    text = "objectives:\n  ttft: ['p95 > 100 ms', p95 < 1 s, p99 < 900 ms, mean < 10 s]"

    assert len(parse_sla(text).objectives) == 4


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever stands in a file, the answer is an SLA or one sentence, never another error."""
    for document in (text, f"objectives:\n  ttft: {text}", f"objectives:\n  {text}: p95 < 1 s"):
        try:
            parse_sla(document)
        except SlaFileError as error:
            assert "\n" not in str(error)  # noqa: PT017  # either way is right; only the form counts


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "There is no SLA file"),
        (lambda path: path.mkdir(), "Cannot read the SLA file"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
        (lambda path: path.write_bytes(b"a" * 2_000_000), "2000000 bytes"),
    ],
    ids=["missing", "a folder", "binary", "huge"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, write: object, words: str) -> None:
    """A missing file, a folder, bytes: one sentence with the path."""
    path = tmp_path / "sla.yaml"
    write(path)  # type: ignore[operator]  # a lambda of the table above

    with pytest.raises(SlaFileError, match=words) as refused:
        load_sla(path)
    assert str(path) in str(refused.value)


def test_a_name_is_the_files_where_it_says_none(tmp_path: Path) -> None:
    """Without `sla:` the file's own name is the agreement's; a byte order mark does not matter."""
    path = tmp_path / "chat.yaml"
    path.write_text("\ufeffobjectives:\n  ttft: p95 < 1 s\n", encoding="utf-8")

    assert load_sla(path).name == "chat"


SCHEMA = Path(__file__).parents[2] / "sla" / "sla.schema.json"


def test_the_schema_file_is_that_of_the_parser() -> None:
    """`python -m sla.schema > sla/sla.schema.json` was run after the last change."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == build_schema()


# What the schema cannot see, being about several lines or about values.
ONLY_THE_PARSER = (
    "twice",
    "first in",
    "'objectives' is",
    "contradicts",
    "can never",
    "always",
    "between",
    "p0 ",
    "not YAML",
    "quote it",
)


def _schema_takes(text: str) -> bool:
    jsonschema = pytest.importorskip("jsonschema")
    yaml = pytest.importorskip("yaml")
    validator = jsonschema.Draft202012Validator(build_schema())
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        return False
    return bool(validator.is_valid(document))


@pytest.mark.parametrize(
    "text",
    [EXAMPLE]
    + [
        f"objectives:\n  {line}"
        for line in (
            "ttft: p99.9 <= 1 s",
            "ttft: p50<100ms",
            "e2e: max at most 30 s",
            'goodput_per_s: "> 5"',
            "availability: at least 99.9 %",
            "cost_per_request: at most 0.01 usd",
            "output_tokens_per_s: at least 1500 tokens per s",
        )
    ],
)
def test_the_schema_takes_what_the_parser_takes(text: str) -> None:
    """Editors do not mark what is right."""
    parse_sla(text)
    assert _schema_takes(text)


@pytest.mark.parametrize(
    "text",
    [
        text
        for text, words in BAD
        if not any(word in words or word in text for word in ONLY_THE_PARSER) and "*a" not in text
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(text: str) -> None:
    """Editors mark what is wrong, as far as a schema can see it."""
    assert not _schema_takes(text)

"""What was found of an endpoint, for programs and for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadgen.doctor import Findings
from loadgen.ladder import MAX_REQUESTS
from loadgen.probe import Sight
from loadgen.prognosis import cached_tokens, joined, measures, misses, ms

_TELLING_HEADERS = ("server", "via", "x-powered-by", "x-request-id")
_LIMIT_HEADERS = ("x-ratelimit-limit-", "anthropic-ratelimit-")


def document(f: Findings) -> dict[str, Any]:
    """The findings for programs; keys are only added."""
    record, anatomy = f.record, f.anatomy
    return {
        "schema": "streamgauge.doctor/1",
        "target": f.endpoint.target.url,
        "api": f.endpoint.api,
        "model": f.endpoint.model,
        "models": list(f.models.ids or ()),
        "usable": f.usable,
        "dialect": {**f.endpoint.dialect.spec(), "because": f.because or None},
        "http": {
            "version": f.models.http_version or None,
            "status": f.sight.status,
            "content_type": f.sight.exchange.headers.get("content-type"),
            "content_encoding": f.sight.exchange.headers.get("content-encoding"),
            "kept_alive": f.sight.exchange.reused,
            "headers": _headers(f, (*_TELLING_HEADERS, *_LIMIT_HEADERS)),
        },
        "key_sent": bool(f.endpoint.key),
        "requests": f.asked,
        "refused": [
            {"status": r.status, "left_out": list(r.left_out), "named": r.named, "words": r.words}
            for r in f.refused
        ],
        "outcome": record.outcome.value,
        "detail": record.detail,
        "flags": list(record.flags),
        "stream": {
            "events": anatomy.events,
            "reads": len(f.sight.reads),
            "first_event": anatomy.first_event or None,
            "role_trap_s": _role_trap_s(f),
            "head_lead_s": _head_lead_s(f),
            "ends": list(anatomy.ends),
            "reasoning_in": list(anatomy.reasoning_in),
            "usage_in": list(anatomy.usage_in),
            "token_proof": list(f.wide_anatomy.token_proof),
        },
        "ttft_s": {"first": _ttft_s(f.wide), "again": _ttft_s(f.plain), "e2e_whole": _e2e_s(f)},
        "tokens": {
            "source": record.token_source.value if record.token_source else None,
            "input": record.input_tokens,
            "output": record.output_tokens,
            "output_events": record.output_events.total,
            "reasoning": record.reasoning_tokens,
            "cached_first": cached_tokens(f.wide),
            "cached_again": cached_tokens(f.plain),
        },
        "pages": {
            "health": f.endpoint.dialect.health_path,
            "healthy": f.healthy,
            "metrics": f.endpoint.dialect.metrics_path if f.metrics else None,
        },
        "measures": measures(f),
        "misses": misses(f),
    }


def rows(f: Findings) -> Iterator[tuple[str, str]]:
    """The findings for people: a name and a few words each."""
    dialect, anatomy = f.endpoint.dialect, f.anatomy
    yield "model", f.endpoint.model + (f" (one of {len(f.models.ids)})" if f.models.ids else "")
    yield "key", "sent, and not refused" if f.endpoint.key else "none sent"
    yield "dialect", f"{dialect.title}" + (f", by {f.because}" if f.because else ", nothing tells")
    if dialect.remark:
        yield "", dialect.remark
    limit = f"; limit field {dialect.limit_field}" if f.endpoint.api == "chat" else ""
    yield "requests", f"{f.asked} of at most {MAX_REQUESTS}{limit}"
    for r in f.refused:
        how = "then without" if r.named else "then tried without"
        left = f", {how} {joined(r.left_out)}" if r.left_out else ""
        yield "refused", f"HTTP {r.status} ({r.words}){left}"
    version = f.models.http_version or "HTTP"
    server = f.sight.exchange.headers.get("server")
    kept = "kept alive" if f.sight.exchange.reused else "a new connection each"
    yield "http", ", ".join(w for w in (version, server and f"server {server}", kept) if w)
    for name, value in _headers(f, _LIMIT_HEADERS).items():
        yield "rate limit", f"{name}: {value}"
    content = f.sight.exchange.headers.get("content-type", "no content type")
    status = "no answer" if f.sight.status is None else f"HTTP {f.sight.status}, {content}"
    flags = f" ({', '.join(f.record.flags)})" if f.record.flags else ""
    yield "answer", f"{status}, {f.record.outcome.value}{flags}"
    if anatomy.events:
        yield "stream", f"{anatomy.events} events in {len(f.sight.reads)} reads"
        before = "before the first output"
        yield "first event", f"{anatomy.first_event}, {ms(_role_trap_s(f))} {before}"
        yield "head", f"{ms(_head_lead_s(f))} {before}"
        yield "ends with", joined(anatomy.ends) or "nothing"
        yield "reasoning in", joined(anatomy.reasoning_in) or "none seen"
        yield "usage in", joined(anatomy.usage_in) or "none"
        yield "tokens proved by", joined(f.wide_anatomy.token_proof) or "nothing"
    yield "first, again", f"TTFT {ms(_ttft_s(f.wide))}, then {ms(_ttft_s(f.plain))}"
    if f.healthy is not None:
        yield "health", f"{dialect.health_path} {'answers' if f.healthy else 'does not answer'}"


def text(f: Findings) -> str:
    """The findings, and what a run would measure, for a terminal."""
    shown = list(rows(f))
    width = max(len(name) for name, _ in shown)
    lines = [f"{f.endpoint.target.url} ({f.endpoint.api})", ""]
    lines += [f"  {name:<{width}}  {words}" for name, words in shown]
    for heading, sentences in (
        ("A run would measure", measures(f)),
        ("A run could not measure", misses(f)),
    ):
        if sentences:
            lines += ["", heading, *(f"  - {sentence}" for sentence in sentences)]
    return "\n".join(lines) + "\n"


def _headers(f: Findings, starts: tuple[str, ...]) -> dict[str, str]:
    return {n: v for n, v in f.sight.exchange.headers.items() if n.startswith(starts)}


def _role_trap_s(f: Findings) -> float | None:
    """How long before the first output the first event came."""
    first, output = f.anatomy.first_event_at, f.sight.first_output_at
    return None if first is None or output is None else max(0.0, output - first)


def _head_lead_s(f: Findings) -> float | None:
    output, head = f.record.first_token_at_s, f.record.first_byte_at_s
    return None if output is None or head is None else output - head


def _ttft_s(sight: Sight | None) -> float | None:
    return sight.record.ttft_s if sight and sight.record else None


def _e2e_s(f: Findings) -> float | None:
    return f.whole.record.e2e_s if f.whole and f.whole.record else None

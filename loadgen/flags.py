"""Oddities of one request beside its outcome, and how long its answer was to be. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from collectors.records import Outcome
from loadgen.body import AnswerBody
from loadgen.exchange import End, Exchange
from loadgen.usage import MAX_COUNT, count

EARLY_S = 0.010
EARLY_RATIO = 0.10
_KNOWS_CHOICES = frozenset({"chat", "completions"})
_LIMITS = (  # the first that is sent holds
    "max_completion_tokens",
    "max_tokens",
    "max_output_tokens",
    "n_predict",  # llama.cpp
)


def flags_of(
    outcome: Outcome,
    exchange: Exchange,
    body: AnswerBody,
    *,
    output_tokens: int | None,
    least_tokens: int | None,
) -> Iterator[str]:
    """The flags of a request.

    Args:
        outcome: what became of it.
        exchange: what the transport saw.
        body: what was said.
        output_tokens: as far as known.
        least_tokens: as asked for, see :class:`Length`.
    """
    reply = body.reply
    if reply.has_output or outcome is Outcome.OK:
        yield from reply.flags()
    elif reply.bad_json:
        yield "bad_json"
    for name, holds in (
        ("early_head", is_early(exchange.head_at, reply.first_output_at, exchange.sent_at)),
        ("early_event", is_early(reply.first_silent_at, reply.first_output_at, exchange.sent_at)),
        ("fewer_tokens", outcome is Outcome.OK and is_fewer(output_tokens, least_tokens)),
        ("dirty_close", outcome is Outcome.OK and exchange.end is not End.COMPLETE),
        ("unterminated_event", body.unterminated),
        ("stale_connection", exchange.retries > 0),
        ("encoded", exchange.headers.get("content-encoding", "identity") != "identity"),
    ):
        if holds:
            yield name


def is_early(at: float | None, output_at: float | None, sent_at: float | None) -> bool:
    """Whether something came so long before the first output that its time says nothing of that.

    By more than 10 ms and more than a tenth of the time to the first output. False where there was
    no output.
    """
    if at is None or output_at is None or sent_at is None:
        return False
    return output_at - at > max(EARLY_S, EARLY_RATIO * (output_at - sent_at))


def is_fewer(output_tokens: int | None, least_tokens: int | None) -> bool:
    """Whether fewer tokens came than the server was made to generate; False where unknown."""
    return output_tokens is not None and least_tokens is not None and output_tokens < least_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long an answer was asked to be, in output tokens of all its choices together.

    Attributes:
        choices: how many answers were asked for.
        limit: the most; ``None`` where no limit was sent.
        least: the least; ``None`` where the model may end when it likes.
    """

    choices: int = 1
    limit: int | None = None
    least: int | None = None


def asked_length(api: str, body: Mapping[str, Any]) -> Length:
    """What a request's body asks for.

    ``ignore_eos`` (NIM takes it inside ``nvext`` too) makes an answer as long as its limit,
    ``min_tokens`` as long as that. What a server makes of nonsense is its own business.
    """
    choices = count(body, "n") or 1 if api in _KNOWS_CHOICES else 1
    limit = next((n for name in _LIMITS if (n := count(body, name)) is not None), None)
    least = count(body, "min_tokens") or 0
    vendor = body.get("nvext")
    if any(part.get("ignore_eos") is True for part in (body, vendor) if isinstance(part, Mapping)):
        least = max(least, limit or 0)
    if choices * max(limit or 0, least) > MAX_COUNT:
        return Length()  # no store could hold it
    return Length(
        choices=choices,
        limit=None if limit is None else limit * choices,
        least=least * choices or None,
    )

"""From what the transport and the reply saw to one outcome and its detail. Pure."""

from __future__ import annotations

from collectors.records import Outcome
from loadgen.body import AnswerBody
from loadgen.errors import DecodeError
from loadgen.exchange import End, Exchange

_BY_END = {
    End.CONNECT_ERROR: Outcome.CONNECT_ERROR,
    End.TLS_ERROR: Outcome.TLS_ERROR,
    End.TIMEOUT: Outcome.TIMEOUT,
    End.MALFORMED: Outcome.MALFORMED,
}


def judge_exchange(exchange: Exchange, body: AnswerBody) -> tuple[Outcome, str | None]:
    """The outcome of one request, and what the outcome does not say by itself.

    HTTP 200 is not success: that takes an end marker or all finish reasons, and no error anywhere.
    """
    if exchange.end is End.ABANDONED:
        if exchange.sent_at is None:
            return Outcome.NOT_SENT, "the run ended before a connection was open"
        return Outcome.UNFINISHED, None
    if exchange.end in _BY_END:
        return _BY_END[exchange.end], exchange.detail
    if exchange.end is End.RESET:
        # The answer was whole before the connection broke: the user lost nothing.
        if exchange.status == 200 and body.reply.complete and body.reply.error is None:
            return Outcome.OK, None
        return Outcome.RESET, exchange.detail
    return _judge_whole(exchange, body)


def _judge_whole(exchange: Exchange, body: AnswerBody) -> tuple[Outcome, str | None]:
    status = exchange.status or 0
    if status >= 300:
        return _refused(status), body.refusal or None
    try:
        body.end(exchange.done_at or exchange.ended_at or 0.0)
    except DecodeError as error:
        return Outcome.MALFORMED, str(error)
    reply = body.reply
    if reply.error is not None:
        return Outcome.IN_BAND_ERROR, reply.error
    if body.empty:
        return Outcome.MALFORMED, "an empty body"
    if reply.complete:
        return Outcome.OK, None
    if reply.whole:
        return Outcome.MALFORMED, "a JSON body without a finish reason"
    return Outcome.TRUNCATED, None


def _refused(status: int) -> Outcome:
    if status == 429:
        return Outcome.RATE_LIMITED
    if status in (503, 529):
        return Outcome.OVERLOADED
    return Outcome.HTTP_ERROR

"""From what the transport and the reply saw to one outcome and its detail. Pure."""

from __future__ import annotations

from collectors.records import Outcome
from collectors.redact import redact_url
from loadgen.body import AnswerBody
from loadgen.errors import DecodeError
from loadgen.exchange import CUT, End, Exchange
from loadgen.retry_after import asked_wait_s

_BY_END = {
    End.RESET: Outcome.RESET,
    End.ABANDONED: Outcome.UNFINISHED,
    End.CUT: Outcome.CANCELLED,
    End.CONNECT_ERROR: Outcome.CONNECT_ERROR,
    End.TLS_ERROR: Outcome.TLS_ERROR,
    End.TIMEOUT: Outcome.TIMEOUT,
    End.MALFORMED: Outcome.MALFORMED,
}


def judge_exchange(exchange: Exchange, body: AnswerBody) -> tuple[Outcome, str | None]:
    """The outcome of one request, and what the outcome does not say by itself.

    HTTP 200 is not success: that takes an end marker or all finish reasons, and no error anywhere.
    An answer that says so is judged by it, however its connection ended afterwards: whoever has a
    refusal, an error's words or the whole answer has lost nothing to a reset or a time limit.
    """
    status, reply = exchange.status or 0, body.reply
    if exchange.sent_at is None and exchange.end is End.ABANDONED:
        return Outcome.NOT_SENT, "the run ended before a connection was open"
    if status >= 300:
        return _refused(status), _words_of_refusal(exchange, body)
    if exchange.end is End.COMPLETE:
        try:
            body.end(exchange.done_at or exchange.ended_at or 0.0)
        except DecodeError as error:
            return Outcome.MALFORMED, str(error)
    if reply.error is not None:
        return Outcome.IN_BAND_ERROR, reply.error
    if reply.complete:
        return Outcome.OK, None
    if exchange.end is End.TIMEOUT and exchange.detail == CUT:
        return Outcome.CANCELLED, None
    if exchange.end in _BY_END:
        return _BY_END[exchange.end], exchange.detail
    if body.empty:
        return Outcome.MALFORMED, "an empty body"
    if reply.whole:
        return Outcome.MALFORMED, f"a JSON body without {reply.ENDING}"
    return Outcome.TRUNCATED, None


def _words_of_refusal(exchange: Exchange, body: AnswerBody) -> str | None:
    location = exchange.headers.get("location")
    if location is not None:
        return f"a redirect to {redact_url(location)}, not followed"
    words = body.refusal or exchange.detail
    wait_s = asked_wait_s(exchange.headers)
    if wait_s is None:
        return words
    return "; ".join(filter(None, (f"asks to wait {round(wait_s, 2):g} s", words)))


def _refused(status: int) -> Outcome:
    if status == 429:
        return Outcome.RATE_LIMITED
    if status in (503, 529):
        return Outcome.OVERLOADED
    return Outcome.HTTP_ERROR

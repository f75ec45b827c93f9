"""One request, from the moment it was due to the end of its response.

Two kinds of time live here, told apart by suffix. ``*_at_s`` is an instant in seconds since the
run began, read from one monotonic clock; ``*_s`` is a duration in seconds. The wall clock is kept
once, on the run. ``None`` means "not observed" and stays ``None`` all the way to the database and
the last page; it is never zero.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from collectors.errors import RecordError


class Outcome(StrEnum):
    """How a request ended. Each value is stored, so renaming one is a migration."""

    OK = "ok"
    NOT_SENT = "not_sent"  # due, but the generator never got to it
    CONNECT_ERROR = "connect_error"
    TLS_ERROR = "tls_error"
    TIMEOUT = "timeout"  # `detail` says which limit: head, first, idle or total
    RATE_LIMITED = "rate_limited"  # 429
    OVERLOADED = "overloaded"  # 503, 529
    HTTP_ERROR = "http_error"  # other 3xx, 4xx, 5xx
    IN_BAND_ERROR = "in_band_error"  # an error inside a 200 answer
    TRUNCATED = "truncated"  # a clean end without finish reason or end marker
    RESET = "reset"
    MALFORMED = "malformed"  # wrong content type, undecodable, too large, empty body
    UNFINISHED = "unfinished"  # still open when the run ended
    CANCELLED = "cancelled"  # cut by the scenario on purpose


NOT_FAILED = frozenset({Outcome.OK, Outcome.UNFINISHED, Outcome.NOT_SENT, Outcome.CANCELLED})
"""Outcomes that are not failures (the error ratio's numerator is every other one)."""

FAILED = frozenset(Outcome) - NOT_FAILED

FIRST_COALESCED = "first_coalesced"
"""Flag: the first token shares its stamp with a later one, and may have come before it."""


class TokenSource(StrEnum):
    """Where a record's token counts come from, best first."""

    USAGE = "usage"
    RUNNING_USAGE = "running_usage"
    TOKEN_IDS = "token_ids"  # noqa: S105  # tokens of text, not a credential
    LOGPROBS = "logprobs"
    TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputEvents:
    """Number of output-bearing stream events by kind. Events, not tokens."""

    answer: int = 0
    reasoning: int = 0
    tool: int = 0
    hidden: int = 0  # token evidence without text

    @property
    def total(self) -> int:
        """All output-bearing events."""
        return self.answer + self.reasoning + self.tool + self.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What was observed of one request; latencies are properties computed from its instants.

    A run leaves one record for every request that was *due*, failed, unfinished and never sent
    ones too, so that no figure can lose its worst cases. ``(worker, seq, attempt)`` is unique
    within a run.

    Attributes:
        seq: number of the request within its worker, from 0.
        attempt: 0 for the first try; retries, where asked for, are rows of their own.
        detail: what the outcome does not say by itself (which time limit, the error's words),
            redacted, at most 500 characters.
        flags: oddities beside the outcome, e.g. ``coalesced``, ``no_done``, ``no_output``.
        connect_s: DNS, TCP and TLS, where a connection had to be opened; ``None`` on a reused one.
        done_at_s: end of the response; ``None`` where it never ended.
        ended_at_s: when we stopped watching, whatever the outcome: the time an unfinished request
            had is ``ended_at_s - sent_at_s``. ``None`` for a request never sent.
        read_delay_s: how late this process read the first token: read minus kernel arrival.
            ``None`` where the kernel gave no stamp, or there was no token.
        first_event_tokens: output tokens in the first output event, where the server told.
        coalesced_events: output events that shared a read with an earlier output event.
        asked_output_tokens: the token limit sent, times the answers asked for; ``None`` without
            a limit.
        gaps_s: seconds between consecutive output events (``array('f')``), in order; empty for a
            single event, ``None`` where not kept.
        cache_write_input_tokens: input tokens that the server wrote to a cache.
        audio_input_tokens: those of the input tokens that were audio.
        audio_output_tokens: those of the output tokens that were audio.
        http_version: "1.0", "1.1" or "2", as the response named it.
        server_cost_usd: what the server itself said the request cost, US dollars.
        retry_after_s: how long a refusal asked to wait before the next request.
        cache_status: "hit" or "miss", as a gateway said of its own cache of answers.
        prompt_hash: keyed hash of the prompt, 32 hex digits; equal prompts of one database have
            equal ones.
        prompt_sketch: keyed similarity sketch of the prompt, unsigned 64 bits: similar prompts
            of one database differ in few bits.
        answer_hash: keyed hash of all that the first choice said, 32 hex digits.
        answer_chain: hash chain over blocks of what the first choice said, 4 bytes a block.
    """

    run_id: str
    seq: int
    worker: str = "local"
    attempt: int = 0
    scenario: str | None = None
    task: str | None = None
    tier: str | None = None
    session: str | None = None
    turn: int | None = None
    endpoint: str | None = None
    model: str | None = None
    api: str | None = None
    outcome: Outcome
    detail: str | None = None
    http_status: int | None = None
    flags: tuple[str, ...] = ()
    due_at_s: float
    sent_at_s: float | None = None
    connect_s: float | None = None
    first_byte_at_s: float | None = None
    first_token_at_s: float | None = None
    first_answer_at_s: float | None = None
    last_token_at_s: float | None = None
    done_at_s: float | None = None
    ended_at_s: float | None = None
    read_delay_s: float | None = None
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    token_source: TokenSource | None = None
    first_event_tokens: int | None = None
    asked_output_tokens: int | None = None
    output_events: OutputEvents = field(default_factory=OutputEvents)
    coalesced_events: int = 0
    conn_retries: int = 0
    finish_reasons: tuple[str, ...] = ()
    gaps_s: array[float] | None = None
    quality: float | None = None
    cache_write_input_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    http_version: str | None = None
    server_cost_usd: float | None = None
    retry_after_s: float | None = None
    cache_status: str | None = None
    prompt_hash: str | None = None
    prompt_sketch: int | None = None
    answer_hash: str | None = None
    answer_chain: bytes | None = None

    def __post_init__(self) -> None:
        instants = (
            self.due_at_s,
            self.sent_at_s,
            self.first_byte_at_s,
            self.first_token_at_s,
            self.last_token_at_s,
        )
        seen = [t for t in instants if t is not None]
        if any(later < earlier for earlier, later in pairwise(seen)):
            raise RecordError(
                f"request {self.worker}/{self.seq}: instants out of order: {instants}"
            )

    @property
    def send_lag_s(self) -> float | None:
        """How late the generator was: sent - due."""
        return _span(self.due_at_s, self.sent_at_s)

    @property
    def ttft_s(self) -> float | None:
        """TTFT: first output-bearing event - sent."""
        return _span(self.sent_at_s, self.first_token_at_s)

    @property
    def ttft_from_due_s(self) -> float | None:
        """TTFT as a user on schedule felt it: first output-bearing event - due."""
        return _span(self.due_at_s, self.first_token_at_s)

    @property
    def ttfa_s(self) -> float | None:
        """TTFA: first non-empty answer content - sent; reasoning and tool calls do not count."""
        return _span(self.sent_at_s, self.first_answer_at_s)

    @property
    def felt_end_at_s(self) -> float | None:
        """Last output-bearing event, or the response's end where nothing was streamed."""
        return self.done_at_s if self.last_token_at_s is None else self.last_token_at_s

    @property
    def e2e_s(self) -> float | None:
        """E2E: last output-bearing event - sent; done - sent without any."""
        return _span(self.sent_at_s, self.felt_end_at_s)

    @property
    def e2e_from_due_s(self) -> float | None:
        """E2E from due: what coordinated omission would hide."""
        return _span(self.due_at_s, self.felt_end_at_s)

    @property
    def tpot_s(self) -> float | None:
        """TPOT: (last token - first token) / (output tokens - tokens in the first output event).

        ``None`` where the divisor is not positive or tokens are unknown. Tokens in the first
        event count as 1 where nothing tells more (``first_event_tokens`` is then ``None``).
        """
        decode_s = _span(self.first_token_at_s, self.last_token_at_s)
        if decode_s is None or self.output_tokens is None:
            return None
        divisor = self.output_tokens - (self.first_event_tokens or 1)
        return decode_s / divisor if divisor > 0 else None


def _span(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start

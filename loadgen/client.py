"""From "ask this, it was due then" to one record. Knows the API, not Locust.

Instants are taken on CLOCK_MONOTONIC and leave here as seconds since the run began.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from collectors.records import Outcome, RequestRecord
from collectors.redact import redact_text
from loadgen.body import AnswerBody
from loadgen.counts import Counter, Counts, Task, with_counts
from loadgen.dialects import GENERIC, STANDARD_PATHS, Dialect, apply_dialect
from loadgen.errors import OptionError
from loadgen.exchange import End, Exchange, Limits, Transport
from loadgen.fingerprint import Fingerprints
from loadgen.flags import Length, asked_length, flags_of
from loadgen.outcome import judge_exchange
from loadgen.replies import make_reply
from loadgen.reply import MAX_WORDS, Reply
from loadgen.retry_after import asked_wait_s
from loadgen.said import Said
from loadgen.server_cost import cost_usd
from loadgen.target import HttpRequest, Target, render_head

API_PATHS = STANDARD_PATHS
"""The APIs that can be asked, and where they usually are."""

MAX_DETAIL = 500
MAX_GAPS = 4_000_000
"""Of an answer longer than that, which no model gives, the gaps are not kept."""

_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "text/event-stream, application/json",
    "Accept-Encoding": "identity",
    "User-Agent": "streamgauge",
}
_HEADERS_OF_API = {"messages": {"anthropic-version": "2023-06-01"}}  # refused without
_PROMPT_FIELDS = {
    "chat": "messages",
    "completions": "prompt",
    "responses": "input",
    "messages": "messages",
    "embeddings": "input",
}
_LIMIT_FIELDS = {
    "chat": "max_tokens",
    "completions": "max_tokens",
    "responses": "max_output_tokens",
    "messages": "max_tokens",
}
_ASKS_FOR_USAGE = frozenset({"chat", "completions"})  # the others send it anyway
_SENDS_PROMPTS_AS_THEY_ARE = frozenset({"completions", "embeddings"})
_MESSAGES_LIMIT = 1024  # that API refuses a request without a limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where and as whom to ask.

    Attributes:
        headers: the user's own.
        key: the API key; which header it goes in is the dialect's business.
        secrets: strings that must not leave in any message (the API key).
    """

    target: Target
    model: str
    api: str = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    key: str = field(default="", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    dialect: Dialect = GENERIC

    def all_headers(self) -> dict[str, str]:
        """The dialect's headers, the key's among them, and the user's, which win."""
        theirs = {name.lower() for name in self.headers}
        ours = self.dialect.auth(self.key)
        return {n: v for n, v in ours.items() if n.lower() not in theirs} | dict(self.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to make: what varies from request to request.

    Attributes:
        prompt: text of the user's message, or what to complete or embed; or the whole list of
            messages, as the API wants them.
        stream: as events; embeddings never are.
        cancel_after_s: seconds after it was sent at which to leave, whatever has come; ``None`` for
            never. What ends so is cancelled, unless the answer was whole by then.
        extra: further fields of the request body; they win over ours.
    """

    task: str
    prompt: str | list[dict[str, Any]]
    max_tokens: int | None = None
    stream: bool = True
    cancel_after_s: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class OpenAsk:
    """A request in flight, as far as it is."""

    ask: Ask
    due_at: float
    exchange: Exchange
    reply: Reply


class Client:
    """Asks one endpoint and hands a record of each request to ``emit``.

    Attributes:
        open: requests in flight by seq.
        counting: those whose answer is there and whose tokens are being counted, likewise; they are
            handed on afterwards.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        limits: Limits,
        *,
        run_id: str,
        scenario: str,
        worker: str,
        began_at: float,
        emit: Callable[[RequestRecord], None],
        fingerprints: Fingerprints | None = None,
        counter: Counter | None = None,
    ) -> None:
        self.open: dict[int, OpenAsk] = {}
        self.counting: dict[int, OpenAsk] = {}
        self._transport = transport
        self._endpoint = endpoint
        self._limits = limits
        self._run_id = run_id
        self._scenario = scenario
        self._worker = worker
        self._began_at = began_at
        self._emit = emit
        self._fingerprints = fingerprints
        self._counter = counter
        self._seq = 0
        given = endpoint.all_headers()
        theirs = {name.lower() for name in given}
        ours = _HEADERS | _HEADERS_OF_API.get(endpoint.api, {})
        ours = {name: value for name, value in ours.items() if name.lower() not in theirs}
        path = endpoint.dialect.path(endpoint.api, endpoint.model)
        self._head = render_head(endpoint.target, "POST", path, {**ours, **given})

    @property
    def asked(self) -> int:
        """Requests that became due so far."""
        return self._seq

    def ask(
        self,
        ask: Ask,
        due_at: float,
        *,
        is_cut: Callable[[BaseException], bool] = lambda _: False,
    ) -> RequestRecord:
        """Send ``ask``, wait for its answer, hand on its record and return it.

        A greenlet killed meanwhile still leaves a record. What is returned does not wait for tokens
        that are counted here: they are in the record handed on.

        Args:
            ask: what to ask.
            due_at: when it was due, CLOCK_MONOTONIC seconds.
            is_cut: asked about what was thrown into the waiting greenlet: whether the scenario did
                that, so that the request is cancelled; else it is unfinished.

        Raises:
            OptionError: the scenario asks for what cannot be sent; nothing became due.
        """
        fields = self._fields(ask)
        content = _rendered(ask, fields)
        seq, self._seq = self._seq, self._seq + 1
        request_id = f"{self._run_id}-{self._worker}-{seq}"
        head = b"%sX-Request-Id: %s\r\n" % (self._head, request_id.encode("latin-1", "replace"))
        length = asked_length(self._endpoint.api, fields)
        taken = self._fingerprints
        chain = None if taken is None else taken.answer()
        said = None if self._counter is None else Said()
        reply = make_reply(self._endpoint.api, length.choices, chain, said)
        body = AnswerBody(reply)
        exchange = Exchange(request=HttpRequest(self._endpoint.target, head, content))
        opened = self.open[seq] = OpenAsk(ask, due_at, exchange, reply)
        try:
            self._transport.send(exchange, body, self._limits_of(ask))
        except BaseException as error:
            if exchange.end is End.ABANDONED and is_cut(error):
                exchange.end = End.CUT
            raise
        finally:
            del self.open[seq]
            record = self._record(seq, ask, due_at, exchange, body, length)
            self._hand_on(record, opened)
        return record

    def _hand_on(self, record: RequestRecord, opened: OpenAsk) -> None:
        """The record, at once or once its tokens have been counted."""
        task = self._uncounted(record, opened)
        if self._counter is None or task is None:
            self._emit(record)
            return
        self.counting[record.seq] = opened

        def counted(counts: Counts) -> None:
            del self.counting[record.seq]
            self._emit(with_counts(record, counts))

        self._counter.count(task, counted)

    def _uncounted(self, record: RequestRecord, opened: OpenAsk) -> Task | None:
        """What is to be counted here, since nobody told; ``None`` for nothing.

        A prompt is counted only where it is sent as it is: what a chat's template makes of it is
        not known here.
        """
        reply, api = opened.reply, self._endpoint.api
        if reply.said is None:
            return None
        prompt = opened.ask.extra.get(_PROMPT_FIELDS[api], opened.ask.prompt)
        is_heard = record.outcome is Outcome.OK or reply.has_output
        is_plain = api in _SENDS_PROMPTS_AS_THEY_ARE and isinstance(prompt, str)
        task = Task(
            prompt=prompt if is_plain and is_heard and record.input_tokens is None else "",
            said=reply.said.texts() if record.output_tokens is None else [],
        )
        return task if task.chars else None

    def _limits_of(self, ask: Ask) -> Limits:
        if ask.cancel_after_s is None:
            return self._limits
        return replace(self._limits, cut_s=ask.cancel_after_s)

    def _fields(self, ask: Ask) -> dict[str, Any]:
        """The body of the request."""
        api, prompt = self._endpoint.api, ask.prompt
        prompt_field, limit = _PROMPT_FIELDS[api], _token_limit(api, ask)
        if prompt_field == "messages" and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        body: dict[str, Any] = {"model": self._endpoint.model, prompt_field: prompt}
        if limit is not None:
            body[_LIMIT_FIELDS[api]] = limit
        if ask.stream and api != "embeddings":
            body["stream"] = True
            if api in _ASKS_FOR_USAGE:
                body["stream_options"] = {"include_usage": True}
        body = apply_dialect(body, self._endpoint.dialect, self._endpoint.api)
        return {**body, **ask.extra}

    def _record(
        self,
        seq: int,
        ask: Ask,
        due_at: float,
        exchange: Exchange,
        body: AnswerBody,
        length: Length,
    ) -> RequestRecord:
        outcome, detail = judge_exchange(exchange, body)
        reply, headers, dialect = body.reply, exchange.headers, self._endpoint.dialect
        usage, source = reply.tokens()
        prompt_hash, prompt_sketch = self._prompt_fingerprint(ask)
        answer_hash, answer_chain = reply.chain.result() if reply.chain else (None, None)
        told_usd = reply.cost_usd
        instant = self._instant
        return RequestRecord(
            run_id=self._run_id,
            seq=seq,
            worker=self._worker,
            scenario=self._scenario,
            task=ask.task,
            endpoint=self._endpoint.target.url,
            model=self._endpoint.model,
            api=self._endpoint.api,
            outcome=outcome,
            detail=self._clean(detail),
            http_status=exchange.status,
            flags=self._flags(outcome, exchange, body, length, usage.output_tokens),
            due_at_s=due_at - self._began_at,
            sent_at_s=instant(exchange.sent_at),
            connect_s=exchange.connect_s,
            first_byte_at_s=instant(exchange.head_at),
            first_token_at_s=instant(reply.first_output_at),
            first_answer_at_s=instant(reply.first_answer_at),
            last_token_at_s=instant(reply.last_output_at),
            done_at_s=instant(exchange.done_at),
            ended_at_s=instant(exchange.ended_at) if exchange.sent_at is not None else None,
            read_delay_s=reply.first_read_delay,
            input_tokens=usage.input_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            cache_write_input_tokens=usage.cache_write_input_tokens,
            audio_input_tokens=usage.audio_input_tokens,
            audio_output_tokens=usage.audio_output_tokens,
            token_source=source,
            first_event_tokens=reply.first_event_tokens,
            asked_output_tokens=length.limit,
            output_events=reply.output_events,
            coalesced_events=reply.coalesced,
            conn_retries=exchange.retries,
            finish_reasons=reply.finish_reasons,
            gaps_s=_kept_gaps(reply),
            http_version=exchange.http_version,
            server_cost_usd=cost_usd(headers.get(dialect.cost_header))
            if told_usd is None
            else told_usd,
            retry_after_s=asked_wait_s(headers) if (exchange.status or 0) >= 300 else None,
            cache_status=dialect.cache_status(headers),
            prompt_hash=prompt_hash,
            prompt_sketch=prompt_sketch,
            answer_hash=answer_hash,
            answer_chain=answer_chain,
        )

    def _prompt_fingerprint(self, ask: Ask) -> tuple[str | None, int | None]:
        """Of what was sent as the prompt. Taken after the answer, when it delays nobody's start."""
        if self._fingerprints is None:
            return None, None
        prompt_field = _PROMPT_FIELDS[self._endpoint.api]
        return self._fingerprints.prompt(ask.extra.get(prompt_field, ask.prompt))

    def _flags(
        self,
        outcome: Outcome,
        exchange: Exchange,
        body: AnswerBody,
        length: Length,
        tokens: int | None,
    ) -> tuple[str, ...]:
        flags = flags_of(outcome, exchange, body, output_tokens=tokens, least_tokens=length.least)
        if self._endpoint.dialect.cache_status(exchange.headers) == "hit":
            return (*flags, "gateway_cache")
        return tuple(flags)

    def _instant(self, at: float | None) -> float | None:
        return None if at is None else at - self._began_at

    def _clean(self, detail: str | None) -> str | None:
        if detail is None:
            return None
        return redact_text(detail[:MAX_WORDS], self._endpoint.secrets)[:MAX_DETAIL]


def _kept_gaps(reply: Reply) -> array[float] | None:
    """The gaps of an answer that had output, unless they are more than can be sent on."""
    has_gaps = reply.first_output_at is not None and len(reply.gaps_s) <= MAX_GAPS
    return reply.gaps_s if has_gaps else None


def _token_limit(api: str, ask: Ask) -> int | None:
    """The limit that is sent: none where no tokens come out, and never none where one must be."""
    if api == "embeddings":
        return None
    return _MESSAGES_LIMIT if api == "messages" and ask.max_tokens is None else ask.max_tokens


def _rendered(ask: Ask, fields: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError as error:
        raise OptionError(
            f"Task {ask.task!r} asks with a field that is no JSON: {error}."
        ) from None


def now() -> float:
    """CLOCK_MONOTONIC in seconds: the clock of every instant here."""
    return time.monotonic()

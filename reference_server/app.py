"""The simulator: an ASGI application with an engine behind it, speaking vLLM's dialect.

Routes as vLLM has them, and two of its own: `/truth` and `/faults`. Answers are as long as asked
for, the engine says when each token is due, and the truth log says when it was written. The role
event goes out in one write with the first token, the usage and the end marker in one with the last.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from uuid import uuid4

from reference_server.ask import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    RESPONSES_PATH,
    Api,
    Ask,
    Limits,
    check_model,
    read_asks,
)
from reference_server.call import Call, Receive, Scope, Send
from reference_server.dialect import (
    FINGERPRINT,
    Cached,
    Reply,
    compact,
    error_body,
    models_body,
    utf8,
)
from reference_server.embeddings import (
    EMBEDDINGS_PATH,
    embeddings_body,
    read_embedding_ask,
)
from reference_server.engine import Engine, EngineConfig
from reference_server.engine.routing import Routing
from reference_server.errors import RefusedError, SettingsError
from reference_server.fields import bad, flag, missing, read_fields
from reference_server.inject import REFUSALS, Fault, Mishap, Plan, read_mishap, read_plan
from reference_server.messages import (
    COUNT_TOKENS_PATH,
    MESSAGES_PATH,
    MessagesReply,
    count_body,
    counted_prompt,
    messages_error_body,
)
from reference_server.metrics import CONTENT_TYPE, Metrics
from reference_server.prompt import chat_prompt, one_prompt
from reference_server.quirks import Quirk
from reference_server.responses import ResponsesReply
from reference_server.runner import AbandonedError, Answer, Runner, Siblings
from reference_server.script import Script, Speech, write_script
from reference_server.steps import StepWatch
from reference_server.telling import BrokenOffError, Choice, Telling, refuse_late, send_body
from reference_server.text import detokenize, token_strings
from reference_server.truth import OpenTruth, TruthLog, TruthOutcome

Handler = Callable[["Call"], Awaitable[None]]

_OPEN_WHILE_STARTING = {"/truth", "/faults"}  # ours, not the server's that is simulated
_LOGIN_PAGE = b"<!doctype html><title>Log in</title><h1>Please log in</h1>\n"
_GATEWAY_PAGE = b"<!doctype html><title>Error</title><h1>Internal server error</h1>\n"
_NO_WORDS = Script(pieces=iter(()), length=1, reasoning_tokens=0, finish_reason="stop")
_ID_PREFIXES = {
    Api.CHAT: "chatcmpl-",
    Api.COMPLETIONS: "cmpl-",
    Api.RESPONSES: "resp_",
    Api.MESSAGES: "chatcmpl-",  # as vLLM has it, which makes a chat of it
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """What the simulator serves.

    Attributes:
        model: the one model's name.
        max_model_len: prompt and answer together, in tokens.
        api_key: asked for by all that begins with /v1; None: nothing is.
        eos_probability: chance that an answer ends of itself after each token; 0: it never does.
        max_choices: answers to one request (``n``).
        admission_limit: requests under way at once; one more is refused with 429. None: any number.
        startup_s: until then after the start all is answered with 503, as if a model were loaded.
        stream_interval: tokens an event, after the first; a request can ask for more.
        prompt_tokens_details: usage tells the tokens that were found in the prefix cache.
        quirks: how it differs from vLLM.
        faults: which requests it fails, and how.
        engine: the machine that is simulated.
        replicas: so many of them, behind a router.
        routing: how requests are spread over them.
    """

    model: str = "sim-8b"
    max_model_len: int = 8192
    api_key: str | None = field(default=None, repr=False)
    eos_probability: float = 0.0
    max_choices: int = 128
    admission_limit: int | None = None
    startup_s: float = 0.0
    stream_interval: int = 1
    prompt_tokens_details: bool = False
    quirks: frozenset[Quirk] = frozenset()
    faults: Plan = field(default_factory=Plan)
    engine: EngineConfig = field(default_factory=EngineConfig)
    replicas: int = 1
    routing: Routing = Routing.LEAST_LOADED

    def __post_init__(self) -> None:
        if not 1 < self.max_model_len <= self.engine.longest:
            raise SettingsError(
                f"--max-model-len must lie between 2 and the KV cache's size of "
                f"{self.engine.longest} tokens, got {self.max_model_len}."
            )
        if not 0 <= self.eos_probability < 1:
            raise SettingsError(
                f"--eos-probability must be at least 0 and below 1, got {self.eos_probability:g}."
            )


class Simulator:
    """The application. `run` must run beside it on the same loop.

    Args:
        settings: what is served.
        log: where each answer's truth goes.
    """

    def __init__(self, settings: SimulatorSettings, log: TruthLog | None = None) -> None:
        self.settings = settings
        self.log = log if log is not None else TruthLog()
        self.faults = settings.faults
        self._limits = Limits(
            model=settings.model,
            max_model_len=settings.max_model_len,
            max_choices=settings.max_choices,
        )
        self._metrics = Metrics(settings.model, settings.engine)
        engines = [Engine(settings.engine) for _ in range(settings.replicas)]
        self._runner = Runner(engines, self._metrics, settings.routing)
        self._steps = StepWatch(
            self._metrics.step_lateness_s.observe, self._metrics.step_spread_s.observe
        )
        self._started_at = int(time.time())
        self._ready_at = time.monotonic() + settings.startup_s
        self._under_way = 0
        self._routes: dict[str, dict[str, Handler]] = {
            CHAT_PATH: {"POST": self._complete},
            COMPLETIONS_PATH: {"POST": self._complete},
            RESPONSES_PATH: {"POST": self._complete},
            MESSAGES_PATH: {"POST": self._complete},
            COUNT_TOKENS_PATH: {"POST": self._count_tokens},
            EMBEDDINGS_PATH: {"POST": self._embed},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": self._version},
            "/metrics": {"GET": self._page},
            "/truth": {"GET": self._truth, "DELETE": self._forget_truth},
            "/faults": {"GET": self._show_faults, "POST": self._set_faults},
        }

    async def run(self) -> None:
        """Keep the engine running until cancelled."""
        await self._runner.run()

    def close(self) -> None:
        """Break off every answer under way, so that the server can stop at once."""
        self._runner.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] != "http":
            raise RuntimeError(f"this application serves HTTP only, not {scope['type']}")
        call = Call(scope, receive, send)
        try:
            await self._find(call)(call)
        except RefusedError as error:
            wait_s = error.retry_after_s
            after = [] if wait_s is None else [(b"retry-after", b"%d" % math.ceil(wait_s))]
            ours = call.path in {MESSAGES_PATH, COUNT_TOKENS_PATH}
            body = messages_error_body(error) if ours else error_body(error)
            await call.reply(body, status=error.status, headers=after)
        except AbandonedError:
            await call.hang_up()
        except BrokenOffError:
            pass

    def _find(self, call: Call) -> Handler:
        if call.path not in _OPEN_WHILE_STARTING and time.monotonic() < self._ready_at:
            raise RefusedError(503, "The model is still loading.", "Service Unavailable")
        if call.path.startswith("/v1/") and not self._is_allowed(call):
            raise RefusedError(401, "Unauthorized", "")
        methods = self._routes.get(call.path)
        if methods is None:
            raise RefusedError(404, "Not Found", "")
        handler = methods.get(call.method)
        if handler is None:
            raise RefusedError(405, "Method Not Allowed", "")
        return handler

    def _is_allowed(self, call: Call) -> bool:
        if self.settings.api_key is None:
            return True
        scheme, _, key = call.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(key.strip().encode(), self.settings.api_key.encode())
        return scheme.lower() == "bearer" and same

    async def _complete(self, call: Call) -> None:
        """Answer a chat, a plain completion, a response or a message, streamed or not."""
        body, read_at = await call.read()
        content_type = call.headers.get("content-type", "")
        asks = read_asks(call.path, content_type, body, self._limits)
        with suppress(KeyError, ValueError):  # no number: as if it were not there
            priority = int(call.headers["x-vllm-priority"])
            asks = [replace(ask, priority=priority) for ask in asks]
        truth = self._open_truth(call, read_at, streamed=asks[0].stream)
        mishap = await self._befall(call, truth)
        if mishap is not None and mishap.kind is Fault.JSON:
            asks = [replace(ask, stream=False, usage=False, running_usage=False) for ask in asks]
        quirks = self.settings.quirks
        if mishap is not None and isinstance(mishap.kind, Quirk):
            quirks |= {mishap.kind}
        stream = asks[0].stream
        scripts = [self._script(ask) for ask in asks]
        try:
            answers = self._submit(zip(asks, scripts, strict=True), truth)
        except RefusedError as error:
            if not (stream and Quirk.LATE_REFUSAL in quirks):
                raise
            await refuse_late(call, error)
            return
        choices = [Choice(*parts) for parts in zip(count(), scripts, answers, strict=False)]
        telling = Telling(
            call,
            self._reply(asks, truth.id, quirks, answers),
            choices,
            truth,
            quirks=quirks,
            mishap=mishap,
            stream_interval=max(asks[0].stream_interval, self.settings.stream_interval),
            steps=self._steps,
        )
        tell = telling.stream if stream else telling.whole
        await self._see_through(call, answers, truth, tell)

    async def _embed(self, call: Call) -> None:
        """Vectors, once the engine has computed each text."""
        body, read_at = await call.read()
        asked = read_embedding_ask(call.headers.get("content-type", ""), body, self._limits)
        truth = self._open_truth(call, read_at, streamed=False)
        mishap = await self._befall(call, truth)
        truth.tokens = 0
        answers = self._submit([(ask, _NO_WORDS) for ask in asked.asks()], truth)
        reply = embeddings_body(asked, f"embd-{truth.id}", self.settings.model, int(time.time()))

        async def tell() -> None:
            due_at = 0.0
            for answer in answers:
                async for token in answer.tokens():
                    due_at = max(due_at, token.due_at)
            await send_body(call, reply, mishap, truth, due_at)

        await self._see_through(call, answers, truth, tell)

    def _open_truth(self, call: Call, read_at: float, *, streamed: bool) -> OpenTruth:
        request_id = call.headers.get("x-request-id") or uuid4().hex[:16]
        return OpenTruth(request_id, read_at, streamed=streamed)

    async def _befall(self, call: Call, truth: OpenTruth) -> Mishap | None:
        """What this request gets; what strikes before an answer begins is over when this returns.

        Raises:
            RefusedError: it is refused; its mishap, the admission limit, or a fault nobody knows.
            BrokenOffError: its mishap was the whole answer.
            AbandonedError: the client left meanwhile.
        """
        limit = self.settings.admission_limit
        if limit is not None and self._under_way >= limit:
            raise RefusedError(
                429,
                f"Too many requests: {limit} are under way. Please try again later.",
                "Too Many Requests",
                retry_after_s=1,
            )
        asked = call.headers.get("x-fault")
        try:
            wanted = None if asked is None else read_mishap(asked)
        except SettingsError as error:
            raise bad(str(error), "X-Fault") from error
        mishap = self.faults.draw(time.monotonic(), wanted)
        if mishap is None:
            return None
        truth.fault = str(mishap)
        if mishap.kind in REFUSALS:
            self._file(truth, TruthOutcome.REFUSED)
            await _refuse(call, mishap)
        elif mishap.kind is Fault.SLOW_HEAD:
            try:
                await call.pause(mishap.seconds)
            except AbandonedError:
                self._file(truth, TruthOutcome.CLIENT_LEFT)
                raise
        elif mishap.kind in {Fault.DROP, Fault.EMPTY, Fault.HTML, Fault.REDIRECT}:
            self._file(truth, TruthOutcome.BROKEN)
            await _answer_otherwise(call, mishap.kind)
            raise BrokenOffError
        return mishap

    def _script(self, ask: Ask) -> Script:
        script = write_script(
            Speech(
                seed=ask.seed,
                max_tokens=ask.max_tokens,
                min_tokens=ask.min_tokens,
                eos_probability=0.0 if ask.ignore_eos else self.settings.eos_probability,
                stop=ask.stop,
                reasons=ask.reasons,
                shows_reasoning=ask.shows_reasoning,
                function=ask.function,
            )
        )
        # A later prompt that holds the answer is to be known by it.
        return script.written_out() if self.settings.engine.prefix_caching else script

    def _submit(self, wanted: Iterable[tuple[Ask, Script]], truth: OpenTruth) -> list[Answer]:
        """Hand answers to the engine, each as a sequence of its own.

        So does vLLM's V1. Answers to one prompt share its blocks as two requests would: where
        prefix caching is on, the second finds what the first has.

        Raises:
            RefusedError: the queue has no room for all of them.
        """
        # A request that a fault has kept waiting reaches the engine only now.
        read_at = truth.read_at if truth.fault is None else time.monotonic()
        answers: list[Answer] = []
        siblings = Siblings()
        for number, (ask, script) in enumerate(wanted):
            if number % ask.choices == 0:  # another prompt
                siblings = Siblings(ask.choices)
            # The engine knows no tools.
            reason = "length" if script.finish_reason == "length" else "stop"
            try:
                answer = self._runner.submit(
                    ask,
                    script.length,
                    reason,
                    read_at,
                    answer_id=script.text_id,
                    siblings=siblings,
                )
            except RefusedError:
                self._abort(answers)
                if truth.fault is not None:  # it was given all the same
                    self._file(truth, TruthOutcome.REFUSED)
                raise
            answers.append(answer)
        return answers

    def _abort(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._runner.abort(answer)

    def _reply(
        self,
        asks: Sequence[Ask],
        request_id: str,
        quirks: frozenset[Quirk],
        answers: Sequence[Answer],
    ) -> Reply | ResponsesReply | MessagesReply:
        """In which words it is answered; ``answers`` are the engine's side of it."""
        ask = asks[0]
        reply_id, created = _ID_PREFIXES[ask.api] + request_id, int(time.time())
        # Of several answers vLLM tells the cached tokens of one: that whose first token it saw
        # first, or, in a whole reply, that which ended last.
        teller = answers[0 if ask.stream else -1]
        if ask.api is Api.RESPONSES:
            return ResponsesReply(
                id=reply_id,
                model=self.settings.model,
                created=created,
                prompt_tokens=ask.prompt_tokens,
                max_tokens=ask.max_tokens,
                cached_tokens=lambda: teller.cached_tokens,
                quirks=quirks,
            )
        tells = self.settings.prompt_tokens_details
        cached = partial(self._cached, teller) if tells else lambda: None
        if ask.api is Api.MESSAGES:
            return MessagesReply(
                id=reply_id,
                model=self.settings.model,
                prompt_tokens=ask.prompt_tokens,
                cached=cached,
                quirks=quirks,
            )
        return Reply(
            chat=ask.chat,
            id=reply_id,
            model=self.settings.model,
            created=created,
            prompts=tuple(each.prompt_tokens for each in asks[:: ask.choices]),
            usage=ask.usage,
            running_usage=ask.running_usage,
            choices=ask.choices,
            prompt_ids=[each.prompt.ids() for each in asks[:: ask.choices]]
            if ask.token_ids
            else None,
            logprobs=ask.logprobs,
            cached=cached,
            quirks=quirks,
        )

    def _cached(self, answer: Answer) -> Cached:
        """What the prefix cache had to do with an answer's prompt."""
        engine, found = self.settings.engine, answer.cached_tokens or 0
        tokens = answer.sequence.prompt_tokens
        whole = tokens - tokens % engine.block_tokens if engine.prefix_caching else 0
        return Cached(found, max(0, whole - found))

    async def _see_through(
        self,
        call: Call,
        answers: Sequence[Answer],
        truth: OpenTruth,
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        """Tell an answer to its end, or until nobody wants it, and note how it ended."""
        watch = asyncio.create_task(_abandon_when_client_leaves(call, answers))
        outcome = TruthOutcome.CLIENT_LEFT
        self._under_way += 1
        try:
            await tell()
            outcome = TruthOutcome.FINISHED
        except BrokenOffError:
            outcome = TruthOutcome.BROKEN
            raise
        finally:
            self._under_way -= 1
            watch.cancel()
            self._abort(answers)
            self._file(truth, outcome)

    def _file(self, truth: OpenTruth, outcome: TruthOutcome) -> None:
        self.log.add(truth, outcome)
        self._metrics.lateness_s.observe_all(truth.lateness_s)

    async def _models(self, call: Call) -> None:
        body = models_body(self.settings.model, self._started_at, self.settings.max_model_len)
        await call.reply(body)

    async def _tokenize(self, call: Call) -> None:
        body, _ = await call.read()
        fields = read_fields(call.headers.get("content-type", ""), body)
        check_model(fields, self._limits)
        given = fields.get("prompt")
        prompt = chat_prompt(fields) if given is None else one_prompt(given, "prompt")
        ids = prompt.ids()
        strings = isinstance(given, str) and flag(fields, "return_token_strs")
        counted = {
            "count": len(ids),
            "max_model_len": self.settings.max_model_len,
            "tokens": ids,
            "token_strs": token_strings(given) if strings and isinstance(given, str) else None,
        }
        await call.reply(utf8(compact(counted)))

    async def _count_tokens(self, call: Call) -> None:
        body, _ = await call.read()
        fields = read_fields(call.headers.get("content-type", ""), body)
        check_model(fields, self._limits)
        await call.reply(count_body(counted_prompt(fields).tokens))

    async def _detokenize(self, call: Call) -> None:
        body, _ = await call.read()
        fields = read_fields(call.headers.get("content-type", ""), body)
        check_model(fields, self._limits)
        ids = fields.get("tokens")
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise missing("Input should be a valid list of integers", "tokens")
        await call.reply(utf8(compact({"prompt": detokenize(ids)})))

    async def _health(self, call: Call) -> None:
        await call.reply(b"")

    async def _version(self, call: Call) -> None:
        await call.reply(compact({"version": FINGERPRINT}).encode())

    async def _page(self, call: Call) -> None:
        await call.reply(self._runner.page(), CONTENT_TYPE)

    async def _truth(self, call: Call) -> None:
        await call.reply(self.log.answer(call.query))

    async def _forget_truth(self, call: Call) -> None:
        self.log.clear()
        await call.reply(b"{}")

    async def _show_faults(self, call: Call) -> None:
        await call.reply(compact(self.faults.to_fields()).encode())

    async def _set_faults(self, call: Call) -> None:
        """Take another plan, from this machine only; what is under way keeps its own."""
        if not call.is_local:
            raise RefusedError(403, "Faults are set from this machine only.", "Forbidden")
        body, _ = await call.read()
        try:
            self.faults = read_plan(json.loads(body))
        except ValueError as error:
            raise bad("Expected JSON in the body.", "body") from error
        except SettingsError as error:
            raise bad(str(error), "faults") from error
        await self._show_faults(call)


async def _answer_otherwise(call: Call, kind: Fault | Quirk) -> None:
    """Something that is no answer at all."""
    if kind is Fault.DROP:
        await call.hang_up()
    elif kind is Fault.REDIRECT:
        where = [(b"location", call.path.encode("latin-1", "replace") + b"/")]
        await call.reply(b"", status=307, headers=where)
    else:
        page = _LOGIN_PAGE if kind is Fault.HTML else b""
        await call.reply(page, "text/html; charset=utf-8")


async def _refuse(call: Call, mishap: Mishap) -> None:
    """Refuse a request because a fault wants it.

    Raises:
        RefusedError: with the fault's status.
        BrokenOffError: the refusal is no JSON, and is sent.
    """
    assert isinstance(mishap.kind, Fault)
    status = REFUSALS[mishap.kind]
    if mishap.kind is Fault.SERVER_ERROR:
        await call.reply(_GATEWAY_PAGE, "text/html; charset=utf-8", status)
        raise BrokenOffError
    kind = {429: "rate_limit_exceeded", 503: "Service Unavailable", 529: "overloaded_error"}[status]
    raise RefusedError(
        status,
        "Too many requests; this fault was asked for.",
        kind,
        retry_after_s=mishap.seconds or 1.0,
    )


async def _abandon_when_client_leaves(call: Call, answers: Sequence[Answer]) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass
    for answer in answers:
        answer.abandon()

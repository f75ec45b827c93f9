"""The simulator: an ASGI application with an engine behind it, speaking vLLM's dialect.

Routes as vLLM has them, and `/truth`. Answers are as long as asked for, the engine says when each
token is due, and the truth log says when it was written. The role event goes out in one write with
the first token, the usage and the end marker in one with the last.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from reference_server.ask import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    Ask,
    Limits,
    prompt_text,
    read_ask,
    read_fields,
)
from reference_server.dialect import (
    EVENT_STREAM,
    FINGERPRINT,
    Reply,
    compact,
    error_body,
    models_body,
)
from reference_server.engine import Engine, EngineConfig
from reference_server.errors import RefusedError, SettingsError
from reference_server.metrics import CONTENT_TYPE, Metrics
from reference_server.runner import AbandonedError, Answer, Runner
from reference_server.text import answer_length, tokenize, words
from reference_server.truth import OpenTruth, TruthLog, TruthOutcome

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Handler = Callable[["Call"], Awaitable[None]]

_JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """What the simulator serves.

    Attributes:
        model: the one model's name.
        max_model_len: prompt and answer together, in tokens.
        api_key: asked for by all that begins with /v1; None: nothing is.
        eos_probability: chance that an answer ends of itself after each token; 0: it never does.
        engine: the machine that is simulated.
    """

    model: str = "sim-8b"
    max_model_len: int = 8192
    api_key: str | None = field(default=None, repr=False)
    eos_probability: float = 0.0
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if not 1 < self.max_model_len <= self.engine.kv_cache_tokens:
            raise SettingsError(
                f"--max-model-len must lie between 2 and the KV cache's size of "
                f"{self.engine.kv_cache_tokens} tokens, got {self.max_model_len}."
            )
        if not 0 <= self.eos_probability < 1:
            raise SettingsError(
                f"--eos-probability must be at least 0 and below 1, got {self.eos_probability:g}."
            )


class Call:
    """One HTTP request and the way to answer it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: list[tuple[str, str]] = parse_qsl(scope["query_string"].decode("latin-1"))
        self.headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        self.receive = receive
        self._send = send
        # Filled by the protocol (serve.py) as the request comes in, so not to be read before: when
        # its last byte was read, and the transport. Other ASGI servers leave it empty, and then
        # the instant is a little late.
        self._state: dict[str, Any] = scope.get("state", {})

    @property
    def _transport(self) -> asyncio.WriteTransport | None:
        return self._state.get("transport")

    async def read(self) -> tuple[bytes, float]:
        """The body, and the CLOCK_MONOTONIC instant at which its last byte was read.

        Raises:
            AbandonedError: the client left before its end.
        """
        body = bytearray()
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise AbandonedError
            body += message.get("body", b"")
            if not message.get("more_body", False):
                return bytes(body), self._state.get("read_at", time.monotonic())

    async def begin(self, content_type: str, length: int | None = None, status: int = 200) -> None:
        """Send status line and headers; without a length the body is chunked."""
        headers = [(b"content-type", content_type.encode()), (b"vary", b"Origin")]
        if length is not None:
            headers.insert(0, (b"content-length", str(length).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, last: bool) -> float:
        """Send (a part of) the body; the instant at which the write returned."""
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        return time.monotonic()

    async def reply(self, body: bytes, content_type: str = _JSON, status: int = 200) -> None:
        """Send a whole answer."""
        await self.begin(content_type, len(body), status)
        await self.write(body, last=True)

    async def hang_up(self) -> None:
        """Break off the connection, and wait until it is; the client may have done so already."""
        if self._transport is not None:
            self._transport.abort()
            while (await self.receive())["type"] != "http.disconnect":
                pass

    @property
    def held_back(self) -> bool:
        """The kernel has not taken all that was written, because the client reads too slowly."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0


class Simulator:
    """The application. `run` must run beside it on the same loop.

    Args:
        settings: what is served.
        log: where each answer's truth goes.
    """

    def __init__(self, settings: SimulatorSettings, log: TruthLog | None = None) -> None:
        self.settings = settings
        self.log = log if log is not None else TruthLog()
        self._limits = Limits(model=settings.model, max_model_len=settings.max_model_len)
        self._metrics = Metrics(settings.model, settings.engine.kv_cache_tokens)
        self._runner = Runner(Engine(settings.engine), self._metrics)
        self._started_at = int(time.time())
        self._routes: dict[str, dict[str, Handler]] = {
            CHAT_PATH: {"POST": self._complete},
            COMPLETIONS_PATH: {"POST": self._complete},
            "/v1/models": {"GET": self._models},
            "/tokenize": {"POST": self._tokenize},
            "/health": {"GET": self._health},
            "/version": {"GET": self._version},
            "/metrics": {"GET": self._page},
            "/truth": {"GET": self._truth, "DELETE": self._forget_truth},
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
            await call.reply(error_body(error), status=error.status)
        except AbandonedError:
            await call.hang_up()

    def _find(self, call: Call) -> Handler:
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
        """Answer a chat or a plain completion, streamed or not."""
        body, read_at = await call.read()
        content_type = call.headers.get("content-type", "")
        ask = read_ask(call.path, content_type, body, self._limits)
        eos = 0.0 if ask.ignore_eos else self.settings.eos_probability
        length, finish_reason = answer_length(ask.seed, ask.max_tokens, ask.min_tokens, eos)
        answer = self._runner.submit(ask, length, finish_reason, read_at)
        request_id = call.headers.get("x-request-id") or uuid4().hex[:16]
        truth = OpenTruth(request_id, read_at, streamed=ask.stream)
        reply = Reply(
            chat=ask.chat,
            id=("chatcmpl-" if ask.chat else "cmpl-") + request_id,
            model=self.settings.model,
            created=int(time.time()),
            prompt_tokens=ask.prompt_tokens,
            usage=ask.usage,
            running_usage=ask.running_usage,
        )
        watch = asyncio.create_task(_abandon_when_client_leaves(call, answer))
        outcome = TruthOutcome.CLIENT_LEFT
        try:
            await (_stream if ask.stream else _send_whole)(call, answer, ask, reply, truth)
            outcome = TruthOutcome.FINISHED
        finally:
            watch.cancel()
            self._runner.abort(answer)
            self._file(truth, outcome)

    def _file(self, truth: OpenTruth, outcome: TruthOutcome) -> None:
        self.log.add(truth, outcome)
        for due_at, written_at in zip(truth.scheduled_at, truth.written_at, strict=False):
            self._metrics.lateness_s.observe(written_at - due_at)

    async def _models(self, call: Call) -> None:
        body = models_body(self.settings.model, self._started_at, self.settings.max_model_len)
        await call.reply(body)

    async def _tokenize(self, call: Call) -> None:
        body, _ = await call.read()
        fields = read_fields(call.headers.get("content-type", ""), body)
        ids = tokenize(prompt_text(fields))
        counted = {
            "count": len(ids),
            "max_model_len": self.settings.max_model_len,
            "tokens": ids,
            "token_strs": None,
        }
        await call.reply(compact(counted).encode())

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


async def _stream(call: Call, answer: Answer, ask: Ask, reply: Reply, truth: OpenTruth) -> None:
    """One event a token, each written when the engine has it."""
    await call.begin(EVENT_STREAM)
    texts = words(ask.seed)
    before = reply.opening()
    async for token in answer.tokens():
        finish = answer.finish_reason if token.finished else None
        event = before + reply.token(next(texts), token.so_far, finish)
        if token.finished:
            event += reply.closing(token.so_far)
        before = b""
        truth.scheduled_at.append(token.due_at)
        truth.written_at.append(await call.write(event, last=token.finished))
        truth.held_back += call.held_back


async def _send_whole(call: Call, answer: Answer, ask: Ask, reply: Reply, truth: OpenTruth) -> None:
    """One body, once the last token is there."""
    async for token in answer.tokens():
        if token.finished:
            text = "".join(islice(words(ask.seed), token.so_far))
            body = reply.whole(text, token.so_far, answer.finish_reason)
            await call.begin(_JSON, len(body))
            truth.tokens = token.so_far
            truth.scheduled_at.append(token.due_at)
            truth.written_at.append(await call.write(body, last=True))


async def _abandon_when_client_leaves(call: Call, answer: Answer) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass
    answer.abandon()

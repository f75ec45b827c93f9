"""What vLLM 0.32 puts on the wire: the events of a stream, the bodies of replies and errors.

Pure, and byte for byte: given the ids and words of a recorded stream it renders that stream again
(a test does so). Compact JSON, ``data: `` before and a blank line after, LF only. The role event
goes out together with the first token. The last event with output carries the finish reason.
``usage`` comes in an event of its own and only where it was asked for; the fingerprint stands on
the last JSON event, whichever that is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from reference_server.errors import RefusedError

FINGERPRINT = "streamgauge-sim"  # where vLLM puts its own version
DONE = b"data: [DONE]\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"


def compact(value: Any) -> str:
    """JSON without blanks, characters as they are: the way vLLM writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _utf8(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON can smuggle in, becomes a question mark."""
    return text.encode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What all events of one answer share.

    Attributes:
        chat: a chat completion, else a plain completion.
        id: with its prefix (``chatcmpl-`` or ``cmpl-``).
        created: seconds since 1970.
        usage: an event with usage closes the stream.
        running_usage: every event carries the usage so far.
    """

    chat: bool
    id: str
    model: str
    created: int
    prompt_tokens: int
    usage: bool = False
    running_usage: bool = False
    fingerprint: str = FINGERPRINT

    def opening(self) -> bytes:
        """The event before the first token: a chat's role; nothing for a completion."""
        if not self.chat:
            return b""
        return self._event(
            '{"index":0,"delta":{"role":"assistant","content":""},'
            '"logprobs":null,"finish_reason":null}',
            self._running(0) + ',"prompt_token_ids":null,"prompt_text":null',
        )

    def token(self, text: str, so_far: int, finish_reason: str | None = None) -> bytes:
        """The event that carries one token.

        Args:
            text: the token.
            so_far: tokens of the answer up to and with this one.
            finish_reason: on the last one: ``length`` or ``stop``.
        """
        finish = f'"{finish_reason}"' if finish_reason else "null"
        if self.chat:
            stop = ',"stop_reason":null' if finish_reason else ""
            choice = (
                f'{{"index":0,"delta":{{"content":{compact(text)}}},"logprobs":null,'
                f'"finish_reason":{finish}{stop},"token_ids":null}}'
            )
        else:
            choice = (
                f'{{"index":0,"text":{compact(text)},"logprobs":null,"finish_reason":{finish},'
                '"stop_reason":null,"prompt_token_ids":null,"token_ids":null}'
            )
        last = finish_reason is not None and not self.usage
        return self._event(choice, self._running(so_far) + (self._print() if last else ""))

    def closing(self, tokens: int) -> bytes:
        """What follows the last token: usage where asked for, and the end marker."""
        if not self.usage:
            return DONE
        return self._event("", f',"usage":{self._usage(tokens)}{self._print()}') + DONE

    def whole(self, text: str, tokens: int, finish_reason: str) -> bytes:
        """The body of a reply that is not streamed."""
        if self.chat:
            kind = "chat.completion"
            choice = (
                f'{{"index":0,"message":{{"role":"assistant","content":{compact(text)},'
                '"refusal":null,"annotations":null,"audio":null,"function_call":null,'
                f'"reasoning":null}},"logprobs":null,"finish_reason":"{finish_reason}",'
                '"stop_reason":null,"token_ids":null,"routed_experts":null}'
            )
            prompt = '"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,'
        else:
            kind = "text_completion"
            choice = (
                f'{{"index":0,"text":{compact(text)},"logprobs":null,'
                f'"finish_reason":"{finish_reason}","stop_reason":null,"token_ids":null,'
                '"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}'
            )
            prompt = ""
        usage = self._usage(tokens)[:-1] + (
            ',"prompt_tokens_details":null,"completion_tokens_details":null}'
        )
        return _utf8(
            f'{{"id":{compact(self.id)},"object":"{kind}","created":{self.created},'
            f'"model":{compact(self.model)},"choices":[{choice}],"service_tier":null'
            f'{self._print()},"usage":{usage},{prompt}"kv_transfer_params":null,'
            '"ec_transfer_params":null,"metrics":null}'
        )

    def _event(self, choice: str, rest: str) -> bytes:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return _utf8(
            f'data: {{"id":{compact(self.id)},"object":"{kind}","created":{self.created},'
            f'"model":{compact(self.model)},"choices":[{choice}]{rest}}}\n\n'
        )

    def _usage(self, tokens: int) -> str:
        return (
            f'{{"prompt_tokens":{self.prompt_tokens},"total_tokens":{self.prompt_tokens + tokens},'
            f'"completion_tokens":{tokens}}}'
        )

    def _running(self, tokens: int) -> str:
        if not self.running_usage:
            return ""
        return f',"usage":{self._usage(tokens)[:-1]},"completion_tokens_details":null}}'

    def _print(self) -> str:
        return f',"system_fingerprint":{compact(self.fingerprint)}'


def error_body(error: RefusedError) -> bytes:
    """The body of an error: three shapes, since vLLM's routes, its guard and its router differ."""
    if error.status == 401:
        return b'{"error":"Unauthorized"}'
    if error.status in {404, 405} and error.param is None:
        return _utf8(compact({"detail": error.message}))
    body = {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.status,
    }
    return _utf8(compact({"error": body}))


def models_body(model: str, created: int, max_model_len: int | None) -> bytes:
    """The body of ``GET /v1/models``."""
    card = {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": FINGERPRINT,
        "root": model,
        "parent": None,
        "max_model_len": max_model_len,
        "permission": [],
    }
    return _utf8(compact({"object": "list", "data": [card]}))

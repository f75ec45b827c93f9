"""What vLLM 0.32 puts on the wire: the events of a stream, the bodies of replies and errors.

Pure, and byte for byte: given the ids and words of a recorded stream it renders that stream again
(a test does so). Compact JSON, ``data: `` before and a blank line after, LF only. The role event
goes out together with the first token. The last event with output carries the finish reason.
``usage`` comes in an event of its own and only where it was asked for; the fingerprint stands on
the last JSON event, whichever that is. Where other servers differ, `Quirk` says how.

Logarithms of probabilities are made up (`text.alternatives`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from reference_server.errors import RefusedError
from reference_server.quirks import EVERY, Quirk
from reference_server.script import Kind, Piece, Script
from reference_server.text import alternatives, token_id

FINGERPRINT = "streamgauge-sim"  # where vLLM puts its own version
DONE = b"data: [DONE]\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"


def compact(value: Any) -> str:
    """JSON without blanks, characters as they are: the way vLLM writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=4096)
def _quoted(text: str) -> str:
    return compact(text)


@lru_cache(maxsize=4096)
def quoted_bytes(text: str) -> bytes:
    """A text as it stands in JSON on the wire."""
    return utf8(compact(text))


def utf8(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON can smuggle in, becomes a question mark."""
    return text.encode(errors="replace")


@dataclass(slots=True)
class Told:
    """One choice of an answer, as far as it was told.

    Attributes:
        index: which, from 0.
        script: what it will have said.
        tokens: generated so far.
        pieces: told so far; kept only where somebody needs them at the end.
        characters: of text told so far.
        held: text that waits for the next token (`Quirk.EMPTY_EVENTS`).
    """

    index: int
    script: Script
    tokens: int = 0
    pieces: list[Piece] = field(default_factory=list)
    characters: int = 0
    held: str = ""

    def shown(self, kind: Kind) -> str:
        """All that was told of one kind."""
        return "".join(piece.shown for piece in self.pieces if piece.kind is kind)


class Cached(NamedTuple):
    """Tokens of a prompt, by what the prefix cache had to do with them.

    Attributes:
        found: they were there.
        created: they were computed, and can be found from now on.
    """

    found: int
    created: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What all events of one request share.

    Attributes:
        chat: a chat completion, else a plain completion.
        id: with its prefix (``chatcmpl-`` or ``cmpl-``).
        created: seconds since 1970.
        prompts: tokens of each prompt.
        usage: an event with usage closes the stream.
        running_usage: every event carries the usage so far.
        choices: how many answers to each prompt; those to the first are told by the lowest numbers.
        prompt_ids: each prompt's tokens, where token ids were asked for.
        logprobs: so many alternatives are told beside each token; None: nothing is told.
        cached: asked at the end, since it is not known before. None: nothing is told.
        quirks: how it differs from vLLM.
    """

    chat: bool
    id: str
    model: str
    created: int
    prompts: tuple[int, ...]
    usage: bool = False
    running_usage: bool = False
    fingerprint: str = FINGERPRINT
    choices: int = 1
    prompt_ids: Sequence[Sequence[int]] | None = None
    logprobs: int | None = None
    cached: Callable[[], Cached | None] = lambda: None
    quirks: frozenset[Quirk] = frozenset()
    _start: str = field(init=False, repr=False, default="")
    _plain: bool = field(init=False, repr=False, default=False)  # no event has anything unusual

    def __post_init__(self) -> None:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        start = (
            f'data: {{"id":{compact(self.id)},"object":"{kind}","created":{self.created},'
            f'"model":{compact(self.model)},"choices":['
        )
        object.__setattr__(self, "_start", start)
        plain = not self.quirks and self.logprobs is None and self.prompt_ids is None
        object.__setattr__(self, "_plain", plain)
        if Quirk.NO_USAGE in self.quirks:
            object.__setattr__(self, "usage", False)
            object.__setattr__(self, "running_usage", False)
        elif Quirk.RUNNING_USAGE in self.quirks:
            object.__setattr__(self, "running_usage", True)

    def at_once(self) -> bytes:
        """What is sent before the engine has begun: nothing, unless a quirk has it so."""
        return self._roles() if Quirk.ROLE_EARLY in self.quirks else b""

    def opening(self) -> bytes:
        """The events before the first token: a chat's roles; nothing for a completion."""
        return b"" if Quirk.ROLE_EARLY in self.quirks else self._roles()

    def _roles(self) -> bytes:
        if not self.chat or Quirk.ROLE_MERGED in self.quirks:
            return b""
        ids = self._prompt_ids(0)
        rest = f'{self._running(0)},"prompt_token_ids":{_ids(ids)},"prompt_text":null'
        roles = (
            f'{{"index":{index},"delta":{{"role":"assistant","content":""}},'
            '"logprobs":null,"finish_reason":null}'
            for index in range(self.choices)
        )
        return b"".join(self._event(role, rest) for role in roles)

    def token(self, text: str, so_far: int, finish_reason: str | None = None) -> bytes:
        """The event that carries one token of an answer that is text and has one choice.

        Args:
            text: the token.
            so_far: tokens of the answer up to and with this one.
            finish_reason: on the last one: ``length`` or ``stop``.
        """
        choice = self._choice(0, self._text(text), finish_reason=finish_reason)
        last = finish_reason is not None and not self.usage
        return self._event(choice, self._running(so_far) + (self._print() if last else ""))

    def around_text(self) -> tuple[bytes, bytes] | None:
        """What stands before and behind a token's text in an event that carries nothing else.

        Of the first choice, in the midst of its answer. None where that differs from one event to
        the next.
        """
        if not self._plain or self.running_usage:
            return None
        before, after = self.token("*", 0).rsplit(b'"*"', 1)
        return before, after

    def events(self, told: Told, pieces: list[Piece], *, total: int | None = None) -> bytes:
        """The events that carry some tokens of one choice, which are noted in ``told``.

        Args:
            told: the choice so far.
            pieces: the tokens; one event for each kind of them that follow each other.
            total: tokens of all choices, on the very last ones; None before.
        """
        script = told.script
        prompt_ids = None if told.tokens else self._prompt_ids(told.index)
        told.tokens += len(pieces)
        ended = told.tokens >= script.length
        if self._plain and not (ended or told.index or len(pieces) > 1):
            ((kind, text, _),) = pieces
            if kind is Kind.TEXT:  # as nearly all are
                return self.token(text, told.tokens)
        runs = [
            (kind, list(run))
            for kind, run in groupby(pieces, key=lambda piece: piece.kind)
            if kind is not Kind.HELD
        ]
        if ended and not runs:
            runs = [(Kind.TEXT, [])]
        apart = ended and Quirk.FINISH_APART in self.quirks
        out = []
        for number, (kind, run) in enumerate(runs, start=1):
            final = ended and number == len(runs)
            text = self._shown(told, kind, run, final=final)
            finish = script.finish_reason if final and not apart else None
            choice = self._choice(
                told.index,
                self._delta(kind, text, told),
                logprobs=self._logprobs(told, run),
                finish_reason=finish,
                stop_reason=script.stop_reason,
                ids=None if self.prompt_ids is None else [token_id(piece.token) for piece in run],
                prompt_ids=prompt_ids,
            )
            prompt_ids = None
            told.characters += len(text)
            ends = final and not apart
            out.append(self._event(choice, self._rest(told, total, ends=ends)))
        if apart:
            choice = self._choice(
                told.index,
                "{}" if self.chat else '""',
                finish_reason=script.finish_reason,
                stop_reason=script.stop_reason,
            )
            out.append(self._event(choice, self._rest(told, total, ends=True)))
        return b"".join(out)

    def closing(self, tokens: int, reasoning_tokens: int = 0) -> bytes:
        """What follows the last token: usage where asked for, and the end marker."""
        done = b"" if Quirk.NO_DONE in self.quirks else DONE
        if Quirk.AFTER_DONE in self.quirks:
            done += self._event("", self._print())
        if not self.usage or Quirk.USAGE_ON_FINISH in self.quirks:
            return done
        usage = self._full_usage(tokens, reasoning_tokens)
        return self._event("", f',"usage":{usage}{self._print()}') + done

    def whole(self, text: str, tokens: int, finish_reason: str) -> bytes:
        """The body of a reply of one choice, all text, that is not streamed."""
        piece = Piece(Kind.TEXT, text, text)
        script = Script(
            pieces=iter(()), length=tokens, reasoning_tokens=0, finish_reason=finish_reason
        )
        return self.body([Told(0, script, tokens, [piece])])

    def body(self, choices: Sequence[Told]) -> bytes:
        """The body of a reply that is not streamed."""
        kind = "chat.completion" if self.chat else "text_completion"
        whole = ",".join(map(self._whole_chat if self.chat else self._whole_plain, choices))
        prompt = ""
        if self.chat:
            ids = _ids(self._prompt_ids(0))
            prompt = f'"prompt_logprobs":null,"prompt_token_ids":{ids},"prompt_text":null,'
        tokens = sum(told.tokens for told in choices)
        thoughts = sum(told.script.reasoning_tokens for told in choices)
        details = f'{{"reasoning_tokens":{thoughts}}}' if thoughts else "null"
        cached = "null"
        if (count := self.cached()) is not None:
            created = count.created if self.chat else "null"
            cached = (
                f'{{"cached_tokens":{count.found},"created_cache_tokens":{created},'
                '"multimodal_tokens":null}'
            )
        usage = (
            f'{self._usage(tokens)[:-1]},"prompt_tokens_details":{cached},'
            f'"completion_tokens_details":{details}}}'
        )
        if Quirk.NO_USAGE in self.quirks:
            usage = "null"
        return utf8(
            f'{{"id":{compact(self.id)},"object":"{kind}","created":{self.created},'
            f'"model":{compact(self.model)},"choices":[{whole}],"service_tier":null'
            f'{self._print()},"usage":{usage},{prompt}"kv_transfer_params":null,'
            '"ec_transfer_params":null,"metrics":null}'
        )

    def _whole_chat(self, told: Told) -> str:
        script = told.script
        text, reasoning = told.shown(Kind.TEXT), told.shown(Kind.REASONING)
        calls = ""
        if script.function is not None and (arguments := told.shown(Kind.ARGUMENTS)):
            function = {"name": script.function.name, "arguments": arguments}
            call = {"id": self._call_id(told), "type": "function", "function": function}
            calls = f'"tool_calls":{compact([call])},'
        name = "reasoning_content" if Quirk.REASONING_CONTENT in self.quirks else "reasoning"
        return (
            f'{{"index":{told.index},"message":{{"role":"assistant",'
            f'"content":{"null" if calls else compact(text)},'
            f'"refusal":null,"annotations":null,"audio":null,"function_call":null,{calls}'
            f'"{name}":{compact(reasoning or None)}}},'
            f'"logprobs":{self._logprobs(told, told.pieces)},'
            f'"finish_reason":"{script.finish_reason}","stop_reason":{compact(script.stop_reason)},'
            f'"token_ids":{self._token_ids(told)},"routed_experts":null}}'
        )

    def _whole_plain(self, told: Told) -> str:
        script = told.script
        return (
            f'{{"index":{told.index},"text":{compact(told.shown(Kind.TEXT))},'
            f'"logprobs":{self._logprobs(told, told.pieces)},'
            f'"finish_reason":"{script.finish_reason}","stop_reason":{compact(script.stop_reason)},'
            f'"token_ids":{self._token_ids(told)},"prompt_logprobs":null,'
            f'"prompt_token_ids":{_ids(self._prompt_ids(told.index))},"routed_experts":null}}'
        )

    def _prompt_ids(self, index: int) -> Sequence[int] | None:
        """Of the prompt that a choice answers, where they are told."""
        return None if self.prompt_ids is None else self.prompt_ids[index // self.choices]

    def _token_ids(self, told: Told) -> str:
        told_ids = [token_id(piece.token) for piece in told.pieces]
        return "null" if self.prompt_ids is None else compact(told_ids)

    def _shown(self, told: Told, kind: Kind, run: list[Piece], *, final: bool) -> str:
        """What these tokens show; under a quirk every fourth one's text waits for the next."""
        text = told.held + "".join(piece.shown for piece in run)
        told.held = ""
        waits = Quirk.EMPTY_EVENTS in self.quirks and kind is Kind.TEXT and not final
        if waits and told.tokens % EVERY == 0:
            told.held, text = text, ""
        return text

    def _delta(self, kind: Kind, text: str, told: Told) -> str:
        """What one event adds: a chat's delta, or a completion's text."""
        if kind is Kind.TEXT:
            return self._text(text)
        if kind is Kind.REASONING:
            name = "reasoning_content" if Quirk.REASONING_CONTENT in self.quirks else "reasoning"
            return f'{{{self._role()}"{name}":{_quoted(text)}}}'
        if kind is Kind.NAME:
            call: dict[str, Any] = {
                "id": self._call_id(told),
                "type": "function",
                "index": 0,
                "function": {"name": text},
            }
        else:
            call = {"index": 0, "function": {"arguments": text}}
        return f'{{{self._role()}"tool_calls":[{compact(call)}]}}'

    def _text(self, text: str) -> str:
        if self.chat:
            return f'{{{self._role()}"content":{_quoted(text)}}}'
        return _quoted(text)

    def _role(self) -> str:
        return '"role":"assistant",' if Quirk.ROLE_MERGED in self.quirks else ""

    def _call_id(self, told: Told) -> str:
        return f"chatcmpl-tool-{zlib.crc32(self.id.encode(errors='replace'), told.index):08x}"

    def _choice(
        self,
        index: int,
        delta: str,
        *,
        logprobs: str = "null",
        finish_reason: str | None = None,
        stop_reason: str | None = None,
        ids: Sequence[int] | None = None,
        prompt_ids: Sequence[int] | None = None,
    ) -> str:
        finish = f'"{finish_reason}"' if finish_reason else "null"
        reason = compact(stop_reason) if finish_reason and stop_reason else "null"
        if self.chat:
            stop = f',"stop_reason":{reason}' if finish_reason else ""
            return (
                f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},'
                f'"finish_reason":{finish}{stop},"token_ids":{_ids(ids)}}}'
            )
        return (
            f'{{"index":{index},"text":{delta},"logprobs":{logprobs},"finish_reason":{finish},'
            f'"stop_reason":{reason},"prompt_token_ids":{_ids(prompt_ids)},"token_ids":{_ids(ids)}}}'
        )

    def _logprobs(self, told: Told, run: Sequence[Piece]) -> str:
        if self.logprobs is None or not run:
            return "null"
        if self.chat:
            return compact({"content": [_chat_logprob(piece, self.logprobs) for piece in run]})
        offsets, at = [], told.characters
        for piece in run:
            offsets.append(at)
            at += len(piece.token)
        return compact(
            {
                "text_offset": offsets,
                "token_logprobs": [alternatives(piece.token, 1)[0][1] for piece in run],
                "tokens": [piece.token for piece in run],
                "top_logprobs": [
                    dict(alternatives(piece.token, max(1, self.logprobs))) for piece in run
                ],
            }
        )

    def _event(self, choice: str, rest: str) -> bytes:
        event = utf8(f"{self._start}{choice}]{rest}}}\n\n")
        return b": keep-alive\n\n" + event if Quirk.COMMENTS in self.quirks else event

    def _rest(self, told: Told, total: int | None, *, ends: bool) -> str:
        """What stands behind the choices: usage and fingerprint where they belong.

        Args:
            told: the choice.
            total: as of `events`.
            ends: this is the choice's last event.
        """
        if not ends:
            return self._running(told.tokens, told.index)
        on_finish = Quirk.USAGE_ON_FINISH in self.quirks and Quirk.NO_USAGE not in self.quirks
        if on_finish and total is not None:
            usage = self._full_usage(total, told.script.reasoning_tokens)
            return f',"usage":{usage}{self._print()}'
        return self._running(told.tokens, told.index) + ("" if self.usage else self._print())

    def _usage(self, tokens: int, prompt_tokens: int | None = None) -> str:
        """So many tokens to a prompt; without its length to all of them."""
        prompt = sum(self.prompts) if prompt_tokens is None else prompt_tokens
        return (
            f'{{"prompt_tokens":{prompt},"total_tokens":{prompt + tokens},'
            f'"completion_tokens":{tokens}}}'
        )

    def _full_usage(self, tokens: int, reasoning_tokens: int) -> str:
        """Usage with what is known of its parts."""
        parts = ""
        if (count := self.cached()) is not None:
            created = f',"created_cache_tokens":{count.created}' if self.chat else ""
            parts = f',"prompt_tokens_details":{{"cached_tokens":{count.found}{created}}}'
        if reasoning_tokens:
            parts += f',"completion_tokens_details":{{"reasoning_tokens":{reasoning_tokens}}}'
        return f"{self._usage(tokens)[:-1]}{parts}}}"

    def _running(self, tokens: int, index: int = 0) -> str:
        """The usage so far of one choice."""
        if not self.running_usage:
            return ""
        usage = self._usage(tokens, self.prompts[index // self.choices])
        details = ',"completion_tokens_details":null' if self.chat else ""
        return f',"usage":{usage[:-1]}{details}}}'

    def _print(self) -> str:
        return f',"system_fingerprint":{compact(self.fingerprint)}'


def _ids(ids: Sequence[int] | None) -> str:
    return "null" if ids is None else compact(list(ids))


def _chat_logprob(piece: Piece, number: int) -> dict[str, Any]:
    """One token's entry, its alternatives beside it."""
    rows = [
        {"token": token, "logprob": value, "bytes": list(utf8(token))}
        for token, value in alternatives(piece.token, max(1, number))
    ]
    return {**rows[0], "top_logprobs": rows[:number]}


def error_body(error: RefusedError) -> bytes:
    """The body of an error: three shapes, since vLLM's routes, its guard and its router differ."""
    if error.status == 401:
        return b'{"error":"Unauthorized"}'
    if error.status in {404, 405} and error.param is None:
        return utf8(compact({"detail": error.message}))
    body = {
        "message": error.message,
        "type": error.kind,
        "param": error.param,
        "code": error.status,
    }
    return utf8(compact({"error": body}))


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
    return utf8(compact({"object": "list", "data": [card]}))

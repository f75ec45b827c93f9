"""An answer on its way out: the engine's tokens come in, events or one body go out.

Here the quirks of timing live (when the head goes out, how many events a write) and the faults that
strike halfway; what the events look like is dialect.py's and responses.py's business.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Protocol

from reference_server.call import JSON, Call
from reference_server.dialect import DONE, EVENT_STREAM, Told, error_body, quoted_bytes
from reference_server.errors import RefusedError
from reference_server.inject import Fault, Mishap
from reference_server.quirks import EVERY, Quirk
from reference_server.runner import Answer
from reference_server.script import Kind, Piece, Script
from reference_server.steps import StepWatch
from reference_server.truth import OpenTruth

_WORDS = "The engine failed; this fault was asked for."
_ERROR = f'{{"message":"{_WORDS}","type":"InternalServerError","param":null,"code":500}}'
_BODIES = {
    Fault.ERROR_FIRST: f'{{"error":{_ERROR}}}',
    Fault.ERROR_OBJECT: f'{{"error":{_ERROR}}}',
    Fault.ERROR_STRING: f'{{"error":"{_WORDS}","error_type":"generation"}}',
    Fault.ERROR_FLAT: f'{{"object":"error",{_ERROR[1:]}',
    Fault.ERROR_EVENT: f'{{"error":{_ERROR}}}',
    Fault.ERROR_FIELD: _ERROR,
    Fault.ERROR_ARRAY: f'[{{"error":{_ERROR}}}]',
    Fault.ERROR_FINISH: (
        f'{{"choices":[{{"index":0,"delta":{{"content":""}},"finish_reason":"error"}}],'
        f'"error":{_ERROR}}}'
    ),
}
_FIELD = {Fault.ERROR_EVENT: "event: error\ndata: ", Fault.ERROR_FIELD: "error: "}
_ENDED_BY_DONE = {Fault.ERROR_FIRST, Fault.ERROR_OBJECT, Fault.ERROR_FLAT}
_AFTER_COLON = re.compile(rb"^(data:|event:) ", re.MULTILINE)
_SPLIT_S = 0.002  # between the two halves of an event, so that they are two reads
_HANG_UPS = {Fault.CUT, Fault.RESET}
_STRIKES_HALFWAY = {
    Fault.STALL,
    Fault.BAD_JSON,
    Fault.TRUNCATE,
    Fault.NO_FINISH,
    *_HANG_UPS,
    *_BODIES,
}
_BROKEN_LINE = b'data: {"id":"chatcmpl-\n\n'


class BrokenOffError(Exception):
    """A fault has ended the answer; there is nothing more to say."""


class Reply(Protocol):
    """What renders an answer in one API's words."""

    def at_once(self) -> bytes:
        """What is sent before the engine has begun."""

    def opening(self) -> bytes:
        """What is sent with the first token besides it."""

    def events(self, told: Told, pieces: list[Piece], *, total: int | None = None) -> bytes:
        """The events that carry some tokens of one choice."""

    def around_text(self) -> tuple[bytes, bytes] | None:
        """What stands before and behind a token's text in most events; None: they differ."""

    def closing(self, tokens: int, reasoning_tokens: int = 0) -> bytes:
        """What follows the last token."""

    def body(self, choices: Sequence[Told]) -> bytes:
        """The body of a reply that is not streamed."""


@dataclass(slots=True)
class Choice:
    """One of an answer's choices: what it will say, and the engine's tokens for it."""

    index: int
    script: Script
    answer: Answer


class Telling:
    """One answer on its way out.

    Args:
        call: where to.
        reply: in which words.
        choices: at least one.
        truth: where the instants are noted.
        quirks: how it differs from vLLM.
        mishap: what strikes it; None: nothing.
        stream_interval: tokens an event, after the first.
        steps: told of every write that is due with a step.
    """

    def __init__(
        self,
        call: Call,
        reply: Reply,
        choices: list[Choice],
        truth: OpenTruth,
        *,
        quirks: frozenset[Quirk] = frozenset(),
        mishap: Mishap | None = None,
        stream_interval: int = 1,
        steps: StepWatch | None = None,
    ) -> None:
        self._call = call
        self._reply = reply
        self._choices = choices
        self._truth = truth
        self._quirks = quirks
        self._at_a_time = EVERY if Quirk.MERGED_EVENTS in quirks else 1
        self._type = "text/plain" if Quirk.PLAIN_TYPE in quirks else EVENT_STREAM
        self._early_head = Quirk.LATE_HEAD not in quirks
        self._mishap = mishap
        self._interval = stream_interval
        self._steps = steps
        # Nothing can come between two tokens, so that each can be written as it is handed over.
        plain = not quirks and mishap is None and stream_interval == 1
        self._direct = plain and len(choices) == 1 and call.writes_now
        self._turn = asyncio.Lock()
        self._begun = False
        self._open = len(choices)
        self._tokens = 0  # told so far, of all choices
        self._waiting = b""  # events that go out with the next write
        self._writes_waiting = 0  # how many those would have been
        self._not_before = 0.0  # a stall has put off all that was due before

    async def stream(self) -> None:
        """Event by event, each written when the engine has its tokens.

        Raises:
            AbandonedError: nobody wants it any more.
            BrokenOffError: a fault ended it.
        """
        early = self._reply.at_once()
        if self._early_head:
            await self._begin()
            if early:
                await self._write(early, last=False)
                early = b""
        self._waiting = early + self._reply.opening()
        if len(self._choices) == 1:
            await self._tell(self._choices[0])
            return
        try:
            async with asyncio.TaskGroup() as group:
                for choice in self._choices:
                    group.create_task(self._tell(choice))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def whole(self) -> None:
        """As one body, once the last token is there.

        Raises:
            AbandonedError: nobody wants it any more.
            BrokenOffError: a fault ended it.
        """
        done, due_at = [], 0.0
        for choice in self._choices:
            async for token in choice.answer.tokens():
                due_at = max(due_at, token.due_at)
            pieces = list(choice.script.pieces)
            done.append(Told(choice.index, choice.script, len(pieces), pieces))
        self._truth.tokens = sum(told.tokens for told in done)
        await send_body(self._call, self._reply.body(done), self._mishap, self._truth, due_at)

    async def _tell(self, choice: Choice) -> None:
        told, pieces = Told(choice.index, choice.script), choice.script.pieces
        taken: list[Piece] = []
        async for token in choice.answer.tokens():
            taken += islice(pieces, token.so_far - told.tokens - len(taken))
            if not (token.finished or told.tokens == 0 or len(taken) >= self._interval):
                continue
            mishap = self._mishap
            if mishap is not None and mishap.kind in _STRIKES_HALFWAY and choice.index == 0:
                await self._strike(mishap, choice.script.length, told.tokens + len(taken))
            self._tokens += len(taken)
            self._open -= token.finished
            total = None if self._open else self._tokens
            events = self._reply.events(told, taken, total=total)
            self._waiting += events
            self._writes_waiting += bool(events)
            taken = []
            if total is not None:
                thoughts = sum(choice.script.reasoning_tokens for choice in self._choices)
                self._waiting += self._reply.closing(total, thoughts)
            if self._writes_waiting >= self._at_a_time or total is not None:
                await self._write_waiting(token.due_at, last=total is not None)
            if self._direct and not self._waiting:
                choice.answer.listen(self._writer(told, pieces))

    def _writer(self, told: Told, pieces: Iterator[Piece]) -> Callable[[float, int], None]:
        """Writes tokens that are neither the first nor the last, each when it is due."""
        around = self._reply.around_text()
        if around is None:
            return partial(self._take, told, pieces)
        before, after = around
        call, truth = self._call, self._truth
        scheduled, written = truth.scheduled_at.append, truth.written_at.append
        note = self._steps.note if self._steps is not None else _ignore

        def take(due_at: float, so_far: int) -> None:
            if so_far - told.tokens != 1:
                self._take(told, pieces, due_at, so_far)
                return
            piece = next(pieces)
            kind, text, _ = piece
            if kind is not Kind.TEXT or not text:
                self._take(told, chain([piece], pieces), due_at, so_far)
                return
            told.tokens = self._tokens = truth.tokens = so_far
            written_at = call.write_now(before + quoted_bytes(text) + after)
            scheduled(due_at)
            written(written_at)
            note(due_at, written_at)
            truth.held_back += call.held_back

        return take

    def _take(self, told: Told, pieces: Iterator[Piece], due_at: float, so_far: int) -> None:
        """The same for tokens of any kind, and for several at once."""
        taken = list(islice(pieces, so_far - told.tokens))
        event = self._reply.events(told, taken)
        self._tokens += len(taken)
        if event:
            self._truth.scheduled_at.append(due_at)
            self._note(due_at, self._call.write_now(event), 1)

    async def _write_waiting(self, due_at: float, *, last: bool) -> None:
        count = self._writes_waiting
        event, self._waiting, self._writes_waiting = self._waiting, b"", 0
        self._truth.scheduled_at.extend([max(due_at, self._not_before)] * count)
        self._note(due_at, await self._write(event, last=last), count)

    def _note(self, due_at: float, written_at: float, events: int) -> None:
        """Keep what the truth log wants of a write of so many events that were due."""
        truth = self._truth
        if self._steps is not None and due_at > self._not_before:
            self._steps.note(due_at, written_at)
        truth.written_at.extend([written_at] * events)
        truth.tokens = self._tokens
        truth.held_back += self._call.held_back

    async def _begin(self) -> None:
        self._begun = True
        await self._call.begin(self._type)

    async def _write(self, event: bytes, *, last: bool) -> float:
        if not self._begun:
            await self._begin()
        if not self._quirks and self._mishap is None:
            return await self._call.write(event, last=last)
        async with self._turn:  # what takes several writes must not be cut into
            return await self._write_differently(event, last=last)

    async def _write_differently(self, event: bytes, *, last: bool) -> float:
        call, quirks, mishap = self._call, self._quirks, self._mishap
        if last and Quirk.UNTERMINATED in quirks:
            event = event.removesuffix(DONE).rstrip(b"\n")
        if Quirk.NO_SPACE in quirks:
            event = _AFTER_COLON.sub(rb"\1", event)
        if Quirk.CRLF in quirks:
            event = event.replace(b"\n", b"\r\n")
        if Quirk.SPLIT_EVENTS in quirks:
            half = len(event) // 2
            await call.write(event[:half], last=False)
            await asyncio.sleep(_SPLIT_S)
            event = event[half:]
        if last and mishap is not None and mishap.kind is Fault.HELD_OPEN:
            written_at = await call.write(event, last=False)
            await call.pause(mishap.seconds)
            await call.write(b"", last=True)
            return written_at
        return await call.write(event, last=last)

    async def _strike(self, mishap: Mishap, length: int, tokens: int) -> None:
        """The fault, if now is its time: halfway, with the first token beyond so many."""
        kind = mishap.kind
        if tokens <= length // 2 and kind is not Fault.ERROR_FIRST:
            return
        self._mishap = None
        if kind is Fault.STALL:
            await self._call.pause(mishap.seconds)
            self._not_before = time.monotonic()
        elif kind is Fault.BAD_JSON:
            self._waiting += _BROKEN_LINE
        elif kind in _HANG_UPS:
            await self._write(self._waiting, last=False)
            await self._call.hang_up(reset=kind is Fault.RESET)
            raise BrokenOffError
        else:
            said = b"" if kind is Fault.ERROR_FIRST else self._waiting
            end = DONE if kind is Fault.NO_FINISH else b""
            await self._write(said + end + _error_event(kind), last=True)
            raise BrokenOffError


async def refuse_late(call: Call, error: RefusedError) -> None:
    """Tell of a refusal inside a stream that has begun with 200, as vLLM often does."""
    await call.begin(EVENT_STREAM)
    await call.write(b"data: " + error_body(error) + b"\n\n" + DONE, last=True)


async def send_body(
    call: Call, body: bytes, mishap: Mishap | None, truth: OpenTruth, due_at: float
) -> None:
    """A whole reply, or what a fault leaves of it.

    Args:
        call: where to.
        body: the reply.
        mishap: what strikes it; None: nothing.
        truth: where the instants are noted.
        due_at: when it was to be written.

    Raises:
        AbandonedError: the client left during a stall.
        BrokenOffError: a fault ended it.
    """
    kind = mishap.kind if mishap else None
    half = body[: len(body) // 2]
    if kind is Fault.STALL and mishap is not None:
        await call.pause(mishap.seconds)
        due_at = time.monotonic()
    elif kind in _HANG_UPS:
        await call.begin(JSON, len(body))
        await call.write(half, last=False)
        await call.hang_up(reset=kind is Fault.RESET)
        raise BrokenOffError
    elif kind in {Fault.TRUNCATE, Fault.BAD_JSON}:
        await call.reply(half)
        raise BrokenOffError
    elif kind in _BODIES:
        assert isinstance(kind, Fault)
        await call.reply(_BODIES[kind].encode())
        raise BrokenOffError
    truth.scheduled_at.append(due_at)
    truth.written_at.append(await call.reply(body))


def _ignore(_due_at: float, _written_at: float) -> None:
    pass


def _error_event(kind: Fault | Quirk) -> bytes:
    """An error as an event, and what that server sends after it; nothing for other faults."""
    if not isinstance(kind, Fault) or kind not in _BODIES:
        return b""
    event = f"{_FIELD.get(kind, 'data: ')}{_BODIES[kind]}\n\n".encode()
    return event + DONE if kind in _ENDED_BY_DONE else event

"""The metronome: an endpoint whose every token has an instant, as close to the socket as possible.

It is the source for measuring a client, so its own error must be far below the client's and known.
One thread, one epoll, raw non-blocking sockets, events rendered when the request is read, and
nothing else on the loop. The rules:

- The schedule is absolute. The first token is due at *read + TTFT*, token k at *first + k x ITL*;
  a late write makes no later one late. A deadline is never met early.
- Waits are precise and never spin, since a server that spins starves the client beside it.
- Wake-ups lie at least `GRAIN_S` apart: waking costs more than writing, so at thousands of
  tokens a second those due within a grain are written together, each late by less than it.
- Every write's return is in the truth log, beside the instant it was due.
- A slow reader's tokens are kept and counted as held back; a client that leaves is forgotten.

Streams that start together would tick together for ever. Where the client starts its users over a
ramp, as it should, their phases are spread by that. For a client that does not, `spread` adds a
phase in [0, ITL) to each TTFT: the n-th request takes the n-th multiple of the golden ratio, which
fills the interval evenly for any number of streams; the truth log's schedule includes it.
"""

from __future__ import annotations

import gc
import select
import socket
import ssl
import time
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from itertools import count, islice
from typing import Final
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

from reference_server import rawhttp
from reference_server.ask import CHAT_PATH, COMPLETIONS_PATH, Ask, Limits, read_ask
from reference_server.dialect import EVENT_STREAM, Reply, error_body, models_body
from reference_server.errors import RefusedError, SettingsError
from reference_server.kernel import sharpen_timers
from reference_server.text import words
from reference_server.truth import OpenTruth, TruthLog, TruthOutcome

GRAIN_S = 200e-6
WORDS_IN_TURN = 16  # so many different events are rendered for a request, then used in turn
_GOLDEN: Final = 0.6180339887498949
_READ_BYTES = 256 * 1024
_ACCEPTS_AT_ONCE = 16  # between two looks at the clock
_EVENTS_AT_ONCE = 64
_NOT_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetronomeSettings:
    """What the metronome keeps time by.

    Attributes:
        ttft_s: from the request's last byte read to the first token.
        itl_s: from one token to the next.
        tokens: length of an answer whose request gives none.
        model: the name under which it answers; any name is accepted.
        spread: spread the phases of streams (see the module's docstring).
    """

    ttft_s: float = 0.050
    itl_s: float = 0.010
    tokens: int = 200
    model: str = "metronome"
    spread: bool = False

    def __post_init__(self) -> None:
        if self.ttft_s < 0 or self.itl_s < 0 or self.tokens < 1:
            raise SettingsError(
                "The metronome needs --ttft and --itl of at least 0 and --tokens of at least 1, "
                f"got {self.ttft_s:g} s, {self.itl_s:g} s and {self.tokens}."
            )

    def first_at(self, read_at: float, nth: int) -> float:
        """When the first token of the n-th request (from 0) is due."""
        phase_s = (nth * _GOLDEN) % 1.0 * self.itl_s if self.spread else 0.0
        return read_at + self.ttft_s + phase_s


@dataclass(slots=True, eq=False)
class _Stream:
    """One answer under way: what is written, and when."""

    connection: _Connection | None  # None once the client has left
    truth: OpenTruth
    first_at: float
    tokens: int
    first: bytes
    middle: list[bytes]
    last: bytes
    handed: int = 0  # tokens handed to the socket

    def piece(self) -> bytes:
        """The bytes of the next token."""
        index = self.handed
        if index == self.tokens - 1:
            return self.last
        return self.middle[index % len(self.middle)] if index else self.first


@dataclass(slots=True, eq=False)
class _Connection:
    """One client's socket and what is under way on it."""

    sock: socket.socket
    inbox: bytearray = field(default_factory=bytearray)
    head: rawhttp.Head | None = None  # read, its body not yet
    outbox: deque[tuple[bytes, OpenTruth | None]] = field(default_factory=deque)
    stream: _Stream | None = None
    keep_alive: bool = True


class Metronome:
    """The server; `run` serves until something it calls raises (a signal handler, as a rule).

    Args:
        listener: a listening socket.
        settings: what it keeps time by.
        log: where each request's truth goes.
        tls: speak TLS, with this context's certificate.
    """

    def __init__(
        self,
        listener: socket.socket,
        settings: MetronomeSettings,
        log: TruthLog | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.settings = settings
        self._tls = tls
        self.log = log if log is not None else TruthLog()
        self._limits = Limits(default_tokens=settings.tokens)
        self._listener = listener
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._due: list[tuple[float, int, _Stream]] = []  # a heap; the number breaks ties
        self._numbers = count()
        self._started_at = int(time.time())

    def run(self) -> None:
        """Serve."""
        sharpen_timers()
        # The loop makes no lasting cycles, and a full collection over a large truth log would be
        # the latest token of all.
        gc.collect()
        gc.freeze()
        gc.disable()
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        epoll_alone = [self._epoll.fileno()]
        try:
            while True:
                if select.select(epoll_alone, (), (), self._patience())[0]:
                    for fd, events in self._epoll.poll(0, _EVENTS_AT_ONCE):
                        self._attend(fd, events)
                        self._write_due()  # a burst of users must not hold up the others' tokens
                self._write_due()
        finally:
            for connection in list(self._connections.values()):
                self._forget(connection)
            self._epoll.close()
            gc.enable()

    def _patience(self) -> float | None:
        """Seconds to wait if nothing comes in; None: for ever."""
        if not self._due:
            return None
        return max(self._due[0][0] - time.monotonic(), GRAIN_S)

    def _attend(self, fd: int, events: int) -> None:
        connection = self._connections.get(fd)
        if connection is None:
            if fd == self._listener.fileno():
                self._accept()
            return
        if events & select.EPOLLOUT:
            self._flush(connection)
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self._read(connection)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except OSError:  # none left, or it left before it was accepted
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:  # reading shakes hands, as far as that has come
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            self._connections[sock.fileno()] = _Connection(sock)
            self._epoll.register(sock, select.EPOLLIN)

    def _read(self, connection: _Connection) -> None:
        """Once: epoll tells of more. TLS is read dry: what it has taken is not announced again."""
        while self._read_once(connection) and self._tls is not None:
            pass

    def _read_once(self, connection: _Connection) -> bool:
        """Whether anything came."""
        try:
            data = connection.sock.recv(_READ_BYTES)
        except _NOT_YET:
            return False
        except OSError:
            data = b""
        read_at = time.monotonic()
        if not data:
            self._forget(connection)
            return False
        connection.inbox += data
        self._take_requests(connection, read_at)
        return True

    def _take_requests(self, connection: _Connection, read_at: float) -> None:
        """Answer what lies in the inbox; what follows a request waits until it is answered."""
        while connection.stream is None and connection.keep_alive:
            try:
                if connection.head is None:
                    connection.head = rawhttp.take_head(connection.inbox)
                    if connection.head and "expect" in connection.head.headers:
                        self._hand(connection, rawhttp.CONTINUE)
            except rawhttp.RawHttpError as error:
                connection.keep_alive = False
                self._reply(connection, error.status, error_body(_refused(error)))
                return
            head = connection.head
            if head is None or len(connection.inbox) < head.body_bytes:
                return
            body = bytes(connection.inbox[: head.body_bytes])
            del connection.inbox[: head.body_bytes]
            connection.head = None
            connection.keep_alive = head.keeps_alive
            self._answer(connection, head, body, read_at)

    def _answer(
        self, connection: _Connection, head: rawhttp.Head, body: bytes, read_at: float
    ) -> None:
        try:
            reply = self._route(connection, head, body, read_at)
        except RefusedError as error:
            self._reply(connection, error.status, error_body(error))
        else:
            if reply is not None:
                self._reply(connection, 200, reply)

    def _route(
        self, connection: _Connection, head: rawhttp.Head, body: bytes, read_at: float
    ) -> bytes | None:
        """The body of the reply; None where one is on the schedule instead."""
        url = urlsplit(head.target)
        match head.method, url.path:
            case "POST", "/v1/chat/completions" | "/v1/completions":
                content_type = head.headers.get("content-type", "")
                ask = read_ask(url.path, content_type, body, self._limits)
                self._begin(connection, head, ask, read_at)
                return None
            case "GET", "/v1/models":
                return models_body(self.settings.model, self._started_at, None)
            case "GET", "/health":
                return b""
            case "GET", "/truth":
                return self.log.answer(parse_qsl(url.query))
            case "DELETE", "/truth":
                self.log.clear()
                return b"{}"
            case _, path if path in {CHAT_PATH, COMPLETIONS_PATH, "/truth"}:
                raise RefusedError(405, "Method Not Allowed", "")
            case _:
                raise RefusedError(404, "Not Found", "")

    def _begin(self, connection: _Connection, head: rawhttp.Head, ask: Ask, read_at: float) -> None:
        """Render the whole answer, and put its first token on the schedule."""
        number = next(self._numbers)
        request_id = head.headers.get("x-request-id") or uuid4().hex[:16]
        reply = Reply(
            chat=ask.chat,
            id=("chatcmpl-" if ask.chat else "cmpl-") + request_id,
            model=ask.model or self.settings.model,
            created=int(time.time()),
            prompts=(ask.prompt_tokens,),
            usage=ask.usage,
            running_usage=ask.running_usage,
        )
        first_at = self.settings.first_at(read_at, number)
        truth = OpenTruth(request_id, read_at, streamed=ask.stream)
        stream = (_streamed if ask.stream else _whole)(connection, truth, first_at, reply, ask)
        if ask.stream:
            self._hand(
                connection, rawhttp.stream_head(EVENT_STREAM, keep_alive=connection.keep_alive)
            )
        else:
            stream.first_at += self.settings.itl_s * (ask.max_tokens - 1)
        connection.stream = stream
        heappush(self._due, (stream.first_at, number, stream))

    def _write_due(self) -> None:
        """Write every token whose instant has come: the inner loop of this server."""
        due, itl_s, monotonic = self._due, self.settings.itl_s, time.monotonic
        while due:
            at, number, stream = due[0]
            connection = stream.connection
            if connection is None:
                heappop(due)
                continue
            if at > monotonic():
                return
            piece = stream.piece()
            truth = stream.truth
            truth.scheduled_at.append(at)
            stream.handed += 1
            if stream.handed < stream.tokens:
                heapreplace(due, (stream.first_at + stream.handed * itl_s, number, stream))
            else:
                heappop(due)
            if connection.outbox:
                self._hold(connection, piece, truth)
                continue
            try:
                sent = connection.sock.send(piece)
            except _NOT_YET:
                sent = 0
            except OSError:
                self._forget(connection)
                continue
            if sent == len(piece):
                truth.written_at.append(monotonic())
                if stream.handed == stream.tokens:
                    self._finish(connection)
            else:
                self._hold(connection, piece[sent:], truth)

    def _hand(self, connection: _Connection, data: bytes) -> None:
        """Write what is not a token: heads, whole replies."""
        if not connection.outbox:
            try:
                data = data[connection.sock.send(data) :]
            except _NOT_YET:
                pass
            except OSError:
                return  # epoll tells of the loss too, and there it is dealt with
        if data:
            self._hold(connection, data, None)

    def _hold(self, connection: _Connection, data: bytes, truth: OpenTruth | None) -> None:
        """Keep what the kernel would not take, until it will."""
        if truth is not None:
            truth.held_back += 1
        if not connection.outbox:
            self._epoll.modify(connection.sock, select.EPOLLIN | select.EPOLLOUT)
        connection.outbox.append((data, truth))

    def _flush(self, connection: _Connection) -> None:
        outbox = connection.outbox
        while outbox:
            data, truth = outbox[0]
            try:
                sent = connection.sock.send(data)
            except _NOT_YET:
                return
            except OSError:
                self._forget(connection)
                return
            if sent < len(data):
                outbox[0] = (data[sent:], truth)
                return
            outbox.popleft()
            if truth is not None:
                truth.written_at.append(time.monotonic())
        self._epoll.modify(connection.sock, select.EPOLLIN)
        stream = connection.stream
        if stream is None:
            if not connection.keep_alive:
                self._forget(connection)
        elif stream.handed == stream.tokens:
            self._finish(connection)

    def _reply(self, connection: _Connection, status: int, body: bytes) -> None:
        self._hand(connection, rawhttp.response(status, body, keep_alive=connection.keep_alive))
        if not connection.keep_alive and not connection.outbox:
            self._forget(connection)

    def _finish(self, connection: _Connection) -> None:
        """The answer is out; what the client sent meanwhile comes next."""
        stream = connection.stream
        assert stream is not None
        self.log.add(stream.truth, TruthOutcome.FINISHED)
        connection.stream = stream.connection = None
        if not connection.keep_alive:
            self._forget(connection)
        elif connection.inbox:
            self._take_requests(connection, time.monotonic())

    def _forget(self, connection: _Connection) -> None:
        """Close a connection, whoever ended it; its stream leaves the heap when its turn comes."""
        if self._connections.pop(connection.sock.fileno(), None) is None:
            return
        stream = connection.stream
        if stream is not None:
            self.log.add(stream.truth, TruthOutcome.CLIENT_LEFT)
            connection.stream = stream.connection = None
        connection.outbox.clear()
        connection.sock.close()


def _streamed(
    connection: _Connection, truth: OpenTruth, first_at: float, reply: Reply, ask: Ask
) -> _Stream:
    """A stream's bytes, a chunk an event, ready to be written."""
    last = ask.max_tokens
    texts = words(ask.seed)
    # Usage so far makes every event different; else a few take turns.
    different = last if ask.running_usage else min(WORDS_IN_TURN, last)
    middle = [
        rawhttp.chunk(reply.token(text, so_far))
        for so_far, text in enumerate(islice(texts, different), start=1)
    ]
    opening = rawhttp.chunk(reply.opening())
    end = rawhttp.chunk(reply.token(next(texts), last, "length"))
    end += rawhttp.chunk(reply.closing(last)) + rawhttp.LAST_CHUNK
    return _Stream(
        connection=connection,
        truth=truth,
        first_at=first_at,
        tokens=last,
        first=opening + middle[0],
        middle=middle,
        last=opening + end if last == 1 else end,
    )


def _whole(
    connection: _Connection, truth: OpenTruth, first_at: float, reply: Reply, ask: Ask
) -> _Stream:
    """A reply that is not streamed, as a stream of one piece."""
    text = "".join(islice(words(ask.seed), ask.max_tokens))
    body = rawhttp.response(
        200, reply.whole(text, ask.max_tokens, "length"), keep_alive=connection.keep_alive
    )
    truth.tokens = ask.max_tokens
    return _Stream(
        connection=connection,
        truth=truth,
        first_at=first_at,
        tokens=1,
        first=body,
        middle=[],
        last=body,
    )


def _refused(error: rawhttp.RawHttpError) -> RefusedError:
    return RefusedError(error.status, str(error), "Bad Request")

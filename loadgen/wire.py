"""The wire transport: HTTP/1.1 on gevent's hub, stamped by the kernel.

Rules kept here:

- Reads happen in the hub's callback, not in the user's greenlet: a token costs one callback, a
  request one greenlet switch. Events that repeat take the fast lane (:mod:`loadgen.fastlane`).
- Instants are arrivals (:mod:`loadgen.stamps`): how late Python was does not move them, and what
  waited meanwhile is read frame by frame, for each its own (:mod:`loadgen.backlog`).
- No pool limit, no redirect, no hidden retry, no ``Expect``; compressed answers are not asked for.
- A response is read to its true end, so that its connection can be used again. After an end marker
  inside the body the true end is waited for only briefly.
- A connection idle for longer than servers keep theirs is not used; one that turns out stale before
  any byte of the response costs one fresh try, counted, with the clock running on.
- TLS runs over memory BIOs, so that the stamp stays the arrival of the ciphertext.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import gevent
import httptools
from gevent import monkey
from gevent import socket as cooperative

from loadgen.backlog import AWAY_S, PEEK_BYTES, Backlog, frame_bytes
from loadgen.errors import DecodeError, words_of
from loadgen.exchange import End, Exchange, Limits, ResponseBody
from loadgen.fastlane import Read, Readiness, framed
from loadgen.inflate import Inflater, inflater
from loadgen.stamps import ANCILLARY_BYTES, SO_TIMESTAMPNS, KernelStamps
from loadgen.target import Target
from loadgen.tls import MemoryTls

MAX_IDLE_S = 4.0  # vLLM's server closes idle connections after 5 s
END_GRACE_S = 0.25  # how long after the end marker the response may take to end
READ_BYTES = 65536
FRAMES_AT_ONCE = 8  # of one connection, before the others have their turn
MAX_HEAD_BYTES = 256 * 1024
SETTLE_AT_ONCE = 128

# The socket of the standard library, not gevent's: waiting is done by the hub's watchers here.
_Socket: type[socket.socket] = monkey.get_original("socket", "socket")
_WRITE = 2  # libev's EV_WRITE; gevent takes the number


class WireTransport:
    """Shared by all users of a process; connections are kept and reused, last used first."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.stamps = KernelStamps()
        self.backlog = Backlog()
        self.readiness = Readiness(self.backlog.state)
        self._tls = tls
        self._idle: dict[Target, list[_Connection]] = defaultdict(list)
        self._busy: set[_Connection] = set()

    @property
    def stamp(self) -> str | None:
        """Where its instants came from so far; see :class:`loadgen.stamps.StampCounts`."""
        return self.stamps.counts.kind

    @property
    def has_lane(self) -> bool:
        """See :attr:`loadgen.exchange.Transport.has_lane`."""
        return self.readiness.lane is not None

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        """Send and follow the response to its end; see :class:`loadgen.exchange.Transport`."""
        try:
            connection = self._acquire(exchange, limits)
            if connection is not None and connection.follow(exchange, body, limits):
                exchange.retries = 1
                exchange.end = exchange.detail = exchange.ended_at = None
                connection = self._connect(exchange, limits)
                if connection is not None:
                    connection.follow(exchange, body, limits)
        finally:  # also when the greenlet is killed
            if exchange.ended_at is None:
                exchange.ended_at = time.monotonic()
            if exchange.end is None:
                exchange.end = End.ABANDONED

    def settle(self) -> Iterator[None]:
        """See :meth:`loadgen.exchange.Transport.settle`."""
        for number, connection in enumerate(list(self._busy), start=1):
            connection.settle()
            if number % SETTLE_AT_ONCE == 0:
                yield

    def close(self) -> None:
        """Close every connection, idle or not."""
        for connection in [c for idle in self._idle.values() for c in idle] + list(self._busy):
            connection.close()
        self._idle.clear()
        self._busy.clear()
        self.readiness.close()
        self.stamps.close()

    def _acquire(self, exchange: Exchange, limits: Limits) -> _Connection | None:
        idle = self._idle[exchange.request.target]
        while idle:
            connection = idle.pop()
            if time.monotonic() - connection.drained_at <= MAX_IDLE_S:
                exchange.reused = True
                self._busy.add(connection)
                return connection
            connection.close()
        return self._connect(exchange, limits)

    def _connect(self, exchange: Exchange, limits: Limits) -> _Connection | None:
        target = exchange.request.target
        exchange.reused = False
        began = time.monotonic()
        try:
            with gevent.Timeout(limits.connect_s) as limit:
                sock = _open_socket(target)
                try:
                    tls = self._handshake(sock, target) if target.tls else None
                except BaseException:
                    sock.close()
                    raise
        except gevent.Timeout as timeout:
            if timeout is not limit:
                raise  # the caller's own
            exchange.end, exchange.detail = (
                End.CONNECT_ERROR,
                f"no connection in {limits.connect_s} s",
            )
            return None
        except ssl.SSLError as error:
            exchange.end, exchange.detail = End.TLS_ERROR, words_of(error)
            return None
        except OSError as error:
            exchange.end, exchange.detail = End.CONNECT_ERROR, words_of(error)
            return None
        exchange.connect_s = time.monotonic() - began
        stamped = KernelStamps.enable(sock)
        connection = _Connection(self, sock, tls, target, stamped=stamped)
        self._busy.add(connection)
        return connection

    def _handshake(self, sock: socket.socket, target: Target) -> MemoryTls:
        if self._tls is None:
            self._tls = ssl.create_default_context()

        def receive() -> bytes:
            cooperative.wait_read(sock.fileno())
            return sock.recv(READ_BYTES)

        tls = MemoryTls(self._tls, target.host)
        tls.shake_hands(lambda data: _send_all(sock, data), receive)
        return tls

    def release(self, connection: _Connection) -> None:
        """Take back a connection whose response ended cleanly."""
        self._busy.discard(connection)
        self._idle[connection.target].append(connection)

    def drop(self, connection: _Connection) -> None:
        """Forget a connection that closed."""
        self._busy.discard(connection)
        idle = self._idle.get(connection.target)
        if idle and connection in idle:
            idle.remove(connection)


class _Connection:
    """One connection, and the exchange on it, if any. Callbacks run in the hub: they never wait."""

    __slots__ = (
        "_all_sent",
        "_answered",
        "_arrival",
        "_at",
        "_backlog",
        "_body",
        "_bytes_seen",
        "_chunk",
        "_closed",
        "_delay",
        "_exchange",
        "_fd",
        "_framing_bytes",
        "_head_seen",
        "_headers",
        "_hub",
        "_in_lane",
        "_inflate",
        "_lane",
        "_limits",
        "_parser",
        "_read",
        "_recvmsg",
        "_reusable",
        "_sized",
        "_sock",
        "_stamp",
        "_stamped",
        "_timer",
        "_tls",
        "_transport",
        "_waiter",
        "drained_at",
        "target",
    )

    def __init__(
        self,
        transport: WireTransport,
        sock: socket.socket,
        tls: MemoryTls | None,
        target: Target,
        *,
        stamped: bool,
    ) -> None:
        self.target = target
        self.drained_at = time.monotonic()
        self._transport = transport
        self._arrival = transport.stamps.arrival
        self._backlog = transport.backlog
        self._stamped = stamped
        self._sock = sock
        self._recvmsg = sock.recvmsg
        self._tls = tls
        self._fd = sock.fileno()
        # What is encrypted, or has no stamp, is not for the lane.
        self._lane = transport.readiness.lane if stamped and tls is None else None
        self._in_lane = False
        self._hub = gevent.get_hub()
        transport.readiness.start(self._fd, self._readable)
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: Exchange | None = None
        self._body: ResponseBody | None = None
        self._limits = Limits()
        self._waiter: Any = None
        self._timer: Any = None
        self._closed = False
        self._clear()

    def _clear(self) -> None:
        self._headers: dict[str, str] = {}
        self._inflate: Inflater | None = None
        self._framing_bytes = 0  # taken since there was a byte of body
        self._head_seen = False
        self._sized = False  # the response's length is known: it does not end with the connection
        self._all_sent = False
        self._reusable = False
        self._bytes_seen = False
        self._answered = False  # the body has all it needs
        self._at = 0.0
        self._delay: float | None = None
        self._stamp: list[tuple[int, int, bytes]] = []
        self._read = 0  # number of the arrival, for events to be told together or apart
        self._chunk = b""  # of the body, the last that a read brought

    # -- in the user's greenlet --------------------------------------------------------------

    def follow(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> bool:
        """Send and wait for the end; True where the connection was stale and a fresh try is due."""
        self._clear()
        self._exchange, self._body, self._limits = exchange, body, limits
        self._waiter = gevent.hub.Waiter(self._hub)
        reused = exchange.reused
        try:
            self._send(exchange)
            if exchange.end is None:
                self._waiter.get()
        finally:
            self._leave_lane()
            self._disarm()
            self._exchange = self._body = self._waiter = None
            if exchange.end is not End.COMPLETE or not self._reusable:
                self.close()
            else:
                self._transport.release(self)
        return exchange.end is End.RESET and reused and not self._bytes_seen

    def _send(self, exchange: Exchange) -> None:
        """Hand the request to the kernel, unless the exchange ends meanwhile.

        The server may answer before it has read everything, and even close; what it said is then
        still to be read, so an error here ends nothing.
        """
        request = exchange.request
        data = b"%sContent-Length: %d\r\n\r\n%s" % (request.head, len(request.body), request.body)
        if self._tls is not None:
            data = self._tls.encrypt(data)
        self._at = self.drained_at = now = time.monotonic()
        if exchange.sent_at is None:  # a second try does not restart the clock
            exchange.sent_at = now
        self._arm()
        view = memoryview(data)
        while view and exchange.end is None:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                self._wait_until_writable()
            except OSError:
                break
        self._all_sent = not view

    def _wait_until_writable(self) -> None:
        """Or until the exchange ended."""
        watcher = self._hub.loop.io(self._sock.fileno(), _WRITE)
        watcher.start(self._waiter.switch, None)
        try:
            self._waiter.get()
        finally:
            watcher.stop()
            watcher.close()

    # -- in the hub --------------------------------------------------------------------------

    def _readable(self, read: Read = None) -> None:
        """Read what came; frame by frame where several may have come since the last look.

        Args:
            read: what the fast lane came by and did not keep; ``None`` where it did not look.
        """
        try:
            self._leave_lane()
            if isinstance(read, tuple):
                self._took(*read)
            elif isinstance(read, OSError):
                self._broken(read)
            elif read is False or (self._stamped and self._backlog.likely(time.monotonic())):
                self._read_frames()
            else:
                self._read_up_to(READ_BYTES)
        except Exception:
            # A fault of ours: the hub tells it, and the request need not wait for its time limit.
            self._finish(End.MALFORMED, "Streamgauge itself failed")
            self._reusable = False
            raise

    def settle(self) -> None:
        """Bring the exchange up to date with what the lane kept."""
        kept = self._lane.settle(self._fd) if self._lane is not None and self._in_lane else None
        if kept is None or self._body is None:
            return
        events, coalesced, is_first, gaps, text, stamp, self._at, self.drained_at = kept
        if events:
            self._read += events - coalesced
            self._stamp = [(socket.SOL_SOCKET, SO_TIMESTAMPNS, stamp)]
            self._transport.stamps.counts.kernel += events
            shared = (coalesced, bool(is_first))
            self._body.repeated(events, shared, gaps, text, self._at, self._read)

    def _leave_lane(self) -> None:
        if self._in_lane and self._lane is not None:
            self.settle()
            self._lane.leave(self._fd)
            self._in_lane = False

    def _enter_lane(self, data: bytes) -> None:
        """If ``data``, just taken, was one chunk of whole events, and it is known what will repeat.

        The parser is then between two chunks, and misses nothing if it sees none of those that the
        lane takes.
        """
        body = self._body
        event, at = (None, None) if body is None else (body.repeats, body.last_output_at)
        if self._lane is None or event is None or at is None or framed(data) != self._chunk:
            return
        ((_, _, stamp),) = self._stamp
        self._lane.enter(self._fd, event.head, event.tail, stamp, self._at, at, self.drained_at)
        self._in_lane = True

    def _read_frames(self) -> None:
        for _ in range(FRAMES_AT_ONCE):
            try:
                start = self._sock.recv(PEEK_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                return
            except OSError as error:  # told once: the next read would see an orderly end
                self._broken(error)
                return
            size = min(frame_bytes(start, tls=self._tls is not None) or READ_BYTES, READ_BYTES)
            more = len(start) > size
            if not self._read_up_to(size):
                self._reusable = self._reusable and not more  # it belongs to no answer of ours
                return
            if not more or self._in_lane:  # whose business the rest is
                return

    def _broken(self, error: OSError) -> None:
        self._finish(End.RESET, words_of(error))
        self._reusable = False

    def _read_up_to(self, size: int) -> bool:
        """One read, taken; False where there was none, or the exchange is over."""
        try:
            data, ancillary, _, _ = self._recvmsg(size, ANCILLARY_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self._broken(error)
            return False
        return self._took(data, ancillary, size)

    def _took(self, data: bytes, ancillary: list[tuple[int, int, bytes]], size: int) -> bool:
        """Stamp what a read of ``size`` gave and take it; False where the exchange is over."""
        exchange = self._exchange
        if exchange is None:  # idle: the peer closed, or sends what nobody asked for
            self.close()
            return False
        if exchange.end is not None:  # over, its greenlet just has not run yet
            self._reusable = False
            self._transport.readiness.stop(self._fd)
            return False
        at, self._delay, now = self._arrival(ancillary, self.drained_at)
        if self._delay is not None and self._delay > AWAY_S:
            self._backlog.late(now, self._delay)
        if len(data) < size:
            self.drained_at = now
        # A frame with the stamp of the one before came in the same segment, as far as is known: the
        # kernel joins segments that wait, and keeps one stamp.
        if size == READ_BYTES or not ancillary or ancillary != self._stamp:
            self._read += 1
            # A stamp after a read that had none must not lead back in time.
            if at > self._at:  # noqa: PLR1730  # max() costs four times as much, for every token
                self._at = at
        self._stamp = ancillary
        self._chunk = b""
        try:
            self._take(data)
        except DecodeError as error:
            self._finish(End.MALFORMED, str(error))
        except httptools.HttpParserError as error:
            self._not_http(error)
        if self._lane is not None and self._delay is not None:
            self._enter_lane(data)
        return exchange.end is None and not self._closed

    def _not_http(self, error: httptools.HttpParserError) -> None:
        self._reusable = False
        cause = error.__context__
        if isinstance(cause, DecodeError):
            self._finish(End.MALFORMED, str(cause))
        elif cause is not None and not isinstance(cause, httptools.HttpParserError):
            raise cause  # our own bug inside a parser callback
        else:
            self._finish(End.MALFORMED, f"not HTTP: {error}")

    def _take(self, data: bytes) -> None:
        over = not data
        if self._tls is not None and data:
            try:
                data, over = self._tls.decrypt(data)
            except ssl.SSLError as error:
                # Whom our certificate does not please says so once we have sent (TLS 1.3).
                self._finish(End.RESET if self._bytes_seen else End.TLS_ERROR, words_of(error))
                return
        if data:
            self._bytes_seen = True
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_HEAD_BYTES:
                what = "chunk or trailer" if self._head_seen else "response"
                raise DecodeError(f"a {what} head larger than {MAX_HEAD_BYTES} bytes")
            self._parser.feed_data(data)
        if over:
            self._peer_closed()

    def _peer_closed(self) -> None:
        """An orderly close: the end of an answer that has no length, a cut in any other."""
        self._reusable = False
        if self._head_seen and not self._sized and self._exchange is not None:
            if self._exchange.done_at is None:
                self._exchange.done_at = self._at
            self._finish(End.COMPLETE, None)
        else:
            self._finish(End.RESET, "the connection was closed")

    # httptools calls these.

    def on_message_begin(self) -> None:
        self._headers = {}
        self._reusable = False  # bytes beyond the response belong to nobody

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_seen:
            return  # a trailer, or a response nobody asked for
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._exchange is None or self._body is None:
            return  # an interim head, or a response nobody asked for
        self._head_seen = True
        self._sized = (
            "chunked" in self._headers.get("transfer-encoding", "").lower()
            or "content-length" in self._headers
            or status in (204, 304)
        )
        self._exchange.status = status
        self._exchange.http_version = self._parser.get_http_version()
        self._exchange.headers = self._headers
        self._exchange.head_at = self._at
        self._inflate = inflater(self._headers.get("content-encoding"))
        self._body.head(status, self._headers)

    def on_body(self, chunk: bytes) -> None:
        self._framing_bytes = 0
        self._chunk = chunk
        body = self._body
        if body is None:
            return
        if self._inflate is not None:
            for piece in self._inflate.pieces(chunk):
                if body.data(piece, self._at, self._read, self._delay):
                    self._answer_is_whole()
        elif body.data(chunk, self._at, self._read, self._delay):
            self._answer_is_whole()

    def _answer_is_whole(self) -> None:
        """All the body needs has come; what may follow is waited for only briefly."""
        if not self._answered and self._exchange is not None:
            self._answered = True
            self._exchange.done_at = self._at
            self._arm(END_GRACE_S)

    def on_message_complete(self) -> None:
        if not self._head_seen or self._body is None:
            return  # an interim response, or one nobody asked for
        self._reusable = self._sized and self._all_sent and self._parser.should_keep_alive()
        if self._exchange is not None:
            if self._exchange.done_at is None:
                self._exchange.done_at = self._at
            self._finish(End.COMPLETE, None)

    # -- time limits -------------------------------------------------------------------------

    def _arm(self, seconds: float | None = None) -> None:
        """(Re)start the one timer, for the nearest limit unless told otherwise."""
        self._disarm()
        if seconds is None:
            if self._exchange is None or self._body is None:
                return
            seconds = self._limits.next_look_s(self._exchange, self._body)
            if seconds is None:
                return
        self._timer = self._hub.loop.timer(seconds)
        self._timer.start(self._time_is_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _time_is_up(self) -> None:
        if self._exchange is None or self._body is None:
            return
        self.settle()
        if self._answered:  # the marker came, the response's end did not: good enough
            self._finish(End.COMPLETE, None)
            return
        deadline, which = self._limits.nearest(self._exchange, self._body)
        if deadline is not None and time.monotonic() >= deadline:
            self._finish(End.TIMEOUT, which)
        else:
            self._arm()  # output moved the deadline

    # -- the end -----------------------------------------------------------------------------

    def _finish(self, end: End, detail: str | None) -> None:
        exchange = self._exchange
        if exchange is None or exchange.end is not None:
            return
        self._leave_lane()
        exchange.end, exchange.detail = end, detail
        exchange.ended_at = time.monotonic()
        self._body = None  # further bytes are not this answer's
        self._disarm()
        if self._waiter is not None:
            # Not at once: the user's greenlet must not run inside the parser's callback.
            self._hub.loop.run_callback(self._waiter.switch, None)

    def close(self) -> None:
        """Close the socket; an exchange still on it is abandoned."""
        if self._closed:
            return
        self._closed = True
        self._finish(End.ABANDONED, None)
        self._disarm()
        self._transport.readiness.stop(self._fd)
        self._sock.close()
        self._transport.drop(self)


def _open_socket(target: Target) -> socket.socket:
    """A connected, non-blocking socket; each address is tried in turn.

    Raises:
        OSError: no address answers.
    """
    addresses = cooperative.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    code = errno.EADDRNOTAVAIL
    for family, kind, protocol, _, address in addresses:
        sock = _Socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address)
            if code == errno.EINPROGRESS:
                cooperative.wait_write(sock.fileno())
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except BaseException:  # the connect limit, or the greenlet was killed
            sock.close()
            raise
        if not code:
            return sock
        sock.close()
    raise OSError(code, os.strerror(code))


def _send_all(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            cooperative.wait_write(sock.fileno())

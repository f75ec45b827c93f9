"""The httpx transport: HTTP/2, proxies, anything exotic, by httpx's engine (httpcore).

It must agree with :mod:`loadgen.wire` on every fact but when. Rules kept here:

- Its instants are the kernel's, as ``wire``'s are, but the instant of sending includes the engine's
  own work, and a token costs about twice as much. For a measurement ``wire`` is the better one.
- No pool: each connection has an engine of its own and carries one request at a time, over HTTP/2
  too. There the engine lets one reader serve all streams in turn, and a token would seem as late as
  its neighbours are; and to leave a request early is to leave its connection, which servers notice.
- Nothing comes from the environment, no redirect is followed and no cookie kept. HTTP/2 is offered
  over TLS where the package h2 is installed.
- The limits, the one fresh try after a stale connection and the wait after an end marker are those
  of ``wire``.

One thing it cannot do: hear a refusal while a request is still being sent.
"""

from __future__ import annotations

import importlib.util
import ssl
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import gevent
import httpcore

from loadgen.errors import DecodeError
from loadgen.exchange import End, Exchange, Limits, ResponseBody
from loadgen.inflate import inflater
from loadgen.sockets import Line, Stream, TlsError
from loadgen.stamps import KernelStamps
from loadgen.target import HttpRequest, Target
from loadgen.wire import END_GRACE_S, MAX_IDLE_S

HAS_HTTP2 = importlib.util.find_spec("h2") is not None


class HttpxTransport:
    """Shared by all users of a process; connections are kept and reused, last used first.

    Args:
        tls: whom to trust; the system's authorities where not given.
        proxy: where to go first.
    """

    def __init__(
        self, tls: ssl.SSLContext | None = None, proxy: httpcore.Proxy | None = None
    ) -> None:
        self._tls = tls or ssl.create_default_context()
        self._proxy = proxy
        self._idle: dict[Target, list[_Lane]] = defaultdict(list)
        self._busy: dict[_Lane, _Call] = {}
        self.stamps = KernelStamps()

    @property
    def stamp(self) -> str | None:
        """Where its instants came from so far; see :class:`loadgen.stamps.StampCounts`."""
        return self.stamps.counts.kind

    def send(self, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        """Send and follow the response to its end; see :class:`loadgen.exchange.Transport`."""
        try:
            if self._follow(self._kept_lane(exchange.request.target), exchange, body, limits):
                exchange.retries += 1
                exchange.end = exchange.detail = exchange.ended_at = None
                self._follow(self._new_lane(), exchange, body, limits)
        finally:  # also when the greenlet is killed
            if exchange.ended_at is None:
                exchange.ended_at = time.monotonic()
            if exchange.end is None:
                exchange.end = End.ABANDONED

    @property
    def has_lane(self) -> bool:
        """Reads are the library's here."""
        return False

    def settle(self) -> Iterator[None]:
        """Nothing is held back here."""
        return iter(())

    def close(self) -> None:
        """Close every connection, idle or not."""
        for call in self._busy.values():
            call.finish(End.ABANDONED)
        for lane in [lane for idle in self._idle.values() for lane in idle] + list(self._busy):
            lane.pool.close()
        self._idle.clear()
        self.stamps.close()

    def _follow(self, lane: _Lane, exchange: Exchange, body: ResponseBody, limits: Limits) -> bool:
        """One try on one connection; True where that was stale and a fresh try is due."""
        call = self._busy[lane] = _Call(lane, exchange, body, limits)
        try:
            call.run()
        finally:
            del self._busy[lane]
            if call.whole and lane.reusable:
                lane.idle_since = time.monotonic()
                self._idle[exchange.request.target].append(lane)
            else:
                lane.pool.close()
        return exchange.end is End.RESET and exchange.reused and not call.heard

    def _kept_lane(self, target: Target) -> _Lane:
        idle = self._idle[target]
        while idle:
            lane = idle.pop()
            if time.monotonic() - lane.idle_since <= MAX_IDLE_S:
                return lane
            lane.pool.close()
        return self._new_lane()

    def _new_lane(self) -> _Lane:
        return _Lane(self._tls, self._proxy, self.stamps)


class _Lane:
    """One connection at a time, opened anew by the engine where it has gone while idle."""

    def __init__(
        self, tls: ssl.SSLContext, proxy: httpcore.Proxy | None, stamps: KernelStamps
    ) -> None:
        self.line = Line(stamps)
        self.idle_since = 0.0
        self.pool = httpcore.ConnectionPool(
            ssl_context=tls,
            proxy=proxy,
            max_connections=None,
            keepalive_expiry=MAX_IDLE_S,
            http2=HAS_HTTP2,
            retries=0,
            network_backend=self.line,
        )

    @property
    def stream(self) -> Stream:
        """The connection's, once there is one."""
        assert self.line.stream is not None
        return self.line.stream

    @property
    def reusable(self) -> bool:
        """The connection is open, and nothing came on it that belongs to nobody."""
        connections = self.pool.connections
        return bool(connections) and not _surplus(connections[0])


class _TimeIsUp(BaseException):
    """Thrown into the greenlet that waits; the exchange already says which limit it was."""


class _Call:
    """One try to get one answer.

    Attributes:
        heard: the server said something.
        whole: the response came to its own end.
    """

    def __init__(self, lane: _Lane, exchange: Exchange, body: ResponseBody, limits: Limits) -> None:
        self.whole = False
        self._lane = lane
        self._exchange = exchange
        self._body = body
        self._limits = limits
        self._greenlet = gevent.getcurrent()
        self._timer: Any = None
        self._connect_began: float | None = None
        self._sent = False
        self._arrivals_before = 0
        self._answered = False  # the body has all it needs

    @property
    def heard(self) -> bool:
        return self._sent and self._lane.stream.arrivals > self._arrivals_before

    def run(self) -> None:
        """Send and follow; whatever the network does is in the exchange afterwards."""
        self._arm(self._limits.connect_s)
        try:
            self._converse()
        except _TimeIsUp:
            pass
        except DecodeError as error:
            self.finish(End.MALFORMED, str(error))
        except TlsError as error:
            self.finish(End.TLS_ERROR, str(error))
        except (httpcore.ConnectError, httpcore.ProxyError) as error:
            self.finish(End.CONNECT_ERROR, str(error))
        except httpcore.NetworkError as error:
            self.finish(End.RESET, str(error))
        except httpcore.RemoteProtocolError as error:
            self._misread(error)
        except httpcore.LocalProtocolError as error:
            self.finish(End.MALFORMED, f"a request that cannot be sent: {error}")
        finally:
            self._disarm()

    def _converse(self) -> None:
        response = self._lane.pool.handle_request(self._request(self._exchange.request))
        try:
            self._read(response)
            self.whole = True
        finally:
            response.close()
        if self._exchange.done_at is None:
            self._exchange.done_at = self._lane.stream.at
        self.finish(End.COMPLETE)

    def _request(self, request: HttpRequest) -> httpcore.Request:
        start, *lines = request.head.rstrip(b"\r\n").split(b"\r\n")
        method, path, _ = start.split(b" ")
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        target = request.target
        return httpcore.Request(
            method,
            httpcore.URL(
                scheme=b"https" if target.tls else b"http",
                host=target.host.encode("ascii"),
                port=target.port,
                target=path,
            ),
            headers=[*headers, (b"Content-Length", b"%d" % len(request.body))],
            content=request.body,
            extensions={"trace": self._trace},
        )

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """What the engine does. To ask a proxy for a tunnel is still to connect."""
        exchange = self._exchange
        if event.endswith("connect_tcp.started"):
            self._connect_began = time.monotonic()
        elif (
            event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT"
        ):
            now = time.monotonic()
            exchange.reused = self._connect_began is None
            exchange.connect_s = None if exchange.reused else now - (self._connect_began or now)
            if exchange.sent_at is None:  # a second try does not restart the clock
                exchange.sent_at = now
            elif self._sent:
                exchange.retries += 1  # HTTP/2: the server said that it did not look at the first
            self._sent = True
            self._arrivals_before = self._lane.stream.arrivals
            self._arm(self._limits.next_look_s(exchange, self._body))

    def _read(self, response: httpcore.Response) -> None:
        exchange, body, stream = self._exchange, self._body, self._lane.stream
        version: bytes = response.extensions["http_version"]
        exchange.status = response.status
        exchange.http_version = version.decode("ascii").removeprefix("HTTP/")
        exchange.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in response.headers
        }
        exchange.head_at = stream.at
        inflate = inflater(exchange.headers.get("content-encoding"))
        body.head(response.status, exchange.headers)
        for chunk in response.iter_stream():
            for piece in inflate.pieces(chunk) if inflate else (chunk,):
                if body.data(piece, stream.at, stream.arrivals, stream.delay_s):
                    self._answer_is_whole(stream.at)

    def _answer_is_whole(self, at: float) -> None:
        """All the body needs has come; what may follow is waited for only briefly."""
        if not self._answered:
            self._answered = True
            self._exchange.done_at = at
            self._arm(END_GRACE_S)

    def _misread(self, error: httpcore.RemoteProtocolError) -> None:
        """The engine calls a closed connection a breach of protocol, too."""
        if self._lane.stream.ended:
            self.finish(End.RESET, "the connection was closed")
        elif self._exchange.http_version == "2" or _speaks_http2(self._lane.stream):
            self.finish(End.RESET, f"HTTP/2: {error}")
        else:
            self.finish(End.MALFORMED, f"not HTTP: {error}")

    # -- time limits -------------------------------------------------------------------------

    def _arm(self, seconds: float | None) -> None:
        self._disarm()
        if seconds is not None:
            self._timer = gevent.get_hub().loop.timer(seconds)
            self._timer.start(self._time_is_up)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _time_is_up(self) -> None:
        """Runs in the hub."""
        if not self._sent:
            self.finish(End.CONNECT_ERROR, f"no connection in {self._limits.connect_s} s")
        elif self._answered:  # the marker came, the response's end did not: good enough
            self.finish(End.COMPLETE)
        else:
            deadline, which = self._limits.nearest(self._exchange, self._body)
            if deadline is None or time.monotonic() < deadline:  # output moved it
                self._arm(self._limits.next_look_s(self._exchange, self._body))
                return
            self.finish(End.TIMEOUT, which)
        self._greenlet.throw(_TimeIsUp)

    def finish(self, end: End, detail: str | None = None) -> None:
        """How it ended; the first word counts."""
        if self._exchange.end is None:
            self._exchange.end, self._exchange.detail = end, detail
            self._exchange.ended_at = time.monotonic()


def _speaks_http2(stream: Stream) -> bool:
    tls = stream.get_extra_info("ssl_object")
    return tls is not None and tls.selected_alpn_protocol() == "h2"


def _surplus(connection: Any) -> bool:
    """Bytes came after the response, which the engine would take for the next one.

    It has no public way to ask; a test holds this to what is inside.
    """
    while connection is not None and not hasattr(connection, "_h11_state"):
        connection = getattr(connection, "_connection", None)
    return connection is not None and bool(connection._h11_state.trailing_data[0])  # noqa: SLF001

"""Serve the pages on one address, to nobody else, without a word to the internet.

Streamlit runs inside this process, so that nothing can outlive the command. Its own guards stay
on; two of ours stand before them: a request must name a host we answer to (a foreign site may
point its name at 127.0.0.1), and a WebSocket must come from our own page. Streamlit checks that
origin too, but would ask the internet for this machine's address to do so.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import streamlit as st
import uvicorn
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose
from streamlit import config

from dashboard.errors import AddressError
from dashboard.figures import BLUE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SCRIPT = Path(__file__).with_name("app.py")
SHUTDOWN_S = 2

OPTIONS: dict[str, Any] = {
    "browser.gatherUsageStats": False,
    "client.showErrorDetails": "none",
    "client.showErrorLinks": False,
    "client.toolbarMode": "viewer",
    "server.enableCORS": True,
    "server.enableXsrfProtection": True,
    "server.enableStaticServing": False,
    "server.fileWatcherType": "none",
    "server.headless": True,
    "runner.magicEnabled": False,
    "theme.light.primaryColor": BLUE,  # in both, else a reader's dark setting is not followed
    "theme.dark.primaryColor": BLUE,
}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        AddressError: the address is taken, unknown or not allowed.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        number = error.errno or 0  # below 0 for a name that cannot be resolved
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise AddressError(
            f"Cannot listen on {host}:{port}: {reason}; give another --port, or --port 0 for any"
            " free one."
        ) from None


def url_of(listener: socket.socket, host: str) -> str:
    """Where a browser finds the pages."""
    port = listener.getsockname()[1]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # every address; the browser needs one
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(listener: socket.socket, host: str, on_ready: Callable[[], None]) -> None:
    """Answer on ``listener`` until SIGINT or SIGTERM.

    Args:
        listener: a listening socket; closed at the end.
        host: the address asked for; on a loopback one only its own names are answered to.
        on_ready: called once the pages answer.
    """
    hosts = LOOPBACK if host in LOOPBACK else ()
    for name, value in OPTIONS.items():
        config.set_option(name, value)
    config.set_option("server.allowedHosts", list(hosts))
    app = st.App(
        SCRIPT,
        middleware=[Middleware(Guard, hosts=hosts)],
        on_script_error=_explain,
    )
    server = _Server(
        uvicorn.Config(
            app,
            log_level=logging.ERROR,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=SHUTDOWN_S,
        ),
        on_ready,
    )
    with listener, _until_told_to_stop():
        server.run(sockets=[listener])


class Guard:
    """Refuses requests for other hosts, and WebSockets opened by other sites' pages."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        """Guard ``app``.

        Args:
            app: what to guard.
            hosts: names we answer to; empty for any.
        """
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] in ("http", "websocket") and not self._is_welcome(scope):
            if scope["type"] == "websocket":
                await WebSocketClose(code=1008)(scope, receive, send)
            else:
                await PlainTextResponse("unknown host", 400)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_welcome(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts and urlsplit(f"//{host}").hostname not in self._hosts:
            return False
        origin = headers.get("origin")
        return scope["type"] == "http" or origin is None or urlsplit(origin).netloc == host


class _Server(uvicorn.Server):
    def __init__(self, settings: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(settings)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def _explain(error: Exception) -> bool:
    """What a page shows for a failure of our own; Streamlit logs the traceback to the terminal."""
    st.error(
        f"Streamgauge itself failed ({type(error).__name__}); its terminal says where. Please"
        " report this.",
        icon=":material/bug_report:",
    )
    return True


class _Stop(BaseException):
    """SIGTERM or SIGINT: the ordinary end of a server."""


@contextmanager
def _until_told_to_stop() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001  # signal's signature
        raise _Stop

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Stop:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def has_display() -> bool:
    """Whether a browser could be opened here and somebody would see it."""
    is_seen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and (is_seen or sys.platform == "darwin")

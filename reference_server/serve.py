"""The simulator on a listening socket: uvicorn, set up so that the truth log tells the truth."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import time
from collections.abc import Callable, Iterator

from reference_server.app import Simulator
from reference_server.errors import MissingExtraError
from reference_server.kernel import PreciseSelector, sharpen_timers

try:
    import httptools  # noqa: F401  # uvicorn would fall back to a slower parser in silence
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError as error:
    raise MissingExtraError(
        f"The simulator needs {error.name}, which is not installed; "
        'run: pip install "streamgauge[server]"'
    ) from error

_KEEP_ALIVE_S = 75  # users think longer than uvicorn's 5 s, and a reused connection must not break


class _StampingProtocol(HttpToolsProtocol):
    """Notes when a request's last byte was read, before the application's task even starts."""

    def on_message_complete(self) -> None:
        self.scope["state"].update(read_at=time.monotonic(), transport=self.transport)
        super().on_message_complete()


class _Server(uvicorn.Server):
    """A server that leaves signals to us and says when it accepts connections."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


def serve_simulator(
    listener: socket.socket, simulator: Simulator, on_ready: Callable[[], None]
) -> None:
    """Serve until SIGTERM or SIGINT; answers under way are broken off then.

    Args:
        listener: a listening socket.
        simulator: the application.
        on_ready: called once connections are accepted.
    """
    sharpen_timers()
    gc.collect()
    gc.freeze()  # what has been loaded stays, and looking through it again would make tokens late
    # asyncio's own transports, not uvloop's: their write() calls send() at once, so that its
    # return is the instant at which the kernel has the token. uvloop collects writes until the end
    # of the loop's turn.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(PreciseSelector())
    ) as runner:
        runner.run(_serve(listener, simulator, on_ready))


async def _serve(
    listener: socket.socket, simulator: Simulator, on_ready: Callable[[], None]
) -> None:
    config = uvicorn.Config(
        simulator,
        http=_StampingProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config, on_ready)

    def stop() -> None:
        simulator.close()
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)
    engine = asyncio.create_task(simulator.run())
    http = asyncio.create_task(server.serve(sockets=[listener]))
    # The engine never ends of itself: if it does, that is a bug, and hanging would hide it.
    await asyncio.wait({engine, http}, return_when=asyncio.FIRST_COMPLETED)
    stop()
    await http
    engine.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await engine

"""The few things asked of Linux that Python does not offer: precise waits, and a tied life.

``epoll`` waits in whole milliseconds, ``select`` in microseconds; and an epoll descriptor can
itself be waited for with ``select``. That is all a precise loop needs: neither a timer descriptor
nor spinning, which would starve the client on a small machine. Measured against a timerfd, it
wakes 20 us later after an idle 10 ms and no later under load, for less CPU a wake-up.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import selectors
import signal
import socket

from reference_server.errors import AddressError, SettingsError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_TIMERSLACK = 29
_EVENTS_AT_ONCE = 1  # a request takes about half a millisecond to be read and answered
_BACKLOG = 4096  # a burst of users must not wait for the kernel to retry their SYN

_libc = ctypes.CDLL(None, use_errno=True)


def sharpen_timers() -> None:
    """Let this thread's waits end when asked, not up to 50 us later (the default slack)."""
    _libc.prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(1), 0, 0, 0)


def run_before_others() -> None:
    """Have this process scheduled before every ordinary one, the moment it has something to do.

    Keeps a server punctual on a machine that it shares with its client.

    Raises:
        SettingsError: the user has no right to that.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError as error:
        raise SettingsError(
            "--realtime needs the right to real-time priority (root, or `ulimit -r` of at least "
            "1); run without it."
        ) from error


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when the thread that started it ends, ``kill -9`` too."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)


def allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one; each client needs a socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class PreciseSelector(selectors.EpollSelector):
    """A selector for asyncio whose time-outs are good to microseconds.

    It tells of a few sockets at a time; the others are told of after the loop has looked at its
    clock, so that a burst of requests does not hold up what is due.
    """

    def __init__(self) -> None:
        super().__init__()
        self._same = select.epoll.fromfd(os.dup(self.fileno()))  # which takes a limit

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait at most ``timeout`` seconds (None: for ever), then say what is ready."""
        if timeout is None or timeout > 0:
            select.select([self.fileno()], (), (), timeout)
        keys = self.get_map()
        ready = []
        for fd, happened in self._same.poll(0, _EVENTS_AT_ONCE):
            key = keys[fd]
            events = selectors.EVENT_WRITE if happened & ~select.EPOLLIN else 0
            events |= selectors.EVENT_READ if happened & ~select.EPOLLOUT else 0
            ready.append((key, events & key.events))
        return ready

    def close(self) -> None:
        """Close it."""
        self._same.close()
        super().close()


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes any free one.

    Raises:
        AddressError: the address is taken, unknown or not allowed.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        # create_server() adds the address to what the system says; a name's errors are negative.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise AddressError(
            f"Cannot listen on {host}:{port} ({reason}); "
            "choose another with --port, or --port 0 for any free one."
        ) from error
    # Inherited by what is accepted. asyncio sets it only on sockets that name their protocol, which
    # these do not; without it a first token waits 40 ms for the head's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The base URL under which a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

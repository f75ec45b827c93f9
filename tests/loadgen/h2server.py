"""An HTTP/2 server over TLS that answers each request as it is told; needs the package h2."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Self

import h2.config
import h2.connection
import h2.events

from reference_server.byteserver import _hang_up

Answer = Callable[[Any, int], None]


class Http2Server:
    """Gives the n-th request, counted over all connections, to the n-th answer.

    An answer gets the connection's state and the number of the stream. The last one is repeated.
    """

    def __init__(self, context: ssl.SSLContext, *answers: Answer) -> None:
        context.set_alpn_protocols(["h2"])
        self.requests: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self._context = context
        self._answers = answers
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._open):
            _hang_up(sock)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as sock:
                self._open.append(sock)
                self._converse(sock)
        except OSError:
            plain.close()

    def _converse(self, sock: ssl.SSLSocket) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        sock.sendall(state.data_to_send())
        body = b""
        while data := sock.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    headers = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    with self._lock:
                        number = len(self.requests)
                        self.requests.append(headers)
                        self.bodies.append(body)
                    body = b""
                    answer = self._answers[min(number, len(self._answers) - 1)]
                    answer(state, event.stream_id)
            sock.sendall(state.data_to_send())


def head(state: Any, stream: int, *, status: str = "200") -> None:
    """A response's head."""
    state.send_headers(stream, [(":status", status), ("content-type", "text/event-stream")])

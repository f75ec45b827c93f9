"""The server that plays bytes, seen through plain sockets."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import pytest

from reference_server.byteserver import ByteServer, Play, Then, free_port, self_signed_context
from reference_server.errors import SetupError

REQUEST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"


def connect(server: ByteServer) -> socket.socket:
    """A client of the server."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_writes_come_one_by_one_and_not_before_their_time() -> None:
    """Each is a read of its own, since a real pause lies between them."""
    play = Play(writes=((30, b"one"), (80, b"two")), then=Then.CLOSE)
    with ByteServer(play) as server, connect(server) as client:
        began = time.monotonic()
        client.sendall(REQUEST)
        reads = []
        while data := client.recv(100):
            reads.append((data, time.monotonic() - began))

    assert [data for data, _ in reads] == [b"one", b"two"]
    assert reads[0][1] >= 0.030
    assert reads[1][1] >= 0.080


def test_plays_follow_one_another_and_the_last_is_repeated() -> None:
    """Whatever the connections; what came is kept, with the connection it came on."""
    with ByteServer(Play(writes=((0, b"1"),)), Play(writes=((0, b"2"),))) as server:
        answers = []
        for _ in range(2):
            with connect(server) as client:
                for _ in range(2):
                    client.sendall(REQUEST)
                    answers.append(client.recv(10))
            assert server.client_left() is not None

    assert answers == [b"1", b"2", b"2", b"2"]
    assert server.connections == 2
    assert [(r.connection, r.method, r.path, r.body) for r in server.requests] == [
        (0, "POST", "/x", b"abc"),
        (0, "POST", "/x", b"abc"),
        (1, "POST", "/x", b"abc"),
        (1, "POST", "/x", b"abc"),
    ]


def test_a_play_may_be_chosen_by_the_request() -> None:
    """Instead of by its place."""
    with (
        ByteServer(choose=lambda r: Play(writes=((0, r.body + r.body),))) as server,
        connect(server) as client,
    ):
        client.sendall(REQUEST)
        assert client.recv(10) == b"abcabc"


def test_a_reset_is_a_reset() -> None:
    """Not an orderly end, and what was written before is still there to be read."""
    play = Play(writes=((0, b"part"), (20, b"")), then=Then.RESET)
    with ByteServer(play) as server, connect(server) as client:
        client.sendall(REQUEST)
        assert client.recv(10) == b"part"
        with pytest.raises(ConnectionResetError):
            client.recv(10)


def test_silence_lasts_until_the_client_leaves() -> None:
    """And it is known that it was the client."""
    with ByteServer(Play(then=Then.HOLD)) as server:
        with connect(server) as client:
            client.sendall(REQUEST)
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(10)
            assert server.client_left(timeout_s=0) is None
        assert server.client_left() == 0


def test_leaving_the_block_ends_every_connection() -> None:
    """No client waits for a server that is gone."""
    with ByteServer(Play(then=Then.HOLD)) as server:
        client = connect(server)
        client.sendall(REQUEST)
        while not server.requests:
            time.sleep(0.001)
    with client:
        assert client.recv(10) == b""


def test_a_greeting_comes_before_any_request() -> None:
    """As from a server of another protocol."""
    with ByteServer(Play(), greeting=b"SSH-2.0") as server, connect(server) as client:
        assert client.recv(10) == b"SSH-2.0"


def test_connections_can_be_refused() -> None:
    """From a moment on, or on a port that never listened."""
    with ByteServer(Play(writes=((0, b"x"),))) as server, connect(server) as client:
        client.sendall(REQUEST)
        assert client.recv(10) == b"x"
        server.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            connect(server)
        client.sendall(REQUEST)
        assert client.recv(10) == b"x"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port()))


def test_a_certificate_needs_openssl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program is missing that is said."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SetupError, match="install openssl"):
        self_signed_context(tmp_path)


def test_a_server_that_answers_for_hours_keeps_nothing() -> None:
    """Neither requests, nor who left, nor threads that are done; and it may choose its port."""
    port = free_port()
    with ByteServer(Play(writes=((0, b"x"),)), port=port, remembers=False) as server:
        for _ in range(20):
            with connect(server) as client:
                client.sendall(REQUEST)
                assert client.recv(10) == b"x"

        assert server.url == f"http://127.0.0.1:{port}"
        assert server.connections == 20
        assert server.requests == []
        assert server.client_left(timeout_s=0) is None
        assert len(server._threads) < 10

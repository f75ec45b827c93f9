"""The way to the endpoint: what is refused before a run, and what goes through."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from collectors.records import Outcome
from loadgen.errors import OptionError
from loadgen.exchange import Transport
from loadgen.httpx_transport import HttpxTransport
from loadgen.options import public_config, read_settings
from loadgen.preflight import look_at
from loadgen.route import Proxy, parse_proxy
from loadgen.tls import TlsFiles
from loadgen.transports import make_transport
from loadgen.wire import WireTransport
from reference_server.byteserver import ByteServer, Play, Received, self_signed_context
from tests.loadgen.wiring import ask, chunked, raw, sized

pytestmark = pytest.mark.needs("openssl")  # certificates are made on the spot

CANARY = "c4narysecret9"
ENVIRON = {"PROXY": f"http://user:{CANARY}@proxy:3128", "NONE": "no url"}
MODELS = raw(sized("200 OK", b'{"data":[{"id":"m"}]}', "Content-Type: application/json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds certificate.pem and key.pem, and a text that is neither."""
    folder = tmp_path_factory.mktemp("tls")
    self_signed_context(folder)
    (folder / "text").write_text("no certificate")
    return folder


def settings(host: str = "http://host", **given: Any) -> Any:
    """The settings of a command line with these options."""
    return read_settings(SimpleNamespace(**given), host, ENVIRON)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"transport": "carrier-pigeon"}, "--transport: expected wire or httpx, found"),
        ({"ca_file": "{}/gone"}, "--ca-file: cannot read '{}/gone': No such file or directory."),
        ({"ca_file": "{}/text"}, "--ca-file: expected PEM certificates, found none in"),
        ({"ca_file": "{}/key.pem"}, "--ca-file: expected PEM certificates, found none in"),
        ({"ca_file": "{}"}, "--ca-file: cannot read '{}': Is a directory."),
        ({"ca_file": "a\0b"}, "--ca-file: cannot read"),
        ({"client_key": "{}/key.pem"}, "--client-key: a key needs its certificate"),
        ({"client_cert": "{}/gone"}, "--client-cert: cannot read"),
        ({"client_cert": "{}/certificate.pem"}, "--client-cert: expected the unencrypted PEM key"),
        (
            {"client_cert": "{}/certificate.pem", "client_key": "{}/gone"},
            "--client-key: cannot read",
        ),
        (
            {"client_cert": "{}/certificate.pem", "client_key": "{}/text"},
            "--client-key: expected the unencrypted PEM key",
        ),
        ({"ca_file": "{}/certificate.pem", "insecure": True}, "--insecure checks no certificate"),
        ({"proxy": "http://proxy:1"}, "--proxy: the wire transport goes straight"),
        ({"proxy": f"http://u:{CANARY}@p", "transport": "httpx"}, "--proxy: a URL with a user"),
        ({"proxy": "@GONE", "transport": "httpx"}, "--proxy: the environment variable 'GONE'"),
        ({"proxy": "@NONE", "transport": "httpx"}, "--proxy: expected a URL like"),
        ({"proxy": "socks5://p:1", "transport": "httpx"}, "--proxy: expected a URL like"),
        ({"proxy": "http://p:99999", "transport": "httpx"}, "--proxy: expected a URL like"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    given: dict[str, Any], words: str, folder: Path
) -> None:
    """Before the run, without what may be secret."""
    filled = {
        name: value.replace("{}", str(folder)) if isinstance(value, str) else value
        for name, value in given.items()
    }
    with pytest.raises(OptionError) as raised:
        settings(**filled)

    sentence = str(raised.value)
    assert words.replace("{}", str(folder)) in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert CANARY not in sentence


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(folder: Path) -> None:
    """There is nobody at the terminal of a load test."""
    key, locked = folder / "key.pem", folder / "locked.pem"
    command = f"openssl pkey -in {key} -aes256 -passout pass:{CANARY} -out {locked}"
    subprocess.run(command.split(), check=True, timeout=30)

    with pytest.raises(OptionError, match="expected the unencrypted PEM key"):
        settings(client_cert=str(folder / "certificate.pem"), client_key=str(locked))


def test_the_passwords_of_a_proxy_stay_inside() -> None:
    """Not in the configuration stored, not in any text of the settings' route."""
    taken = settings(proxy="@PROXY", transport="httpx")

    assert taken.route.proxy == Proxy(url="http://proxy:3128", user="user", password=CANARY)
    assert CANARY in taken.endpoint.secrets
    assert CANARY not in str(public_config(taken)) + str(taken.route) + str(taken.route.notes)
    assert public_config(taken)["proxy"] == "http://proxy:3128"
    assert public_config(taken)["transport"] == "httpx"


def test_the_proxy_of_an_address() -> None:
    """Brackets stay, a default port stays out."""
    assert parse_proxy("https://[::1]/").url == "https://[::1]"


def test_a_run_says_how_it_got_there() -> None:
    """Whoever reads its figures has to know."""
    insecure, proxied = settings(insecure=True), settings(proxy="@PROXY", transport="httpx")

    assert settings().route.notes == []
    assert "INSECURE" in insecure.route.notes[0]
    assert public_config(insecure)["tls_checked"] is False
    assert "http://proxy:3128" in proxied.route.notes[0]


def test_the_transport_asked_for_is_the_one_made() -> None:
    """The wire's is the default."""
    made: list[Transport] = [make_transport(settings(transport=t)) for t in (None, "wire", "httpx")]
    for transport in made:
        transport.close()

    assert [type(t) for t in made] == [WireTransport, WireTransport, HttpxTransport]
    assert [t.stamp for t in made] == [None, None, None]


# -- certificates ------------------------------------------------------------------------------


@pytest.fixture
def over_tls(folder: Path) -> Iterator[ByteServer]:
    """A server with the folder's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    with ByteServer(choose=_answer, tls=context) as server:
        yield server


def _answer(received: Received) -> Play:
    return MODELS if received.method == "GET" else chunked()


@pytest.mark.parametrize("transport", ["wire", "httpx"])
@pytest.mark.parametrize("how", ["ca_file", "insecure"])
def test_a_certificate_is_trusted_as_asked(
    over_tls: ByteServer, folder: Path, transport: str, how: str
) -> None:
    """By the look before the run and by the run."""
    trust = {"ca_file": str(folder / "certificate.pem"), "insecure": True}[how]
    taken = settings(over_tls.url, transport=transport, **{how: trust})
    assert look_at(taken.endpoint, route=taken.route).model == "m"
    made = make_transport(taken)
    try:
        assert ask(made, over_tls.url).outcome is Outcome.OK
    finally:
        made.close()


@pytest.mark.parametrize("transport", ["wire", "httpx"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("shown", [True, False])
def test_a_server_that_asks_for_a_certificate(
    folder: Path, transport: str, version: ssl.TLSVersion, *, shown: bool
) -> None:
    """It gets the one given; without one there is no answer, and the reason is TLS."""
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "certificate.pem")
    )
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    ours = {"client_cert": folder / "certificate.pem", "client_key": folder / "key.pem"}
    tls = TlsFiles(
        ca_file=str(folder / "certificate.pem"),
        **{name: str(path) for name, path in ours.items() if shown},
    )
    made = {"wire": WireTransport, "httpx": HttpxTransport}[transport](tls.context())
    with ByteServer(chunked(), tls=context) as server:
        seen = ask(made, server.url)
        made.close()

    # In TLS 1.3 the request is on its way when the server refuses: a reset may overtake the words.
    refused = {Outcome.TLS_ERROR} | (
        {Outcome.RESET} if version is ssl.TLSVersion.TLSv1_3 else set()
    )
    assert seen.outcome in ({Outcome.OK} if shown else refused)


# -- proxies -----------------------------------------------------------------------------------


def test_a_plain_request_goes_by_the_proxy() -> None:
    """With the whole URL, the key of the endpoint and the password of the proxy."""
    with ByteServer(choose=_answer) as server:
        environ = {"P": server.url.replace("://", f"://user:{CANARY}@")}
        taken = read_settings(
            SimpleNamespace(transport="httpx", proxy="@P"), "http://endpoint.invalid:99", environ
        )
        assert look_at(taken.endpoint, route=taken.route).model == "m"
        made = make_transport(taken)
        assert ask(made, "http://endpoint.invalid:99").outcome is Outcome.OK
        assert ask(made, "http://endpoint.invalid:99").exchange.reused
        made.close()

        request = server.requests[-1]
        assert request.path == "http://endpoint.invalid:99/v1/chat/completions"
        assert request.headers["host"] == "endpoint.invalid:99"
        assert request.headers["proxy-authorization"].startswith("Basic ")
        assert server.connections == 2


class Tunnel:
    """A proxy that opens tunnels, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        """One client is enough."""
        near, _ = self._listener.accept()
        self.asked.append(near.recv(65536))
        host, port = self.asked[0].split()[1].decode().split(":")
        far = socket.create_connection((host, int(port)))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=self._pass_on, args=(far, near), daemon=True)
        back.start()
        self._pass_on(near, far)
        back.join()
        near.close()
        far.close()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def test_tls_goes_through_a_tunnel(over_tls: ByteServer, folder: Path) -> None:
    """To ask for it is part of connecting, and the endpoint's certificate is what counts."""
    with Tunnel() as tunnel:
        environ = {"P": tunnel.url.replace("://", "://user:word@")}
        ca_file = str(folder / "certificate.pem")
        taken = read_settings(
            SimpleNamespace(transport="httpx", proxy="@P", ca_file=ca_file), over_tls.url, environ
        )
        made = make_transport(taken)
        first, second = ask(made, over_tls.url), ask(made, over_tls.url)
        made.close()

        assert [s.outcome for s in (first, second)] == [Outcome.OK, Outcome.OK]
        assert (first.exchange.retries, first.exchange.reused) == (0, False)
        assert second.exchange.reused
        assert tunnel.asked[0].startswith(b"CONNECT 127.0.0.1:")
        assert b"Proxy-Authorization: Basic " in tunnel.asked[0]
        assert "proxy-authorization" not in over_tls.requests[0].headers


def test_a_proxy_that_refuses_the_tunnel_is_no_connection() -> None:
    """Nothing was sent to the endpoint."""
    with ByteServer(raw(sized("407 Proxy Authentication Required", b""))) as server:
        made = HttpxTransport(proxy=_proxy(server))
        seen = ask(made, "https://endpoint.invalid")
        made.close()

        assert (seen.outcome, seen.exchange.sent_at) == (Outcome.CONNECT_ERROR, None)
        assert seen.detail == "407 Proxy Authentication Required"
        assert [r.method for r in server.requests] == ["CONNECT"]


def _proxy(server: ByteServer) -> Any:
    import httpcore  # noqa: PLC0415

    return httpcore.Proxy(server.url)

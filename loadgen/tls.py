"""TLS: whom to trust, who we are, and the protocol itself without a socket.

One context serves every transport and the look at the endpoint before the run, so that they trust
the same. The protocol runs over memory, so that whoever owns the socket sees when ciphertext came.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

from collectors.redact import redact_text
from loadgen.errors import OptionError

READ_BYTES = 65536  # more than any record holds (RFC 8446, 5.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Certificates on disk, PEM.

    Attributes:
        ca_file: whom to trust, instead of the system's authorities.
        client_cert: our certificate, with its chain, for servers that ask for one.
        client_key: its key; ``None`` where the certificate's file holds it too.
        insecure: check no certificate.
    """

    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    insecure: bool = False

    def context(self) -> ssl.SSLContext:
        """A client's context that trusts and shows what was asked for.

        Raises:
            OptionError: one sentence about the file that does not make sense.
        """
        if self.client_key and not self.client_cert:
            raise OptionError("--client-key: a key needs its certificate; add --client-cert FILE.")
        if self.ca_file and self.insecure:
            raise OptionError("--insecure checks no certificate, so leave out --ca-file.")
        context = ssl.create_default_context(cafile=None)
        if self.ca_file:
            context = _trusting(self.ca_file)
        if self.client_cert:
            self._show(context, self.client_cert)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _show(self, context: ssl.SSLContext, certificate: str) -> None:
        for option, path in (("--client-cert", certificate), ("--client-key", self.client_key)):
            if path:
                _check_readable(option, path)
        try:
            # A password would be asked for on the terminal; a load test has nobody there.
            context.load_cert_chain(certificate, self.client_key, password="")
        except (ssl.SSLError, ValueError):
            where = "--client-key" if self.client_key else "--client-cert"
            shown = redact_text(self.client_key or certificate)
            raise OptionError(
                f"{where}: expected the unencrypted PEM key of --client-cert, "
                f"found something else in {shown!r}."
            ) from None


def _trusting(ca_file: str) -> ssl.SSLContext:
    _check_readable("--ca-file", ca_file)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (ssl.SSLError, ValueError):
        raise OptionError(
            f"--ca-file: expected PEM certificates, found none in {redact_text(ca_file)!r}."
        ) from None


def _check_readable(option: str, path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123  # a name that is no path is an error here, too
            return
    except OSError as error:
        words = error.strerror
    except ValueError:
        words = "its name is no path"
    raise OptionError(f"{option}: cannot read {redact_text(path)!r}: {words}.")


class MemoryTls:
    """A client's TLS: ciphertext in and out of memory."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def encrypt(self, data: bytes) -> bytes:
        """Ciphertext of ``data``, and of what else the protocol wants to say."""
        self.ssl.write(data)
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Plain text of ``data``, and whether the peer said goodbye.

        Raises:
            ssl.SSLError: this is not what the peer can have sent, or the peer refuses us.
        """
        incoming = self._incoming
        incoming.write(data)
        pieces = []
        try:
            while piece := self.ssl.read(READ_BYTES):
                pieces.append(piece)
                # A read takes a whole record. To be told "no more" costs as much as a token does.
                if not incoming.pending:
                    return b"".join(pieces), False
        except ssl.SSLWantReadError:
            return b"".join(pieces), False
        except ssl.SSLZeroReturnError:
            pass
        return b"".join(pieces), True

    def shake_hands(self, send: Callable[[bytes], None], receive: Callable[[], bytes]) -> None:
        """Speak with the peer until both agree.

        Args:
            send: hands ciphertext to the peer.
            receive: waits for some; empty where the peer closed.

        Raises:
            ssl.SSLError: they do not.
        """
        while not self._agreed():
            send(self._outgoing.read())
            data = receive()
            if not data:
                raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the peer closed during the handshake")
            self._incoming.write(data)
        send(self._outgoing.read())

    def _agreed(self) -> bool:
        try:
            self.ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

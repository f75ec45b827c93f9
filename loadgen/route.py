"""How requests get to the endpoint: by which transport, through which proxy, trusting whom.

Light to import: knows neither gevent nor httpx.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from loadgen.errors import OptionError
from loadgen.tls import TlsFiles

TRANSPORTS = ("wire", "httpx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy; ``url`` holds neither user nor password."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def auth(self) -> tuple[str, str] | None:
        """User and password, where there are any."""
        return (self.user, self.password) if self.user else None

    @property
    def over_tls(self) -> bool:
        """The proxy itself is spoken to over TLS."""
        return self.url.startswith("https:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The way to the endpoint, checked."""

    transport: str = "wire"
    tls: TlsFiles = field(default_factory=TlsFiles)
    proxy: Proxy | None = None

    @property
    def notes(self) -> list[str]:
        """What a reader of the run has to know of it."""
        notes = []
        if self.tls.insecure:
            notes.append("INSECURE: no TLS certificate was checked (--insecure).")
        if self.proxy is not None:
            notes.append(f"Sent through the proxy {self.proxy.url}: its time is in every figure.")
        return notes

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not leave in any message."""
        return (self.proxy.password,) if self.proxy and self.proxy.password else ()


def read_route(given: Mapping[str, Any], proxy_url: str | None) -> Route:
    """The route that the options name; the files it needs are looked into.

    Args:
        given: the options' fields.
        proxy_url: the proxy, with user and password where it came from the environment.

    Raises:
        OptionError: one sentence about the first thing that does not make sense.
    """
    transport = given["transport"] or "wire"
    if transport not in TRANSPORTS:
        raise OptionError(f"--transport: expected {' or '.join(TRANSPORTS)}, found {transport!r}.")
    tls = TlsFiles(
        ca_file=given["ca_file"] or None,
        client_cert=given["client_cert"] or None,
        client_key=given["client_key"] or None,
        insecure=bool(given["insecure"]),
    )
    if tls != TlsFiles():
        tls.context()
    if proxy_url and transport != "httpx":
        raise OptionError("--proxy: the wire transport goes straight; add --transport httpx.")
    return Route(transport=transport, tls=tls, proxy=parse_proxy(proxy_url) if proxy_url else None)


def parse_proxy(url: str) -> Proxy:
    """The proxy that ``url`` names.

    Raises:
        OptionError: it is no http(s) URL of a host. What was found is not shown: it may be secret.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or parts.scheme not in ("http", "https") or parts.path.strip("/") or parts.query:
        raise OptionError("--proxy: expected a URL like http://host:3128, found something else.")
    place = f"[{host}]" if ":" in host else host
    return Proxy(
        url=f"{parts.scheme}://{place}" + (f":{port}" if port else ""),
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )

"""Where requests go, and the bytes of a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from collectors.redact import redact_url
from loadgen.errors import TargetError

_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+(?:%[\w.-]+)?", re.ASCII)
_PATH = re.compile(r"[!-~]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint's origin, and the path its API starts at.

    ``base_path`` has no trailing slash and no ``/v1`` of its own accord: ``http://h/v1`` and
    ``http://h`` name the same API.
    """

    host: str
    port: int
    tls: bool
    base_path: str

    @property
    def url(self) -> str:
        """The URL without anything secret."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{self.authority}{self.base_path}"

    @property
    def authority(self) -> str:
        """What the Host header says: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def parse_target(url: str) -> Target:
    """The target that ``url`` names.

    Raises:
        TargetError: not an http(s) URL with a host, or one that carries user info or a query.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError:  # UnicodeError of a name that DNS cannot hold is one
        raise _no_url(url) from None
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or port == 0:
        raise _no_url(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise TargetError(
            "--host: a URL with a user, a password or a query would put secrets in logs; "
            "give the key with --api-key-env NAME instead."
        )
    if not _PATH.fullmatch(parts.path):
        raise TargetError(
            f"--host: the path of {redact_url(url)!r} holds characters that have to be %-encoded."
        )
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Target(host, port or (443 if tls else 80), tls, path)


def _no_url(url: str) -> TargetError:
    return TargetError(f"--host: expected a URL like http://host:8000, found {redact_url(url)!r}.")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, ready for the wire. ``head`` ends with the blank line."""

    target: Target
    head: bytes
    body: bytes


def render_head(target: Target, method: str, path: str, headers: Mapping[str, str]) -> bytes:
    """The request head up to, but without, Content-Length and the blank line.

    Raises:
        TargetError: a header's name or value holds a line end, or cannot be sent as Latin-1.
    """
    lines = [f"{method} {target.base_path}{path} HTTP/1.1", f"Host: {target.authority}"]
    for name, value in headers.items():
        if any(c in f"{name}{value}" for c in "\r\n\0"):
            raise TargetError(f"Header {name!r} contains a line end; remove it.")
        lines.append(f"{name}: {value}")
    try:
        return "\r\n".join([*lines, ""]).encode("latin-1")
    except UnicodeEncodeError:
        raise TargetError("A request header contains characters outside Latin-1.") from None

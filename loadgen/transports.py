"""The transport that a run's options ask for."""

from __future__ import annotations

from loadgen.exchange import Transport
from loadgen.options import Settings
from loadgen.wire import WireTransport


def make_transport(settings: Settings) -> Transport:
    """A transport for one process of a run.

    Raises:
        OptionError: a file of certificates went away since the options were read.
    """
    route = settings.route
    tls = route.tls.context() if settings.endpoint.target.tls or route.proxy else None
    if route.transport == "wire":
        return WireTransport(tls)
    import httpcore  # noqa: PLC0415  # most runs need neither

    from loadgen.httpx_transport import HttpxTransport  # noqa: PLC0415

    if route.proxy is None:
        return HttpxTransport(tls)
    proxy = httpcore.Proxy(
        route.proxy.url, route.proxy.auth, ssl_context=tls if route.proxy.over_tls else None
    )
    return HttpxTransport(tls, proxy)

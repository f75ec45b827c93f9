"""A look at the endpoint before the load: one sentence now beats a thousand failed requests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import httpx

from collectors.redact import redact_text, redact_url
from loadgen.client import Endpoint
from loadgen.dialects import GENERIC, Evidence, recognise
from loadgen.errors import TargetError
from loadgen.exchange import Limits, Transport
from loadgen.ladder import REFUSED, Shape
from loadgen.options import Settings
from loadgen.probe import Probe
from loadgen.route import Route
from loadgen.transports import make_transport

TIMEOUT_S = 10.0
_KEY_HEADERS = {"authorization", "api-key", "x-api-key", "x-portkey-api-key"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelList:
    """What the list of models, or its absence, tells.

    Attributes:
        status: of the response; ``None`` where there is no list to ask for.
        ids: ids of the models served; ``None`` where the answer is no list of models.
    """

    status: int | None = None
    ids: tuple[str, ...] | None = None
    owners: frozenset[str] = frozenset()
    headers: dict[str, str] = field(default_factory=dict)
    http_version: str = ""


def look_at(
    endpoint: Endpoint, *, knows_dialect: bool = False, route: Route | None = None
) -> Endpoint:
    """The endpoint with its model filled in, and its dialect where that can be seen.

    Asks for the list of models. Where the endpoint has none, what was asked for stands.

    Args:
        endpoint: as the options give it.
        knows_dialect: the user named it, so it stands.
        route: the way there; ``None`` for the plain one.

    Raises:
        TargetError: it cannot be reached, refuses the key, does not serve the model, or the model
            was not given and cannot be told.
    """
    models = list_models(endpoint, route)
    if not knows_dialect and endpoint.dialect is GENERIC:
        endpoint = replace(endpoint, dialect=recognise(evidence_of(endpoint, models))[0])
    return with_model(endpoint, models)


def look(settings: Settings) -> Settings:
    """The settings with an endpoint that was looked at, as far as the options allow.

    Raises:
        TargetError: it cannot be used as asked.
    """
    if not settings.preflight:
        return settings
    asked = settings.dialect_asked
    knows_dialect = asked not in ("", "auto")
    endpoint = look_at(settings.endpoint, knows_dialect=knows_dialect, route=settings.route)
    if asked == "auto":
        transport = make_transport(settings)
        try:
            endpoint = learn(endpoint, settings, transport)
        finally:
            transport.close()
    return replace(settings, endpoint=endpoint)


def learn(endpoint: Endpoint, settings: Settings, transport: Transport) -> Endpoint:
    """The endpoint with its dialect tried out: at most four tiny requests.

    What the endpoint refuses and a run can do without is left out of every request of the run.

    Raises:
        TargetError: it refuses even what is left.
    """
    probe = Probe(transport, endpoint, probe_limits(settings.limits), fields=settings.body_fields)
    shape, sight = probe.settle(Shape(dialect=endpoint.dialect, api=endpoint.api))
    if sight.status in {*REFUSED, 401, 403, 404}:
        raise TargetError(
            f"{endpoint.target.url} refuses what a run would ask (HTTP {sight.status}): "
            f"{sight.words(endpoint.secrets)}"
        )
    return replace(endpoint, dialect=shape.dialect)


def probe_limits(limits: Limits) -> Limits:
    """A run's limits for one tiny request, which may have to wait for a model to be loaded."""
    return replace(limits, total_s=min(limits.total_s or 120.0, 120.0))


def list_models(endpoint: Endpoint, route: Route | None = None) -> ModelList:
    """Ask for the list of models.

    Raises:
        TargetError: the endpoint cannot be reached, redirects, or refuses the key.
    """
    path = endpoint.dialect.models_url_path()
    if path is None:
        return ModelList()
    response = fetch(endpoint, path, route)
    if response.is_redirect:
        raise TargetError(
            f"{endpoint.target.url} redirects to {redact_url(response.headers['location'])}; "
            "redirects are not followed, so name the right place with --host."
        )
    if response.status_code in (401, 403):
        raise TargetError(_refusal(endpoint, response.status_code))
    cards = _cards(response)
    return ModelList(
        status=response.status_code,
        ids=tuple(str(card["id"]) for card in cards) or None,
        owners=frozenset(str(card.get("owned_by")) for card in cards),
        headers={name.lower(): value for name, value in response.headers.items()},
        http_version=response.http_version,
    )


def fetch(endpoint: Endpoint, path: str, route: Route | None = None) -> httpx.Response:
    """GET a page below the endpoint's base path, with the endpoint's headers.

    Raises:
        TargetError: one sentence about why there is no answer.
    """
    route = route or Route()
    tls = route.tls.context()
    way = None
    if route.proxy is not None:
        over = tls if route.proxy.over_tls else None
        way = httpx.Proxy(route.proxy.url, ssl_context=over, auth=route.proxy.auth)
    try:
        # Nothing from the environment: the load itself takes nothing from there either.
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=tls, proxy=way) as client:
            return client.get(f"{endpoint.target.url}{path}", headers=endpoint.all_headers())
    except httpx.TimeoutException:
        raise TargetError(
            f"{endpoint.target.url} did not answer within {TIMEOUT_S:.0f} s."
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        words = redact_text(str(error) or type(error).__name__, endpoint.secrets)
        raise TargetError(
            f"Cannot reach {endpoint.target.url}: {words}; is the server up and the URL right?"
        ) from None


def evidence_of(endpoint: Endpoint, models: ModelList) -> Evidence:
    """What the list of models tells about the server behind it."""
    return Evidence(target=endpoint.target, headers=models.headers, owners=models.owners)


def with_model(endpoint: Endpoint, models: ModelList) -> Endpoint:
    """The endpoint with its model filled in.

    Raises:
        TargetError: the model is not served, or was not given and cannot be told.
    """
    url, served = endpoint.target.url, models.ids
    if served is None:
        if endpoint.model:
            return endpoint
        raise TargetError(f"{url} does not list its models; say which with --model NAME.")
    names = ", ".join(served[:8]) + (", ..." if len(served) > 8 else "")
    if not endpoint.model:
        if len(served) == 1:
            return replace(endpoint, model=served[0])
        raise TargetError(f"{url} serves {names}; say which with --model NAME.")
    if endpoint.model not in served and endpoint.dialect.names_models:
        raise TargetError(f"{url} does not serve {endpoint.model!r}; it serves {names}.")
    return endpoint


def _refusal(endpoint: Endpoint, status: int) -> str:
    if _KEY_HEADERS & {name.lower() for name in endpoint.all_headers()}:
        return f"{endpoint.target.url} refused the API key (HTTP {status}); is it the right one?"
    return (
        f"{endpoint.target.url} wants an API key (HTTP {status}); give it with --api-key-env NAME."
    )


def _cards(response: httpx.Response) -> list[dict[str, object]]:
    """The models in a list of models; none where the answer is no such list."""
    try:
        payload = response.json()
    except (ValueError, RecursionError):
        return []
    data = payload.get("data") if isinstance(payload, dict) else None
    if response.status_code != 200 or not isinstance(data, list):
        return []
    return [card for card in data if isinstance(card, dict) and isinstance(card.get("id"), str)]

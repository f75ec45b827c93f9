"""A look at the endpoint before the load: one sentence now beats a thousand failed requests."""

from __future__ import annotations

from dataclasses import replace

import httpx

from collectors.redact import redact_text, redact_url
from loadgen.client import Endpoint
from loadgen.errors import TargetError

TIMEOUT_S = 10.0
_KEY_HEADERS = {"authorization", "api-key", "x-api-key"}


def look_at(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its model filled in.

    Asks ``GET /v1/models``. Where the endpoint has no such list, what was asked for stands.

    Raises:
        TargetError: it cannot be reached, refuses the key, does not serve the model, or the model
            was not given and cannot be told.
    """
    url = f"{endpoint.target.url}/v1/models"
    try:
        # No proxy from the environment: the load itself goes straight to the target.
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            response = client.get(url, headers=dict(endpoint.headers))
    except httpx.TimeoutException:
        raise TargetError(
            f"{endpoint.target.url} did not answer within {TIMEOUT_S:.0f} s."
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        words = redact_text(str(error) or type(error).__name__, endpoint.secrets)
        raise TargetError(
            f"Cannot reach {endpoint.target.url}: {words}; is the server up and the URL right?"
        ) from None
    if response.is_redirect:
        raise TargetError(
            f"{endpoint.target.url} redirects to {redact_url(response.headers['location'])}; "
            "redirects are not followed, so name the right place with --host."
        )
    if response.status_code in (401, 403):
        raise TargetError(_refusal(endpoint, response.status_code))
    served = _served(response)
    if served is None:
        if endpoint.model:
            return endpoint
        raise TargetError(
            f"{endpoint.target.url} does not list its models; say which with --model NAME."
        )
    return _choose(endpoint, served)


def _refusal(endpoint: Endpoint, status: int) -> str:
    if _KEY_HEADERS & {name.lower() for name in endpoint.headers}:
        return f"{endpoint.target.url} refused the API key (HTTP {status}); is it the right one?"
    return (
        f"{endpoint.target.url} wants an API key (HTTP {status}); give it with --api-key-env NAME."
    )


def _served(response: httpx.Response) -> list[str] | None:
    """Ids of the models served; ``None`` where the answer is no list of models."""
    try:
        payload = response.json()
    except (ValueError, RecursionError):
        return None
    data = payload.get("data") if isinstance(payload, dict) else None
    if response.status_code != 200 or not isinstance(data, list):
        return None
    ids = [m["id"] for m in data if isinstance(m, dict) and isinstance(m.get("id"), str)]
    return ids or None


def _choose(endpoint: Endpoint, served: list[str]) -> Endpoint:
    names = ", ".join(served[:8]) + (", ..." if len(served) > 8 else "")
    if not endpoint.model:
        if len(served) == 1:
            return replace(endpoint, model=served[0])
        raise TargetError(f"{endpoint.target.url} serves {names}; say which with --model NAME.")
    if endpoint.model not in served:
        raise TargetError(
            f"{endpoint.target.url} does not serve {endpoint.model!r}; it serves {names}."
        )
    return endpoint

"""What an endpoint can do, and what a run against it would measure.

Some pages that generate nothing, then at most four tiny requests through the client and transport
of the load: wide ones with everything worth having until one is taken, then one exactly as a run
asks, with the same prompt, then one that is not streamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from collectors.records import Outcome, RequestRecord
from loadgen.anatomy import Anatomy, dissect
from loadgen.client import Endpoint
from loadgen.dialects import GENERIC, pages_to_look_at, recognise
from loadgen.errors import TargetError
from loadgen.exchange import Transport
from loadgen.ladder import CONTINUOUS, Shape
from loadgen.options import Settings
from loadgen.preflight import (
    ModelList,
    evidence_of,
    fetch,
    list_models,
    probe_limits,
    with_model,
)
from loadgen.probe import PROBE_TOKENS, Probe, Refused, Sight
from loadgen.route import Route

STREAMED_APIS = frozenset({"chat", "completions", "responses", "messages"})
COMPATIBLE_APIS = frozenset({"chat", "completions"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was learned of an endpoint.

    Attributes:
        because: what gave the dialect away; empty where nothing did.
        wide: sight of the request with everything worth having, as far as it was taken.
        plain: sight of the request as a run asks it, with the same prompt; ``None`` where there
            was no request left for it.
        whole: sight of the one that was not streamed, likewise.
        shape: what ``wide`` ended up asking.
        metrics: the metrics page answered.
        healthy: the health page answered; ``None`` where no safe one is known.
    """

    endpoint: Endpoint
    models: ModelList
    because: str
    asked: int
    refused: tuple[Refused, ...]
    shape: Shape
    wide: Sight
    plain: Sight | None = None
    whole: Sight | None = None
    metrics: bool = False
    healthy: bool | None = None
    tried: tuple[str, ...] = ()
    anatomy: Anatomy = field(default_factory=Anatomy)
    wide_anatomy: Anatomy = field(default_factory=Anatomy)

    @property
    def sight(self) -> Sight:
        """The request that is most like a run's."""
        return self.plain or self.wide

    @property
    def record(self) -> RequestRecord:
        """Of that request."""
        assert self.sight.record is not None
        return self.sight.record

    @property
    def usable(self) -> bool:
        """A run's request is answered."""
        return self.record.outcome is Outcome.OK


def examine(settings: Settings, transport: Transport) -> Findings:
    """Ask the endpoint what it can do.

    Args:
        settings: the options; their fields of the body are not sent.
        transport: the one a run would use.

    Raises:
        TargetError: it cannot be reached, refuses the key, does not serve the model, or the model
            was not given and cannot be told.
    """
    endpoint, models, because = _recognise(settings)
    endpoint = with_model(endpoint, models)
    limits, tokenizer = probe_limits(settings.limits), settings.tokenizer
    probe = Probe(transport, endpoint, limits, tokenizer=tokenizer)
    wanted = _wanted(endpoint)
    shape, wide = probe.settle(wanted)
    plain = whole = None
    if wide.status is not None and wide.status < 300:
        endpoint = replace(endpoint, dialect=shape.dialect)
        bare = Shape(dialect=shape.dialect, api=endpoint.api)
        plain = probe.ask(bare) if probe.left else None
        if probe.left and endpoint.api in STREAMED_APIS:
            whole = probe.ask(bare, stream=False)
    dialect = endpoint.dialect
    return Findings(
        endpoint=endpoint,
        models=models,
        because=because,
        asked=probe.asked,
        refused=tuple(probe.refused),
        shape=shape,
        wide=wide,
        plain=plain,
        whole=whole,
        metrics=_answers(endpoint, dialect.metrics_path, settings.route) is True,
        healthy=_answers(endpoint, dialect.health_path, settings.route),
        tried=tuple(wanted.fields()),
        anatomy=dissect(list((plain or wide).events())),
        wide_anatomy=dissect(list(wide.events())),
    )


def _recognise(settings: Settings) -> tuple[Endpoint, ModelList, str]:
    """The endpoint with its dialect, its list of models, and what gave the dialect away."""
    endpoint = settings.endpoint
    models = list_models(endpoint, settings.route)
    if settings.dialect_asked not in ("", "auto"):
        return endpoint, models, "as you say"
    evidence = evidence_of(endpoint, models)
    dialect, because = recognise(evidence)
    if dialect is GENERIC:
        pages = dict(_pages(endpoint, settings.route))
        dialect, because = recognise(replace(evidence, pages=pages))
    if endpoint.dialect is GENERIC:  # else its host told, --api-version included
        endpoint = replace(endpoint, dialect=dialect)
    return endpoint, models, because


def _pages(endpoint: Endpoint, route: Route) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in pages_to_look_at():
        with suppress(TargetError, ValueError, RecursionError):
            response = fetch(endpoint, path, route)
            page = response.json() if response.status_code == 200 else None
            if isinstance(page, dict):
                yield path, page


def _answers(endpoint: Endpoint, path: str | None, route: Route) -> bool | None:
    """Whether a page answers; ``None`` where there is no such page to ask."""
    if path is None:
        return None
    try:
        return fetch(endpoint, path, route).status_code == 200
    except TargetError:
        return False


def _wanted(endpoint: Endpoint) -> Shape:
    """Everything worth having, as far as the dialect does not say that it is refused."""
    dialect = endpoint.dialect
    if endpoint.api not in COMPATIBLE_APIS:
        return Shape(dialect=dialect, api=endpoint.api)
    unknown = dialect is GENERIC
    forcing = ("ignore_eos", "min_tokens") if unknown else dialect.forces_length
    values = {"ignore_eos": True, "min_tokens": PROBE_TOKENS}
    return Shape(
        dialect=dialect,
        api=endpoint.api,
        extra={**{name: values[name] for name in forcing}, "temperature": 0},
        continuous=unknown or CONTINUOUS in dialect.proves_tokens,
    )

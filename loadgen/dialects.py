"""What servers and vendors do differently, as data. Pure.

A :class:`Dialect` says what a request must look like (path, key, token limit, usage option), what
may be asked beside the load (health, metrics) and, as documentation for ``streamgauge doctor``,
where the answer keeps what: the reply reads every known place anyway.

Strength of a fact, beside those that are not plain reading of a server's source: D vendor's
documentation, I issue thread, W one report. Facts of hosted APIs age; ``--dialect auto`` and
``streamgauge doctor`` ask the endpoint itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from loadgen.target import Target

STANDARD_PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}
TRAILING = "an event of its own, without choices, before the end marker"
ON_FINISH = "the event with the finish reason"
EVERY = "every event, growing"
OPENAI_CACHED = "usage.prompt_tokens_details.cached_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What gives a server away.

    Attributes:
        hosts: shell patterns of host names.
        headers: beginning of a response header's name (lower case), and what its value holds.
        owners: ``owned_by`` of its models.
        pages: path of a page that is a JSON object, and a key it has.
    """

    hosts: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    owners: frozenset[str] = frozenset()
    pages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one kind of endpoint wants to be asked, and how it answers.

    Attributes:
        paths: by API where they are not the standard ones; may hold {model} and {version}.
        models_path: lists the models; ``None`` where no page does.
        names_models: that list holds every name that may be asked for.
        auth_header: header that carries the key, behind ``auth_prefix``.
        limit_field: field that limits a chat's answer.
        include_usage: takes, and needs, ``stream_options.include_usage``.
        forces_length: fields that make an answer as long as asked.
        proves_tokens: fields that make events say how many tokens they carry.
        unknown_fields: "ignored", "refused" or "" where nobody knows.
        usage_in: where a stream says its usage.
        cached_in: where usage says the cached tokens; empty where it does not.
        reasoning_in: field of a delta that carries reasoning; empty where none is known.
        cache_header: response header and value that say a gateway answered from its own cache.
        cost_header: response header that says what the request cost, US dollars.
        health_path: may be polled during a run: it generates nothing and costs nothing.
        metrics_path: Prometheus page.
        keep_alive_s: how long the server keeps an idle connection, where known.
    """

    name: str
    title: str
    signs: Signs = Signs()
    paths: Mapping[str, str] = field(default_factory=dict)
    api_version: str = ""
    models_path: str | None = "/v1/models"
    names_models: bool = True
    auth_header: str = "Authorization"
    auth_prefix: str = "Bearer "
    headers: Mapping[str, str] = field(default_factory=dict)
    limit_field: str = "max_tokens"
    include_usage: bool = True
    forces_length: tuple[str, ...] = ()
    proves_tokens: tuple[str, ...] = ()
    unknown_fields: str = ""
    usage_in: str = TRAILING
    cached_in: str = ""
    reasoning_in: str = ""
    cache_header: tuple[str, str] | None = None
    cost_header: str = ""
    health_path: str | None = None
    metrics_path: str | None = None
    keep_alive_s: float | None = None
    remark: str = ""

    def path(self, api: str, model: str) -> str:
        """Path and query of an API, below the target's base path."""
        template = self.paths.get(api) or STANDARD_PATHS[api]
        return template.format(model=quote(model, safe=""), version=quote(self.api_version))

    def models_url_path(self) -> str | None:
        """Path and query of the list of models."""
        return self.models_path and self.models_path.format(version=quote(self.api_version))

    def auth(self, key: str) -> dict[str, str]:
        """Headers that carry the key, and those every request needs; no key, no such header."""
        keyed = {self.auth_header: f"{self.auth_prefix}{key}"} if key else {}
        return {**self.headers, **keyed}

    def cache_status(self, headers: Mapping[str, str]) -> str | None:
        """What response headers (lower-case names) say of the gateway's cache of answers.

        "hit": no model was asked; "miss": one was; ``None``: they say neither.
        """
        if self.cache_header is None:
            return None
        name, word = self.cache_header
        said = headers.get(name, "").lower().split()
        if word in said:
            return "hit"
        return "miss" if "miss" in said else None

    def spec(self) -> dict[str, Any]:
        """Name and what was learned beside it: plain values that travel and are stored."""
        return {
            "name": self.name,
            "limit_field": self.limit_field,
            "include_usage": self.include_usage,
            "api_version": self.api_version,
        }


def from_spec(spec: Mapping[str, Any]) -> Dialect:
    """The dialect that :meth:`Dialect.spec` described."""
    return replace(DIALECTS[spec["name"]], **{k: v for k, v in spec.items() if k != "name"})


def apply_dialect(body: Mapping[str, Any], dialect: Dialect, api: str) -> dict[str, Any]:
    """The body of a request as the dialect takes it.

    Only our own fields change: what the user adds comes later and goes out as it is.
    """
    limit = dialect.limit_field if api == "chat" else "max_tokens"
    taken = {limit if name == "max_tokens" else name: value for name, value in body.items()}
    if not dialect.include_usage:
        taken.pop("stream_options", None)
    return taken


_AZURE_HOSTS = ("*.openai.azure.com", "*.cognitiveservices.azure.com", "*.services.ai.azure.com")
_AZURE = Dialect(
    name="azure",
    title="Azure OpenAI",
    signs=Signs(hosts=_AZURE_HOSTS),
    paths={
        api: f"/openai/deployments/{{model}}{path.removeprefix('/v1')}?api-version={{version}}"
        for api, path in STANDARD_PATHS.items()
        if api in ("chat", "completions", "embeddings")
    },
    api_version="2024-10-21",  # D: the stable one of the data plane; --api-version has others
    models_path="/openai/models?api-version={version}",
    names_models=False,  # D: it lists models, one asks for deployments
    auth_header="api-key",
    auth_prefix="",
    limit_field="max_completion_tokens",
    unknown_fields="refused",
    cached_in=OPENAI_CACHED,
    remark="the model is the deployment's name; a filter may send blocks of text",  # I
)

_TABLE = (
    Dialect(name="generic", title="an OpenAI-compatible server"),
    # -- gateways come first: what stands behind them must not hide them ---------------------
    Dialect(
        name="litellm",
        title="LiteLLM proxy",
        signs=Signs(headers=(("x-litellm-", ""),)),
        names_models=False,  # routes may be wildcards
        cached_in=OPENAI_CACHED,
        reasoning_in="reasoning_content",
        cost_header="x-litellm-response-cost",  # not of streams: their usage has it
        health_path="/health/liveliness",  # not /health: that calls every model
        metrics_path="/metrics",
        remark="turn its retries, fallbacks and cache off for a test",
    ),
    Dialect(
        name="helicone",
        title="Helicone gateway",
        signs=Signs(hosts=("*.helicone.ai",), headers=(("helicone-", ""),)),
        names_models=False,
        cache_header=("helicone-cache", "hit"),  # D
        remark="its older proxies want Helicone-Auth beside the provider's key (--header)",  # D
    ),
    Dialect(
        name="portkey",
        title="Portkey gateway",
        signs=Signs(hosts=("api.portkey.ai",)),
        names_models=False,
        auth_header="x-portkey-api-key",  # D
        auth_prefix="",
        cache_header=("x-portkey-cache-status", "hit"),  # D: HIT, SEMANTIC HIT, MISS, DISABLED
        remark="x-portkey-provider or x-portkey-config go in by --header",  # D
    ),
    Dialect(
        name="openrouter",
        title="OpenRouter",
        signs=Signs(hosts=("openrouter.ai",)),
        names_models=False,  # D: variants such as :nitro are not listed
        usage_in="an event of its own, always, with the cost",  # D
        cached_in=OPENAI_CACHED,
        reasoning_in="reasoning",
        remark="pin the provider and forbid fallbacks, or a run mixes servers",
    ),
    # -- hosted ------------------------------------------------------------------------------
    replace(
        _AZURE,
        name="azure-v1",
        title="Azure OpenAI, v1 API",
        signs=Signs(),  # see dialect_of_host: the same hosts, another path
        paths={},  # D: /openai/v1 like OpenAI's, without api-version
        api_version="",
        models_path="/v1/models",
    ),
    _AZURE,
    Dialect(
        name="openai",
        title="OpenAI",
        signs=Signs(hosts=("api.openai.com",)),
        limit_field="max_completion_tokens",  # I: reasoning models refuse max_tokens
        unknown_fields="refused",  # W
        cached_in=OPENAI_CACHED,
        remark="reasoning stays hidden: it is in the time to first token and in the tokens",  # D
    ),
    Dialect(
        name="anthropic",
        title="Anthropic",
        signs=Signs(hosts=("api.anthropic.com",)),
        auth_header="x-api-key",
        auth_prefix="",
        headers={"anthropic-version": "2023-06-01"},
        names_models=False,  # D: aliases are not listed
        unknown_fields="ignored",  # D
        cached_in="usage.cache_read_input_tokens (messages API only)",
        remark="the chat API neither caches prompts nor shows reasoning; --api messages does",  # D
    ),
    Dialect(
        name="gemini",
        title="Gemini, OpenAI-compatible",
        signs=Signs(hosts=("generativelanguage.googleapis.com",)),
        paths={api: path.removeprefix("/v1") for api, path in STANDARD_PATHS.items()},
        models_path="/models",
        names_models=False,  # it lists "models/NAME", one asks for NAME
        unknown_fields="refused",  # I
        usage_in=EVERY,  # I
        remark="the base URL ends with /v1beta/openai; large blocks of text in an event",  # D, I
    ),
    Dialect(
        name="vertex",
        title="Vertex AI, OpenAI-compatible",
        signs=Signs(hosts=("aiplatform.googleapis.com", "*-aiplatform.googleapis.com")),
        paths={api: path.removeprefix("/v1") for api, path in STANDARD_PATHS.items()},
        models_path=None,
        unknown_fields="refused",  # I
        usage_in=EVERY,  # I
        remark="the base URL ends with /endpoints/openapi; its token lasts about an hour",  # D
    ),
    Dialect(
        name="bedrock",
        title="Amazon Bedrock, OpenAI-compatible",
        signs=Signs(hosts=("bedrock-runtime.*.amazonaws.com", "bedrock-mantle.*.api.aws")),
        models_path=None,
        limit_field="max_completion_tokens",  # W
        usage_in="",  # unclear
        remark="wants a Bedrock API key; not every model streams",  # D, I
    ),
    Dialect(
        name="groq",
        title="Groq",
        signs=Signs(hosts=("api.groq.com",)),
        limit_field="max_completion_tokens",  # D: max_tokens is deprecated
        unknown_fields="refused",  # W
        usage_in="x_groq of the last event, and an event of its own",  # I
        cached_in=OPENAI_CACHED,
        reasoning_in="reasoning",
    ),
    Dialect(
        name="deepseek",
        title="DeepSeek",
        signs=Signs(hosts=("api.deepseek.com",)),
        unknown_fields="ignored",  # W
        usage_in=ON_FINISH,
        cached_in="usage.prompt_cache_hit_tokens",
        reasoning_in="reasoning_content",
        remark="keeps a request waiting up to ten minutes with comments",  # D
    ),
    Dialect(
        name="mistral",
        title="Mistral",
        signs=Signs(hosts=("api.mistral.ai",)),
        include_usage=False,  # usage comes anyway, and unknown fields are a 422
        unknown_fields="refused",  # I
        usage_in=ON_FINISH,
        reasoning_in="content parts of type thinking",
        remark="random_seed instead of seed",
    ),
    Dialect(
        name="together",
        title="Together",
        signs=Signs(hosts=("api.together.xyz", "api.together.ai")),
        unknown_fields="ignored",  # W
        usage_in=ON_FINISH,  # I
        reasoning_in="reasoning",  # W
    ),
    Dialect(
        name="fireworks",
        title="Fireworks",
        signs=Signs(hosts=("api.fireworks.ai",)),
        names_models=False,
        forces_length=("ignore_eos",),  # W
        unknown_fields="ignored",  # W
        usage_in="the event with the finish reason, or one of its own",  # D
        cached_in=OPENAI_CACHED,
        reasoning_in="reasoning_content",
        remark="session-affinity headers decide about its cache",  # D
    ),
    # -- engines -----------------------------------------------------------------------------
    Dialect(
        name="sglang",
        title="SGLang",
        signs=Signs(
            owners=frozenset({"sglang"}),
            pages=(("/model_info", "model_path"), ("/get_model_info", "model_path")),
        ),
        forces_length=("ignore_eos", "min_tokens"),
        proves_tokens=("continuous_usage_stats",),
        unknown_fields="ignored",
        cached_in=f"{OPENAI_CACHED}, with --enable-cache-report",
        reasoning_in="reasoning_content",
        health_path="/ready",  # /health and /health_generate generate a token
        metrics_path="/metrics",  # with --enable-metrics
        remark="holds the response head until the first event",
    ),
    Dialect(
        name="tgi",
        title="Text Generation Inference",
        signs=Signs(pages=(("/info", "model_id"),)),
        names_models=False,  # the model's name is ignored
        unknown_fields="ignored",
        health_path="/health",
        metrics_path="/metrics",
        remark="one token an event, by construction",
    ),
    Dialect(
        name="tensorrt-llm",
        title="TensorRT-LLM",
        signs=Signs(owners=frozenset({"tensorrt_llm"})),
        forces_length=("ignore_eos", "min_tokens"),
        proves_tokens=("continuous_usage_stats",),
        unknown_fields="refused",
        cached_in=OPENAI_CACHED,
        reasoning_in="reasoning and reasoning_content, both",
        health_path="/health",
        metrics_path="/prometheus/metrics",
        keep_alive_s=10.0,  # I: of its disaggregated serving
    ),
    Dialect(
        name="llama.cpp",
        title="llama.cpp",
        signs=Signs(
            headers=(("server", "llama.cpp"),),
            owners=frozenset({"llamacpp"}),
            pages=(("/props", "default_generation_settings"),),
        ),
        names_models=False,  # it serves its one model under any name
        forces_length=("ignore_eos",),
        proves_tokens=("timings_per_token",),
        unknown_fields="ignored",
        cached_in=f"{OPENAI_CACHED} or timings.cache_n",
        reasoning_in="reasoning_content",
        health_path="/health",
        metrics_path="/metrics",  # with --metrics
        remark="caches prompts unless cache_prompt is false",
    ),
    Dialect(
        name="ollama",
        title="Ollama",
        signs=Signs(owners=frozenset({"library"}), pages=(("/api/version", "version"),)),
        names_models=False,  # "llama3" is listed as "llama3:latest"
        unknown_fields="ignored",
        reasoning_in="reasoning",
        health_path="/",
        remark="ignores max_completion_tokens; a failure is an empty event and the end",  # I
    ),
    Dialect(
        name="vllm",
        title="vLLM",
        signs=Signs(
            owners=frozenset({"vllm", "streamgauge-sim"}),  # the simulator speaks vLLM's dialect
            pages=(("/version", "version"),),  # TensorRT-LLM has it too, and is known by its owner
        ),
        forces_length=("ignore_eos", "min_tokens"),
        proves_tokens=("continuous_usage_stats", "return_token_ids"),
        unknown_fields="ignored",
        cached_in=f"{OPENAI_CACHED}, with --enable-prompt-tokens-details",
        reasoning_in="reasoning",
        health_path="/health",
        metrics_path="/metrics",
        keep_alive_s=5.0,  # VLLM_HTTP_TIMEOUT_KEEP_ALIVE
    ),
)
DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in _TABLE}
"""By name, in the order in which they are looked for."""
GENERIC = DIALECTS["generic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen of a server.

    Attributes:
        headers: of any of its responses, names in lower case.
        owners: ``owned_by`` of the models it lists.
        pages: JSON objects it answered with, by path.
    """

    target: Target
    headers: Mapping[str, str] = field(default_factory=dict)
    owners: frozenset[str] = frozenset()
    pages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def recognise(evidence: Evidence) -> tuple[Dialect, str]:
    """The dialect, and what gave it away; the generic one and "" where nothing does.

    A known host outweighs a header, a header the models' owner, an owner a page.
    """
    if (hosted := dialect_of_host(evidence.target)) is not GENERIC:
        return hosted, f"host {evidence.target.host}"
    for tell in (_by_header, _by_owner, _by_page):
        for dialect in DIALECTS.values():
            if because := tell(dialect.signs, evidence):
                return dialect, because
    return GENERIC, ""


def dialect_of_host(target: Target) -> Dialect:
    """The dialect that a host's name tells; the generic one for a name nobody knows."""
    for dialect in DIALECTS.values():
        if any(fnmatchcase(target.host, pattern) for pattern in dialect.signs.hosts):
            return fitting(dialect, target)
    return GENERIC


def fitting(dialect: Dialect, target: Target) -> Dialect:
    """The variant of a dialect that the target's path calls for.

    Azure has two: ``/openai/v1`` names the newer one by itself.
    """
    if dialect.name == "azure" and target.base_path.endswith("/openai"):
        return DIALECTS["azure-v1"]
    return dialect


def pages_to_look_at() -> Iterator[str]:
    """Pages that give servers away, each once."""
    return iter(dict.fromkeys(path for d in DIALECTS.values() for path, _ in d.signs.pages))


def _by_header(signs: Signs, evidence: Evidence) -> str:
    for start, word in signs.headers:
        for name, value in evidence.headers.items():
            if name.startswith(start) and word in value.lower():
                return f"header {name}"
    return ""


def _by_owner(signs: Signs, evidence: Evidence) -> str:
    owners = sorted(signs.owners & evidence.owners)
    return f"models owned by {owners[0]!r}" if owners else ""


def _by_page(signs: Signs, evidence: Evidence) -> str:
    return next(
        (f"page {path}" for path, key in signs.pages if key in evidence.pages.get(path, {})), ""
    )

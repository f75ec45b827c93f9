"""Our options: one table, read by Locust's parser and by ``streamgauge run``.

Light to import: knows neither Locust nor gevent.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from collectors.redact import redact_text
from loadgen.client import API_PATHS, Endpoint
from loadgen.dialects import DIALECTS, Dialect, dialect_of_host, fitting
from loadgen.errors import OptionError
from loadgen.exchange import Limits
from loadgen.route import Route, read_route
from loadgen.target import Target, parse_target
from loadgen.tokenizer import Tokenizer, read_tokenizer

DEFAULT_DRAIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option.

    ``kind`` is "text", "int", "float", "duration", "flag" or "repeat" (may be given again).
    """

    name: str
    kind: str
    help: str
    metavar: str
    in_web_ui: bool = True

    @property
    def field(self) -> str:
        """The attribute that parsers give it."""
        return self.name.removeprefix("--").replace("-", "_")


OPTIONS = (
    Option(
        name="--model",
        kind="text",
        metavar="NAME",
        help="Model to ask for; without it the endpoint's only one.",
    ),
    Option(
        name="--api", kind="text", metavar="|".join(API_PATHS), help="API to use (default chat)."
    ),
    Option(
        name="--dialect",
        kind="text",
        metavar="NAME|auto",
        help="What the endpoint is, such as vllm or azure; auto tries what it takes before the run "
        "(default: what its name and its list of models tell).",
    ),
    Option(
        name="--api-version",
        kind="text",
        metavar="VERSION",
        help=f"Version of Azure OpenAI's API (default {DIALECTS['azure'].api_version}).",
    ),
    Option(
        name="--api-key-env",
        kind="text",
        metavar="NAME",
        help="Environment variable that holds the API key.",
        in_web_ui=False,
    ),
    Option(
        name="--api-key-file",
        kind="text",
        metavar="FILE",
        help="File that holds the API key.",
        in_web_ui=False,
    ),
    Option(
        name="--header",
        kind="repeat",
        metavar="K=V|K=@ENV",
        help="Further request header; @ENV takes its value from the environment.",
        in_web_ui=False,
    ),
    Option(
        name="--input-tokens",
        kind="int",
        metavar="N",
        help="Length of a prompt; the scenario has its default.",
    ),
    Option(
        name="--max-tokens",
        kind="int",
        metavar="N",
        help="Token limit of an answer; the scenario has its default.",
    ),
    Option(
        name="--think-time",
        kind="duration",
        metavar="S",
        help="Mean pause of a user between requests, 0 for none; the scenario has its default.",
    ),
    Option(
        name="--ramp",
        kind="duration",
        metavar="S",
        help="Seconds over which users start, one after another (instead of Locust's -r).",
        in_web_ui=False,
    ),
    Option(name="--requests", kind="int", metavar="N", help="Stop once N requests were due."),
    Option(
        name="--warmup",
        kind="duration",
        metavar="S",
        help="Left out of the figures (default 10 % of the duration, at most 30 s).",
    ),
    Option(
        name="--drain",
        kind="duration",
        metavar="S",
        help=f"How long open requests may finish after the stop (default {DEFAULT_DRAIN_S:.0f} s).",
    ),
    Option(
        name="--seed",
        kind="int",
        metavar="N",
        help="Seed of prompts and pauses; without it every run has its own.",
    ),
    Option(
        name="--temperature", kind="float", metavar="X", help="Sampling temperature to ask for."
    ),
    Option(name="--top-p", kind="float", metavar="X", help="Nucleus sampling to ask for."),
    Option(
        name="--extra-body",
        kind="text",
        metavar="JSON|@FILE",
        help="Further fields of the request body.",
    ),
    Option(
        name="--tokenizer",
        kind="text",
        metavar="FILE",
        help="A tokenizer.json to count tokens with where the server tells none "
        "(needs streamgauge[tokenizer]).",
        in_web_ui=False,
    ),
    Option(
        name="--timeout-head",
        kind="duration",
        metavar="S",
        help="Limit from sent to the response head (default none).",
    ),
    Option(
        name="--timeout-first",
        kind="duration",
        metavar="S",
        help="Limit from sent to the first output (default none).",
    ),
    Option(
        name="--timeout-idle",
        kind="duration",
        metavar="S",
        help="Limit between outputs (default none).",
    ),
    Option(
        name="--timeout-total",
        kind="duration",
        metavar="S",
        help="Limit from sent to the end (default 600 s, 0 for none).",
    ),
    Option(
        name="--transport",
        kind="text",
        metavar="wire|httpx",
        help="How requests are sent (default wire; httpx for HTTP/2 and proxies).",
        in_web_ui=False,
    ),
    Option(
        name="--proxy",
        kind="text",
        metavar="URL|@ENV",
        help="HTTP proxy, for --transport httpx; @ENV takes the URL, which may then hold a "
        "password, from the environment.",
        in_web_ui=False,
    ),
    Option(
        name="--ca-file",
        kind="text",
        metavar="FILE",
        help="PEM certificates to trust instead of the system's.",
        in_web_ui=False,
    ),
    Option(
        name="--client-cert",
        kind="text",
        metavar="FILE",
        help="PEM certificate to show to a server that asks for one.",
        in_web_ui=False,
    ),
    Option(
        name="--client-key",
        kind="text",
        metavar="FILE",
        help="PEM key of --client-cert, where that file does not hold it.",
        in_web_ui=False,
    ),
    Option(
        name="--insecure",
        kind="flag",
        metavar="",
        help="Check no TLS certificate; the run says so.",
        in_web_ui=False,
    ),
    Option(
        name="--db",
        kind="text",
        metavar="FILE|URL",
        help="Database of runs (default $STREAMGAUGE_DB, else streamgauge.db).",
        in_web_ui=False,
    ),
    Option(
        name="--run-name",
        kind="text",
        metavar="NAME",
        help="Name of the run (default: the scenario's).",
    ),
    Option(name="--label", kind="repeat", metavar="K=V", help="Label of the run.", in_web_ui=False),
    Option(
        name="--gpu-hour-price",
        kind="float",
        metavar="USD",
        help="Price of one GPU-hour, for the cost of the run.",
    ),
    Option(
        name="--gpus",
        kind="int",
        metavar="N",
        help="GPUs the server uses, for the cost of the run.",
    ),
    Option(
        name="--no-preflight",
        kind="flag",
        metavar="",
        help="Do not look at the endpoint before the run.",
        in_web_ui=False,
    ),
)
"""Every option of ours that a Locust process takes."""


def add_to_argparse(
    parser: argparse.ArgumentParser, options: Sequence[Option]
) -> list[tuple[Option, Any]]:
    """Add ``options`` as a group of their own; each with the action that argparse made of it."""
    group = parser.add_argument_group(
        "Streamgauge", "Load on an LLM endpoint, recorded request by request."
    )
    added = []
    for option in options:
        how: dict[str, Any] = {"default": None, "metavar": option.metavar}
        if option.kind == "flag":
            how = {"default": False, "action": "store_true"}
        elif option.kind == "repeat":
            how["action"] = "append"
        # argparse reads % in help as a format
        action = group.add_argument(option.name, help=option.help.replace("%", "%%"), **how)
        added.append((option, action))
    return added


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of one run, checked. ``None`` means "not given: the default holds".

    Attributes:
        dialect_asked: ``--dialect`` as given: a name, "auto" or "".
    """

    endpoint: Endpoint
    limits: Limits
    input_tokens: int | None = None
    max_tokens: int | None = None
    think_time_s: float | None = None
    ramp_s: float | None = None
    requests: int | None = None
    warmup_s: float | None = None
    drain_s: float = DEFAULT_DRAIN_S
    seed: int | None = None
    body_fields: Mapping[str, Any] = field(default_factory=dict)
    db: str = ""
    run_name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu_hour_price_usd: float | None = None
    gpus: int | None = None
    preflight: bool = True
    dialect_asked: str = ""
    route: Route = field(default_factory=Route)
    tokenizer: Tokenizer | None = None


def read_settings(
    options: Any, host: str | None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Check the options of a parsed command line.

    Args:
        options: a namespace with the fields of :data:`OPTIONS`; missing ones count as not given.
        host: the endpoint's URL.
        environ: where ``--api-key-env`` and ``--header K=@ENV`` look.

    Raises:
        OptionError: one sentence about the first thing that does not make sense.
        TargetError: the host is no usable URL.
    """
    given = {o.field: getattr(options, o.field, None) for o in OPTIONS}
    if not host:
        raise OptionError("No endpoint was given; name it with --host http://HOST:PORT.")
    api = given["api"] or "chat"
    if api not in API_PATHS:
        raise OptionError(f"--api: expected one of {', '.join(API_PATHS)}; found {api!r}.")
    key, headers, secrets = _headers(given, environ)
    target = parse_target(host)
    route = read_route(given, _proxy_url(given, environ))
    price, gpus = _number(given, "gpu_hour_price"), _whole(given, "gpus", least=1)
    return Settings(
        endpoint=Endpoint(
            target=target,
            model=given["model"] or "",
            api=api,
            headers=headers,
            key=key or "",
            secrets=secrets + route.secrets,
            dialect=_dialect(given, target),
        ),
        limits=_limits(given),
        input_tokens=_whole(given, "input_tokens", least=1),
        max_tokens=_whole(given, "max_tokens", least=1),
        think_time_s=_duration(given, "think_time"),
        ramp_s=_duration(given, "ramp"),
        requests=_whole(given, "requests", least=1),
        warmup_s=_duration(given, "warmup"),
        drain_s=_default(_duration(given, "drain"), DEFAULT_DRAIN_S),
        seed=_whole(given, "seed", least=0),
        body_fields=_body_fields(given),
        db=given["db"] or environ.get("STREAMGAUGE_DB") or "streamgauge.db",
        run_name=given["run_name"] or None,
        labels=_pairs(given["label"], "--label"),
        gpu_hour_price_usd=price,
        gpus=gpus if gpus is not None or price is None else 1,
        preflight=not given["no_preflight"],
        dialect_asked=given["dialect"] or "",
        route=route,
        tokenizer=read_tokenizer(given["tokenizer"]) if given["tokenizer"] else None,
    )


def public_config(settings: Settings) -> dict[str, Any]:
    """What of the settings is stored with the run: everything that shaped the load, no secret."""
    endpoint, limits = settings.endpoint, settings.limits
    return {
        "api": endpoint.api,
        "dialect": endpoint.dialect.spec(),
        "header_names": sorted(endpoint.all_headers()),
        "input_tokens": settings.input_tokens,
        "max_tokens": settings.max_tokens,
        "think_time_s": settings.think_time_s,
        "requests": settings.requests,
        "seed": settings.seed,
        "temperature": settings.body_fields.get("temperature"),
        "top_p": settings.body_fields.get("top_p"),
        "body_field_names": sorted(settings.body_fields),
        "timeout_head_s": limits.head_s,
        "timeout_first_s": limits.first_s,
        "timeout_idle_s": limits.idle_s,
        "timeout_total_s": limits.total_s,
        "transport": settings.route.transport,
        "proxy": settings.route.proxy.url if settings.route.proxy else None,
        "tls_checked": not settings.route.tls.insecure,
        "tokenizer": _tokenizer_config(settings.tokenizer),
    }


def _tokenizer_config(tokenizer: Tokenizer | None) -> dict[str, str] | None:
    return None if tokenizer is None else {"file": tokenizer.name, "sha256": tokenizer.digest}


_DURATION_PART = r"\d+(?:\.\d+)?\s*(?:ms|s|min|m|h)"
_DURATION = re.compile(rf"\d+(?:\.\d+)?|{_DURATION_PART}(?:\s*{_DURATION_PART})*", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|)", re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_LONGEST_S = 366 * 86_400.0


def parse_duration(text: str | float, name: str) -> float:
    """Seconds of "30s", "500ms", "2m", "1h30m" or a plain number of seconds.

    Raises:
        OptionError: it is none of these, or longer than a year.
    """
    if isinstance(text, int | float):
        seconds = float(text)
    elif _DURATION.fullmatch(text.strip()):
        seconds = sum(float(n) * _SECONDS[unit] for n, unit in _PART.findall(text))
    else:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_S:
        raise OptionError(f"{name}: expected a duration like 30s, 500ms or 2m, found {text!r}.")
    return seconds


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_HEADERS_OF_THE_TRANSPORT = frozenset(
    {"connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"}
)
_CREDENTIAL = re.compile(r"(?i)auth|cookie|key|password|secret|signature|token")


def _dialect(given: Mapping[str, Any], target: Target) -> Dialect:
    """The dialect named, or the one that the host's name tells."""
    name = given["dialect"] or "auto"
    if given["dialect"] == "auto" and given["no_preflight"]:
        raise OptionError(
            "--dialect auto tries the endpoint before the run; leave out --no-preflight, or name "
            "the dialect."
        )
    if name != "auto" and name not in DIALECTS:
        known = ", ".join(DIALECTS)
        raise OptionError(f"--dialect: expected auto or one of {known}; found {name!r}.")
    dialect = dialect_of_host(target) if name == "auto" else fitting(DIALECTS[name], target)
    version = given["api_version"]
    if not version:
        return dialect
    if not dialect.api_version:
        raise OptionError(
            f"--api-version: {dialect.title} has none in its paths; leave it out, or name the "
            "dialect with --dialect azure."
        )
    if not re.fullmatch(r"[\w.-]+", version, re.ASCII):
        raise OptionError("--api-version: expected a version like 2024-10-21.")
    return replace(dialect, api_version=version)


def _headers(
    given: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str | None, dict[str, str], tuple[str, ...]]:
    """The API key, the user's own headers, and what of them is secret."""
    headers: dict[str, str] = {}
    secrets: list[str] = []
    key = _api_key(given, environ)
    if key:
        secrets.append(key)
    for name, text in _pairs(given["header"], "--header").items():
        if not _HEADER_NAME.fullmatch(name):
            raise OptionError("--header: expected NAME=VALUE, found a name with other characters.")
        if name.lower() in _HEADERS_OF_THE_TRANSPORT:
            raise OptionError(
                f"--header {name}: the client sends that header itself; leave it out."
            )
        value = text
        if text.startswith("@"):
            value = _from_environ(environ, text[1:], f"--header {name}").strip()
        if not _is_sendable(value):
            raise OptionError(f"--header {name}: its value holds characters no header can have.")
        headers = {n: v for n, v in headers.items() if n.lower() != name.lower()} | {name: value}
        if text.startswith("@") or _CREDENTIAL.search(name):
            secrets += [value, value.rpartition(" ")[2]]  # "Bearer abc", and abc alone
    return key, headers, tuple(secrets)


def _api_key(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    if name := given["api_key_env"]:
        option, key = "--api-key-env", _from_environ(environ, name, "--api-key-env")
    elif path := given["api_key_file"]:
        option, key = "--api-key-file", _read_text(path, "--api-key-file")
    else:
        return None
    key = key.strip()
    if not key or " " in key or not _is_sendable(key):
        raise OptionError(f"{option}: what it names holds no key, but blanks or other characters.")
    return key


def _from_environ(environ: Mapping[str, str], name: str, option: str) -> str:
    """The value of a variable. A name that is none may be the secret itself: it is not shown."""
    if value := environ.get(name):
        return value
    if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        raise OptionError(
            f"{option}: the environment variable {redact_text(name)!r} is not set or empty."
        )
    raise OptionError(f"{option}: expected the name of an environment variable that is set.")


def _is_sendable(value: str) -> bool:
    """Whether a header can have that value (RFC 9110, 5.5, without what needs Latin-1)."""
    return value.isascii() and value.isprintable()


def _read_text(path: str, option: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        words = error.strerror
    except ValueError:
        words = "it is no text, or its name is no path"
    raise OptionError(f"{option}: cannot read {redact_text(path)!r}: {words}.")


def _proxy_url(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    """The proxy's URL; a password in it comes from the environment, as any secret does."""
    text = given["proxy"]
    if not text:
        return None
    if text.startswith("@"):
        return _from_environ(environ, text[1:], "--proxy").strip()
    if "@" in text:
        raise OptionError(
            "--proxy: a URL with a user or a password would put secrets in logs; give it as @ENV."
        )
    return str(text)


def _limits(given: Mapping[str, Any]) -> Limits:
    total = _duration(given, "timeout_total")
    return Limits(
        head_s=_duration(given, "timeout_head") or None,
        first_s=_duration(given, "timeout_first") or None,
        idle_s=_duration(given, "timeout_idle") or None,
        total_s=Limits().total_s if total is None else total or None,
    )


def _body_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    fields = {
        name: value
        for name in ("temperature", "top_p")
        if (value := _number(given, name)) is not None
    }
    text = given["extra_body"]
    if not text:
        return fields
    data = _read_text(text[1:], "--extra-body") if text.startswith("@") else text
    try:
        extra = orjson.loads(data)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        raise OptionError("--extra-body: expected a JSON object, found no JSON.") from None
    if not isinstance(extra, dict):
        raise OptionError(f"--extra-body: expected a JSON object, found a {type(extra).__name__}.")
    return fields | extra


def _pairs(texts: Sequence[str] | None, name: str) -> dict[str, str]:
    pairs = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():  # a header's text is not shown: it may be a secret
            raise OptionError(
                f"{name}: expected NAME=VALUE, found something without a name or '='."
            )
        pairs[key.strip()] = value.strip()
    return pairs


def _duration(given: Mapping[str, Any], name: str) -> float | None:
    value = given[name]
    return None if value in (None, "") else parse_duration(value, _spelled(name))


def _number(given: Mapping[str, Any], name: str) -> float | None:
    value = given[name]
    if value in (None, ""):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise OptionError(f"{_spelled(name)}: expected a number from 0 up, found {value!r}.")
    return number


def _whole(given: Mapping[str, Any], name: str, *, least: int) -> int | None:
    value = given[name]
    if value in (None, ""):
        return None
    if not re.fullmatch(r"\s*\d{1,18}\s*", str(value), re.ASCII) or int(value) < least:
        raise OptionError(
            f"{_spelled(name)}: expected a whole number from {least} up, found {value!r}."
        )
    return int(value)


def _spelled(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def _default(value: float | None, default: float) -> float:
    return default if value is None else value

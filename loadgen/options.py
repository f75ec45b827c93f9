"""Our options: one table, read by Locust's parser and by ``streamgauge run``.

Light to import: knows neither Locust nor gevent.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from collectors.redact import redact_url
from loadgen.client import API_PATHS, Endpoint
from loadgen.errors import OptionError
from loadgen.exchange import Limits
from loadgen.target import parse_target

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
    """The options of one run, checked. ``None`` means "not given: the default holds"."""

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
        raise OptionError(f"--api: expected {' or '.join(API_PATHS)}, found {api!r}.")
    headers, secrets = _headers(given, environ)
    price, gpus = _number(given, "gpu_hour_price"), _whole(given, "gpus", least=1)
    return Settings(
        endpoint=Endpoint(
            target=parse_target(host),
            model=given["model"] or "",
            api=api,
            headers=headers,
            secrets=secrets,
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
    )


def public_config(settings: Settings) -> dict[str, Any]:
    """What of the settings is stored with the run: everything that shaped the load, no secret."""
    endpoint, limits = settings.endpoint, settings.limits
    return {
        "api": endpoint.api,
        "header_names": sorted(endpoint.headers),
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
    }


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)?", re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, None: 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str | float, name: str) -> float:
    """Seconds of "30s", "500ms", "2m", "1h30m" or a plain number of seconds.

    Raises:
        OptionError: it is none of these.
    """
    if isinstance(text, int | float):
        return float(text)
    parts = list(_DURATION.finditer(text.strip()))
    if not parts or "".join(p.group() for p in parts) != text.strip().replace(" ", ""):
        raise OptionError(f"{name}: expected a duration like 30s, 500ms or 2m, found {text!r}.")
    return sum(float(p.group(1)) * _SECONDS[p.group(2)] for p in parts)


def _headers(
    given: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    headers: dict[str, str] = {}
    secrets: list[str] = []
    key = _api_key(given, environ)
    if key:
        headers["Authorization"] = f"Bearer {key}"
        secrets.append(key)
    for name, value in _pairs(given["header"], "--header").items():
        if value.startswith("@"):
            if value[1:] not in environ:
                raise OptionError(
                    f"--header {name}: the environment has no variable {value[1:]!r}."
                )
            secrets.append(environ[value[1:]])
            headers[name] = environ[value[1:]]
        else:
            headers[name] = value
    return headers, tuple(secrets)


def _api_key(given: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    if name := given["api_key_env"]:
        if not environ.get(name):
            raise OptionError(
                f"--api-key-env: the environment variable {name!r} is not set or empty."
            )
        return environ[name].strip()
    if path := given["api_key_file"]:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"--api-key-file: cannot read {path!r}: {error}.") from None
    return None


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
    try:
        data = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode()
        extra = orjson.loads(data)
    except OSError as error:
        raise OptionError(f"--extra-body: cannot read {text[1:]!r}: {error.strerror}.") from None
    except orjson.JSONDecodeError as error:
        raise OptionError(
            f"--extra-body: expected a JSON object, found no JSON: {error}."
        ) from None
    if not isinstance(extra, dict):
        raise OptionError(f"--extra-body: expected a JSON object, found a {type(extra).__name__}.")
    return fields | extra


def _pairs(texts: Sequence[str] | None, name: str) -> dict[str, str]:
    pairs = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"{name}: expected NAME=VALUE, found {redact_url(text)!r}.")
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
    except ValueError:
        raise OptionError(f"{_spelled(name)}: expected a number, found {value!r}.") from None
    if not 0 <= number < float("inf"):
        raise OptionError(f"{_spelled(name)}: expected a number from 0 up, found {value!r}.")
    return number


def _whole(given: Mapping[str, Any], name: str, *, least: int) -> int | None:
    value = given[name]
    if value in (None, ""):
        return None
    try:
        number = int(value)
    except ValueError:
        number = least - 1
    if number < least:
        raise OptionError(
            f"{_spelled(name)}: expected a whole number from {least} up, found {value!r}."
        )
    return number


def _spelled(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def _default(value: float | None, default: float) -> float:
    return default if value is None else value

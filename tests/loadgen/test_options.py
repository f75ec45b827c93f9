"""Options: what each may be, and one sentence where it is something else."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError, OptionError, TargetError
from loadgen.exchange import Limits
from loadgen.options import (
    DEFAULT_DRAIN_S,
    OPTIONS,
    Settings,
    parse_duration,
    public_config,
    read_settings,
)
from tests.loadgen.tokenizer_files import saved, word_tokenizer

HOST = "http://host:8000"
CANARY = "c4narysecret9"
ENVIRON = {"KEY": CANARY, "EMPTY": "", "BLANK": " \n", "TWO": "two words", "LINES": f"{CANARY}\nx"}


def settings(host: str | None = HOST, **given: Any) -> Settings:
    """The settings of a command line with these options."""
    return read_settings(SimpleNamespace(**given), host, ENVIRON)


def refusal(host: str | None = HOST, **given: Any) -> str:
    """The sentence that refuses a command line."""
    with pytest.raises((OptionError, TargetError)) as raised:
        settings(host, **given)
    sentence = str(raised.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert CANARY not in sentence
    return sentence


def test_nothing_given_means_the_defaults_hold() -> None:
    """Which are None wherever the scenario or the run has its own."""
    nothing = settings()

    assert (nothing.endpoint.model, nothing.endpoint.api) == ("", "chat")
    assert (dict(nothing.endpoint.headers), nothing.endpoint.secrets) == ({}, ())
    assert nothing.limits == Limits()
    assert nothing.drain_s == DEFAULT_DRAIN_S
    assert (nothing.db, nothing.run_name, nothing.preflight) == ("streamgauge.db", None, True)
    for field in ("input_tokens", "max_tokens", "think_time_s", "ramp_s", "requests", "warmup_s"):
        assert getattr(nothing, field) is None
    for field in ("seed", "gpu_hour_price_usd", "gpus"):
        assert getattr(nothing, field) is None


@pytest.mark.parametrize("blank", [None, ""])
def test_a_blank_field_of_the_web_ui_is_not_given(blank: str | None) -> None:
    """Locust's form sends empty texts."""
    given = {option.field: blank for option in OPTIONS if option.kind not in ("flag", "repeat")}

    assert settings(**given) == settings()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"model": "m"}, {"endpoint.model": "m"}),
        ({"api": "completions"}, {"endpoint.api": "completions"}),
        ({"input_tokens": "200", "max_tokens": 9}, {"input_tokens": 200, "max_tokens": 9}),
        ({"think_time": "0"}, {"think_time_s": 0.0}),
        (
            {"ramp": "2s", "warmup": "500ms", "drain": "1m"},
            {"ramp_s": 2, "warmup_s": 0.5, "drain_s": 60},
        ),
        ({"drain": "0"}, {"drain_s": 0.0}),
        ({"requests": " 7 "}, {"requests": 7}),
        ({"seed": "0"}, {"seed": 0}),
        ({"timeout_head": "1s", "timeout_first": "2"}, {"limits.head_s": 1, "limits.first_s": 2}),
        ({"timeout_idle": "3", "timeout_total": "4"}, {"limits.idle_s": 3, "limits.total_s": 4}),
        (
            {"timeout_total": "0", "timeout_head": "0"},
            {"limits.total_s": None, "limits.head_s": None},
        ),
        ({"temperature": "0"}, {"body_fields": {"temperature": 0.0}}),
        (
            {"top_p": "0.9", "extra_body": '{"top_p":1,"n":2}'},
            {"body_fields": {"top_p": 1, "n": 2}},
        ),
        ({"gpu_hour_price": "2.5"}, {"gpu_hour_price_usd": 2.5, "gpus": 1}),
        ({"gpu_hour_price": "2.5", "gpus": "8"}, {"gpu_hour_price_usd": 2.5, "gpus": 8}),
        ({"gpus": "8"}, {"gpu_hour_price_usd": None, "gpus": 8}),
        ({"label": ["a=1", "b = x=y "]}, {"labels": {"a": "1", "b": "x=y"}}),
        ({"db": "a.db", "run_name": "r"}, {"db": "a.db", "run_name": "r"}),
        ({"no_preflight": True}, {"preflight": False}),
        ({"dialect": "vllm"}, {"endpoint.dialect.name": "vllm", "dialect_asked": "vllm"}),
        ({"dialect": "auto"}, {"endpoint.dialect.name": "generic", "dialect_asked": "auto"}),
        (
            {"dialect": "azure", "api_version": "2025-01-01"},
            {"endpoint.dialect.name": "azure", "endpoint.dialect.api_version": "2025-01-01"},
        ),
    ],
)
def test_what_is_given_is_taken(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Texts of a command line and of a form alike."""
    taken = settings(**given)

    for path, value in expected.items():
        found: Any = taken
        for name in path.split("."):
            found = getattr(found, name)
        assert found == value


def test_the_database_may_stand_in_the_environment() -> None:
    """The option wins."""
    environ = {"STREAMGAUGE_DB": "env.db"}

    assert read_settings(SimpleNamespace(), HOST, environ).db == "env.db"
    assert read_settings(SimpleNamespace(db="a.db"), HOST, environ).db == "a.db"


# -- durations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("30", 30.0),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("2min", 120.0),
        ("1h", 3600.0),
        ("1h30m", 5400.0),
        ("1h 30m 15s", 5415.0),
        ("30 s", 30.0),
        (" 30s ", 30.0),
        ("0", 0.0),
        (0, 0.0),
        (2.5, 2.5),
    ],
)
def test_a_duration(text: str | float, seconds: float) -> None:
    """In seconds, whatever its unit."""
    assert parse_duration(text, "--x") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "s", "-1", "-1s", "1 2", "1x", "1h30", "1,5s", "1e3", "٣s", "1d", "9000h", "9" * 400),
        *("nan", "inf", -1, -0.5, float("nan"), float("inf")),
    ],
)
def test_anything_else_is_no_duration(text: str | float) -> None:
    """Neither negative nor endless nor two numbers that might be one."""
    with pytest.raises(OptionError, match=r"--x: expected a duration like 30s, 500ms or 2m, found"):
        parse_duration(text, "--x")


@given(st.text(alphabet="0123456789.smhin -", max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    """And a duration is a number of seconds from 0 up."""
    with contextlib.suppress(OptionError):
        assert parse_duration(text, "--x") >= 0


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"host": None}, "--host http://HOST:PORT"),
        ({"host": ""}, "--host http://HOST:PORT"),
        ({"host": "ftp://host"}, "--host"),
        ({"host": f"http://user:{CANARY}@host"}, "--host"),
        ({"api": "chats"}, "--api: expected one of chat, completions, responses, messages,"),
        ({"input_tokens": "0"}, "--input-tokens: expected a whole number from 1 up, found '0'"),
        ({"input_tokens": "1.5"}, "--input-tokens"),
        ({"max_tokens": "many"}, "--max-tokens"),
        ({"max_tokens": 2.5}, "--max-tokens"),
        ({"max_tokens": "1_000"}, "--max-tokens"),
        ({"max_tokens": "9" * 5000}, "--max-tokens"),
        ({"requests": "-1"}, "--requests"),
        ({"requests": float("inf")}, "--requests"),
        ({"seed": "-1"}, "--seed: expected a whole number from 0 up"),
        ({"gpus": "0"}, "--gpus"),
        ({"gpu_hour_price": "-1"}, "--gpu-hour-price: expected a number from 0 up"),
        ({"gpu_hour_price": "nan"}, "--gpu-hour-price"),
        ({"temperature": "hot"}, "--temperature"),
        ({"top_p": "inf"}, "--top-p"),
        ({"top_p": []}, "--top-p"),
        ({"think_time": "soon"}, "--think-time: expected a duration"),
        ({"ramp": "-1s"}, "--ramp"),
        ({"warmup": "1x"}, "--warmup"),
        ({"drain": "x"}, "--drain"),
        ({"timeout_head": "x"}, "--timeout-head"),
        ({"timeout_first": "x"}, "--timeout-first"),
        ({"timeout_idle": "x"}, "--timeout-idle"),
        ({"timeout_total": "-5"}, "--timeout-total"),
        ({"label": ["team"]}, "--label: expected NAME=VALUE"),
        ({"label": ["=x"]}, "--label"),
        ({"extra_body": "{"}, "--extra-body: expected a JSON object"),
        ({"extra_body": "[1]"}, "--extra-body: expected a JSON object, found a list"),
        ({"extra_body": "5"}, "--extra-body"),
        ({"extra_body": "\ud800"}, "--extra-body"),
        ({"extra_body": f'{{"key": "{CANARY}"'}, "--extra-body"),
        ({"extra_body": "@no/such/file"}, "--extra-body: cannot read 'no/such/file'"),
        ({"extra_body": "@\0"}, "--extra-body: cannot read"),
        ({"dialect": "klingon"}, "--dialect: expected auto or one of generic, litellm,"),
        ({"dialect": "auto", "no_preflight": True}, "--dialect auto tries the endpoint"),
        ({"api_version": "2025-01-01"}, "--api-version: an OpenAI-compatible server has none"),
        ({"dialect": "azure", "api_version": "a&b"}, "--api-version: expected a version like"),
        ({"header": ["X-A"]}, "--header: expected NAME=VALUE"),
        ({"header": [f"Authorization: Bearer {CANARY}"]}, "--header: expected NAME=VALUE"),
        ({"header": [f"Authorization: Basic {CANARY}=="]}, "--header: expected NAME=VALUE"),
        ({"header": [f"={CANARY}"]}, "--header"),
        ({"header": [CANARY]}, "--header"),
        ({"header": ["Content-Length=3"]}, "--header Content-Length"),
        ({"header": ["transfer-encoding=chunked"]}, "--header transfer-encoding"),
        ({"header": ["Expect=100-continue"]}, "--header Expect"),
        (
            {"header": ["X-A=@MISSING"]},
            "--header X-A: the environment variable 'MISSING' is not set",
        ),
        ({"header": ["X-A=@EMPTY"]}, "--header X-A"),
        ({"header": [f"X-A=@{CANARY}"]}, "--header X-A: expected the name of an environment"),
        ({"header": ["X-A=@LINES"]}, "--header X-A: its value"),
        ({"header": [f"X-A={CANARY}\u20ac"]}, "--header X-A: its value"),
        (
            {"api_key_env": "MISSING"},
            "--api-key-env: the environment variable 'MISSING' is not set",
        ),
        ({"api_key_env": "EMPTY"}, "--api-key-env: the environment variable 'EMPTY' is not set"),
        ({"api_key_env": "BLANK"}, "--api-key-env: what it names holds no key"),
        ({"api_key_env": "TWO"}, "--api-key-env: what it names holds no key"),
        ({"api_key_env": "LINES"}, "--api-key-env: what it names holds no key"),
        ({"api_key_env": CANARY}, "--api-key-env: expected the name of an environment variable"),
        (
            {"api_key_file": "no/such/file"},
            "--api-key-file: cannot read 'no/such/file': No such file",
        ),
    ],
)
def test_a_refusal_is_one_sentence_about_its_option(given: dict[str, Any], words: str) -> None:
    """And shows nothing that may be a secret, even where it was given in the wrong place."""
    assert words in refusal(**given)


@pytest.mark.parametrize(
    "key", ["sk-abcdefgh12345678", "AKIAIOSFODNN7EXAMPLE", "0123456789abcdef0123456789abcdef"]
)
@pytest.mark.parametrize("option", ["api_key_env", "header"])
def test_a_key_given_for_its_name_is_not_shown(option: str, key: str) -> None:
    """A common slip."""
    given = [f"X-Key=@{key}"] if option == "header" else key

    assert key not in refusal(**{option: given})


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"\xff\xfe", "kéy".encode()])
def test_a_key_file_must_hold_a_key(tmp_path: Path, content: bytes) -> None:
    """An empty one would ask without a key, and be refused a thousand times."""
    path = tmp_path / "key"
    path.write_bytes(content)

    assert "--api-key-file" in refusal(api_key_file=str(path))


# -- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "headers"),
    [
        ({"api_key_env": "KEY"}, {"Authorization": f"Bearer {CANARY}"}),
        ({"header": ["X-Api-Key=@KEY"]}, {"X-Api-Key": CANARY}),
        ({"header": [f"X-Api-Key={CANARY}"]}, {"X-Api-Key": CANARY}),
        ({"header": [f"authorization=Token {CANARY}"]}, {"authorization": f"Token {CANARY}"}),
        (
            {"api_key_env": "KEY", "header": [f"authorization=Basic {CANARY}"]},
            {"authorization": f"Basic {CANARY}"},
        ),
    ],
)
def test_secrets_go_into_headers_and_nowhere_else(
    given: dict[str, Any], headers: dict[str, str]
) -> None:
    """They are known as such, so that messages can be rid of them; the run keeps only names."""
    taken = settings(**given)

    assert taken.endpoint.all_headers() == headers
    assert CANARY in taken.endpoint.secrets
    assert CANARY not in str(public_config(taken))
    assert public_config(taken)["header_names"] == sorted(headers)


def test_the_key_goes_where_the_dialect_wants_it() -> None:
    """The host tells the dialect before anything is asked; the run keeps only the name."""
    taken = settings("https://mine.openai.azure.com", api_key_env="KEY", model="dep")

    assert taken.endpoint.all_headers() == {"api-key": CANARY}
    assert public_config(taken)["header_names"] == ["api-key"]
    assert public_config(taken)["dialect"]["name"] == "azure"
    assert CANARY not in repr(taken)


def test_a_key_from_a_file(tmp_path: Path) -> None:
    """Blanks and the line's end around it are not part of it."""
    path = tmp_path / "key"
    path.write_text(f" {CANARY}\n")

    assert settings(api_key_file=str(path)).endpoint.secrets == (CANARY,)


def test_a_header_that_is_no_credential_is_no_secret() -> None:
    """Its value may well stand in a message."""
    assert settings(header=["X-Tier=gold"]).endpoint.secrets == ()


def test_the_stored_configuration_shows_no_value_of_a_body_field() -> None:
    """A body may carry a key as well."""
    taken = settings(extra_body=f'{{"user": "{CANARY}", "n": 2}}', temperature="0.5")
    config = public_config(taken)

    assert config["body_field_names"] == ["n", "temperature", "user"]
    assert config["temperature"] == 0.5
    assert CANARY not in str(config)


def test_the_tokenizer_is_stored_by_name_and_digest(tmp_path: Path) -> None:
    """What counted can be known again, without where it lay."""
    taken = settings(tokenizer=saved(word_tokenizer(), tmp_path))

    assert taken.tokenizer is not None
    assert public_config(taken)["tokenizer"] == {
        "file": "tokenizer.json",
        "sha256": taken.tokenizer.digest,
    }
    assert public_config(settings())["tokenizer"] is None


@given(
    st.sampled_from([o.field for o in OPTIONS if o.kind != "flag"]),
    st.text(max_size=12) | st.integers() | st.floats() | st.lists(st.text(max_size=9), max_size=2),
)
def test_any_value_is_taken_or_refused(option: str, value: Any) -> None:
    """Nothing raises but the refusals."""
    kind = next(o.kind for o in OPTIONS if o.field == option)
    if isinstance(value, list) != (kind == "repeat"):
        return
    if kind == "text" and not isinstance(value, str):
        return
    with contextlib.suppress(LoadgenError):
        settings(**{option: value})

"""A canary in every place where a secret has been seen, and none of it in what comes out."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.redact import MASK, redact_text, redact_url

CANARY = "c4nary-S3cret+9/x"
PLAIN = "hunter2hunter2"  # looks like no key at all


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("https://host/base/", "https://host/base/"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        (f"http://user:{PLAIN}@host:8000/v1", "http://***@host:8000/v1"),
        (f"http://{PLAIN}@host", "http://***@host"),
        (f"http://user:a@{PLAIN}@host", "http://***@host"),
        (f"user:{PLAIN}@host:8000", "***@host:8000"),
        (f"//user:{PLAIN}@host", "//***@host"),
        (f"http://user:x/{PLAIN}@host", MASK),
        (f"http://user:x#{PLAIN}@host", MASK),
        (f"http://user:x?{PLAIN}@host", MASK),
        (f"http://host?key={PLAIN}", "http://host?key=***"),
        (f"http://host/v1?a=1&api-version={PLAIN}", "http://host/v1?a=***&api-version=***"),
        (f"http://host?{PLAIN}", "http://host?***"),
        (f"http://host#{PLAIN}", "http://host"),
        (f"host:8000?t={PLAIN}", "host:8000?t=***"),
        (f"/v1?t={PLAIN}", "/v1?t=***"),
        (f"http://host/token={PLAIN}/v1", "http://host/token=***"),
        ("http://host/sk-abcdefgh12345678/v1", "http://host/***/v1"),
        (f"postgresql+psycopg://ann:{PLAIN}@db/runs", "postgresql+psycopg://***@db/runs"),
        ("runs/streamgauge.db", "runs/streamgauge.db"),
        ("streamgauge.db", "streamgauge.db"),
        ("sqlite:///runs/a.db", "sqlite:///runs/a.db"),
        ("http://[broken", "http://[broken"),
        (f"http://user:{PLAIN}@[broken", "http://***@[broken"),
        ("", ""),
    ],
)
def test_a_url_keeps_what_is_no_secret(url: str, shown: str) -> None:
    """User info, query values and fragments go; where it cannot be told, everything does."""
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {}",
        "authorization: Token {}",
        "'Authorization': 'Basic {}'",
        '{{"Authorization": "Bearer {}"}}',
        '{{\\"authorization\\": \\"Bearer {}\\"}}',
        "Proxy-Authorization: Basic {}",
        "Authorization=AWS4-HMAC-SHA256 Credential={}",
        "X-Api-Key: {}",
        "api-key={}",
        "apikey: {}",
        '"api_key":"{}"',
        '{{\\"api_key\\": \\"{}\\"}}',
        "x-api-key = {}",
        "access_token={}&x=1",
        "https://host/?sig={}",
        "https://host/?a=1&signature={}",
        "password={}",
        "Cookie: {}",
        "Set-Cookie: {}; Path=/",
        "Illegal header value b'Bearer {}'",
        "bearer {}",
        "cannot reach http://user:{}@host:8000/v1: refused",
        "could not connect: postgresql://ann:{}@db/runs",
        "dsn ann:{}@db",
    ],
)
@pytest.mark.parametrize("secret", [PLAIN, "0123456789abcdef0123456789abcdef"])
def test_no_secret_is_left_in_a_text_that_names_it(text: str, secret: str) -> None:
    """Where its place says that it is one, it need not look like one."""
    shown = redact_text(text.format(secret))

    assert secret not in shown
    assert secret[:6] not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "secret",
    [
        "sk-abcdefgh12345678",
        "sk-proj-abc_def-1234567890",
        "gsk_abcdefgh12345678",
        "hf_abcdefgh12345678",
        "xai-abcdefgh12345678",
        "nvapi-abcdefgh12345678",
        "ghp_abcdefgh12345678",
        "AKIAIOSFODNN7EXAMPLE",
        "AIzaSyA1234567890abcdefghijklmn",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def_123",
    ],
)
@pytest.mark.parametrize("text", ["{}", "Incorrect API key provided: {}.", "<p>{}</p>", "a={},b"])
def test_no_key_of_a_known_kind_is_left(secret: str, text: str) -> None:
    """Wherever it stands."""
    assert secret[:12] not in redact_text(text.format(secret))


@pytest.mark.parametrize("text", ["{}", "the server says {} is wrong", "x{}x", "%s={}", "?a={}&b"])
def test_a_known_secret_is_masked_anywhere(text: str) -> None:
    """As it is, and as it stands in a URL."""
    for form in (CANARY, quote(CANARY, safe="")):
        assert form not in redact_text(text.format(form), (CANARY,))


def test_a_secret_that_is_part_of_another() -> None:
    """The longer one goes first, or its rest would stay."""
    assert redact_text("abcdefgh and abcd", ("abcd", "abcdefgh")) == "*** and ***"


@pytest.mark.parametrize("secrets", [("",), ("1",), ("on",)])
def test_what_is_too_short_to_be_a_secret_is_left(secrets: tuple[str, ...]) -> None:
    """Masking it would hide the message."""
    assert redact_text("error 1 on line 1", secrets) == "error 1 on line 1"


@pytest.mark.parametrize(
    "text",
    [
        "Connection refused",
        "the model `m` does not exist",
        "This model's maximum context length is 4096 tokens, you asked for 5000",
        '{"max_tokens": 4096, "prompt_tokens": 12}',
        "no connection in 30.0 s",
        "ratio 12:30, mail to ann@example.com",
        "content type 'text/html' is not an answer",
        "disk-space is low; task-runner died",
        "http://host:8000/v1/chat/completions?",
        "",
    ],
)
def test_ordinary_words_are_left(text: str) -> None:
    """A message must still say what went wrong."""
    assert redact_text(text) == text


@pytest.mark.parametrize(
    "piece", ["a:b:", "a.b", "-", "a://", "a@b:", "://", "eyJ-", "eyJ.", "sk-", "api-key", "key= "]
)
def test_the_time_it_takes_grows_with_the_text_only(piece: str) -> None:
    """What begins like a secret everywhere and is none would take minutes otherwise."""
    began = time.process_time()
    redact_text(piece * (200_000 // len(piece)))

    assert time.process_time() - began < 2.0


@given(st.text(), st.text(min_size=8))
def test_any_text_can_be_redacted(text: str, secret: str) -> None:
    """Without a secret that is known, and twice is as good as once."""
    shown = redact_text(f"{text}{secret}{text}", (secret,))

    assert secret not in shown or secret in MASK
    redact_url(text)


@given(
    st.text(alphabet="abc:/@?#=&.[]% 1", max_size=30), st.sampled_from(["u:{}@h", "?k={}", "#{}"])
)
def test_no_part_of_a_url_leaks_by_its_shape(noise: str, shape: str) -> None:
    """Whatever surrounds user info, a query value or a fragment after a scheme."""
    url = f"http://{shape.format(PLAIN)}{noise}"

    assert PLAIN not in redact_url(url)

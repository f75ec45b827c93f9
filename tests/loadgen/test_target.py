"""Which URLs name an endpoint, and the bytes of a request's head."""

from __future__ import annotations

import pytest

from loadgen.errors import TargetError
from loadgen.target import Target, parse_target, render_head

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://host", Target("host", 80, False, "")),
        ("https://host", Target("host", 443, True, "")),
        ("http://host:8000", Target("host", 8000, False, "")),
        ("http://host:8000/", Target("host", 8000, False, "")),
        ("http://host:8000/v1", Target("host", 8000, False, "")),
        ("http://host:8000/v1/", Target("host", 8000, False, "")),
        ("https://host/base/v1", Target("host", 443, True, "/base")),
        ("https://host/base/", Target("host", 443, True, "/base")),
        (
            "https://host/openai/deployments/a%20b",
            Target("host", 443, True, "/openai/deployments/a%20b"),
        ),
        ("http://HOST.Example", Target("host.example", 80, False, "")),
        ("http://127.0.0.1:1", Target("127.0.0.1", 1, False, "")),
        ("http://[::1]:8000/v1", Target("::1", 8000, False, "")),
        ("http://my_service.ns:80", Target("my_service.ns", 80, False, "")),
        ("http://bücher.example", Target("xn--bcher-kva.example", 80, False, "")),
    ],
)
def test_a_url_names_a_target(url: str, target: Target) -> None:
    """With or without /v1, which every path of ours begins with."""
    assert parse_target(url) == target


@pytest.mark.parametrize(
    ("url", "shown", "authority"),
    [
        ("http://host/v1", "http://host", "host"),
        ("https://host:443/base", "https://host/base", "host"),
        ("http://host:443", "http://host:443", "host:443"),
        ("http://[::1]:8000", "http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_a_target_shows_itself(url: str, shown: str, authority: str) -> None:
    """The port only where it is not the scheme's own."""
    target = parse_target(url)

    assert (target.url, target.authority) == (shown, authority)
    assert parse_target(target.url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host",
        "host:8000",
        "ftp://host",
        "http://",
        "http:///v1",
        "http://:8000",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://ho st",
        "http://ho\tst/\x00",
        "http://a..b",
        "http://" + "a" * 64 + ".example",
        "http://[::1",
        "http://[zz]",
        "http://host/a b",
        "http://host/ä",
        f"user:{SECRET}@host:8000",
        f"http://user:{SECRET}@host",
        f"http://{SECRET}@host",
        f"http://user:x/{SECRET}@host",
        f"http://host?key={SECRET}",
        f"http://host/v1#{SECRET}",
        f"http://user:{SECRET}@host:port",
        f"http://user:{SECRET}@ho st",
        f"http://host:port?key={SECRET}",
    ],
)
def test_anything_else_is_told_in_one_sentence(url: str) -> None:
    """Which names the option and keeps what may be a secret."""
    with pytest.raises(TargetError) as raised:
        parse_target(url)
    sentence = str(raised.value)

    assert sentence.startswith("--host: ")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert SECRET not in sentence


def test_a_head() -> None:
    """Request line, Host, then the headers in their order, each ended."""
    target = parse_target("http://host:8000/base")

    assert render_head(target, "POST", "/v1/x", {"A": "1", "B": "é"}) == (
        b"POST /base/v1/x HTTP/1.1\r\nHost: host:8000\r\nA: 1\r\nB: \xe9\r\n"
    )


@pytest.mark.parametrize(
    "headers",
    [{"A": f"{SECRET}\r\nB: 2"}, {"A\n": SECRET}, {"A": f"{SECRET}\0"}, {"A": f"{SECRET}€"}],
)
def test_a_header_cannot_smuggle_another(headers: dict[str, str]) -> None:
    """Nor be anything but Latin-1; its value is not shown."""
    with pytest.raises(TargetError) as raised:
        render_head(parse_target("http://host"), "POST", "/", headers)

    assert SECRET not in str(raised.value)

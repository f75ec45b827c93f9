"""The metronome's HTTP: requests out of bytes, and what is no request."""

from __future__ import annotations

import pytest

from reference_server.rawhttp import MAX_HEAD_BYTES, RawHttpError, chunk, take_head

REQUEST = (
    b"POST /v1/completions?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
    b"X-Request-ID:  abc \r\n\r\nhello"
)


@pytest.mark.parametrize("cut", range(len(REQUEST) - 4))
def test_a_head_is_taken_wherever_the_bytes_are_cut(cut: int) -> None:
    """Until it is complete nothing is taken; then the head goes and the body stays."""
    buffer = bytearray(REQUEST[:cut])
    head = take_head(buffer)
    if head is None:
        buffer += REQUEST[cut:]
        head = take_head(buffer)
    else:
        buffer += REQUEST[cut:]

    assert head is not None
    assert (head.method, head.target, head.body_bytes) == ("POST", "/v1/completions?a=b", 5)
    assert head.headers["x-request-id"] == "abc"
    assert buffer == b"hello"


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
    ],
)
def test_a_connection_is_kept_unless_the_client_says_otherwise(head: bytes, keeps: bool) -> None:
    """HTTP/1.1's default, and 1.0's."""
    taken = take_head(bytearray(head))
    assert taken is not None
    assert taken.keeps_alive is keeps


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"x" * (MAX_HEAD_BYTES + 1), 431),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, status: int) -> None:
    """Each with the status that says why."""
    with pytest.raises(RawHttpError) as caught:
        take_head(bytearray(data))
    assert caught.value.status == status


def test_an_empty_chunk_is_not_written() -> None:
    """It would end the body."""
    assert chunk(b"") == b""
    assert chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"

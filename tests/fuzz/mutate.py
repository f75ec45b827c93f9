"""Inputs out of inputs: what breaks a reader of SSE, JSON and HTTP, more often than chance would.

Pure and seeded: the same ``random.Random`` and the same pool give the same inputs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

MAX_BYTES = 1 << 14
_JSON_VALUE = re.compile(
    rb'"(?:[^"\\\n]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|\[[^\[\]\n]*\]|\{[^{}\n]*\}'
)
_DIGITS = re.compile(rb"[0-9a-fA-F]+")

# Words that steer such a reader, and values of the wrong kind, size or encoding.
SSE_WORDS = (
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\n\r", b" ", b":", b"\x00", b"\xef\xbb\xbf"),
    *(b"data:", b"data: ", b"data", b"event: ", b"event: error\n", b"error: ", b"id: 1\n"),
    *(b"retry: 9\n", b": ping\n\n", b"data: [DONE]\n\n", b'data: "[DONE]"\n\n', b"\xe2\x80\xa8"),
)
JSON_WORDS = (
    *(b"{", b"}", b"[", b"]", b",", b'"', b"\\", b"\\u0000", b"\\ud800", b"\xff", b"null"),
    *(b'"choices":', b'"delta":', b'"content":', b'"finish_reason":"stop"', b'"index":'),
    *(b'"usage":', b'"completion_tokens":', b'"error":', b'"message":', b'"token_ids":[1,2]'),
    *(b'"logprobs":{"content":[{}]}', b'"type":', b'"tool_calls":[{"function":{"name":"f"}}]'),
    *(b'"delta":"x"', b'"response":{', b'"status":"completed"', b'"stop_reason":"end_turn"'),
    *(b'"object":"error"', b'"timings":{"predicted_n":1}', b'"x_groq":{"usage":{}}', b'"text":"t"'),
)
JSON_VALUES = (
    *(b"null", b"true", b"false", b"0", b"-1", b"1.5", b"1e999", b"-0", b"9007199254740993"),
    *(b"18446744073709551616", b"9" * 400, b"0.1e-400", b'""', b'"x"', b'"\\u0000"', b'"[DONE]"'),
    *(b"[]", b"{}", b"[[]]", b"[{}]", b'[""]', b'{"":{}}', b'{"error":1}', b'"error"', b"NaN"),
    *(b"[" * 200 + b"]" * 200, b'{"a":' * 200 + b"1" + b"}" * 200, b'"' + b"y" * 3000 + b'"'),
)
HTTP_WORDS = (
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    *(b"HTTP/1.1 204 No\r\n", b"HTTP/1.1 304 No\r\n", b"HTTP/1.1 101 S\r\n", b"HTTP/2 200\r\n"),
    *(b"HTTP/1.1 429 No\r\nRetry-After: 2\r\n", b"HTTP/1.1 307 Go\r\nLocation: http://x/\r\n"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    *(b"5\r\nhello\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"5;x=y\r\n", b"0\r\nX: y\r\n\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Content-Encoding: br\r\n", b"Content-Encoding: deflate\r\n"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\n"),
    *(b"Upgrade: h2c\r\n", b"Content-Type: text/event-stream\r\n", b"Date: x\r\n", b" folded\r\n"),
    *(b"Content-Type: application/json\r\n", b"Retry-After: Wed, 99 Zzz 9999 99:99:99 GMT\r\n"),
)
WORDS = (*SSE_WORDS, *JSON_WORDS, *JSON_VALUES, *HTTP_WORDS)


class Mutator:
    """Makes inputs of a pool.

    Args:
        draw: where its chances come from.
        pool: what it starts from; whoever owns it may add to it meanwhile.
    """

    def __init__(self, draw: random.Random, pool: Sequence[bytes]) -> None:
        self._draw = draw
        self._pool = pool
        self._ways: tuple[Callable[[bytes], bytes], ...] = (
            *(self._cut, self._repeat, self._flip, self._insert, self._insert, self._splice),
            *(self._swap_lines, self._json_value, self._json_value, self._number, self._end_early),
        )

    def make(self) -> bytes:
        """The next input, at most ``MAX_BYTES`` long."""
        data = self._draw.choice(self._pool)
        for _ in range(1 << self._draw.randrange(4)):
            data = self._draw.choice(self._ways)(data)[:MAX_BYTES]
        return data

    def _span(self, data: bytes, longest: int = 64) -> tuple[int, int]:
        start = self._draw.randint(0, len(data))
        return start, min(len(data), start + self._draw.randint(0, longest))

    def _cut(self, data: bytes) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        start, end = self._span(data, 200)
        return data[:end] + data[start:end] * (1 << self._draw.randrange(6)) + data[end:]

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        changed = bytearray(data)
        for _ in range(self._draw.randint(1, 4)):
            changed[self._draw.randrange(len(changed))] = self._draw.randrange(256)
        return bytes(changed)

    def _insert(self, data: bytes) -> bytes:
        at = self._draw.randint(0, len(data))
        return data[:at] + self._draw.choice(WORDS) + data[at:]

    def _splice(self, data: bytes) -> bytes:
        other = self._draw.choice(self._pool)
        return data[: self._draw.randint(0, len(data))] + other[self._draw.randint(0, len(other)) :]

    def _swap_lines(self, data: bytes) -> bytes:
        lines = data.split(b"\n")
        i, j = self._draw.randrange(len(lines)), self._draw.randrange(len(lines))
        lines[i], lines[j] = lines[j], lines[i]
        return b"\n".join(lines)

    def _json_value(self, data: bytes) -> bytes:
        """One value, or one object or list of plain values, becomes another."""
        return self._replaced(data, _JSON_VALUE, self._draw.choice(JSON_VALUES))

    def _number(self, data: bytes) -> bytes:
        """A length, a status, a count."""
        huge = b"%d" % self._draw.getrandbits(40)
        new = self._draw.choice((b"0", b"1", b"-1", b"7fffffff", huge))
        return self._replaced(data, _DIGITS, new)

    def _replaced(self, data: bytes, what: re.Pattern[bytes], new: bytes) -> bytes:
        found = list(what.finditer(data))
        if not found:
            return data
        match = self._draw.choice(found)
        return data[: match.start()] + new + data[match.end() :]

    def _end_early(self, data: bytes) -> bytes:
        return data[: self._draw.randint(0, len(data))]

"""Embeddings: what is asked for, and what comes back."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from reference_server.ask import Limits
from reference_server.embeddings import embeddings_body, read_embedding_ask, vector
from reference_server.errors import RefusedError
from reference_server.prompt import one_prompt


def answer(**fields: Any) -> dict[str, Any]:
    body = json.dumps(fields).encode()
    ask = read_embedding_ask("application/json", body, Limits(model="m", max_model_len=8))
    answered: dict[str, Any] = json.loads(embeddings_body(ask, "embd-1", "m", 1))
    return answered


def test_a_vector_follows_from_the_text_and_has_length_one() -> None:
    """The same text gives the same vector, another one another."""
    same, again, other = (vector(one_prompt(t, "input"), 64) for t in ("a b", "a b", "a c"))

    assert same == again
    assert same != other
    assert sum(value * value for value in same) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "vectors", "tokens"),
    [
        ("one two", 2, 2),
        (["one two"], 1, 2),
        (["a", "b c"], 2, 3),
        ([4, 5, 6], 1, 3),
        ([[4], [5]], 2, 2),
    ],
)
def test_one_vector_a_text(given: Any, vectors: int, tokens: int) -> None:
    """A text, texts, token ids, or lists of these; usage counts them all."""
    body = answer(input=given)

    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    assert len(body["data"]) == (1 if isinstance(given, str) else vectors)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == tokens


def test_base64_holds_the_same_numbers() -> None:
    """As little-endian 32-bit floats."""
    plain = answer(input="x", dimensions=5)["data"][0]["embedding"]
    packed = answer(input="x", dimensions=5, encoding_format="base64")["data"][0]["embedding"]

    assert struct.unpack("<5f", base64.b64decode(packed)) == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "Field required"),
        ({"input": ""}, "cannot be empty"),
        ({"input": []}, "cannot be empty"),
        ({"input": 3}, "one string or one list"),
        ({"input": "a", "dimensions": 0}, "between 1 and"),
        ({"input": "a", "encoding_format": "hex"}, "float or base64"),
        ({"input": "a b c d e f g h i"}, "maximum context length is 8 tokens"),
        ({"input": "a", "model": "nope"}, "does not exist"),
    ],
)
def test_what_is_wrong_is_refused(fields: dict[str, Any], says: str) -> None:
    """With the sentence that says what."""
    with pytest.raises(RefusedError, match=says):
        answer(**fields)

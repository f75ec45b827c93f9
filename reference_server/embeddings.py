"""The embeddings API: what is asked for, and vectors that follow from the text.

Pure. A vector is made up, of length one, and always the same for the same text and number of
dimensions; texts that mean the same are no nearer to each other than others.
"""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from reference_server.ask import Api, Ask, Limits, check_model, too_long
from reference_server.dialect import compact, utf8
from reference_server.fields import bad, missing, read_fields, whole_number
from reference_server.prompt import Prompt, one_prompt

EMBEDDINGS_PATH = "/v1/embeddings"
DIMENSIONS = 384
_MAX_DIMENSIONS = 8192
_MAX_INPUTS = 2048  # OpenAI's limit


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingAsk:
    """Texts to embed, as the server understood them.

    Attributes:
        prompts: one a vector, at least one.
        dimensions: length of each vector.
        as_base64: the vectors come as base64 of little-endian 32-bit floats, not as numbers.
    """

    prompts: tuple[Prompt, ...]
    dimensions: int
    as_base64: bool

    @property
    def prompt_tokens(self) -> int:
        """Length of all texts together."""
        return sum(prompt.tokens for prompt in self.prompts)

    def asks(self) -> Iterator[Ask]:
        """Each text as the engine sees it: a prompt, computed for a single token."""
        for prompt in self.prompts:
            yield Ask(
                api=Api.COMPLETIONS,
                model=None,
                stream=False,
                usage=False,
                running_usage=False,
                prompt=prompt,
                max_tokens=1,
                max_tokens_asked=None,
                min_tokens=0,
                ignore_eos=False,
                seed=prompt.seed,
            )


def read_embedding_ask(content_type: str, body: bytes, limits: Limits) -> EmbeddingAsk:
    """Read and check the body of a request for embeddings.

    Raises:
        RefusedError: it cannot be answered; carries status and message.
    """
    fields = read_fields(content_type, body)
    check_model(fields, limits)
    given = fields.get("input")
    if given is None:
        raise missing("Field required", "input")
    several = isinstance(given, list) and given and isinstance(given[0], (str, list))
    inputs = given if several else [given]
    if len(inputs) > _MAX_INPUTS:
        raise bad(f"input can hold at most {_MAX_INPUTS} texts, got {len(inputs)}.", "input")
    prompts = tuple(one_prompt(item, "input") for item in inputs)
    context = limits.max_model_len
    for prompt in prompts:
        if context is not None and prompt.tokens > context:
            raise too_long(prompt.tokens, context)
    dimensions = whole_number(fields, "dimensions")
    if dimensions is not None and not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise bad(
            f"dimensions must lie between 1 and {_MAX_DIMENSIONS}, got {dimensions}.", "dimensions"
        )
    encoding = fields.get("encoding_format", "float")
    if encoding not in (None, "float", "base64"):  # what came may not be hashable
        raise bad(f"encoding_format must be float or base64, got {encoding!r}.", "encoding_format")
    return EmbeddingAsk(
        prompts=prompts,
        dimensions=dimensions or DIMENSIONS,
        as_base64=encoding == "base64",
    )


def vector(prompt: Prompt, dimensions: int) -> list[float]:
    """A direction that follows from the text: as many numbers, of length one together."""
    rng = random.Random(prompt.seed)
    values = [rng.gauss(0, 1) for _ in range(dimensions)]
    size = math.sqrt(math.fsum(value * value for value in values)) or 1.0
    return [value / size for value in values]


def embeddings_body(ask: EmbeddingAsk, reply_id: str, model: str, created: int) -> bytes:
    """The body of the reply."""
    data = []
    for index, prompt in enumerate(ask.prompts):
        values = vector(prompt, ask.dimensions)
        packed = struct.pack(f"<{len(values)}f", *values)
        embedding = (
            base64.b64encode(packed).decode() if ask.as_base64 else [round(v, 7) for v in values]
        )
        data.append({"index": index, "object": "embedding", "embedding": embedding})
    usage = {
        "prompt_tokens": ask.prompt_tokens,
        "total_tokens": ask.prompt_tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }
    return utf8(
        compact(
            {
                "id": reply_id,
                "object": "list",
                "created": created,
                "model": model,
                "data": data,
                "usage": usage,
            }
        )
    )

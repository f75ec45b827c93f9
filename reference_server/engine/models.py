"""The shapes of models, from their public configurations; sizes follow from the shapes.

The parameters of a Llama-like decoder of width h with L layers, a query heads and v key-value
heads of size d, and gated feed-forward blocks of width f (E of them where it is a mixture):

    attention     L x (h a d + 2 h v d + a d h)        and 2 v d + a d biases where it has them
    feed-forward  L x E x 3 h f                        and h E for the router of a mixture
    norms         L x 2 h + h
    embedding     vocabulary x h
    head          the same again, unless it is tied to the embedding

Tests compare the sums with the counts that the models' authors publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from reference_server.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A decoder-only transformer.

    Attributes:
        name: by which it is asked for.
        layers: decoder layers.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of one head.
        intermediate: width of a feed-forward block.
        vocabulary: tokens it knows.
        experts: feed-forward blocks a layer; 1: it is no mixture.
        experts_per_token: how many of them a token passes through.
        biased: the query, key and value projections have biases.
        tied: the output head is the embedding.
        max_len: prompt and answer together, in tokens, at most.
        source: where the shape is from.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    experts: int = 1
    experts_per_token: int = 1
    biased: bool = False
    tied: bool = False
    max_len: int
    source: str

    @property
    def attention_parameters(self) -> int:
        """Weights of all attention projections."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        biases = queries + 2 * keys if self.biased else 0
        return self.layers * (2 * self.hidden * queries + 2 * self.hidden * keys + biases)

    @property
    def expert_parameters(self) -> int:
        """Weights of one feed-forward block of every layer."""
        return self.layers * 3 * self.hidden * self.intermediate

    @property
    def shared_parameters(self) -> int:
        """Weights of the layers through which every token passes: all but the feed-forward."""
        router = self.layers * self.hidden * self.experts if self.experts > 1 else 0
        return self.attention_parameters + router + (2 * self.layers + 1) * self.hidden

    @property
    def layer_parameters(self) -> int:
        """Weights of all layers, every expert included."""
        return self.shared_parameters + self.experts * self.expert_parameters

    @property
    def head_parameters(self) -> int:
        """Weights of the output head, whether or not they are the embedding's."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.layer_parameters + embeddings

    @property
    def active_parameters(self) -> int:
        """Weights of the layers that one token passes through."""
        return self.shared_parameters + self.experts_per_token * self.expert_parameters

    @property
    def kv_entries_per_token(self) -> int:
        """Numbers that the KV cache keeps for a token: a key and a value a layer and head."""
        return 2 * self.layers * self.kv_heads * self.head_dim


MODELS: Final[dict[str, Model]] = {
    model.name: model
    for model in (
        Model(
            name="llama-3.1-8b",
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=14_336,
            vocabulary=128_256,
            max_len=131_072,
            source="config.json of meta-llama/Llama-3.1-8B, as in the Llama 3.1 recipes of "
            "github.com/oumi-ai/oumi.",
        ),
        Model(
            name="llama-3.1-70b",
            layers=80,
            hidden=8192,
            heads=64,
            kv_heads=8,
            head_dim=128,
            intermediate=28_672,
            vocabulary=128_256,
            max_len=131_072,
            source="config.json of meta-llama/Llama-3.1-70B, as in the Llama 3.1 recipes of "
            "github.com/oumi-ai/oumi.",
        ),
        Model(
            name="llama-3.2-1b",
            layers=16,
            hidden=2048,
            heads=32,
            kv_heads=8,
            head_dim=64,
            intermediate=8192,
            vocabulary=128_256,
            tied=True,
            max_len=131_072,
            source="config.json of meta-llama/Llama-3.2-1B, as in the Llama 3.2 recipes of "
            "github.com/oumi-ai/oumi.",
        ),
        Model(
            name="qwen2.5-7b",
            layers=28,
            hidden=3584,
            heads=28,
            kv_heads=4,
            head_dim=128,
            intermediate=18_944,
            vocabulary=152_064,
            biased=True,
            max_len=32_768,
            source="config.json of Qwen/Qwen2.5-7B-Instruct (the shape of Qwen2-7B).",
        ),
        Model(
            name="qwen2.5-0.5b",
            layers=24,
            hidden=896,
            heads=14,
            kv_heads=2,
            head_dim=64,
            intermediate=4864,
            vocabulary=151_936,
            biased=True,
            tied=True,
            max_len=32_768,
            source="config.json of Qwen/Qwen2.5-0.5B (the shape of Qwen2-0.5B).",
        ),
        Model(
            name="mistral-7b",
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=14_336,
            vocabulary=32_768,
            max_len=32_768,
            source="params.json of Mistral-7B-v0.3.",
        ),
        Model(
            name="mixtral-8x7b",
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=14_336,
            vocabulary=32_000,
            experts=8,
            experts_per_token=2,
            max_len=32_768,
            source="config.json of mistralai/Mixtral-8x7B-v0.1.",
        ),
        Model(
            name="tiny",
            layers=2,
            hidden=256,
            heads=4,
            kv_heads=2,
            head_dim=64,
            intermediate=512,
            vocabulary=4096,
            max_len=8192,
            source="reference_server/tiny_model.py, which makes it from random weights.",
        ),
    )
}


def model_named(name: str) -> Model:
    """The model of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in MODELS:
        raise SettingsError(f"The model {name!r} is not known; choose one of {', '.join(MODELS)}.")
    return MODELS[name]

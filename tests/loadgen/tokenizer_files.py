"""Tokenizer files, made here: nothing is fetched."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("a", "b", "c", "Hello", "world")


def word_tokenizer(*, limit: int | None = None, starts: bool = False) -> Tokenizer:
    """A token for each word and each sign of punctuation.

    Args:
        limit: tokens to which the file itself says texts are to be cut and filled up.
        starts: puts a token before every text, as most models' tokenizers do.
    """
    vocabulary = {word: number for number, word in enumerate(("[?]", "[S]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[?]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if starts:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[S] $A", special_tokens=[("[S]", 1)]
        )
    if limit is not None:
        tokenizer.enable_truncation(limit)
        tokenizer.enable_padding(length=limit)
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """A token for each byte: byte-level BPE before any merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path) -> str:
    """The path of its file."""
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)

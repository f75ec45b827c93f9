"""Makes a Llama of 3 million random weights, with a tokenizer, from nothing but this machine.

Run by the interpreter of ``.venv-vllm``: ``python tiny_model.py FOLDER``. Seven megabytes, four
seconds, no network: the tokenizer is trained on the manual that comes with Python. The text it
generates is nonsense; its tokens, times and wire format are a real model's.

Random weights hardly ever choose the end of the answer, so answers run to ``max_tokens`` and
finish with ``length``. Special tokens have no text, so an event may carry a token and no text.

With ``--shape`` it has another shape, such as a billion weights that make a GPU work, and with
``--no-weights`` none on disk, for a server that makes random ones itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from pydoc_data.topics import topics  # 700 kB of English in the standard library
from typing import Any

# These three live in .venv-vllm, and nothing else of ours imports this file.
import torch  # type: ignore[import-not-found]
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (  # type: ignore[import-not-found]
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 4096
MAX_LENGTH = 8192  # tokens of prompt and answer together
TINY = {
    "layers": 2,
    "hidden": 256,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 64,
    "intermediate": 512,
    "vocabulary": VOCABULARY,
    "tied": False,
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_tokenizer(folder: Path, *, every_byte: bool, size: int = VOCABULARY) -> int:
    """Train a byte-level BPE tokenizer, save it in ``folder`` and return its size.

    Args:
        folder: where the files go.
        size: tokens that it shall know; those beyond the trained ones stand for made-up words that
            no prompt is cut into, so that whatever a model of that vocabulary says has a text.
        every_byte: with the whole byte alphabet about 3 % of sampled tokens are parts of UTF-8
            characters, which a server holds back until they are whole; otherwise ASCII only.
    """
    texts = [text for _, text in sorted(topics.items())]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if not every_byte:
        texts = [text.encode("ascii", "ignore").decode() for text in texts]
        printable = "\t\n" + "".join(map(chr, range(32, 127)))
        alphabet = sorted({c for c in printable if c in alphabet})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if size > VOCABULARY:
        whole = json.loads(tokenizer.to_str())
        known = whole["model"]["vocab"]
        known |= {f"\u0120w{n}": n for n in range(len(known), size)}  # a blank, then the word
        tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",  # noqa: S106  # tokens of text, not secrets
        bos_token="<|bos|>",  # noqa: S106
        eos_token="<|eos|>",  # noqa: S106
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    return len(wrapped)


def save_weights(folder: Path, vocabulary: int, shape: dict[str, Any], *, weights: bool) -> None:
    """Save a Llama of that shape for a vocabulary of that size, its seeded random weights as well.

    Args:
        folder: where the files go.
        vocabulary: tokens of its tokenizer.
        shape: fields of `reference_server.engine.models.Model`.
        weights: whether to make weights, or only say what they would be like.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=vocabulary,
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=shape["tied"],
        pad_token_id=SPECIAL.index("<|pad|>"),
        bos_token_id=SPECIAL.index("<|bos|>"),
        eos_token_id=SPECIAL.index("<|eos|>"),
        initializer_range=0.05,
    )
    if weights:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    else:
        config.save_pretrained(folder)


def main(argv: list[str]) -> None:
    """Make the model in the folder named."""
    parser = argparse.ArgumentParser(description="Make a tiny random-weight model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--every-byte", action="store_true", help="a tokenizer that can say any byte, not only text"
    )
    parser.add_argument(
        "--shape", type=json.loads, default={}, help="what differs from the tiny one"
    )
    parser.add_argument("--no-weights", action="store_true", help="config and tokenizer only")
    options = parser.parse_args(argv)
    shape = TINY | options.shape
    options.folder.mkdir(parents=True, exist_ok=True)
    vocabulary = save_tokenizer(
        options.folder, every_byte=options.every_byte, size=shape["vocabulary"]
    )
    save_weights(options.folder, vocabulary, shape, weights=not options.no_weights)


if __name__ == "__main__":
    main(sys.argv[1:])

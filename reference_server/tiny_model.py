"""Makes a Llama of 3 million random weights, with a tokenizer, from nothing but this machine.

Run by the interpreter of ``.venv-vllm``: ``python tiny_model.py FOLDER``. Seven megabytes, four
seconds, no network: the tokenizer is trained on the manual that comes with Python. The text it
generates is nonsense; its tokens, times and wire format are a real model's.

Random weights hardly ever choose the end of the answer, so answers run to ``max_tokens`` and
finish with ``length``. Special tokens have no text, so an event may carry a token and no text.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from pydoc_data.topics import topics  # 700 kB of English in the standard library

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
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_tokenizer(folder: Path, *, every_byte: bool) -> int:
    """Train a byte-level BPE tokenizer, save it in ``folder`` and return its size.

    Args:
        folder: where the files go.
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


def save_weights(folder: Path, vocabulary: int) -> None:
    """Save a seeded random Llama of two layers for a vocabulary of that size."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=False,
        pad_token_id=SPECIAL.index("<|pad|>"),
        bos_token_id=SPECIAL.index("<|bos|>"),
        eos_token_id=SPECIAL.index("<|eos|>"),
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def main(argv: list[str]) -> None:
    """Make the model in the folder named."""
    parser = argparse.ArgumentParser(description="Make a tiny random-weight model.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--every-byte", action="store_true", help="a tokenizer that can say any byte, not only text"
    )
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    save_weights(options.folder, save_tokenizer(options.folder, every_byte=options.every_byte))


if __name__ == "__main__":
    main(sys.argv[1:])

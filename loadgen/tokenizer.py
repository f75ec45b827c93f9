"""Counting tokens here, by a tokenizer file of the user's, where a server tells none.

The file is a Hugging Face ``tokenizer.json``, read by the package ``tokenizers`` (an extra).
Nothing is ever fetched. A count leaves out what is not in the text: a chat template's tokens, the
end of the answer, hidden reasoning. And a text cut into tokens anew may be cut better than it was
generated. So a count is mostly a little low.

Light to import: the package is loaded with the first file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collectors.redact import redact_text
from loadgen.errors import OptionError

_TRIAL = "The quick brown fox."
_MAX_BYTES = 256 * 1024 * 1024


class Tokenizer:
    """One tokenizer file.

    Attributes:
        name: of the file.
        digest: SHA-256 of its bytes, 16 hex digits, to know it again.
    """

    def __init__(self, name: str, data: bytes, engine: Any) -> None:
        self.name = name
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        self._engine = engine

    def count(self, texts: Sequence[str], *, special: bool = False) -> list[int]:
        """Tokens of each text.

        The interpreter is free meanwhile. That is why it is this call and no other: ``encode``
        holds the interpreter's lock for as long as it takes.

        Args:
            texts: each by itself.
            special: with the tokens that the tokenizer puts around a text (the beginning of a
                prompt), as a server does with the text of a prompt.
        """
        return [len(e) for e in self._engine.encode_batch_fast(texts, add_special_tokens=special)]


def read_tokenizer(path: str) -> Tokenizer:
    """The tokenizer in a file.

    Raises:
        OptionError: one sentence: no such file, no tokenizer in it, or the package is missing.
    """
    data = _read(path)
    # One thread: counting takes one core at most, and warns of nothing after a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        import tokenizers  # noqa: PLC0415  # an extra, and only where it is asked for
    except ImportError:
        raise OptionError(
            "--tokenizer needs the package tokenizers, which is not installed:"
            " pip install 'streamgauge[tokenizer]'."
        ) from None
    try:
        engine: Any = tokenizers.Tokenizer.from_buffer(data)
        engine.no_truncation()  # a limit for training would be one for counts
        engine.no_padding()
        tokenizer = Tokenizer(Path(path).name, data, engine)
        usable = tokenizer.count([_TRIAL]) > [0]
    except Exception as error:  # noqa: BLE001  # the package raises nothing more special
        words = redact_text(" ".join(str(error).split()))[:200]
    else:
        if usable:
            return tokenizer
        words = "it makes no token of plain text"
    raise OptionError(
        f"--tokenizer: expected a Hugging Face tokenizer.json; {redact_text(path)!r}"
        f" does not serve: {words}."
    )


def _read(path: str) -> bytes:
    try:
        if os.path.getsize(path) > _MAX_BYTES:  # noqa: PTH202  # a name with NUL is no Path, either
            raise OptionError(f"--tokenizer: {redact_text(path)!r} is too large for one.")
        return Path(path).read_bytes()
    except IsADirectoryError:
        words = "it is a folder; name the tokenizer.json in it"
    except OSError as error:
        words = error.strerror or type(error).__name__
    except ValueError:
        words = "its name is no path"
    raise OptionError(f"--tokenizer: cannot read {redact_text(path)!r}: {words}.")

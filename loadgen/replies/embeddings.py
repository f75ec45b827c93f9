"""The embeddings API: one JSON body of vectors. No tokens come out, and nothing is streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

from collectors.records import TokenSource
from loadgen.reply import Reply
from loadgen.usage import Usage


class EmbeddingsReply(Reply):
    """Vectors, as numbers or base64; one of them makes the answer whole."""

    __slots__ = ()

    ENDING: ClassVar[str] = "an embedding"

    def _chunk(self, payload: dict[str, Any], at: float, read: int, delay: float | None) -> None:
        """Nothing that this API says comes as an event."""

    def _whole(self, payload: dict[str, Any]) -> None:
        items, usage = payload.get("data"), payload.get("usage")
        for item in items if isinstance(items, list) else ():
            self.n_answer += bool(isinstance(item, dict) and item.get("embedding"))
        if isinstance(usage, dict):
            self._keep_usage(usage)

    @property
    def finished(self) -> bool:
        """A vector came."""
        return self.n_answer > 0

    def tokens(self) -> tuple[Usage, TokenSource | None]:
        """The input's; an output has none, whatever the server says."""
        if self._usage is None:
            return Usage(), None
        return replace(self._read_usage(self._usage), output_tokens=None), TokenSource.USAGE

    def flags(self) -> Iterator[str]:
        """Without ``not_streamed``: a whole body is how this API answers."""
        return (flag for flag in super().flags() if flag != "not_streamed")

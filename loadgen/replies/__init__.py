"""How each API answers: one class for each, all of them a :class:`loadgen.reply.Reply`."""

from __future__ import annotations

from loadgen.fingerprint import AnswerChain
from loadgen.replies.chat import ChatReply
from loadgen.replies.embeddings import EmbeddingsReply
from loadgen.replies.messages import MessagesReply
from loadgen.replies.responses import ResponsesReply
from loadgen.reply import Reply
from loadgen.said import Said

_READERS: dict[str, type[Reply]] = {
    "chat": ChatReply,
    "completions": ChatReply,
    "responses": ResponsesReply,
    "messages": MessagesReply,
    "embeddings": EmbeddingsReply,
}


def make_reply(
    api: str, choices: int = 1, chain: AnswerChain | None = None, said: Said | None = None
) -> Reply:
    """The reader of one answer.

    Args:
        api: one of the keys of ``loadgen.client.API_PATHS``.
        choices: how many answers were asked for; only completions know more than one.
        chain: is given what the first of them says; ``None`` where nobody wants to know.
        said: is given what all of them say, likewise.
    """
    reader = _READERS[api]
    return reader(choices if reader is ChatReply else 1, chain, said)

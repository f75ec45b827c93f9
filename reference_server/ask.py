"""What a client asks for, read from the body of its request and checked the way vLLM checks it.

Pure. What is not known is ignored, as vLLM ignores it; what is known and wrong is refused with
vLLM's status, message and shape. An answer always has the length asked for (`max_tokens`), unless
the caller gives answers a chance to end early.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reference_server.errors import RefusedError
from reference_server.text import TOKENS_OF_OPENING, TOKENS_PER_MESSAGE, count_tokens

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server allows, and what it takes where the client says nothing.

    Attributes:
        model: the one model served; None accepts any name.
        max_model_len: prompt and answer together, in tokens; None: no limit.
        default_tokens: length of an answer whose request gives none.
    """

    model: str | None = None
    max_model_len: int | None = None
    default_tokens: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for an answer, as the server understood it.

    Attributes:
        model: the name as the client gave it; None where it gave none.
        max_tokens: length of the answer at most, at least 1.
        max_tokens_asked: the same as the client gave it; None where it gave none.
        min_tokens: the answer may not end before.
        seed: what the words of the answer follow from; the prompt's own, and the client's.
    """

    chat: bool
    model: str | None
    stream: bool
    usage: bool
    running_usage: bool
    prompt_tokens: int
    max_tokens: int
    max_tokens_asked: int | None
    min_tokens: int
    ignore_eos: bool
    seed: int


def read_ask(path: str, content_type: str, body: bytes, limits: Limits) -> Ask:
    """Read and check the body of a request for an answer.

    Args:
        path: ``CHAT_PATH`` or ``COMPLETIONS_PATH``.
        content_type: the header as sent, empty where there was none.
        body: the whole body.
        limits: what is allowed.

    Raises:
        RefusedError: it cannot be answered; carries status and message.
    """
    fields = read_fields(content_type, body)
    chat = path == CHAT_PATH
    model = fields.get("model")
    if limits.model is not None and model not in {None, limits.model}:
        raise RefusedError(
            404,
            f"The model `{model}` does not exist. Valid aliases: {limits.model}.",
            "NotFoundError",
            "model",
        )
    prompt_tokens = _chat_tokens(fields) if chat else _prompt_tokens(fields)
    stream = _flag(fields, "stream")
    options = fields.get("stream_options")
    if options is not None and not stream:
        raise _bad("Stream options can only be defined when `stream=True`.", "stream_options")
    options = options if isinstance(options, Mapping) else {}
    usage = _flag(options, "include_usage")
    if _whole_number(fields, "n") not in {None, 1}:
        raise _bad("This server gives one answer a request; n must be 1.", "n")
    asked, max_tokens = _answer_length(fields, prompt_tokens, limits)
    min_tokens = _whole_number(fields, "min_tokens") or 0
    if not 0 <= min_tokens <= max_tokens:
        raise _bad(
            "min_tokens must be greater than or equal to 0 and less than or equal to "
            f"max_tokens={max_tokens}, got {min_tokens}.",
            "min_tokens",
        )
    seed = _whole_number(fields, "seed")
    prompt = fields["messages" if chat else "prompt"]
    return Ask(
        chat=chat,
        model=model,
        stream=stream,
        usage=usage,
        running_usage=usage and _flag(options, "continuous_usage_stats"),
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        max_tokens_asked=asked,
        min_tokens=min_tokens,
        ignore_eos=_flag(fields, "ignore_eos"),
        seed=zlib.crc32(json.dumps(prompt).encode(), (seed or 0) & 0xFFFFFFFF),
    )


def read_fields(content_type: str, body: bytes) -> Mapping[str, Any]:
    """The JSON object in a request's body.

    Raises:
        RefusedError: the content type is not JSON, or the body is no JSON object.
    """
    if content_type.split(";", maxsplit=1)[0].strip().lower() != "application/json":
        raise RefusedError(
            400, "Unsupported Media Type: Only 'application/json' is allowed", "Bad Request"
        )
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        at = getattr(error, "pos", 0)
        reason = getattr(error, "msg", "not UTF-8, or nested too deeply")
        raise RefusedError(
            400,
            f"1 validation error: {{'type': 'json_invalid', 'loc': ('body', {at}), "
            f"'msg': 'JSON decode error', 'ctx': {{'error': '{reason}'}}}}",
            "Bad Request",
            f"body.{at}",
        ) from error
    if not isinstance(fields, dict):
        raise _missing("Input should be a valid dictionary", "body")
    return fields


def prompt_text(fields: Mapping[str, Any]) -> str:
    """The text of a prompt, or of all messages, as ``/tokenize`` counts it.

    Raises:
        RefusedError: there is neither.
    """
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return prompt
    return " ".join(_content(message.get("content")) for message in _messages(fields))


def _chat_tokens(fields: Mapping[str, Any]) -> int:
    return TOKENS_OF_OPENING + sum(
        TOKENS_PER_MESSAGE + count_tokens(_content(message.get("content")))
        for message in _messages(fields)
    )


def _messages(fields: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = fields.get("messages")
    if messages is None:
        raise _missing("Field required", "messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise _missing("Input should be a valid list", "messages")
    if not messages:
        raise _bad(
            "Cannot apply chat template to an empty conversation; messages must hold at least one.",
            "messages",
        )
    return messages


def _content(content: Any) -> str:
    """A message's text: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return " ".join(part for part in parts if isinstance(part, str))
    return ""


def _prompt_tokens(fields: Mapping[str, Any]) -> int:
    prompt = fields.get("prompt")
    if prompt is None:
        raise _missing("Field required", "prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        tokens = count_tokens(prompt)
    elif isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        tokens = len(prompt)
    else:
        raise _bad("prompt must be one string or one list of token ids.", "prompt")
    if not tokens:
        raise _bad("The prompt cannot be empty.", "prompt")
    return tokens


def _answer_length(
    fields: Mapping[str, Any], prompt_tokens: int, limits: Limits
) -> tuple[int | None, int]:
    """Length as asked for (None: not at all) and as it will be, checked against the context."""
    newer = _whole_number(fields, "max_completion_tokens")
    asked = newer if newer is not None else _whole_number(fields, "max_tokens")
    if asked is not None and asked < 1:
        raise _bad(f"max_tokens must be at least 1, got {asked}.", "max_tokens")
    context = limits.max_model_len
    if context is None:
        return asked, asked or limits.default_tokens
    if asked is not None and asked > context:
        raise _bad(
            f"max_tokens={asked} cannot be greater than max_model_len={context}. "
            "Please request fewer output tokens.",
            "max_tokens",
        )
    room = context - prompt_tokens
    if room < (asked or 1):
        also = f" and you requested {asked} output tokens" if asked else ""
        raise _bad(
            f"This model's maximum context length is {context} tokens. However, your prompt "
            f"contains {prompt_tokens} input tokens{also}. Please reduce the length of the prompt "
            "or the number of output tokens requested.",
            "input_tokens",
        )
    return asked, asked or min(limits.default_tokens, room)


def _whole_number(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise _missing("Input should be a valid integer", name)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _missing("Input should be a valid boolean", name)


def _bad(message: str, param: str) -> RefusedError:
    return RefusedError(400, message, "BadRequestError", param)


def _missing(message: str, param: str) -> RefusedError:
    return RefusedError(400, f"1 validation error: {message}: {param}", "Bad Request", param)

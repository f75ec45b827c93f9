"""What a client asks for, read from the body of its request and checked the way vLLM checks it.

Pure. What is not known is ignored, as vLLM ignores it; what is known and wrong is refused with
vLLM's status, message and shape. An answer always has the length asked for (`max_tokens`), unless
the caller gives answers a chance to end early.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from reference_server.errors import RefusedError
from reference_server.fields import Fields, bad, flag, mapping, missing, read_fields, whole_number
from reference_server.messages import MESSAGES_PATH, messages_as_chat
from reference_server.prompt import Prompt, chat_prompt, plain_prompts, text_of
from reference_server.script import Function

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
RESPONSES_PATH = "/v1/responses"

MAX_LOGPROBS = 20  # vLLM's default


class Api(StrEnum):
    """In which API's words it is asked and answered."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"


API_OF_PATH = {
    CHAT_PATH: Api.CHAT,
    COMPLETIONS_PATH: Api.COMPLETIONS,
    RESPONSES_PATH: Api.RESPONSES,
    MESSAGES_PATH: Api.MESSAGES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server allows, and what it takes where the client says nothing.

    Attributes:
        model: the one model served; None accepts any name.
        max_model_len: prompt and answer together, in tokens; None: no limit.
        default_tokens: length of an answer whose request gives none.
        max_choices: answers to one request.
    """

    model: str | None = None
    max_model_len: int | None = None
    default_tokens: int = 128
    max_choices: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One answer that is asked for, as the server understood it.

    Attributes:
        model: the name as the client gave it; None where it gave none.
        usage: an event with usage closes the stream.
        running_usage: every event carries the usage so far.
        max_tokens: length of the answer at most, at least 1.
        max_tokens_asked: the same as the client gave it; None where it gave none.
        min_tokens: the answer may not end before.
        seed: what the words of the answer follow from; the prompt's own, and the client's.
        choices: how many answers to the prompt; this is one of them.
        stop: strings that end an answer; none is empty.
        logprobs: so many alternatives are told beside each token; None: nothing is told.
        token_ids: each event tells its tokens' ids, and the first those of the prompt.
        reasons: the answer begins with reasoning.
        shows_reasoning: and that is shown.
        function: the tool it calls; None: it is text.
        stream_interval: tokens an event, after the first one.
        priority: the lower, the more urgent.
    """

    api: Api
    model: str | None
    stream: bool
    usage: bool
    running_usage: bool
    prompt: Prompt
    max_tokens: int
    max_tokens_asked: int | None
    min_tokens: int
    ignore_eos: bool
    seed: int
    choices: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    token_ids: bool = False
    reasons: bool = False
    shows_reasoning: bool = True
    function: Function | None = None
    stream_interval: int = 1
    priority: int = 0

    @property
    def chat(self) -> bool:
        """A chat completion."""
        return self.api is Api.CHAT

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self.prompt.tokens


def read_asks(path: str, content_type: str, body: bytes, limits: Limits) -> list[Ask]:
    """Read and check the body of a request for answers.

    Args:
        path: one of `API_OF_PATH`.
        content_type: the header as sent, empty where there was none.
        body: the whole body.
        limits: what is allowed.

    Returns:
        One for each answer: those to the first prompt, then those to the next one. They are alike
        but for the seed, which counts up, as vLLM counts it up (v1/engine/parallel_sampling.py).

    Raises:
        RefusedError: it cannot be answered; carries status and message.
    """
    fields = read_fields(content_type, body)
    api = API_OF_PATH[path]
    model = check_model(fields, limits)
    if api is Api.RESPONSES:
        fields = _as_chat(fields)
    elif api is Api.MESSAGES:
        fields = messages_as_chat(fields)
    prompts = plain_prompts(fields) if api is Api.COMPLETIONS else [chat_prompt(fields)]
    seed = whole_number(fields, "seed") or 0
    asks = []
    for prompt in prompts:
        ask = _read_ask(fields, api, model, prompt, limits)
        asks += [
            replace(ask, seed=_seed(prompt, seed + index)) if index else ask
            for index in range(ask.choices)
        ]
    return asks


def read_ask(path: str, content_type: str, body: bytes, limits: Limits) -> Ask:
    """The same for a server that gives one answer a request.

    Raises:
        RefusedError: more are asked for, too.
    """
    asks = read_asks(path, content_type, body, limits)
    if len(asks) > 1:
        raise bad("This server answers one prompt a request.", "prompt")
    return asks[0]


def _read_ask(fields: Fields, api: Api, model: str | None, prompt: Prompt, limits: Limits) -> Ask:
    """The first answer to a prompt."""
    plain = api is Api.COMPLETIONS
    stream = flag(fields, "stream")
    usage, running = _usage(fields, stream=stream)
    asked, max_tokens = _answer_length(fields, prompt.tokens, limits)
    reasons = not plain and _reasons(fields)
    return Ask(
        api=api,
        model=model,
        stream=stream,
        usage=usage,
        running_usage=running,
        prompt=prompt,
        max_tokens=max_tokens,
        max_tokens_asked=asked,
        min_tokens=_min_tokens(fields, max_tokens),
        ignore_eos=flag(fields, "ignore_eos"),
        seed=_seed(prompt, whole_number(fields, "seed") or 0),
        choices=_choices(fields, limits),
        stop=_stop(fields),
        logprobs=_logprobs(fields, plain=plain),
        token_ids=flag(fields, "return_token_ids"),
        reasons=reasons,
        shows_reasoning=fields.get("include_reasoning") is not False,
        function=None if plain else _function(fields),
        stream_interval=whole_number(fields, "stream_interval") or 1,
        priority=whole_number(fields, "priority") or 0,
    )


def _seed(prompt: Prompt, seed: int) -> int:
    """What an answer's words follow from: what is asked, and the client's seed."""
    return zlib.crc32(prompt.seed.to_bytes(4, "big"), seed & 0xFFFFFFFF)


def check_model(fields: Fields, limits: Limits) -> str | None:
    """The model's name as the client gave it.

    Raises:
        RefusedError: another one is served, or it is no name.
    """
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise missing("Input should be a valid string", "model")
    if limits.model is not None and model not in {None, limits.model}:
        raise RefusedError(
            404,
            f"The model `{model}` does not exist. Valid aliases: {limits.model}.",
            "NotFoundError",
            "model",
        )
    return model


def _usage(fields: Fields, *, stream: bool) -> tuple[bool, bool]:
    """Whether usage closes the stream, and whether every event carries it."""
    if fields.get("stream_options") is not None and not stream:
        raise bad("Stream options can only be defined when `stream=True`.", "stream_options")
    options = mapping(fields, "stream_options")
    usage = flag(options, "include_usage")
    return usage, usage and flag(options, "continuous_usage_stats")


def _choices(fields: Fields, limits: Limits) -> int:
    choices = whole_number(fields, "n")
    if choices is None or choices == 1:
        return 1
    if limits.max_choices == 1:
        raise bad("This server gives one answer a request; n must be 1.", "n")
    if choices < 1:
        raise bad(f"n must be at least 1, got {choices}.", "n")
    if choices > limits.max_choices:
        raise bad(f"n must be at most {limits.max_choices}, got {choices}.", "n")
    return choices


def _min_tokens(fields: Fields, max_tokens: int) -> int:
    min_tokens = whole_number(fields, "min_tokens") or 0
    if not 0 <= min_tokens <= max_tokens:
        raise bad(
            "min_tokens must be greater than or equal to 0 and less than or equal to "
            f"max_tokens={max_tokens}, got {min_tokens}.",
            "min_tokens",
        )
    return min_tokens


def _stop(fields: Fields) -> tuple[str, ...]:
    stop = fields.get("stop")
    words = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise missing("Input should be a valid string", "stop")
    if not all(words):
        raise bad("stop cannot contain an empty string.", "stop")
    return tuple(words)


def _logprobs(fields: Fields, *, plain: bool) -> int | None:
    """Alternatives to tell of each token: a completion's number, or a chat's flag and number."""
    if plain:
        number = whole_number(fields, "logprobs")
    else:
        number = whole_number(fields, "top_logprobs")
        if not flag(fields, "logprobs"):
            if number:
                raise bad("when using `top_logprobs`, `logprobs` must be set to true.", "logprobs")
            return None
        number = number or 0
    if number is not None and not 0 <= number <= MAX_LOGPROBS:
        raise bad(
            f"Requested sample logprobs of {number}, which is greater than max allowed: "
            f"{MAX_LOGPROBS}",
            "logprobs",
        )
    return number


def _reasons(fields: Fields) -> bool:
    """Whether the client asked for reasoning, in any of the ways that models know."""
    template = mapping(fields, "chat_template_kwargs")
    if any(name in template for name in ("enable_thinking", "thinking")):
        return bool(template.get("enable_thinking") or template.get("thinking"))
    effort = fields.get("reasoning_effort")
    if effort is not None:
        return bool(effort != "none")
    return fields.get("include_reasoning") is True


def _function(fields: Fields) -> Function | None:
    """The tool that is called: the one asked for, else the first one.

    None is called where none is wanted, and where the last message is what a tool answered.
    """
    tools = fields.get("tools")
    choice = fields.get("tool_choice")
    functions = [
        mapping(tool, "function") for tool in tools if isinstance(tool, dict)
    ] if isinstance(tools, list) else []  # fmt: skip
    if isinstance(choice, dict):
        name = mapping(choice, "function").get("name")
        functions = [function for function in functions if function.get("name") == name]
        if not functions:
            raise bad(
                "The tool specified in `tool_choice` does not match any of the specified `tools`",
                "tool_choice",
            )
    elif choice == "required" and not functions:
        raise bad("When using `tool_choice`, `tools` must be set.", "tool_choice")
    last = fields["messages"][-1]
    if not functions or choice == "none" or last.get("role") == "tool":
        return None
    parameters = mapping(functions[0], "parameters")
    required, properties = parameters.get("required"), mapping(parameters, "properties")
    names = required if isinstance(required, list) and required else list(properties)
    return Function(
        name=str(functions[0].get("name", "")), argument=str(names[0]) if names else "input"
    )


def _as_chat(fields: Fields) -> Fields:
    """A request of the Responses API in the chat API's words."""
    given = fields.get("input")
    if isinstance(given, str):
        items: Any = [{"role": "user", "content": given}]
    elif isinstance(given, list) and all(isinstance(item, dict) for item in given):
        items = [_as_message(item) for item in given]
    elif given is None:
        raise missing("Field required", "input")
    else:
        raise missing("Input should be a valid string or list", "input")
    instructions = fields.get("instructions")
    if isinstance(instructions, str):
        items.insert(0, {"role": "system", "content": instructions})
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    same = (
        "stream",
        "seed",
        "ignore_eos",
        "min_tokens",
        "stop",
        "chat_template_kwargs",
        "priority",
    )
    return {
        "messages": items,
        "max_completion_tokens": whole_number(fields, "max_output_tokens"),
        "reasoning_effort": mapping(fields, "reasoning").get("effort"),
        "tools": [{"function": tool} for tool in tools] if isinstance(tools, list) else None,
        "tool_choice": {"function": choice} if isinstance(choice, dict) else choice,
        **{name: fields.get(name) for name in same},
    }


def _as_message(item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type") == "function_call_output":
        return {"role": "tool", "content": str(item.get("output", ""))}
    if item.get("type") == "function_call":
        return {"role": "assistant", "content": str(item.get("arguments", ""))}
    return {"role": item.get("role", "user"), "content": text_of(item.get("content"))}


def _answer_length(fields: Fields, prompt_tokens: int, limits: Limits) -> tuple[int | None, int]:
    """Length as asked for (None: not at all) and as it will be, checked against the context."""
    newer = whole_number(fields, "max_completion_tokens")
    name = "max_tokens" if newer is None else "max_completion_tokens"
    asked = whole_number(fields, name)
    if asked is not None and asked < 1:
        raise bad(f"max_tokens must be at least 1, got {asked}.", "max_tokens")
    context = limits.max_model_len
    if context is None:
        return asked, asked or limits.default_tokens
    if asked is not None and asked > context:
        raise bad(
            f"{name}={asked} cannot be greater than max_model_len={context}. Please request "
            f"fewer output tokens. (parameter={name}, value={asked})",
            name,
        )
    room = context - prompt_tokens
    if room < 1:
        raise too_long(prompt_tokens, context)
    # As vLLM's `get_max_tokens`: one that is too long gets what there is room for.
    return asked, min(asked or limits.default_tokens, room)


def too_long(prompt_tokens: int, context: int) -> RefusedError:
    """The prompt leaves no room in the context."""
    return bad(
        f"This model's maximum context length is {context} tokens. However, your prompt "
        f"contains {prompt_tokens} input tokens, which exceeds this limit even without any output "
        "tokens. Please reduce the length of the input prompt. (parameter=input_tokens, "
        f"value={prompt_tokens})",
        "input_tokens",
    )

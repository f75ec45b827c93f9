"""Ways in which other servers differ from vLLM, and which leave an answer whole.

Each is something that a server in the field does (the comments name some); a test can have any of
them together.
"""

from __future__ import annotations

from enum import StrEnum


class Quirk(StrEnum):
    """One way to differ."""

    NO_DONE = "no-done"  # transformers serve: the stream ends without [DONE]
    NO_USAGE = "no-usage"  # llama-cpp-python: usage is never told
    USAGE_ON_FINISH = "usage-on-finish"  # DeepSeek, Mistral: asked for or not
    RUNNING_USAGE = "running-usage"  # Gemini: in every event, asked for or not
    LATE_HEAD = "late-head"  # SGLang: the response head waits for the first token
    ROLE_EARLY = "role-early"  # transformers serve: the role event comes at once
    ROLE_MERGED = "role-merged"  # TGI, OpenRouter: every event names the role, none does only that
    FINISH_APART = "finish-apart"  # OpenAI, SGLang, llama.cpp: in an event without output
    EMPTY_EVENTS = "empty-events"  # every fourth token's text comes with the next one
    MERGED_EVENTS = "merged-events"  # a buffering proxy: four events a write
    CRLF = "crlf"  # .NET gateways: lines end in CR LF
    COMMENTS = "comments"  # OpenRouter, LiteLLM: a comment before every event
    REASONING_CONTENT = "reasoning-content"  # SGLang, DeepSeek: the field's older name
    SPLIT_EVENTS = "split-events"  # large TLS records, small buffers: each event in two writes
    NO_SPACE = "no-space"  # DashScope, Kimi: no blank after the field's colon
    AFTER_DONE = "after-done"  # gateways that append what they know after [DONE]
    UNTERMINATED = "unterminated"  # hand-made servers: no [DONE], no blank line at the end
    LATE_REFUSAL = "late-refusal"  # vLLM, often: a full queue is told inside a 200
    PLAIN_TYPE = "plain-type"  # a stream that says it is text/plain


EVERY = 4
"""Events a write under `Quirk.MERGED_EVENTS`; tokens to an event without text under the other."""

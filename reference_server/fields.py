"""Reading single fields of a request's JSON, and refusing what is wrong the way vLLM refuses it.

Pure. ``None`` (also: the field is absent) passes everywhere, as it does there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from reference_server.errors import RefusedError

Fields = Mapping[str, Any]


def read_fields(content_type: str, body: bytes) -> Fields:
    """The JSON object in a request's body.

    Args:
        content_type: the header as sent, empty where there was none.
        body: the whole body.

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
        raise missing("Input should be a valid dictionary", "body")
    return fields


def whole_number(fields: Fields, name: str) -> int | None:
    """An integer field."""
    value = fields.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise missing("Input should be a valid integer", name)


def flag(fields: Fields, name: str) -> bool:
    """A boolean field; absent is false."""
    value = fields.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise missing("Input should be a valid boolean", name)


def mapping(fields: Fields, name: str) -> Fields:
    """An object field; what is none is empty."""
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def bad(message: str, param: str) -> RefusedError:
    """What is well-formed and cannot be done."""
    return RefusedError(400, message, "BadRequestError", param)


def missing(message: str, param: str) -> RefusedError:
    """What is absent, or of the wrong type."""
    return RefusedError(400, f"1 validation error: {message}: {param}", "Bad Request", param)

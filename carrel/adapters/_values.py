"""Values of other libraries as JSON, and the messages of a conversation so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic_core import to_jsonable_python

from carrel.agents import Request
from carrel.errors import InvalidResultError

__all__ = ["answer_of", "conversation", "shown", "to_json"]

_MAX_SHOWN: Final = 24 * 1024


def to_json(value: object) -> Any:
    """As JSON values: models, dataclasses, dates and the like as pydantic writes them, what it does not know as text.

    Raises:
        ValueError: It refers to itself, or nests too deeply.
    """
    return to_jsonable_python(value, fallback=str, inf_nan_mode="strings", bytes_mode="base64")


def shown(value: object) -> Any:
    """The value for an event: what is too long for one as its beginning."""
    try:
        told = to_json(value)
        text = json.dumps(told, ensure_ascii=False)
    except ValueError:
        return f"<{type(value).__name__}>"
    return told if len(text.encode("utf-8", "replace")) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN // 8]}…"


def answer_of(output: object) -> Mapping[str, Any]:
    """An agent's output as the stage's result: text as ``answer``, an object as it is, anything else as ``answer``.

    Raises:
        InvalidResultError: It cannot be written as JSON.
    """
    try:
        value = to_json(output)
    except ValueError:
        raise InvalidResultError(
            f"the agent's output, a {type(output).__name__}, cannot be written as JSON",
            advice="give the adapter `answer=`, a function that makes a dict of it",
        ) from None
    return value if isinstance(value, dict) else {"answer": value}


def conversation(request: Request) -> list[dict[str, Any]]:
    """The thread's messages so far and the new one, as role and content."""
    earlier = [{"role": message.role, "content": message.text} for message in request.history]
    return [*earlier, {"role": "user", "content": request.message}]

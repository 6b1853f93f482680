"""What a forwarded request may not name: what the endpoint keeps under the operator's key, which is every user's.

Looked at are the fields that the endpoint resolves. Not what only looks so: an answer's annotations that are sent back,
and the schemas of the caller's own functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from carrel.errors import ModelRefusedError

__all__ = ["refuse_references"]

_FIELDS: Final = ("previous_response_id", "conversation", "background", "prompt")
_IDS: Final = ("file_id", "file_ids")
_IDS_OF_TOOLS: Final = (*_IDS, "vector_store_ids", "container_id", "skill_id")
_OWN_TOOLS: Final = ("function", "custom")


def refuse_references(path: str, request: dict[str, Any]) -> None:
    """Look a request through.

    Raises:
        ModelRefusedError: It names something that the endpoint keeps.
    """
    names = _of_responses(request) if path == "responses" else _of_chat(request)
    named = next(names, "")
    if named:
        raise ModelRefusedError(
            f"{named} cannot be used here: what the endpoint keeps is not kept apart by user",
            advice="send the whole content with each request, and search with tools of the agent's",
        )


def _of_chat(request: dict[str, Any]) -> Iterator[str]:
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        # An earlier answer's speech, by its id.
        if isinstance(message, dict) and isinstance(message.get("audio"), dict) and message["audio"].get("id"):
            yield "audio.id"
    yield from _ids(messages, _IDS)


def _of_responses(request: dict[str, Any]) -> Iterator[str]:
    yield from (name for name in _FIELDS if request.get(name))
    items = request.get("input")
    if isinstance(items, list) and any(_is_reference(item) for item in items):
        yield "item_reference"
    for item in items if isinstance(items, list) else ():
        # One with its picture is whole; without, it is the one that the endpoint has.
        if isinstance(item, dict) and item.get("type") == "image_generation_call" and not item.get("result"):
            yield "image_generation_call"
    yield from _ids(items, _IDS)
    tools = request.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict) or tool.get("type") in _OWN_TOOLS:
            continue
        if isinstance(tool.get("container"), str):
            yield "container"
        yield from _ids(tool, _IDS_OF_TOOLS)


def _is_reference(item: Any) -> bool:
    """The type of a reference may be left out, and so may a message's, which has a role."""
    if not isinstance(item, dict):
        return False
    return item.get("type") == "item_reference" or (not item.get("type") and "role" not in item and "id" in item)


def _ids(value: Any, names: tuple[str, ...]) -> Iterator[str]:
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            yield from (name for name in names if value.get(name) and isinstance(value[name], str | list))
            left += [inner for name, inner in value.items() if name != "annotations"]

"""docs/asyncapi.json as tests use it: loaded once, its payload schemas as validators, frames found by what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft7Validator

__all__ = ["CLIENT", "GATEWAY", "document", "message_of", "official_schema", "problems", "references", "schema_of"]

_ROOT: Final = Path(__file__).resolve().parents[2]
# Who sends: the document is written from the gateway's side.
CLIENT: Final = "receive"
GATEWAY: Final = "send"


@cache
def document() -> Mapping[str, Any]:
    """The whole document."""
    loaded: dict[str, Any] = json.loads((_ROOT / "docs" / "asyncapi.json").read_text(encoding="utf-8"))
    return loaded


@cache
def official_schema() -> Mapping[str, Any]:
    """What a document of AsyncAPI 3.0.0 must be like."""
    text = Path(__file__).with_name("asyncapi_3_0_0.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@cache
def messages_of(sender: str) -> Mapping[str, str]:
    """The messages that one side sends: what names a frame (its ``type``, or ``event:`` and its kind) → its key."""
    found: dict[str, str] = {}
    for operation in document()["operations"].values():
        if operation["action"] != sender:
            continue
        for reference in operation["messages"]:
            key = reference["$ref"].rpartition("/")[2]
            found[_name(key)] = key
    return found


def _name(key: str) -> str:
    name = document()["components"]["messages"][key]["name"]
    return f"event:{name}" if key.startswith("event_") else str(name)


def schema_of(key: str) -> Mapping[str, Any]:
    """The schema of a message's payload, references between schemas and all."""
    found: Mapping[str, Any] = document()["components"]["schemas"][key]
    return found


def message_of(frame: Mapping[str, Any], sender: str) -> str:
    """The key of the message that a frame is, or empty: there is none."""
    name = f"event:{frame['event_type']}" if "event_type" in frame else str(frame.get("type"))
    return messages_of(sender).get(name, "")


@cache
def _validator(key: str) -> Draft7Validator:
    return Draft7Validator({"$ref": f"#/components/schemas/{key}", "components": document()["components"]})


def problems(frame: Mapping[str, Any], sender: str) -> list[str]:
    """What of a frame is not as the document says."""
    key = message_of(frame, sender)
    if not key:
        return [f"{frame} is in no message"]
    return [f"{key}{list(error.absolute_path)}: {error.message}" for error in _validator(key).iter_errors(frame)]


def references(value: Any) -> Iterator[str]:
    """Every ``$ref`` within a part of a document, OpenAPI's as well."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref" and isinstance(inner, str):
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)

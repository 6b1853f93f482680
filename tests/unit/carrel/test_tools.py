"""``@tool``: declaration, JSON Schema, checked arguments."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

import carrel
from carrel import AgentContext, Tool, tool
from carrel.errors import InvalidConfigurationError, ToolArgumentsError


class Row(BaseModel):
    name: str
    tokens: int = 0


@dataclass
class Range:
    low: int
    high: int


@tool(permission="trace:read", timeout_s=10)
async def load_trace(
    ctx: AgentContext,
    path: str,
    limit: Annotated[int, Field(ge=1, le=100)] = 10,
    mode: Literal["fast", "full"] = "fast",
    rows: list[Row] | None = None,
    schema: Range | None = None,
    _hidden: bool = False,
) -> dict[str, Any]:
    """Load a trace
    from the data folder.

    More words.
    """
    return {"path": path, "limit": limit}


def test_a_declaration_keeps_what_it_says() -> None:
    assert isinstance(load_trace, Tool)
    assert (load_trace.name, load_trace.permission, load_trace.timeout_s) == ("load_trace", "trace:read", 10.0)
    assert load_trace.description == "Load a trace from the data folder."
    assert load_trace.wants_context
    assert not load_trace.host


def test_settings_override_name_and_description() -> None:
    @tool(name="other.name", description="Says it", host=True)
    async def body() -> int:
        return 1

    assert (body.name, body.description, body.host, body.wants_context) == ("other.name", "Says it", True, False)
    assert body.permission is None
    assert asyncio.run(body()) == 1  # type: ignore[arg-type]  # a coroutine function is behind it


def test_the_schema_describes_every_argument_and_no_other() -> None:
    schema = load_trace.input_schema
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == {"path", "limit", "mode", "rows", "schema", "_hidden"}
    assert schema["required"] == ["path"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["limit"] == {
        "default": 10, "maximum": 100, "minimum": 1, "title": "Limit", "type": "integer",
    }  # fmt: skip
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"path": "a", "rows": [{"name": "r"}], "mode": "full"})
    for wrong in ({}, {"path": 1}, {"path": "a", "x": 1}, {"path": "a", "limit": 0}, {"path": "a", "mode": "slow"}):
        assert not validator.is_valid(wrong)


def test_arguments_are_converted_and_defaults_filled_in() -> None:
    got = load_trace.check_arguments(
        {"path": "a.csv", "limit": "5", "rows": [{"name": "r"}], "schema": {"low": 1, "high": 2}}
    )
    assert got == {
        "path": "a.csv", "limit": 5, "mode": "fast", "rows": [Row(name="r")], "schema": Range(1, 2), "_hidden": False,
    }  # fmt: skip


def test_every_wrong_argument_is_named_and_none_quoted() -> None:
    with pytest.raises(ToolArgumentsError) as caught:
        load_trace.check_arguments({"limit": 1000, "mode": "secret-value", "rows": [{"tokens": "x"}], "extra": 1})
    fields = caught.value.fields
    assert set(fields) == {"path", "limit", "mode", "rows.0.name", "rows.0.tokens", "extra"}
    assert "secret-value" not in str(caught.value.to_dict())
    assert caught.value.message.startswith("load_trace: ")
    assert caught.value.details["tool_name"] == "load_trace"
    with pytest.raises(ToolArgumentsError, match="JSON object"):
        load_trace.check_arguments([1])  # type: ignore[arg-type]  # what is refused


def test_a_mutable_default_is_not_shared_between_calls() -> None:
    @tool
    async def collect(into: list[int] = []) -> list[int]:  # noqa: B006  (what is tested)
        return into

    collect.check_arguments({})["into"].append(1)
    assert collect.check_arguments({}) == {"into": []}


@pytest.mark.parametrize("annotation", ["AgentContext", "carrel.AgentContext"])
def test_the_context_is_known_by_its_annotation_in_any_spelling(annotation: str) -> None:
    async def body(anything: Any, x: int) -> None: ...

    body.__annotations__["anything"] = annotation
    assert tool(body).wants_context
    assert set(tool(body).input_schema["properties"]) == {"x"}


def test_the_context_is_known_by_its_class_and_by_its_usual_name() -> None:
    async def first(c, x): ...  # type: ignore[no-untyped-def]  # an author without annotations

    first.__annotations__["c"] = carrel.AgentContext

    async def second(ctx, x): ...  # type: ignore[no-untyped-def]  # likewise

    async def third(x, ctx): ...  # type: ignore[no-untyped-def]  # likewise

    assert tool(first).wants_context
    assert tool(second).wants_context
    assert not tool(third).wants_context
    assert tool(second).check_arguments({"x": {"any": ["thing"]}}) == {"x": {"any": ["thing"]}}


async def star_args(*args: int) -> None: ...
async def star_kwargs(**kwargs: int) -> None: ...
async def positional(x: int, /) -> None: ...
def not_async(x: int) -> int:
    return x


@pytest.mark.parametrize("func", [star_args, star_kwargs, positional])
def test_parameters_without_a_name_are_refused_at_the_declaration(func: Any) -> None:
    with pytest.raises(InvalidConfigurationError, match="cannot be given by name"):
        tool(func)


def test_a_sync_function_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidConfigurationError, match=r"asyncio\.to_thread"):
        tool(not_async)  # type: ignore[arg-type]  # what is refused


@pytest.mark.parametrize(
    "settings",
    [{"name": "1x"}, {"name": "a b"}, {"permission": ""}, {"permission": "a b"}, {"timeout_s": 0}, {"timeout_s": "1"},
     {"timeout_s": True}, {"timeout_s": float("inf")}],
)  # fmt: skip
def test_wrong_settings_are_refused_at_the_declaration(settings: dict[str, Any]) -> None:
    async def body() -> None: ...

    with pytest.raises(InvalidConfigurationError, match="tool "):
        tool(**settings)(body)


def test_an_annotation_without_a_schema_is_told_with_advice() -> None:
    class Opaque: ...

    @tool
    async def body(x: Opaque) -> None: ...

    body.func.__annotations__["x"] = Opaque
    with pytest.raises(InvalidConfigurationError, match="JSON Schema") as caught:
        _ = body.input_schema
    assert "pydantic" in caught.value.advice

"""Rules about MCP servers' tools: names, permissions, arguments, answers and pauses."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import pytest

from carrel.agent_context import ArtifactRef
from carrel.errors import InvalidConfigurationError, ToolArgumentsError, ToolFailedError
from carrel.frozen import freeze_map
from carrel.schema_tools import SchemaTool
from services.agent_instance.domain.mcp import Answer, Backoff, Blob, Listed, ServerRules, permission_problem, result_of

RULES = ServerRules(name="files", prefix="files__")


@dataclass
class _Artifacts:
    stored: dict[str, tuple[bytes, str]] = field(default_factory=dict)

    async def put(self, name: str, data: bytes, media_type: str) -> ArtifactRef:
        self.stored[name] = (data, media_type)
        return ArtifactRef(name, media_type, len(data), "0" * 64, f"/api/{name}")


@dataclass
class _Ctx:
    artifacts: _Artifacts = field(default_factory=_Artifacts)
    tool_call_id: str = "call-1-files__read-1"
    attempt: int = 2


async def _result(answer: Answer, ctx: _Ctx, max_bytes: int = 1024) -> dict[str, Any]:
    return await result_of(answer, ctx, "files__read", max_bytes)  # type: ignore[arg-type]


def _listed(*names: str) -> list[Listed]:
    return [Listed(name, "", {"type": "object"}) for name in names]


def test_a_name_gets_the_prefix_and_only_characters_that_a_tool_may_have() -> None:
    assert RULES.tool_name("read") == "files__read"
    assert RULES.tool_name("dir/read file") == "files__dir_read_file"
    assert ServerRules(name="x", prefix="").tool_name("1st") == "t_1st"


def test_long_names_stay_apart_within_the_bound() -> None:
    one, other = RULES.tool_name("a" * 100), RULES.tool_name("a" * 101)
    assert len(one) == len(other) == 64
    assert one != other


def test_of_two_tools_with_one_name_here_the_first_is_offered() -> None:
    offered = dict(RULES.offered(_listed("a b", "a_b")))
    assert {name: item.name for name, item in offered.items()} == {"files__a_b": "a b"}


def test_include_and_exclude_choose_the_tools() -> None:
    rules = ServerRules(name="files", prefix="", include=("read*", "write"), exclude=("*_secret",))
    assert [name for name, _ in rules.offered(_listed("read", "read_secret", "write", "delete"))] == ["read", "write"]


def test_a_permission_names_server_and_tool_unless_a_pattern_says_otherwise() -> None:
    assert RULES.permission("read") == "mcp:files:read"
    rules = ServerRules(
        name="files", prefix="", permissions={"*": "files:use", "read*": None, "write": "files:{tool}:now"}
    )
    assert rules.permission("read_all") is None
    assert rules.permission("write") == "files:write:now"
    assert rules.permission("delete") == "files:use"


def test_a_tools_name_cannot_smuggle_anything_into_its_permission() -> None:
    assert RULES.permission("read {server} /*") == "mcp:files:read__server____"


@pytest.mark.parametrize("template", ["mcp {tool}", "mcp:{nobody}", "mcp:{", "", "a/b", "{tool.__class__}"])
def test_a_wrong_permission_is_told(template: str) -> None:
    assert permission_problem(template)


def test_pauses_double_up_to_the_most_and_start_anew_after_a_success() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.failed(100.0) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.wait_s(101.0) == 2.0
    assert backoff.wait_s(200.0) == 0.0
    backoff.succeeded()
    assert backoff.wait_s(100.0) == 0.0
    assert backoff.failed(100.0) == 0.5


def test_a_thousand_failures_are_no_overflow() -> None:
    backoff = Backoff(0.5, 30.0)
    assert {backoff.failed(0.0) for _ in range(1100)} >= {30.0}


async def test_text_and_structure_are_given_as_they_are() -> None:
    assert await _result(Answer("hello", {"n": 1}), _Ctx()) == {"text": "hello", "structured": {"n": 1}}
    assert await _result(Answer(), _Ctx()) == {"text": ""}


async def test_an_error_of_the_servers_is_one_of_the_tools_and_bounded() -> None:
    with pytest.raises(ToolFailedError, match="no such file") as raised:
        await _result(Answer("no such file" + "x" * 100_000, is_error=True), _Ctx())
    assert len(raised.value.message) < 2200


async def test_pictures_become_artifacts_named_by_call_and_attempt() -> None:
    ctx = _Ctx()
    picture = Blob("image", "image/PNG; x=1", base64.b64encode(b"png").decode())
    other = Blob("resource", "no media type", base64.b64encode(b"bin").decode(), "file:///a")
    result = await _result(Answer(blobs=(picture, other)), ctx)
    assert ctx.artifacts.stored == {
        "call-1-files__read-1-2-1.png": (b"png", "image/png"),
        "call-1-files__read-1-2-2.bin": (b"bin", "application/octet-stream"),
    }
    assert [item["kind"] for item in result["files"]] == ["image", "resource"]
    assert result["files"][1]["uri"] == "file:///a"


async def test_a_result_over_its_bound_becomes_an_artifact() -> None:
    ctx = _Ctx()
    result = await _result(Answer("x" * 2000), ctx)
    assert result["artifact"]["name"] == "call-1-files__read-1-2.json"
    assert result["too_large"] == len(ctx.artifacts.stored["call-1-files__read-1-2.json"][0]) > 2000


@pytest.mark.parametrize(
    "answer",
    [
        Answer("x" * (8 * 1024 * 1024 + 1)),
        Answer(blobs=(Blob("image", "image/png", "A" * (12 * 1024 * 1024)),)),
        Answer(blobs=(Blob("image", "image/png", "%%%"),)),
        Answer(structured={"n": 2**70}),
    ],
    ids=["text over 8 MiB", "picture over 8 MiB", "no base64", "a number over 64 bits"],
)
async def test_what_cannot_be_kept_is_an_error_of_the_tools(answer: Answer) -> None:
    with pytest.raises(ToolFailedError):
        await _result(answer, _Ctx())


async def _body(**_arguments: Any) -> None: ...


def _tool(schema: dict[str, Any]) -> SchemaTool:
    return SchemaTool("t", "", None, 1.0, True, True, _body, schema=freeze_map(schema, "schema"))


def test_arguments_are_checked_against_the_schema_and_pass_unchanged() -> None:
    tool = _tool(
        {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0}, "mode": {"enum": ["r", "w"], "default": "r"}},
            "required": ["n"],
            "additionalProperties": False,
        }
    )
    assert tool.check_arguments({"n": 1}) == {"n": 1}
    with pytest.raises(ToolArgumentsError) as raised:
        tool.check_arguments({"n": "my password", "mode": "other secret", "more": 1})
    assert raised.value.details["fields"] == {
        "n": "must be of type integer",
        "mode": 'breaks the rule enum ["r", "w"]',
        "more": "is not known",
    }
    assert "password" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_names_of_what_is_missing_deep_inside_are_told() -> None:
    tool = _tool(
        {"type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"required": ["x", "y"]}}}
    )
    with pytest.raises(ToolArgumentsError) as raised:
        tool.check_arguments({"p": {"x": 1}})
    assert raised.value.details["fields"] == {"p.y": "is required"}


def test_a_pattern_that_takes_for_ever_is_not_matched_here() -> None:
    tool = _tool(
        {
            "type": "object",
            "properties": {"a": {"type": "string", "pattern": "(a+)+$"}},
            "patternProperties": {"(b+)+$": {"type": "integer"}},
            "additionalProperties": False,
        }
    )
    arguments = {"a": "a" * 60 + "!", "b" * 60 + "!": "x"}
    assert tool.check_arguments(arguments) == arguments


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "http://127.0.0.1:1/schema.json"}, {"$ref": "#"}, {"$ref": "#/$defs/missing"}],
    ids=["elsewhere", "itself", "nothing"],
)
def test_a_reference_that_leads_nowhere_is_an_error_and_fetches_nothing(schema: dict[str, Any]) -> None:
    with pytest.raises(ToolArgumentsError, match="its schema cannot be applied"):
        _tool(schema).check_arguments({})


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": 7}, {"type": "object", "description": "x" * 70_000}])
def test_a_schema_that_is_none_of_an_object_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfigurationError):
        _ = _tool(schema).input_schema


def test_a_tool_bound_to_another_body_is_the_same_otherwise() -> None:
    async def other(**_arguments: Any) -> None: ...

    tool = _tool({"type": "object"})
    bound = tool.bound_to(other)
    assert bound.func is other
    assert bound.input_schema is tool.input_schema

"""The registry: what it loads, what it refuses and how it says so, and that nothing changes it afterwards."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from carrel import Agent, AgentContext, Request, Tool, tool
from carrel.errors import StartupError, UnknownAgentError
from services.agent_instance.domain.loading import load_classes
from services.agent_instance.domain.registry import AgentClassRegistry

ECHO = """
from carrel import Agent

class {cls}(Agent):
    name = "{name}"
    async def run(self, ctx, request):
        return {{}}
"""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@tool(permission="trace:read")
async def load_trace(ctx: AgentContext, path: str) -> dict[str, Any]:
    """Loads."""
    return {}


class Data(Agent):
    """Profiles a trace.

    More.
    """

    name = "data"
    tools: ClassVar[tuple[Tool, ...]] = (load_trace,)

    async def run(self, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {}


class Report(Data):
    name = "report"
    requires = ("data",)
    tools = ()


def problems_of(*classes: type[Agent]) -> str:
    with pytest.raises(StartupError) as caught:
        AgentClassRegistry.of(*classes)
    assert caught.value.advice
    return caught.value.message


def test_a_registry_maps_names_to_entries_in_order() -> None:
    registry = AgentClassRegistry.of(Report, Data)
    assert list(registry) == ["data", "report"]
    assert registry["data"].cls is Data
    assert registry["data"].description == "Profiles a trace."
    assert set(registry["data"].tools) == {"load_trace"}
    assert registry.entry("report").requires == ("data",)


def test_mutation_raises_in_every_way() -> None:
    registry = AgentClassRegistry.of(Data)
    with pytest.raises(TypeError, match="frozen"):
        registry["x"] = registry["data"]
    with pytest.raises(TypeError, match="frozen"):
        del registry["data"]
    with pytest.raises(TypeError, match="frozen"):
        registry._entries = {}
    with pytest.raises(TypeError):
        registry["data"].tools["x"] = load_trace  # type: ignore[index]
    with pytest.raises(AttributeError):
        registry["data"].name = "x"  # type: ignore[misc]


def test_a_later_change_of_the_class_does_not_reach_the_registry() -> None:
    class Changing(Data):
        name = "changing"

    registry = AgentClassRegistry.of(Changing)
    Changing.tools = ()
    Changing.fallback = "x"
    assert set(registry["changing"].tools) == {"load_trace"}
    assert registry["changing"].fallback is None


def test_an_unknown_agent_is_named_with_those_that_exist() -> None:
    with pytest.raises(UnknownAgentError, match="no agent 'nobody'") as caught:
        AgentClassRegistry.of(Data).entry("nobody")
    assert "data" in caught.value.advice


def test_the_digest_follows_declarations_and_is_stable() -> None:
    class Slower(Data):
        name = "data"
        timeout_s = 5

    assert AgentClassRegistry.of(Data, Report).digest == AgentClassRegistry.of(Report, Data).digest
    assert AgentClassRegistry.of(Data).digest != AgentClassRegistry.of(Slower).digest


def test_an_unknown_requirement_is_named_with_class_and_file() -> None:
    message = problems_of(Report)
    assert "class Report" in message
    assert __file__ in message
    assert "requires 'data', which is not registered" in message


def test_a_circle_of_requirements_is_drawn() -> None:
    class A(Data):
        name = "a"
        requires = ("c",)

    class B(Data):
        name = "b"
        requires = ("a",)

    class C(Data):
        name = "c"
        requires = ("b",)

    assert "a → c → b → a" in problems_of(A, B, C)


def test_fallbacks_must_exist_and_not_go_round() -> None:
    class A(Data):
        name = "a"
        fallback = "b"

    class B(Data):
        name = "b"
        fallback = "a"

    class Lonely(Data):
        name = "lonely"
        fallback = "nobody"

    assert "a → b → a" in problems_of(A, B)
    assert "fallback 'nobody' is not registered" in problems_of(Lonely)


def test_a_fallback_may_not_need_what_its_agent_does_not() -> None:
    class Failing(Data):
        name = "failing"
        fallback = "report"

    class Sure(Data):
        name = "sure"
        requires = ("report",)
        fallback = "report"

    assert "requires data, which need not have run" in problems_of(Data, Report, Failing)
    assert "sure" in AgentClassRegistry.of(Data, Report, Sure)


def test_a_planner_falls_back_to_a_planner_only() -> None:
    class Planner(Data):
        name = "planner"
        plans = True
        fallback = "data"

    assert "must be a planner" in problems_of(Data, Planner)


def test_run_must_be_there_and_async() -> None:
    class NoRun(Agent):
        name = "norun"

    class SyncRun(Data):
        name = "syncrun"

    def run(self: Agent, ctx: AgentContext, request: Request) -> dict[str, Any]:
        return {}

    SyncRun.run = run  # type: ignore[assignment,method-assign]  # what the class statement refuses, done behind its back

    class Arguments(Data):
        name = "arguments"

        def __init__(self, model: str) -> None: ...

    message = problems_of(NoRun, SyncRun, Arguments)
    assert "3 things are wrong" in message
    assert "has no run" in message
    assert "run is not async; write `async def run(self, ctx, request)`" in message
    assert "cannot be made without arguments" in message


def test_a_tool_without_a_schema_is_named() -> None:
    class Opaque:
        pass

    @tool
    async def opaque(value: Opaque) -> None: ...

    opaque.func.__annotations__["value"] = Opaque

    class Bad(Data):
        name = "bad"
        tools = (opaque,)

    assert "tool opaque" in problems_of(Bad)


def test_two_classes_of_one_name_are_both_named(tmp_path: Path) -> None:
    one = write(tmp_path, "one.py", ECHO.format(cls="One", name="echo"))
    two = write(tmp_path, "two.py", ECHO.format(cls="Two", name="echo"))
    with pytest.raises(StartupError, match="has the name 'echo'") as caught:
        AgentClassRegistry.load([one, two])
    assert one in caught.value.message
    assert two in caught.value.message


def test_an_empty_registry_is_refused() -> None:
    assert "no agent is registered" in problems_of()


def test_files_of_one_name_load_side_by_side_under_unique_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = write(tmp_path / "a", "agents.py", ECHO.format(cls="One", name="one"))
    two = write(tmp_path / "b", "agents.py", ECHO.format(cls="Two", name="two"))
    before = set(sys.modules)
    registry = AgentClassRegistry.load([one, two])
    assert set(registry) == {"one", "two"}
    assert registry["one"].file == one
    added = set(sys.modules) - before
    assert len([name for name in added if name.startswith("carrel_agents_agents_")]) == 2
    assert sys.path[-1] == str(tmp_path / "b")


def test_a_file_may_import_its_neighbour_but_not_shadow_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path, "neighbour_of_agents.py", "NAME = 'kind'")
    write(tmp_path, "services.py", "raise RuntimeError('shadowed')")
    text = "import services, neighbour_of_agents\n" + ECHO.format(cls="Kind", name="kind")
    assert set(AgentClassRegistry.load([write(tmp_path, "mine.py", text)])) == {"kind"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import a_package_nobody_has", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("1/0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("X = 1", "defines no Agent class"),
        ("agents = [1]", "no subclass of carrel.Agent"),
        ("agents = 'echo'", "it gives a str"),
        (
            "from carrel import Agent\nclass Bad(Agent):\n    name = 'Bad Name'\n",
            r"class Bad .*broken\.py\): name must be",
        ),
    ],
)
def test_a_source_that_cannot_be_loaded_says_why(tmp_path: Path, text: str, problem: str) -> None:
    path = write(tmp_path, "broken.py", text)
    with pytest.raises(StartupError, match=problem) as caught:
        AgentClassRegistry.load([path])
    assert path in caught.value.message
    assert caught.value.advice
    assert "request" not in caught.value.advice
    assert "…" not in caught.value.advice


MISTAKES = """
from carrel import Agent, tool

class Sync(Agent):
    name = "sync"
    timeout_s = 0
    def run(self, ctx, request):
        return {}

class Listed(Agent):
    name = "listed"
    requires = "sync"
    tools = [1]
    async def run(self, ctx, request):
        return {}

class Fine(Agent):
    name = "fine"
    requires = ("sync",)
    fallback = "nobody"
    async def run(self, ctx, request):
        return {}

agents = [Fine]
"""


def test_every_mistake_of_every_class_of_every_source_is_told_at_once(tmp_path: Path) -> None:
    one = write(tmp_path, "one.py", MISTAKES)
    two = write(tmp_path, "two.py", ECHO.format(cls="Two", name="Two!"))
    with pytest.raises(StartupError) as caught:
        AgentClassRegistry.load([one, two])
    lines = caught.value.message.splitlines()[1:]
    assert sorted(line.partition(":")[0].strip(" -") for line in lines) == [
        f"class Fine ({one})",
        f"class Listed ({one})",
        f"class Listed ({one})",
        f"class Sync ({one})",
        f"class Sync ({one})",
        f"class Two ({two})",
    ]
    assert "request and send" not in str(caught.value)


def test_what_a_class_declares_wrong_is_told_though_its_file_breaks_off_later(tmp_path: Path) -> None:
    path = write(tmp_path, "one.py", MISTAKES + "\n1/0\n")
    lost = str(tmp_path / "lost.py")
    with pytest.raises(StartupError) as caught:
        AgentClassRegistry.load([path, lost])
    message = caught.value.message
    assert f"ZeroDivisionError: division by zero ({path}:{len(MISTAKES.splitlines()) + 2})" in message
    assert f"class Sync ({path}): run is not async" in message
    assert "there is no file" in message
    assert "'nobody'" not in message, "agents are missing, so links to them say nothing"


def test_a_missing_module_is_named_with_the_authors_own_line(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.py", "import json\n\nimport a_package_nobody_has.inside\n")
    with pytest.raises(StartupError) as caught:
        AgentClassRegistry.load([path])
    assert f"there is no module a_package_nobody_has ({path}:3)" in caught.value.message
    assert "a_package_nobody_has" in caught.value.advice
    assert "frozen" not in caught.value.message
    with pytest.raises(StartupError, match=r"agents from no_such\.agents: there is no module no_such ") as caught:
        AgentClassRegistry.load(["no_such.agents"])
    assert "PYTHONPATH" in caught.value.advice


def test_an_error_in_what_the_author_calls_shows_the_authors_line(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.py", "import json\n\nNAMES = json.loads('[')\n")
    with pytest.raises(StartupError, match="JSONDecodeError") as caught:
        AgentClassRegistry.load([path])
    assert f"({path}:3)" in caught.value.message


def test_a_wrong_tool_is_told_with_the_authors_line_and_fitting_advice(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.py", "from carrel import tool\n\n@tool\ndef look() -> int:\n    return 1\n")
    with pytest.raises(StartupError, match="tool look") as caught:
        AgentClassRegistry.load([path])
    assert f"({path}:3)" in caught.value.message
    assert caught.value.advice == "correct the declaration"


def test_all_broken_sources_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(StartupError) as caught:
        AgentClassRegistry.load([str(tmp_path / "none.py"), "no_such_module_at_all", "carrel.agents:Nothing"])
    for part in ("there is no file", "no_such_module_at_all", "no attribute Nothing"):
        assert part in caught.value.message


def test_module_attribute_and_function_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    body = (
        ECHO.format(cls="One", name="one") + ECHO.format(cls="Two", name="two") + "def both():\n    return (One, Two)\n"
    )
    write(tmp_path, "sources_of_agents.py", body)
    assert {item.cls.name for item in load_classes(["sources_of_agents"]).classes} == {"one", "two"}
    assert {item.cls.name for item in load_classes(["sources_of_agents:One"]).classes} == {"one"}
    assert {item.cls.name for item in load_classes(["sources_of_agents:both", "sources_of_agents"]).classes} == {
        "one",
        "two",
    }

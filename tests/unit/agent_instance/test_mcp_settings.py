"""``CARREL_AGENT_INSTANCE_MCP``: what it may say, what it must not, and that no secret in it is ever shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carrel.agents import Agent
from carrel.errors import InvalidConfigurationError, StartupError
from servicekit.settings import load_settings
from servicekit.settings_env import describe
from services.agent_instance.config import AgentInstanceSettings
from services.agent_instance.config_mcp import McpServers
from services.agent_instance.domain.registry import AgentClassRegistry

NAME = "CARREL_AGENT_INSTANCE_MCP"


def _load(value: Any) -> AgentInstanceSettings:
    text = value if isinstance(value, str) else json.dumps(value)
    return load_settings(AgentInstanceSettings, "agent_instance", {NAME: text})


def _servers(value: Any) -> McpServers:
    servers = _load(value).mcp
    assert servers is not None
    return servers


def test_without_it_there_is_no_server() -> None:
    assert load_settings(AgentInstanceSettings, "agent_instance", {}).mcp is None


def test_a_command_and_a_url_with_their_defaults() -> None:
    servers = _servers({"files": {"command": "mcp-files", "args": ["/data"]}, "web": {"url": "http://localhost:1/mcp"}})
    rules = servers.by_name["files"].rules("files")
    assert (rules.prefix, rules.permission("read"), rules.asks("read")) == ("files__", "mcp:files:read", False)
    assert (rules.timeout_s, rules.shared, rules.max_sessions) == (30.0, False, 50)
    assert not servers.by_name["files"].handshake
    assert servers.by_name["web"].handshake


def test_sessions_over_http_need_the_handshake_and_stateless_ones_do_not() -> None:
    url = "https://mcp.example/mcp"
    servers = _servers({"a": {"url": url, "stateless": True}, "b": {"url": url, "protocol": "auto"}})
    assert not servers.by_name["a"].handshake
    assert not servers.by_name["b"].handshake


def test_a_path_names_a_file_with_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text('{"mcpServers": {"files": {"command": "mcp-files"}}}', encoding="utf-8")
    assert list(_servers(str(file)).by_name) == ["files"]


def test_secrets_come_from_variables_and_files_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("hush-file\n", encoding="utf-8")
    monkeypatch.setenv("WEB_TOKEN", "hush-variable")
    settings = _load(
        {
            "web": {
                "url": "http://localhost:1/",
                "headers": {"Authorization": {"env": "WEB_TOKEN", "prefix": "Bearer "}, "X-Plain": "hush-plain"},
            },
            "files": {"command": "f", "env": {"KEY": {"file": str(tmp_path / "key")}}},
        }
    )
    assert settings.mcp is not None
    web, files = settings.mcp.by_name["web"], settings.mcp.by_name["files"]
    assert web.revealed_headers() == {"Authorization": "Bearer hush-variable", "X-Plain": "hush-plain"}
    assert files.environment({"PATH": "/bin", "HOME": "/root", "MY_KEY": "x"}) == {"PATH": "/bin", "KEY": "hush-file"}
    shown = repr(settings) + str(settings.mcp) + "".join(str(row) for row in describe(settings))
    assert "hush" not in shown


def test_a_process_gets_a_variable_of_the_service_only_by_name() -> None:
    server = _servers({"files": {"command": "f", "env_allow": ["HOME"]}}).by_name["files"]
    assert server.environment({"HOME": "/h", "SECRET": "s"}) == {"PATH": "/bin:/usr/bin", "HOME": "/h"}


WRONG: dict[str, tuple[Any, str]] = {
    "no json": ("{nonsense", "is not JSON, at line 1"),
    "no file": ("/nowhere/mcp.json", "the file /nowhere/mcp.json cannot be read"),
    "a list": ({"mcpServers": []}, "write a JSON object"),
    "a name": ({"My Files": {"command": "f"}}, "'My Files' can name no server"),
    "neither": ({"files": {}}, 'files: give it either a "command" to start or the "url"'),
    "both": ({"files": {"command": "f", "url": "http://h/"}}, 'either a "command" to start or the "url"'),
    "unknown": ({"files": {"command": "f", "cmd": 1}}, "files.cmd: is not known; there are command, args"),
    "number": ({"files": {"command": "f", "timeout": 0}}, "files.timeout: write greater than 0"),
    "url": ({"files": {"url": "localhost:80"}}, 'must begin with http:// or https://'),
    "headers": ({"files": {"command": "f", "headers": {"A": "hush"}}}, '"headers" belong to a "url"'),
    "header": ({"files": {"url": "http://h/", "headers": {"A": "hush\r\nB: c"}}}, "the header 'A' has a name or value"),
    "variable": ({"files": {"command": "f", "env": {"A": {"env": "NOT_SET"}}}}, "variable NOT_SET is not set"),
    "secret": ({"files": {"command": "f", "env": {"A": {"evn": "hush"}}}}, 'write a text, {"env": "NAME"}'),
    "prefix": ({"files": {"command": "f", "prefix": "1 "}}, '"prefix" must be letters'),
    "permission": ({"files": {"command": "f", "permission": "a b"}}, "the permission 'a b' is not printable"),
    "folder": ({"files": {"command": "f", "cwd": "/nowhere"}}, '"cwd" is no folder: /nowhere'),
    "prefixes": (
        {"a": {"command": "f", "prefix": "x_"}, "b": {"command": "f", "prefix": "x_"}},
        "b and a have one prefix",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_one_is_told_with_what_to_write_and_without_what_was_given(case: str) -> None:
    value, told = WRONG[case]
    with pytest.raises(StartupError) as raised:
        _load(value)
    assert f"{NAME}=******** is wrong: " in str(raised.value)
    assert told in str(raised.value)
    assert "hush" not in str(raised.value)


def test_all_wrong_servers_are_told_at_once() -> None:
    with pytest.raises(StartupError) as raised:
        _load({"a": {}, "b": {"command": "f", "backoff": 9, "backoff_max": 1}, "c": {"command": "f", "timeout": "x"}})
    assert all(text in str(raised.value) for text in ("a: give it", 'b: "backoff" must not', "c.timeout: "))


class Wanting(Agent):
    name = "wanting"
    mcp = ("files",)

    async def run(self, ctx: Any, request: Any) -> Any: ...


class WantingAll(Agent):
    name = "wanting_all"
    mcp = ("*",)

    async def run(self, ctx: Any, request: Any) -> Any: ...


def test_an_agent_that_wants_a_server_that_is_not_set_up_does_not_start() -> None:
    with pytest.raises(StartupError, match="wants tools of the MCP server files, and there are web; correct `mcp`"):
        AgentClassRegistry.of(Wanting, servers={"web": "1"})
    with pytest.raises(StartupError, match="files, and none is set up"):
        AgentClassRegistry.of(Wanting)


def test_a_star_is_all_servers_there_are_none_included() -> None:
    assert AgentClassRegistry.of(WantingAll)["wanting_all"].servers == ()
    assert AgentClassRegistry.of(WantingAll, servers={"b": "1", "a": "1"})["wanting_all"].servers == ("a", "b")


def test_the_registrys_digest_counts_how_servers_are_set_up_and_not_their_secrets() -> None:
    def digest(**server: Any) -> str:
        servers = _servers({"files": {"command": "f", **server}})
        return AgentClassRegistry.of(Wanting, servers=servers.fingerprints()).digest

    assert digest(env={"KEY": "1"}) == digest(env={"KEY": "2"})
    assert digest() != digest(args=["-v"])


@pytest.mark.parametrize("mcp", ["files", ("Files",), ("files", "files"), (1,)])
def test_a_wrong_declaration_is_refused_where_it_is_written(mcp: Any) -> None:
    with pytest.raises(InvalidConfigurationError, match="mcp"):
        type("Wrong", (Agent,), {"name": "wrong", "mcp": mcp, "run": Wanting.run})

"""Sessions with MCP servers, over a connector of none: whose they are, when they end, what is told meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from carrel.agents import Agent
from carrel.errors import ToolUnavailableError
from carrel.tools import tool
from services.agent_instance.domain.mcp import Answer, Listed, ServerRules
from services.agent_instance.domain.mcp_servers import McpAttemptTools, McpToolServers
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry
from tests.conftest import Eventually


class FakeConnection:
    """Counts its calls; its number is its answer."""

    def __init__(self, connector: FakeConnector, number: int) -> None:
        self.number = number
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.calls: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = []
        self._connector = connector

    async def list_tools(self) -> list[Listed]:
        return self._connector.listed

    async def call(self, tool: str, arguments: Mapping[str, Any], meta: Mapping[str, Any]) -> Answer:
        self.calls.append((tool, arguments, meta))
        return Answer(structured=self.number)

    async def aclose(self) -> None:
        if not self.closed.done():
            self.closed.set_result("")

    def die(self) -> None:
        self.closed.set_result("it was killed by signal 9")


class FakeConnector:
    def __init__(self) -> None:
        self.connections: list[FakeConnection] = []
        self.refusal = ""
        self.tried = 0
        self.listed = [Listed("read", "Read.", {"type": "object"}), Listed("bad", "", {"type": "string"})]
        self.hold: asyncio.Event | None = None

    async def connect(self) -> FakeConnection:
        self.tried += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.refusal:
            raise ToolUnavailableError(self.refusal)
        self.connections.append(FakeConnection(self, len(self.connections)))
        return self.connections[-1]

    async def aclose(self) -> None:
        for connection in self.connections:
            await connection.aclose()

    @property
    def open(self) -> int:
        return sum(not connection.closed.done() for connection in self.connections)


@tool(name="files__own")
async def own() -> str:
    """One that has the prefix of a server."""
    return "own"


class Reader(Agent):
    name = "reader"
    mcp = ("files",)
    tools = (own,)

    async def run(self, ctx: Any, request: Any) -> Any: ...


class Other(Agent):
    name = "other"

    async def run(self, ctx: Any, request: Any) -> Any: ...


REGISTRY = AgentClassRegistry.of(Reader, Other, servers={"files": "1"})
ENTRY: AgentEntry = REGISTRY["reader"]


class Ctx:
    tool_call_id = "call-0-files__read-1"
    attempt = 3


def _servers(connector: FakeConnector, first_lists_s: float = 5.0, **rules: Any) -> McpToolServers:
    settings = {"name": "files", "prefix": "files__", "backoff_s": 0.05, "backoff_max_s": 0.2, **rules}
    return McpToolServers({"files": (ServerRules(**settings), connector)}, first_lists_s=first_lists_s)


async def _read(attempt: McpAttemptTools, **arguments: Any) -> Any:
    result = await attempt.tools(ENTRY)["files__read"].func(Ctx(), **arguments)
    return result["structured"]


async def test_an_agent_gets_the_tools_of_its_servers_beside_its_own() -> None:
    async with _servers(FakeConnector()) as servers:
        tools = servers.for_attempt().tools(ENTRY)
        # The one whose schema is none of an object is left out.
        assert list(tools) == ["files__own", "files__read"]
        read = tools["files__read"]
        assert (read.host, read.server, read.permission) == (True, "files", "mcp:files:read")
        assert servers.for_attempt().tools(REGISTRY["other"]) == {}


async def test_its_own_tool_wins_over_a_servers_of_that_name() -> None:
    connector = FakeConnector()
    connector.listed = [Listed("own", "A server's.", {"type": "object"})]
    async with _servers(connector) as servers:
        assert servers.for_attempt().tools(ENTRY)["files__own"] is own


async def test_the_session_of_the_listing_is_not_kept() -> None:
    connector = FakeConnector()
    async with _servers(connector) as servers:
        assert (len(connector.connections), connector.open, servers.sessions("files")) == (1, 0, 0)


async def test_an_attempt_has_a_session_from_its_first_call_to_its_end(eventually: Eventually) -> None:
    connector = FakeConnector()
    async with _servers(connector) as servers:
        one, other = servers.for_attempt(), servers.for_attempt()
        assert connector.open == 0
        assert [await _read(one), await _read(one), await _read(other), await _read(one)] == [1, 1, 2, 1]
        assert servers.sessions("files") == 2
        await one.aclose()
        await eventually(lambda: connector.connections[1].closed.done())
        assert not connector.connections[2].closed.done()
        with pytest.raises(ToolUnavailableError, match="the attempt has ended"):
            await _read(one)
        await other.aclose()
        await eventually(lambda: servers.sessions("files") == 0)


async def test_leaving_ends_the_sessions_of_attempts_that_have_not_ended() -> None:
    connector = FakeConnector()
    async with _servers(connector) as servers:
        await _read(servers.for_attempt())
        assert connector.open == 1
    assert connector.open == 0


async def test_calls_at_once_of_one_attempt_open_one_session() -> None:
    connector = FakeConnector()
    async with _servers(connector) as servers:
        attempt = servers.for_attempt()
        assert await asyncio.gather(*(_read(attempt) for _ in range(10))) == [1] * 10


async def test_a_stateless_server_has_one_session_for_everybody() -> None:
    connector = FakeConnector()
    async with _servers(connector, shared=True) as servers:
        attempts = [servers.for_attempt() for _ in range(3)]
        assert [await _read(attempt) for attempt in attempts] == [0, 0, 0]
        for attempt in attempts:
            await attempt.aclose()
        assert connector.open == 1


async def test_the_server_is_told_the_call_and_the_attempt_and_its_own_name_of_the_tool() -> None:
    connector = FakeConnector()
    async with _servers(connector) as servers:
        await _read(servers.for_attempt(), ctx=1, self=2)
    meta = {"carrel/tool_call_id": "call-0-files__read-1", "carrel/attempt": 3}
    assert connector.connections[1].calls == [("read", {"ctx": 1, "self": 2}, meta)]


async def test_a_server_that_died_is_unavailable_for_a_pause_that_doubles_and_then_is_had_again(
    eventually: Eventually,
) -> None:
    connector = FakeConnector()
    async with _servers(connector, backoff_max_s=60.0) as servers:
        attempt, other = servers.for_attempt(), servers.for_attempt()
        await _read(attempt)
        await _read(other)
        session = attempt._sessions["files"]
        pauses: list[float | None] = []
        for _ in range(3):
            connector.connections[-1 if pauses else 1].die()
            with pytest.raises(ToolUnavailableError, match="died and is started again") as raised:
                await _read(attempt)
            pauses.append(raised.value.retry_after_s)
            # Another user's session of the same server is another process: nothing happened to it.
            assert await _read(other) == 2
            await eventually(lambda: session._backoff.wait_s(asyncio.get_running_loop().time()) == 0)
            await session.get()
        # In units of the first; none is told as less than 0.1 s.
        assert [round((pause or 0) / 0.05) for pause in pauses] == [2, 2, 4]
        assert await _read(attempt) == 5
        assert session._backoff.failed(0.0) == 0.05


async def test_a_shared_session_that_is_lost_is_opened_again_without_a_call(eventually: Eventually) -> None:
    connector = FakeConnector()
    async with _servers(connector, shared=True) as servers:
        connector.listed = [Listed("read", "", {"type": "object"}), Listed("new", "", {"type": "object"})]
        connector.connections[0].die()
        await eventually(lambda: len(connector.connections) == 2)
        await eventually(lambda: "files__new" in servers.for_attempt().tools(ENTRY))
        assert servers.sessions("files") == 1


async def test_a_server_that_is_down_at_the_start_is_unavailable_and_listed_when_it_is_back(
    eventually: Eventually,
) -> None:
    connector = FakeConnector()
    connector.refusal = "connection refused"
    async with _servers(connector) as servers:
        early = servers.for_attempt()
        assert list(early.tools(ENTRY)) == ["files__own"]
        missing = early.missing(ENTRY, "files__read")
        assert isinstance(missing, ToolUnavailableError)
        assert missing.retry_after_s is not None
        assert early.missing(ENTRY, "web__read") is None
        assert early.missing(REGISTRY["other"], "files__read") is None
        connector.refusal = ""
        await eventually(lambda: "files__read" in servers.for_attempt().tools(ENTRY))
        assert servers.for_attempt().missing(ENTRY, "files__no_such_tool") is None


async def test_the_start_does_not_wait_for_a_server_that_hangs(eventually: Eventually) -> None:
    connector = FakeConnector()
    connector.hold = asyncio.Event()
    async with asyncio.timeout(5), _servers(connector, first_lists_s=0.05) as servers:
        assert isinstance(servers.for_attempt().missing(ENTRY, "files__read"), ToolUnavailableError)
        connector.hold.set()
        await eventually(lambda: "files__read" in servers.for_attempt().tools(ENTRY))


async def test_a_server_that_cannot_be_reached_is_not_asked_by_every_call() -> None:
    connector = FakeConnector()
    async with _servers(connector, backoff_s=30.0, backoff_max_s=30.0) as servers:
        connector.refusal = "connection refused"
        tried = connector.tried
        for _ in range(5):
            with pytest.raises(ToolUnavailableError) as raised:
                await _read(servers.for_attempt())
            assert 0 < (raised.value.retry_after_s or 0) <= 30.0
        assert connector.tried == tried + 1


async def test_a_session_that_does_not_open_in_time_is_given_up() -> None:
    connector = FakeConnector()
    async with _servers(connector, start_timeout_s=0.05) as servers:
        connector.hold = asyncio.Event()
        with pytest.raises(ToolUnavailableError, match=r"no answer within 0\.05 s"):
            await _read(servers.for_attempt())
        assert servers.sessions("files") == 0


async def test_more_sessions_than_allowed_are_refused_until_one_ends(eventually: Eventually) -> None:
    async with _servers(FakeConnector(), max_sessions=2) as servers:
        attempts = [servers.for_attempt() for _ in range(3)]
        await _read(attempts[0])
        await _read(attempts[1])
        with pytest.raises(ToolUnavailableError, match="all of its 2 sessions are in use"):
            await _read(attempts[2])
        await attempts[0].aclose()
        await eventually(lambda: servers.sessions("files") == 1)
        assert await _read(attempts[2]) == 3


async def test_a_call_cancelled_while_its_session_opens_leaves_none(eventually: Eventually) -> None:
    connector = FakeConnector()
    async with _servers(connector) as servers:
        connector.hold = asyncio.Event()
        attempt = servers.for_attempt()
        call = asyncio.ensure_future(_read(attempt))
        await eventually(lambda: connector.tried == 2)
        call.cancel()
        await asyncio.wait({call})
        assert servers.sessions("files") == 0
        connector.hold.set()
        assert await _read(attempt) == 1

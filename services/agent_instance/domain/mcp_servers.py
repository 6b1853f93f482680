"""``McpToolServers``: the tools of MCP servers for attempts, and the sessions in which they are called.

A session serves one attempt of one run, from its first call of the server to its end, whatever ends it; a server that
keeps nothing of its users has one for everybody. How a session is had is a ``Connector``'s: ``client_mcp``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final, Protocol

from carrel.agent_context import AgentContext
from carrel.errors import CarrelError, ToolUnavailableError
from carrel.frozen import freeze_map
from carrel.schema_tools import SchemaTool
from carrel.tools import Tool
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from services.agent_instance.domain.mcp import Answer, Backoff, Listed, ServerRules, result_of
from services.agent_instance.domain.registry import AgentEntry

__all__ = ["FIRST_LISTS_S", "Connection", "Connector", "McpAttemptTools", "McpToolServers"]

_log: Final = get_logger("agent_instance.mcp")

# Who starts with this service waits 10 s for it: a server that hangs must not use that up.
FIRST_LISTS_S: Final = 3.0


class Connection(Protocol):
    """An open session with a server."""

    @property
    def closed(self) -> asyncio.Future[str]:
        """Done when it has ended; the reason, empty when it was closed."""
        ...

    async def list_tools(self) -> list[Listed]:
        """Every tool the server lists.

        Raises:
            ToolUnavailableError: The server died, or gives no list.
        """
        ...

    async def call(self, tool: str, arguments: Mapping[str, Any], meta: Mapping[str, Any]) -> Answer:
        """Call a tool by the server's name. Cancelling it tells the server, and returns at once.

        Raises:
            ToolUnavailableError: The session ended before the answer.
            ToolFailedError: The server refused the call, or answered nonsense.
        """
        ...

    async def aclose(self) -> None:
        """End the session, and the server's process if it has one. Idempotent."""


class Connector(Protocol):
    """The way to one server."""

    async def connect(self) -> Connection:
        """Open a session.

        Raises:
            ToolUnavailableError: It cannot be opened.
        """
        ...

    async def aclose(self) -> None:
        """End every session that is open or being opened. Idempotent."""


class _Session:
    """One place for a connection: opened at the first call, and again, after a pause, when it was lost."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._connection: Connection | None = None
        self._opening = asyncio.Lock()
        self._backoff = Backoff(server.rules.backoff_s, server.rules.backoff_max_s)
        self._closed = False

    async def get(self) -> Connection:
        async with self._opening:
            if self._connection is not None and not self._connection.closed.done():
                return self._connection
            if self._closed:
                raise self._server.away("the attempt has ended", 0.0)
            if self._connection is not None:
                await self._lost(self._connection)
            if (wait_s := self._backoff.wait_s(time.monotonic())) > 0:
                raise self._server.away("its server died and is started again", wait_s)
            self._connection = await self._server.open()
            return self._connection

    async def _lost(self, connection: Connection) -> None:
        reason = connection.closed.result()
        self._connection = None
        wait_s = self._backoff.failed(self._server.ended_at(connection))
        _log.warning(
            "a session with an MCP server was lost", server=self._server.name, reason=reason, again_in_s=wait_s
        )
        await self._server.release(connection)

    def worked(self) -> None:
        self._backoff.succeeded()

    async def aclose(self) -> None:
        self._closed = True
        async with self._opening:
            connection, self._connection = self._connection, None
        if connection is not None:
            await self._server.release(connection)


class _Server:
    """One server: what it lists, how many sessions it has, whether it can be had now."""

    def __init__(self, rules: ServerRules, connector: Connector) -> None:
        self.rules = rules
        self.name = rules.name
        self.listed: Mapping[str, Tool] | None = None
        self._connector = connector
        self._backoff = Backoff(rules.backoff_s, rules.backoff_max_s)
        self._open: dict[Connection, float] = {}
        self._reserved = 0
        self.shared = _Session(self) if rules.shared else None
        self.tried = asyncio.Event()
        self._wanted = asyncio.Event()
        self._wanted.set()

    @property
    def sessions(self) -> int:
        return len(self._open) + self._reserved

    def away(self, reason: str, wait_s: float) -> ToolUnavailableError:
        return ToolUnavailableError(
            f"the MCP server {self.name} is unavailable: {reason}", retry_after_s=round(max(wait_s, 0.1), 3)
        )

    async def open(self) -> Connection:
        if (wait_s := self._backoff.wait_s(time.monotonic())) > 0:
            raise self.away("it cannot be reached", wait_s)
        if self.sessions >= self.rules.max_sessions:
            raise self.away(f"all of its {self.rules.max_sessions} sessions are in use", 1.0)
        self._reserved += 1
        try:
            async with asyncio.timeout(self.rules.start_timeout_s):
                connection = await self._connector.connect()
        except (TimeoutError, CarrelError) as error:
            wait_s = self._backoff.failed(time.monotonic())
            late = f"no answer within {self.rules.start_timeout_s:g} s"
            reason = error.message if isinstance(error, CarrelError) else late
            _log.warning("an MCP server cannot be reached", server=self.name, reason=reason, again_in_s=wait_s)
            raise self.away(reason, wait_s) from None
        finally:
            self._reserved -= 1
        self._backoff.succeeded()
        self._open[connection] = 0.0
        connection.closed.add_done_callback(lambda _: self._ended(connection))
        return connection

    def _ended(self, connection: Connection) -> None:
        if connection in self._open:
            self._open[connection] = time.monotonic()
            if self.shared is not None:
                self._wanted.set()

    def ended_at(self, connection: Connection) -> float:
        return self._open.get(connection) or time.monotonic()

    async def release(self, connection: Connection) -> None:
        try:
            await connection.aclose()
        finally:
            self._open.pop(connection, None)

    async def keep_listed(self) -> None:
        """List the tools until that has worked once; and, for a shared session, again whenever it was lost."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self.list_once()
            except CarrelError as error:
                wait_s = getattr(error, "retry_after_s", None) or self.rules.backoff_s
                if self.listed is None:
                    _log.warning(
                        "an MCP server's tools are unavailable",
                        server=self.name,
                        reason=error.message,
                        again_in_s=wait_s,
                    )
                self.tried.set()
                await asyncio.sleep(wait_s)
                self._wanted.set()
            finally:
                self.tried.set()

    async def list_once(self) -> None:
        if self.shared is not None:
            connection = await self.shared.get()
            self.listed = self._tools(await self._told(connection))
            self.shared.worked()
        else:
            connection = await self.open()
            try:
                self.listed = self._tools(await self._told(connection))
            finally:
                await self.release(connection)
        _log.info("an MCP server's tools are listed", server=self.name, tools=len(self.listed))

    async def _told(self, connection: Connection) -> list[Listed]:
        try:
            async with asyncio.timeout(self.rules.start_timeout_s):
                return await connection.list_tools()
        except TimeoutError:
            raise self.away("it gives no list of its tools", self.rules.backoff_s) from None

    def _tools(self, listed: list[Listed]) -> Mapping[str, Tool]:
        tools: dict[str, Tool] = {}
        for name, item in self.rules.offered(listed):
            try:
                tools[name] = tool = SchemaTool(
                    name=name,
                    description=item.description,
                    permission=self.rules.permission(item.name),
                    timeout_s=self.rules.timeout_s,
                    host=True,
                    wants_context=True,
                    func=_not_of_an_attempt,
                    approval=self.rules.asks(item.name),
                    server=self.name,
                    schema=freeze_map(item.schema, "schema"),
                    server_tool=item.name,
                )
                _ = tool.input_schema
            except CarrelError as error:
                tools.pop(name, None)
                _log.warning("an MCP server's tool is left out", server=self.name, tool=name, reason=error.message)
        return MappingProxyType(tools)

    async def aclose(self) -> None:
        if self.shared is not None:
            await self.shared.aclose()
        await self._connector.aclose()


async def _not_of_an_attempt(*_args: Any, **_kwargs: Any) -> Any:
    raise ToolUnavailableError("a tool of an MCP server is called within an attempt only")


class McpAttemptTools:
    """The tools of one attempt; ``AttemptTools``. Its sessions end with ``aclose``."""

    def __init__(self, servers: Mapping[str, _Server], close: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        self._servers = servers
        self._close = close
        self._sessions: dict[str, _Session] = {}
        self._closed = False

    def tools(self, entry: AgentEntry) -> Mapping[str, Tool]:
        """The agent's own tools and those of its servers that are listed now; of one name its own."""
        found: dict[str, Tool] = {}
        for name in entry.servers:
            server = self._servers[name]
            for tool in (server.listed or {}).values():
                assert isinstance(tool, SchemaTool)
                found.setdefault(tool.name, tool.bound_to(self._body(server, tool)))
        return {**entry.tools, **{name: tool for name, tool in found.items() if name not in entry.tools}}

    def missing(self, entry: AgentEntry, tool_name: str) -> CarrelError | None:
        """Why a tool that there is not may be there later: its server has never been reached."""
        for name in entry.servers:
            server = self._servers[name]
            if server.listed is None and tool_name.startswith(server.rules.prefix):
                return server.away("it has not been reached yet", server.rules.backoff_s)
        return None

    async def aclose(self) -> None:
        """End the attempt's sessions, without waiting for servers that are slow to go."""
        self._closed = True
        sessions = list(self._sessions.values())
        self._sessions.clear()
        for session in sessions:
            self._close(session.aclose())

    def _body(self, server: _Server, tool: SchemaTool) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def call(ctx: AgentContext, /, **arguments: Any) -> Any:
            session = self._session(server)
            connection = await session.get()
            meta = {"carrel/tool_call_id": ctx.tool_call_id, "carrel/attempt": ctx.attempt}
            answer = await connection.call(tool.server_tool, arguments, meta)
            session.worked()
            return await result_of(answer, ctx, tool.name, server.rules.max_result_bytes)

        return call

    def _session(self, server: _Server) -> _Session:
        if server.shared is not None:
            return server.shared
        if self._closed:
            raise server.away("the attempt has ended", 0.0)
        return self._sessions.setdefault(server.name, _Session(server))


class McpToolServers:
    """All servers of this process; ``ToolServers``. An async context manager: leaving it ends every session.

    A server that is away when the process starts does not hold it up: its tools report that they are unavailable, and
    attempts that begin once it is back have them. What an attempt has when it begins, it keeps.

    Args:
        first_lists_s: How long the start waits for servers that are slow to list their tools.
    """

    def __init__(
        self, servers: Mapping[str, tuple[ServerRules, Connector]], *, first_lists_s: float = FIRST_LISTS_S
    ) -> None:
        self._wait_s = first_lists_s
        self._servers = {name: _Server(rules, connector) for name, (rules, connector) in servers.items()}
        self._tasks = TaskOwner()

    async def __aenter__(self) -> McpToolServers:
        """Ask every server for its tools, all at once, and wait a moment for what each says; the rest comes later."""
        for server in self._servers.values():
            _ = self._tasks.start(server.keep_listed(), f"tools of the MCP server {server.name}")
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                await asyncio.gather(*(server.tried.wait() for server in self._servers.values()))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._tasks.aclose()
        await asyncio.gather(*(server.aclose() for server in self._servers.values()))

    def for_attempt(self) -> McpAttemptTools:
        """The tools of one attempt."""
        return McpAttemptTools(self._servers, self._in_background)

    def listed(self, entry: AgentEntry) -> tuple[Tool, ...]:
        """An agent's own tools and those of its servers, as they are known now."""
        return tuple(self.for_attempt().tools(entry).values())

    def sessions(self, name: str) -> int:
        """How many sessions with that server are open."""
        return self._servers[name].sessions

    def _in_background(self, closing: Coroutine[Any, Any, None]) -> None:
        # Refused when the service is ending, and every session with it.
        with suppress(RuntimeError):
            _ = self._tasks.start(closing, "end of a session with an MCP server")

"""Sessions with MCP servers, by way of the ``mcp`` package: a ``Connector`` for each server that is set up.

Imported only when a first session is opened, since the package takes long to load and is optional (``client_mcp``).
What is done with the tools is ``domain.mcp_servers``'.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import mcp_types as types
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from carrel.errors import ToolFailedError, ToolUnavailableError
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner
from services.agent_instance.client_mcp_process import ServerCommand
from services.agent_instance.client_mcp_stdio import stdio_server
from services.agent_instance.config_mcp import McpServerSettings
from services.agent_instance.domain.mcp import Answer, Blob, Listed

__all__ = ["McpConnection", "McpConnector"]

_log: Final = get_logger("agent_instance.mcp")

_MAX_TOOLS: Final = 500
# Of one server: agents' tools are told in one message.
_MAX_LIST_BYTES: Final = 256 * 1024
_MAX_PAGES: Final = 50
_CLOSE_S: Final = 3.0
_CLIENT: Final = types.Implementation(name="carrel", version="0")
# What the package's transport says in place of the server, in words only.
_BROKEN_ANSWER: Final = "SSE stream failed"
_HTTP_ERROR: Final = "Server returned an error response"
_GONE: Final = "it has forgotten the session"


# They quote what servers send, and ids of sessions.
for _name in ("mcp", "client", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


class McpConnection:
    """One open session. Its life is a task of the connector's; calls may be made from any other."""

    def __init__(self, name: str, client: Client, ended: asyncio.Future[str], tasks: TaskOwner) -> None:
        self._name = name
        self._client = client
        self._tasks = tasks
        self.closed = ended
        self.life: asyncio.Task[None] | None = None

    async def list_tools(self) -> list[Listed]:
        """Every tool, page by page."""
        found: list[Listed] = []
        cursor: str | None = None
        try:
            for _ in range(_MAX_PAGES):
                page = await self._client.list_tools(cursor=cursor, cache_mode="bypass")
                found += [Listed(tool.name, tool.description or "", tool.input_schema) for tool in page.tools]
                cursor = page.next_cursor
                if cursor is None or len(found) > _MAX_TOOLS:
                    break
        # Whatever the package makes of what a server sends; cancellation is none of these.
        except Exception as error:  # noqa: BLE001
            raise self._unavailable(f"it gives no list of its tools ({_reason(error)})") from None
        kept = _within(found)
        if len(kept) < len(found) or cursor is not None:
            _log.warning("an MCP server lists too many tools", server=self._name, kept=len(kept))
        return kept

    async def call(self, tool: str, arguments: Mapping[str, Any], meta: Mapping[str, Any]) -> Answer:
        """Call a tool; cancelling it leaves telling the server to a task of its own."""
        if self.closed.done():
            raise self._lost()
        given: Any = dict(meta)
        try:
            call = self._tasks.start(self._called(tool, dict(arguments), given), "call of an MCP server")
        except RuntimeError:
            raise self._unavailable("the service is ending") from None
        try:
            await asyncio.wait({call})
        except asyncio.CancelledError:
            call.cancel()
            raise
        outcome = call.result()
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    async def aclose(self) -> None:
        """End the session and wait until it has."""
        if not self.closed.done():
            self.closed.set_result("")
        if self.life is not None:
            await asyncio.wait({self.life})

    async def _called(
        self, tool: str, arguments: dict[str, Any], meta: Any
    ) -> Answer | ToolFailedError | ToolUnavailableError:
        """The answer or the error, as a value: a task that raises would be reported as a fault of ours."""
        try:
            return _answer(await self._client.call_tool(tool, arguments, meta=meta))
        except MCPError as error:
            return self._refused(error)
        # The package raises these and others for an answer that breaks the protocol.
        except Exception as error:  # noqa: BLE001
            if self.closed.done():
                return self._lost()
            kind = type(error).__name__
            return ToolFailedError(f"the MCP server {self._name} answered what is no result ({kind})", cause=kind)

    def _refused(self, error: MCPError) -> ToolFailedError | ToolUnavailableError:
        if error.code == types.CONNECTION_CLOSED and error.message.startswith(_BROKEN_ANSWER):
            return ToolFailedError(f"the MCP server {self._name} gave an answer that is too large or broken")
        if error.code == types.CONNECTION_CLOSED or self.closed.done():
            return self._lost()
        if error.code == types.INTERNAL_ERROR and error.message == _HTTP_ERROR:
            return self._unavailable("it answers with an HTTP error")
        return ToolFailedError(f"the MCP server {self._name} refused the call: {error.message[:2000]}", code=error.code)

    def _lost(self) -> ToolUnavailableError:
        reason = self.closed.result() if self.closed.done() else "the connection was closed"
        return self._unavailable(f"{reason or 'the session is closed'}; a call under way may have had its effect")

    def _unavailable(self, reason: str) -> ToolUnavailableError:
        return ToolUnavailableError(f"the MCP server {self._name} is unavailable: {reason}", retry_after_s=0.5)


class McpConnector:
    """Opens sessions with one server."""

    def __init__(self, name: str, settings: McpServerSettings) -> None:
        self._name = name
        self._settings = settings
        # A task that fails is the end of its session, and told there.
        self._tasks = TaskOwner(lambda _name, _error: None)

    async def connect(self) -> McpConnection:
        """Start the server or reach it, and agree on the protocol.

        Raises:
            ToolUnavailableError: It cannot be started or reached, or speaks otherwise.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[McpConnection] = loop.create_future()
        ended: asyncio.Future[str] = loop.create_future()
        try:
            life = self._tasks.start(self._live(ready, ended), f"session with the MCP server {self._name}")
        except RuntimeError:
            raise self._unreachable("the service is ending") from None
        signals: set[asyncio.Future[Any]] = {life, ready}
        try:
            await asyncio.wait(signals, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            life.cancel()
            raise
        if not ready.done():
            raise self._unreachable(ended.result() if ended.done() else "it could not be opened")
        connection = ready.result()
        connection.life = life
        return connection

    async def aclose(self) -> None:
        """End every session."""
        await self._tasks.aclose()

    async def _live(self, ready: asyncio.Future[McpConnection], ended: asyncio.Future[str]) -> None:
        """A session from its opening to its end, in one task, as the package's cancel scopes want it."""
        try:
            async with asyncio.timeout(None) as bound:
                mode = "legacy" if self._settings.handshake else "auto"
                transport = self._transport(ended)
                async with Client(transport, mode=mode, client_info=_CLIENT, cache=None) as client:
                    ready.set_result(McpConnection(self._name, client, ended, self._tasks))
                    await asyncio.wait({ended})
                    # A server that does not answer the goodbye is left without it.
                    bound.reschedule(asyncio.get_running_loop().time() + _CLOSE_S)
        # The edge to the package: whatever goes wrong with a server is the end of this session and no more.
        except Exception as error:  # noqa: BLE001
            if not ended.done():
                ended.set_result(_reason(error))
        finally:
            if not ended.done():
                ended.set_result("")

    def _transport(self, ended: asyncio.Future[str]) -> AbstractAsyncContextManager[Any]:
        settings = self._settings
        if settings.command:
            command = ServerCommand(
                name=self._name,
                command=settings.command,
                args=settings.args,
                environment=settings.environment(os.environ),
                cwd=str(settings.cwd or "/"),
                max_message_bytes=settings.max_message_bytes,
            )
            return stdio_server(command, ended)
        return _http(settings, ended)

    def _unreachable(self, reason: str) -> ToolUnavailableError:
        return ToolUnavailableError(reason or "the session was closed")


@asynccontextmanager
async def _http(settings: McpServerSettings, ended: asyncio.Future[str]) -> AsyncGenerator[Any]:
    timeout = httpx2.Timeout(settings.start_timeout, read=settings.timeout + 300)
    limit = settings.max_message_bytes
    headers, transport = settings.revealed_headers(), _Watched(limit, ended)
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout, transport=transport) as client,
        streamable_http_client(settings.url, http_client=client, max_sse_event_size=limit) as streams,
    ):
        yield streams


class _Watched(httpx2.AsyncBaseTransport):
    """Answers up to a bound: the package reads JSON bodies whole, and bounds events of streams only. And the end of a
    session that the server no longer knows, which the package takes for one more error of the call."""

    def __init__(self, max_bytes: int, ended: asyncio.Future[str]) -> None:
        self._inner = httpx2.AsyncHTTPTransport()
        self._max_bytes = max_bytes
        self._ended = ended

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if response.status_code == 404 and "mcp-session-id" in request.headers and not self._ended.done():
            self._ended.set_result(_GONE)
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            stream: Any = response.stream
            response.stream = _BoundedBody(stream, self._max_bytes)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedBody(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > self._max_bytes:
                # One of those that the package takes for a failure of this one answer.
                raise httpx2.StreamError(f"the answer is larger than {self._max_bytes} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def _within(tools: list[Listed]) -> list[Listed]:
    """The first tools that are within the bounds together."""
    left = _MAX_LIST_BYTES
    for at, tool in enumerate(tools[:_MAX_TOOLS]):
        left -= len(tool.name) + len(tool.description) + len(json.dumps(tool.schema))
        if left < 0:
            return tools[:at]
    return tools[:_MAX_TOOLS]


def _answer(result: types.CallToolResult) -> Answer:
    texts: list[str] = []
    blobs: list[Blob] = []
    links: list[dict[str, Any]] = []
    for block in result.content:
        match block:
            case types.TextContent():
                texts.append(block.text)
            case types.ImageContent() | types.AudioContent():
                blobs.append(Blob(block.type, block.mime_type, block.data))
            case types.EmbeddedResource(resource=types.TextResourceContents() as inner):
                texts.append(inner.text)
            case types.EmbeddedResource(resource=types.BlobResourceContents() as inner):
                blobs.append(Blob("resource", inner.mime_type or "", inner.blob, str(inner.uri)))
            case types.ResourceLink():
                links.append({"uri": str(block.uri), "name": block.name, "media_type": block.mime_type or ""})
    return Answer("\n".join(texts), result.structured_content, tuple(blobs), tuple(links), result.is_error)


def _reason(error: BaseException) -> str:
    """In a few words what happened: of a group its first cause, of a server's own words at most a line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, MCPError):
        return f"it answered: {error.message[:200]}"
    if isinstance(error, httpx2.HTTPError | OSError):
        return f"it cannot be reached ({type(error).__name__})"
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"

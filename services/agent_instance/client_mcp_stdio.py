"""Messages to and from an MCP server that speaks on its standard streams.

The ``mcp`` package's own transport reads lines without a bound, inherits a part of the environment and outlives a
service that is killed; this one does none of it. Messages are not understood here beyond their framing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter

from servicekit.logs import get_logger
from services.agent_instance.client_mcp_process import ServerCommand, ServerProcess

__all__ = ["stdio_server"]

_log: Final = get_logger("agent_instance.mcp")

_CHUNK_BYTES: Final = 64 * 1024
_TAIL_BYTES: Final = 2048
_MAX_LOGGED_LINES: Final = 100
_MAX_GARBAGE: Final = 100
# How our own requests come back, for one whose answer is too large to be read.
_ANSWER_TO: Final = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,18})\s*[,}]')

_Incoming = MemoryObjectSendStream[SessionMessage | Exception]
_Outgoing = MemoryObjectReceiveStream[SessionMessage]


@asynccontextmanager
async def stdio_server(
    command: ServerCommand, ended: asyncio.Future[str]
) -> AsyncGenerator[
    tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]
]:
    """A server's process and the streams of messages from and to it; leaving it ends the process and its group.

    Args:
        ended: Gets the reason when the process ends by itself, or cannot be spoken with.
    """
    process = await ServerProcess.start(command)
    try:
        to_session, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](0)
        peer = _Peer(command, process, ended)
        async with anyio.create_task_group() as group:
            group.start_soon(peer.read, to_session)
            group.start_soon(peer.write, from_session)
            group.start_soon(peer.listen)
            try:
                yield incoming, outgoing
            finally:
                group.cancel_scope.cancel()
                for stream in (to_session, incoming, outgoing, from_session):
                    stream.close()
    finally:
        await process.aclose(command.stop_s)


class _Peer:
    """Both directions of one process, and what it says beside them."""

    def __init__(self, command: ServerCommand, process: ServerProcess, ended: asyncio.Future[str]) -> None:
        self._command = command
        self._process = process
        self._ended = ended
        self._tail = b""
        self._garbage = 0

    async def read(self, to_session: _Incoming) -> None:
        """Its messages, until its output ends."""
        reason = ""
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, ConnectionError):
            reason = await self._read(to_session)
        if not reason:
            await self._process.exited(0.2)
            # One moment more for what it wrote to its standard error.
            await asyncio.sleep(0.02)
            reason = self._how_it_ended()
        self._end(reason)
        # The session sees that the connection has ended, and so does every call that waits.
        to_session.close()

    async def write(self, from_session: _Outgoing) -> None:
        """Messages to it. Whether it takes them is told by ``read``, which sees it end."""
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, ConnectionError):
            async for item in from_session:
                data = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode()
                await self._process.write(data + b"\n")

    async def listen(self) -> None:
        """Its standard error, which is no protocol: kept for when it dies, in part logged for who looks."""
        lines = 0
        with suppress(ConnectionError):
            while chunk := await self._process.stderr.read(_CHUNK_BYTES):
                self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
                for line in chunk.splitlines()[: max(0, _MAX_LOGGED_LINES - lines)]:
                    lines += 1
                    text = line[:500].decode("utf-8", "replace")
                    _log.debug("an MCP server says", server=self._command.name, pid=self._process.pid, text=text)

    async def _read(self, to_session: _Incoming) -> str:
        buffer, skipping, limit = bytearray(), False, self._command.max_message_bytes
        while chunk := await self._process.stdout.read(_CHUNK_BYTES):
            start = 0
            while (at := chunk.find(b"\n", start)) >= 0:
                buffer += chunk[start:at]
                start = at + 1
                if not skipping and len(buffer) <= limit and (reason := await self._line(bytes(buffer), to_session)):
                    return reason
                if not skipping and len(buffer) > limit and (reason := await self._over(buffer, to_session)):
                    return reason
                buffer.clear()
                skipping = False
            if not skipping:
                buffer += chunk[start:]
                if len(buffer) > limit:
                    if reason := await self._over(buffer, to_session):
                        return reason
                    buffer.clear()
                    skipping = True
        return ""

    async def _line(self, line: bytes, to_session: _Incoming) -> str:
        if not line.strip():
            return ""
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            return self._not_a_message()
        await to_session.send(SessionMessage(message))
        return ""

    async def _over(self, line: bytearray, to_session: _Incoming) -> str:
        """A message over the bound: fail the call that it answers, when that can be told, and pass the rest over."""
        limit = self._command.max_message_bytes
        _log.warning("an MCP server's message is too large", server=self._command.name, limit_bytes=limit)
        if (found := _ANSWER_TO.match(line[:256])) is None:
            return f"it sent a message larger than {limit} bytes"
        problem = ErrorData(code=INTERNAL_ERROR, message=f"the answer is larger than {limit} bytes")
        await to_session.send(SessionMessage(JSONRPCError(jsonrpc="2.0", id=int(found[1]), error=problem)))
        return ""

    def _not_a_message(self) -> str:
        self._garbage += 1
        if self._garbage == 1:
            _log.warning("an MCP server writes what is no message", server=self._command.name, pid=self._process.pid)
        return "it writes what are no messages to its standard output" if self._garbage > _MAX_GARBAGE else ""

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        if code is None:
            return "it closed its standard output"
        told = f"it was killed by signal {-code}" if code < 0 else f"it ended with status {code}"
        if self._tail:
            _log.warning(
                "an MCP server's last words", server=self._command.name, text=self._tail.decode("utf-8", "replace")
            )
        return told

    def _end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

"""A small MCP server for tests, of one user's notes: on its standard streams, or on HTTP.

    python -m tests.support.mcp_server [--http PORT] [--ready FILE] [--log FILE]

It counts in its session, sleeps, dies, prints garbage and gives large results on demand; what it is told of
cancellation it writes to the log file.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel, Field

_LOG = ""


def _note(text: str) -> None:
    if _LOG:
        with Path(_LOG).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


class Point(BaseModel):
    x: int = Field(ge=0)
    y: int


def make(name: str = "notes") -> MCPServer:  # noqa: C901  (a list of tools)
    server = MCPServer(name)
    notes: dict[str, list[str]] = {}

    def mine(ctx: Context[Any, Any]) -> list[str]:
        # One process has one session on standard streams; over HTTP a header names it.
        return notes.setdefault((ctx.headers or {}).get("mcp-session-id", ""), [])

    @server.tool()
    async def remember(text: str, ctx: Context[Any, Any]) -> int:
        """Keep a note in this session and say how many there are."""
        mine(ctx).append(text)
        return len(mine(ctx))

    @server.tool()
    async def recall(ctx: Context[Any, Any]) -> list[str]:
        """The notes of this session."""
        return list(mine(ctx))

    @server.tool()
    async def add(a: Point, b: Point) -> Point:
        """Add two points."""
        return Point(x=a.x + b.x, y=a.y + b.y)

    @server.tool()
    async def sleep(seconds: float) -> str:
        """Sleep, and say in the log how that ended."""
        _note(f"sleep {os.getpid()}")
        try:
            await asyncio.sleep(seconds)
        except BaseException:
            _note("cancelled")
            raise
        _note("slept")
        return "slept"

    @server.tool()
    async def pid() -> int:
        """The process that serves."""
        return os.getpid()

    @server.tool()
    async def environment() -> dict[str, str]:
        """What the process sees."""
        return dict(os.environ)

    @server.tool()
    async def fail(reason: str) -> str:
        """Fail."""
        raise ValueError(reason)

    @server.tool()
    async def die(status: int = 9) -> str:
        """End the process in the middle of the call."""
        sys.stderr.write("dying as I was told\n")
        sys.stderr.flush()
        os.kill(os.getpid(), status)
        await asyncio.sleep(10)
        return "not dead"

    @server.tool()
    async def freeze() -> str:
        """Stop the whole process: it answers nothing any more."""
        _note(f"freeze {os.getpid()}")
        os.kill(os.getpid(), signal.SIGSTOP)
        return "thawed"

    @server.tool()
    async def garbage(lines: int) -> str:
        """Write lines that are no messages to the standard output."""
        os.write(_stdout, b"no message\n" * lines)
        return "written"

    @server.tool()
    async def big(size: int) -> str:
        """A long text."""
        return "x" * size

    @server.tool()
    async def picture() -> types.ImageContent:
        """A small picture."""
        return types.ImageContent(data=base64.b64encode(b"\x89PNG picture").decode(), mime_type="image/png")

    @server.tool()
    async def secret() -> str:
        """Something that not everybody may read."""
        return "the secret"

    return server


# The package turns the descriptor 1 elsewhere, to keep prints out of the protocol.
_stdout = os.dup(1)


def main() -> None:
    global _LOG  # noqa: PLW0603
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int, default=None)
    parser.add_argument("--ready", default="")
    parser.add_argument("--log", default="")
    options = parser.parse_args()
    _LOG = options.log
    server = make()
    if options.http is None:
        server.run("stdio")
        return
    import uvicorn

    listener = socket.create_server(("127.0.0.1", options.http))
    if options.ready:
        partial = Path(options.ready + ".part")
        partial.write_text(str(listener.getsockname()[1]), encoding="ascii")
        partial.rename(options.ready)
    app = server.streamable_http_app()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


if __name__ == "__main__":
    main()

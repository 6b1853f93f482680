"""A reader of server-sent events, as the HTML standard has them, for tests.

    async with sse(http, url, headers=…) as stream:
        event = await stream.next()

It keeps ``last_event_id`` as an ``EventSource`` would: from every block with an id, those without data too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

__all__ = ["Block", "SseReader", "sse"]


@dataclass(frozen=True, slots=True)
class Block:
    """One block: the name of its event (``message`` when it has none), its data, its id (None when it has none)."""

    event: str = "message"
    data: Any = None
    id: str | None = None
    retry_ms: int | None = None
    comments: tuple[str, ...] = ()

    @property
    def dispatched(self) -> bool:
        """Whether an ``EventSource`` would tell its page."""
        return self.data is not None

    @property
    def from_log(self) -> bool:
        """Whether it is an entry of the log, and not a notice."""
        return isinstance(self.data, dict) and "event_type" in self.data


@dataclass
class SseReader:
    """A stream that is open."""

    response: aiohttp.ClientResponse
    last_event_id: str = ""
    seen: list[Block] = field(default_factory=list)

    async def block(self, within_s: float = 15.0) -> Block | None:
        """The next block, whatever it is; None at the end."""
        lines: list[str] = []
        async with asyncio.timeout(within_s):
            while raw := await self.response.content.readline():
                line = raw.decode().rstrip("\n")
                if line:
                    lines.append(line)
                elif lines:
                    return self._take(lines)
        return None

    def _take(self, lines: list[str]) -> Block:
        fields: dict[str, list[str]] = {}
        for line in lines:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        if "id" in fields:
            self.last_event_id = fields["id"][-1]
        block = Block(
            fields.get("event", ["message"])[-1],
            json.loads("\n".join(fields["data"])) if "data" in fields else None,
            fields["id"][-1] if "id" in fields else None,
            int(fields["retry"][-1]) if "retry" in fields else None,
            tuple(fields.get("", ())),
        )
        self.seen.append(block)
        return block

    async def next(self, event: str = "", within_s: float = 15.0) -> Block:
        """The next block with data; the next of this name, passing over others."""
        while True:
            block = await self.block(within_s)
            assert block is not None, f"the stream ended before {event or 'anything'}; seen: {self.seen[-3:]}"
            if block.dispatched and event in {"", block.event}:
                return block

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The next entries of the log, passing over notices."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            block = await self.next()
            if block.from_log:
                found.append(block.data)
        return found

    async def rest(self, within_s: float = 15.0) -> list[Block]:
        """Blocks with data up to the end of the stream."""
        found: list[Block] = []
        while (block := await self.block(within_s)) is not None:
            if block.dispatched:
                found.append(block)
        return found


@asynccontextmanager
async def sse(
    http: aiohttp.ClientSession, url: str, *, headers: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[SseReader]:
    """Open a stream; fails unless it is one."""
    asked = {"Accept": "text/event-stream", **(headers or {})}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
    # An entry may be larger than what aiohttp takes for a line of text by default.
    async with http.get(url, headers=asked, timeout=timeout, read_bufsize=1 << 20, **options) as response:
        response.raise_for_status()
        assert response.status == 200, response.status
        assert response.content_type == "text/event-stream"
        yield SseReader(response)

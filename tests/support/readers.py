"""A user who reads one log over every transport, for tests: the socket, server-sent events, ReadEvents, WatchRun.

    async for seen in user.read("sse", run_id, after):

What breaks a stream is raised as a ``ConnectionError`` or a ``CarrelError``; reading goes on from the last position.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from carrel.client import Event, InternalClient, LogReset, Position
from carrel.errors import CarrelError
from tests.support.asyncapi import GATEWAY, problems
from tests.support.sse import sse
from tests.support.stack import RunningStack

__all__ = ["TERMINAL", "TRANSPORTS", "Reader", "Seen", "through_everything"]

TRANSPORTS: Final = ("socket", "sse", "read_events", "watch_run")
TERMINAL: Final = "run_completed"


@dataclass(frozen=True)
class Seen:
    """One event as a transport showed it, or a reset (without an event_id)."""

    position: Position
    event_type: str
    run_id: str = ""
    data: Any = None

    @property
    def event_id(self) -> str:
        return self.position.event_id


class Reader:
    """Somebody who reads the log in every way."""

    def __init__(self, stack: RunningStack, name: str, http: aiohttp.ClientSession, client: InternalClient) -> None:
        self.stack = stack
        self.name = name
        self.http = http
        self.client = client
        # Any gateway will do, each time another.
        self._urls = itertools.cycle(stack.urls)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.stack.token(self.name)}"}

    def read(self, transport: str, run_id: str, after: Position | None = None) -> AsyncIterator[Seen]:
        """The run's events after a position, to its terminal one."""
        reads: dict[str, Callable[[str, Position | None], AsyncIterator[Seen]]] = {
            "socket": self._socket,
            "sse": self._sse,
            "read_events": self._read_events,
            "watch_run": self._watch_run,
        }
        return reads[transport](run_id, after)

    async def _socket(self, run_id: str, after: Position | None) -> AsyncIterator[Seen]:
        resume: dict[str, Any] = {"offset": 0}
        if after is not None:
            resume = {"epoch": after.epoch, "offset": after.offset, "event_id": after.event_id}
        async with self.http.ws_connect(f"{next(self._urls)}/ws", headers=self.headers) as socket:
            epoch = (await _frame(socket))["epoch"]
            await socket.send_json({"type": "connect", "resume": resume})
            while (hello := await _frame(socket)).get("type") != "connected":
                pass
            epoch = hello["epoch"]
            while True:
                frame = await _frame(socket)
                if frame.get("type") == "reset":
                    epoch = frame["epoch"]
                    yield Seen(Position(epoch, frame["offset"]), "reset")
                elif frame.get("run_id") == run_id and "event_type" in frame:
                    yield _seen(frame, epoch)
                    if frame["event_type"] == TERMINAL:
                        return

    async def _sse(self, run_id: str, after: Position | None) -> AsyncIterator[Seen]:
        headers = dict(self.headers)
        if after is not None:
            headers["Last-Event-ID"] = f"{after.epoch}:{after.offset}:{after.event_id}"
        async with sse(self.http, f"{next(self._urls)}/api/runs/{run_id}/events", headers=headers) as stream:
            while (block := await stream.block(within_s=20)) is not None:
                if block.event == "reset":
                    yield Seen(Position(block.data["epoch"], block.data["offset"]), "reset")
                elif block.from_log:
                    epoch, offset, event_id = str(block.id).split(":", 2)
                    assert (int(offset), event_id) == (block.data["offset"], block.data["event_id"])
                    yield _seen(block.data, epoch)

    async def _read_events(self, run_id: str, after: Position | None) -> AsyncIterator[Seen]:
        async for item in self.client.read_events(after, run_id=run_id, follow=True):
            yield _seen_by_client(item)

    async def _watch_run(self, run_id: str, after: Position | None) -> AsyncIterator[Seen]:
        ended = terminal = False
        async for item in self.client.watch_run_events(run_id, after):
            assert not ended, "something follows the terminal state"
            if isinstance(item, Event | LogReset):
                terminal = isinstance(item, Event) and item.terminal
                yield _seen_by_client(item)
            elif item.state.terminal:
                assert terminal, "the terminal state comes before the terminal event"
                ended = True
        assert ended, "the terminal state is missing"


def _seen(body: dict[str, Any], epoch: str) -> Seen:
    return Seen(Position(epoch, body["offset"], body["event_id"]), body["event_type"], body["run_id"], body["data"])


def _seen_by_client(item: Event | LogReset) -> Seen:
    if isinstance(item, LogReset):
        return Seen(Position(item.position.epoch, item.position.offset), "reset")
    return Seen(item.position, item.event_type, item.run_id, item.data)


async def through_everything(user: Reader, run_id: str, first: int, chance: random.Random) -> tuple[list[Seen], int]:
    """The run's events by transports in turn: the next one whenever a stream breaks, and now and then by itself.

    Returns:
        The events, and how often the transport changed.
    """
    seen: list[Seen] = []
    for turn in range(first, first + 200):
        transport, most = TRANSPORTS[turn % len(TRANSPORTS)], chance.randint(5, 40)
        try:
            events = user.read(transport, run_id, seen[-1].position if seen else None)
            async with aclosing(events) as reading:  # type: ignore[type-var]  # it is a generator
                async for event in reading:
                    seen.append(event)
                    if event.event_type == TERMINAL:
                        return seen, turn - first
                    most -= 1
                    if not most:
                        break
        except (CarrelError, aiohttp.ClientError, ConnectionError, TimeoutError):
            await asyncio.sleep(0.1)
    raise AssertionError("the run does not end")


async def _frame(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """The next frame, which the document of the protocol knows.

    Raises:
        ConnectionError: The connection has ended.
    """
    message = await socket.receive(timeout=20)
    if message.type is not aiohttp.WSMsgType.TEXT:
        raise ConnectionResetError(f"closed with {socket.close_code}")
    frame: dict[str, Any] = message.json()
    assert not problems(frame, GATEWAY)
    return frame

"""One cursor on every transport: the same sequence, the same positions, and what is read on one goes on on another.

Over a real stack. The cuts are random and seeded: ``ONE_CURSOR_SEED`` tries others, and the failure names it.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import aiohttp
import pytest

from carrel.client import Event, InternalClient, LogReset, Position
from carrel.errors import NotFoundError
from carrel.ids import new_id
from tests.e2e.test_internal_client import internal
from tests.support.asyncapi import GATEWAY, problems
from tests.support.sse import sse
from tests.support.stack import RunningStack

SEED: Final = int(os.environ.get("ONE_CURSOR_SEED", "7"))
TRANSPORTS: Final = ("socket", "sse", "read_events", "watch_run")
_TERMINAL: Final = "run_completed"


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


class User:
    """Somebody who reads the log in every way."""

    def __init__(self, stack: RunningStack, name: str, http: aiohttp.ClientSession, client: InternalClient) -> None:
        self.stack = stack
        self.name = name
        self.http = http
        self.client = client

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
        async with self.http.ws_connect(f"{self.stack.url}/ws", headers=self.headers) as socket:
            epoch = (await socket.receive_json(timeout=10))["epoch"]
            await socket.send_json({"type": "connect", "resume": resume})
            while (hello := await socket.receive_json(timeout=10)).get("type") != "connected":
                pass
            epoch = hello["epoch"]
            while True:
                frame = await socket.receive_json(timeout=20)
                assert not problems(frame, GATEWAY)
                if frame.get("type") == "reset":
                    epoch = frame["epoch"]
                    yield Seen(Position(epoch, frame["offset"]), "reset")
                elif frame.get("run_id") == run_id and "event_type" in frame:
                    yield _seen(frame, epoch)
                    if frame["event_type"] == _TERMINAL:
                        return

    async def _sse(self, run_id: str, after: Position | None) -> AsyncIterator[Seen]:
        headers = dict(self.headers)
        if after is not None:
            headers["Last-Event-ID"] = f"{after.epoch}:{after.offset}:{after.event_id}"
        async with sse(self.http, f"{self.stack.url}/api/runs/{run_id}/events", headers=headers) as stream:
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


async def _all(events: AsyncIterator[Seen]) -> list[Seen]:
    return [seen async for seen in events]


async def _some(events: AsyncIterator[Seen], count: int) -> list[Seen]:
    found: list[Seen] = []
    async with aclosing(events) as reading:  # type: ignore[type-var]  # it is a generator
        async for seen in reading:
            found.append(seen)
            if len(found) == count:
                break
    return found


async def _cut_and_resumed(user: User, run_id: str, first: str, second: str, cut: int) -> list[Seen]:
    """``cut`` events on one transport, the rest on another."""
    head = await _some(user.read(first, run_id), cut)
    return head + await _all(user.read(second, run_id, head[-1].position))


@pytest.fixture
async def people(slow_stack: RunningStack) -> AsyncIterator[Callable[[str], Awaitable[User]]]:
    """``await people("ann")`` is somebody new."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())

        async def somebody(name: str) -> User:
            user = new_id(name)
            return User(slow_stack, user, http, await stack.enter_async_context(internal(slow_stack, user)))

        yield somebody


async def _started(user: User, steps: int) -> str:
    return (await user.client.execute("steps", params={"steps": steps}, pipeline=["slow"])).run_id


async def test_four_transports_give_one_sequence_and_every_cut_goes_on_on_another(
    people: Callable[[str], Awaitable[User]],
) -> None:
    chance = random.Random(SEED)
    ann = await people("ann")
    run_id, other = await _started(ann, 80), await _started(ann, 60)
    pairs = list(product(TRANSPORTS, TRANSPORTS))
    cuts = [chance.randint(1, 60) for _ in pairs]
    read = await asyncio.gather(
        *(_all(ann.read(transport, run_id)) for transport in TRANSPORTS),
        *(_cut_and_resumed(ann, run_id, *pair, cut) for pair, cut in zip(pairs, cuts, strict=True)),
    )
    whole, resumed = read[: len(TRANSPORTS)], read[len(TRANSPORTS) :]
    expected = whole[0]
    assert [seen.run_id for seen in expected] == [run_id] * len(expected)
    assert [seen.event_type for seen in expected].count(_TERMINAL) == 1
    assert expected[-1].event_type == _TERMINAL
    assert len({seen.event_id for seen in expected}) == len(expected) > 80
    for transport, sequence in zip(TRANSPORTS, whole, strict=True):
        assert sequence == expected, transport
    for pair, cut, sequence in zip(pairs, cuts, resumed, strict=True):
        assert sequence == expected, f"{pair} cut at {cut}, seed {SEED}"
    # And for somebody who comes after the end, when other runs' events lie between.
    _ = await _all(ann.read("read_events", other))
    for pair in pairs:
        cut = chance.randint(1, len(expected) - 1)
        assert await _cut_and_resumed(ann, run_id, *pair, cut) == expected, f"{pair} cut at {cut}, seed {SEED}"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_foreign_position_is_reset_and_the_run_comes_whole(
    transport: str, people: Callable[[str], Awaitable[User]]
) -> None:
    ann, bob = await people("ann"), await people("bob")
    foreign = (await _all(bob.read("sse", await _started(bob, 5))))[2].position
    run_id = await _started(ann, 5)
    expected = await _all(ann.read("sse", run_id))
    for wrong in (foreign, Position(expected[3].position.epoch, expected[3].position.offset, foreign.event_id)):
        reset, *events = await _all(ann.read(transport, run_id, wrong))
        assert reset == Seen(Position(expected[0].position.epoch, 0), "reset")
        assert events == expected


async def test_another_user_s_run_is_not_found_like_one_that_does_not_exist(
    people: Callable[[str], Awaitable[User]],
) -> None:
    ann, bob = await people("ann"), await people("bob")
    run_id = await _started(ann, 5)
    _ = await _all(ann.read("watch_run", run_id))
    for asked in (run_id, "run-of-nobody"):
        with pytest.raises(NotFoundError):
            await _all(bob.read("watch_run", asked))
        with pytest.raises(NotFoundError):
            _ = [item async for item in bob.client.read_events(run_id=asked)]
        url = f"{bob.stack.url}/api/runs/{asked}/events"
        async with bob.http.get(url, headers=bob.headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "UNKNOWN_RUN")

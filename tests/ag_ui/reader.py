"""A reader of AG-UI over HTTP, for tests: requests as clients make them, records as they come; and logs to read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from carrel.ids import new_id
from carrel.v1 import bridge_pb2, bridge_pb2_grpc, events_pb2
from servicekit.rpc.channel import open_channel
from tests.support.identity import run_context
from tests.support.sse import Block, SseReader
from tests.unit.gateway.harness import Gateway, token

__all__ = ["Stream", "ask", "body", "opened", "publish", "read"]


def body(run_id: str = "their run", thread_id: str = "a thread of theirs", **changes: Any) -> dict[str, Any]:
    """A ``RunAgentInput`` as HttpAgent sends it."""
    message = {"id": "m1", "role": "user", "content": "hello"}
    return {
        "threadId": thread_id,
        "runId": run_id,
        "protocolVersion": "1.0",
        "tools": [],
        "context": [],
        "forwardedProps": {},
        "state": {},
        "messages": [message],
    } | changes


@dataclass
class Stream:
    """One response: its events, each with the id of its record."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [block.data for block in self.blocks]

    @property
    def kinds(self) -> list[str]:
        return [block.data["type"] for block in self.blocks]

    @property
    def last(self) -> dict[str, Any]:
        return self.events[-1]


def _headers(user: str, after: str) -> dict[str, str]:
    resume = {"Last-Event-ID": after} if after else {}
    return {"Authorization": f"Bearer {token(user)}", "Accept": "text/event-stream", **resume}


@asynccontextmanager
async def opened(
    g: Gateway, asked: Mapping[str, Any], user: str = "alice", after: str = "", agent: str = "data"
) -> AsyncIterator[SseReader]:
    """A stream that is open."""
    async with g.http.post(
        f"{g.url}/ag-ui/{agent}", json=asked, headers=_headers(user, after), read_bufsize=1 << 20
    ) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        yield SseReader(response)


async def read(
    g: Gateway, asked: Mapping[str, Any], user: str = "alice", after: str = "", agent: str = "data"
) -> Stream:
    """A stream to its end."""
    async with opened(g, asked, user, after, agent) as reader:
        return Stream(await reader.rest())


async def ask(
    g: Gateway, asked: Any, user: str = "alice", after: str = "", agent: str = "data"
) -> tuple[int, dict[str, Any]]:
    """The status and the error of a request that is refused."""
    async with g.http.post(f"{g.url}/ag-ui/{agent}", json=asked, headers=_headers(user, after)) as response:
        assert response.status != 200
        told: dict[str, Any] = (await response.json())["error"]
        return response.status, told


async def publish(g: Gateway, user: str, run_id: str, log: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Append these events of a run to its user's log, as the emitter does."""
    first = g.numbers.get((user, run_id), 0) + 1
    g.numbers[user, run_id] = first + len(log) - 1
    context = run_context(user, thread="thread-1", run=run_id)
    item = events_pb2.ProducerEvents(context=context, producer_id=f"{run_id}:0:1", attempt=1)
    for number, (kind, data) in enumerate(log, first):
        event = item.events.add(event_id=new_id("evt"), number=number, event_type=kind, agent_name="data")
        event.timestamp.GetCurrentTime()
        event.data = orjson.dumps(data)
    async with open_channel(g.bridge.address) as channel:
        call = bridge_pb2_grpc.BridgeServiceStub(channel).Publish()
        await call.write(bridge_pb2.PublishRequest(items=[item]))
        through = 0
        while through < first + len(log) - 1:
            response = await call.read()
            assert isinstance(response, bridge_pb2.PublishResponse)
            for ack in response.acks:
                assert not ack.HasField("refusal"), ack
                through = ack.through
        await call.done_writing()
        call.cancel()

"""Puts events into the chain at Emit, as many producers on one stream, and nothing more than that.

Lean on purpose: it shares two cores with what it measures. It keeps a producer's window of unacknowledged events and
takes any refusal for a broken measurement; it never resends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
import orjson

from carrel.ids import new_id
from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.emitter_pb2 import EmitRequest, EmitResponse
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.events_pb2 import Event, ProducerEvents

__all__ = ["Injector", "Lane"]

_WINDOW: Final = 200
_ITEM_EVENTS: Final = 100
_MESSAGE_EVENTS: Final = 128
_PAYLOAD: Final = {"text": "x" * 180}


@dataclass(slots=True)
class Lane:
    """One user's producer."""

    context: UserExecutionContext
    producer_id: str
    made: int = 0
    acknowledged: int = 0
    traceparent: str = ""
    waiting: list[Event] = field(default_factory=list)

    def make(self, data: bytes) -> None:
        """One more event, with the time in it."""
        self.made += 1
        event = Event(
            event_id=new_id("ev"),
            number=self.made,
            event_type="agent_thinking",
            agent_name="data",
            data=data,
            traceparent=self.traceparent,
        )
        nanos = time.time_ns()
        event.timestamp.seconds, event.timestamp.nanos = divmod(nanos, 1_000_000_000)
        self.waiting.append(event)


class Injector:
    """Sends round robin over the lanes; ``run`` returns how many events it sent."""

    def __init__(self, channel: grpc.aio.Channel, lanes: Sequence[Lane]) -> None:
        self._call = EmitterServiceStub(channel).Emit()
        self._lanes = lanes
        self._by_id = {(lane.context.user_id, lane.producer_id): lane for lane in lanes}
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def run(self, rate: float, seconds: float) -> int:
        """Send for so long, at ``rate`` events/s over all lanes (0: as fast as the windows allow); wait for the log."""
        writer, reader = asyncio.create_task(self._write()), asyncio.create_task(self._read())
        feeder = asyncio.create_task(self._feed(rate, seconds))
        done, _ = await asyncio.wait({writer, reader, feeder}, return_when=asyncio.FIRST_COMPLETED)
        if feeder not in done:
            raise RuntimeError("the stream to the emitter ended")
        async with asyncio.timeout(30):
            while any(lane.acknowledged < lane.made for lane in self._lanes):
                self._room.clear()
                await self._room.wait()
        for task in (writer, reader):
            task.cancel()
        await asyncio.gather(writer, reader, return_exceptions=True)
        self._call.cancel()
        return feeder.result()

    async def acknowledged(self) -> None:
        """Send what has been made already, and wait until the log has all of it."""
        tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]
        self._wake.set()
        try:
            async with asyncio.timeout(60):
                while any(lane.acknowledged < lane.made for lane in self._lanes):
                    self._room.clear()
                    await self._room.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._call.cancel()

    async def _feed(self, rate: float, seconds: float) -> int:
        data = orjson.dumps(_PAYLOAD)
        began, sent, turn, lanes = time.perf_counter(), 0, 0, self._lanes
        while (elapsed := time.perf_counter() - began) < seconds:
            target = int(rate * elapsed) if rate else sent + 200
            before = sent
            for _ in range(len(lanes) if not rate else target - sent):
                lane = lanes[turn % len(lanes)]
                turn += 1
                if lane.made - lane.acknowledged < _WINDOW and sent < target:
                    lane.make(data)
                    sent += 1
            self._wake.set()
            if not rate and sent == before:
                self._room.clear()
                await self._room.wait()
            else:
                await asyncio.sleep(0.001 if rate else 0)
        return sent

    def _take(self) -> list[ProducerEvents]:
        items: list[ProducerEvents] = []
        count = 0
        for lane in self._lanes:
            if lane.waiting:
                some, lane.waiting = lane.waiting[:_ITEM_EVENTS], lane.waiting[_ITEM_EVENTS:]
                items.append(
                    ProducerEvents(context=lane.context, producer_id=lane.producer_id, fence=1, attempt=1, events=some)
                )
                count += len(some)
                if count >= _MESSAGE_EVENTS:
                    break
        return items

    async def _write(self) -> None:
        while True:
            if items := self._take():
                await self._call.write(EmitRequest(items=items))
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _read(self) -> None:
        while isinstance(response := await self._call.read(), EmitResponse):
            for ack in response.acks:
                if ack.HasField("refusal"):
                    raise RuntimeError(f"refused: {ack.refusal.error.message}")
                lane = self._by_id[ack.user_id, ack.producer_id]
                lane.acknowledged = max(lane.acknowledged, ack.through)
            self._room.set()

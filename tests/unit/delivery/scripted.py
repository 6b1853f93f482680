"""A next hop for tests: a log in memory behind calls that break, refuse and stay silent on command. No network."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from carrel.v1.context_pb2 import UserExecutionContext
from carrel.v1.emitter_pb2 import EmitRequest, EmitResponse
from carrel.v1.events_pb2 import Event, ProducerAck, ProducerEvents, Refusal, RefusalReason

Key = tuple[str, str]


class Broken(grpc.RpcError):
    """The connection is gone."""


def run_context(user: str = "u1", run: str = "r1", ticket: str = "ticket-1") -> UserExecutionContext:
    return UserExecutionContext(user_id=user, thread_id="t1", run_id=run, request_id="q1", ticket=ticket)


def child_context(operation: str, ticket: str = "ticket-1") -> UserExecutionContext:
    context = run_context(ticket=ticket)
    context.request_id, context.parent_request_id, context.operation_depth = f"q1_{operation}", "q1", 1
    return context


@dataclass
class Hop:
    """The other side of every call: one log for each producer, and what is to go wrong."""

    log: dict[Key, list[Event]] = field(default_factory=lambda: defaultdict(list))
    base: dict[Key, int] = field(default_factory=lambda: defaultdict(int))
    items: list[ProducerEvents] = field(default_factory=list)
    messages: list[EmitRequest] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    gaps: list[tuple[str, int]] = field(default_factory=list)
    absent: bool = False
    silent: bool = False  # takes everything, acknowledges nothing
    refuse: Callable[[ProducerEvents], RefusalReason.ValueType | None] = lambda item: None
    # Called before and after each message is taken, with its index; True breaks the connection at that point.
    break_before: Callable[[int], bool] = lambda index: False
    break_after: Callable[[int], bool] = lambda index: False
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def open(self) -> Call:
        call = Call(self)
        self.calls.append(call)
        return call

    def numbers(self, producer: str = "p1", user: str = "u1") -> list[int]:
        return [event.number for event in self.log[user, producer]]

    def last(self, key: Key) -> int:
        return self.base[key] + len(self.log[key])

    def take(self, item: ProducerEvents) -> ProducerAck:
        key = (item.context.user_id, item.producer_id)
        ack = ProducerAck(user_id=key[0], producer_id=key[1], through=self.last(key), epoch="e1")
        reason = self.refuse(item)
        first = item.events[0].number
        if reason is None and first > self.last(key) + 1:
            if item.declare_gap:
                self.gaps.append((item.producer_id, first))
                self.log[key].clear()
                self.base[key] = first - 1
            else:
                reason = RefusalReason.REFUSAL_REASON_GAP
        if reason is not None:
            ack.refusal.CopyFrom(Refusal(reason=reason, last_number=self.last(key)))
            return ack
        for event in item.events:
            if event.number > self.last(key):
                assert event.number == self.last(key) + 1
                kept = Event()
                kept.CopyFrom(event)
                self.log[key].append(kept)
        ack.through = ack.offset = self.last(key)
        return ack


class Call:
    """One Emit call to the hop."""

    def __init__(self, hop: Hop) -> None:
        self.hop = hop
        self.responses: asyncio.Queue[object] = asyncio.Queue()
        self.over = False
        self.half_closed = False

    async def wait_for_connection(self) -> None:
        await asyncio.sleep(0)
        if self.hop.absent:
            self.over = True
            raise Broken

    async def write(self, request: EmitRequest) -> None:
        assert not self.half_closed
        await self.hop.gate.wait()
        await asyncio.sleep(0)
        if self.over:
            raise asyncio.InvalidStateError
        index = len(self.hop.messages)
        self.hop.messages.append(request)
        if self.hop.break_before(index):
            self.lose()
            raise Broken
        self.hop.items.extend(request.items)
        acks = [self.hop.take(item) for item in request.items]
        if self.hop.break_after(index):
            self.lose()
            return
        if not self.hop.silent:
            self.responses.put_nowait(EmitResponse(acks=acks))

    async def read(self) -> EmitResponse | object:
        response = await self.responses.get()
        if isinstance(response, BaseException):
            raise response
        return response

    async def done_writing(self) -> None:
        self.half_closed = True
        self.responses.put_nowait(grpc.aio.EOF)

    def lose(self, error: BaseException | None = None) -> None:
        self.over = True
        while not self.responses.empty():
            self.responses.get_nowait()
        self.responses.put_nowait(error or Broken())

    def cancel(self) -> bool:
        self.over = True
        return True


def script(*reasons: RefusalReason.ValueType | None) -> Callable[[ProducerEvents], RefusalReason.ValueType | None]:
    """Answers the first items with these reasons (None takes the item) and takes all others."""
    left = deque(reasons)
    return lambda item: left.popleft() if left else None

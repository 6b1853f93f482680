"""The way of events from the log to a client, all of it real but for the network: for ``test_replay_property``.

The bridge's servicer over the log in memory, the gateway's upstream, hub, log reader, positioning and writer, and the
client's bookkeeping, in one loop. Calls between gateway and bridge are generators and may be broken at any message;
what the gateway has written to a socket may be cut at any frame. ``VirtualLoop``'s clock jumps over all waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Final

import grpc
import orjson
from grpc import aio

from carrel.client import Notice
from carrel.client.models import Event
from carrel.client.reading import AstrayError, Reader
from carrel.errors import CarrelError
from carrel.v1 import context_pb2, events_pb2
from gateway.close_codes import CloseCode
from gateway.hub import Hub
from gateway.log_reader import BridgeLogReader
from gateway.login import Login
from gateway.outflow import Flow, Outflow
from gateway.positioning import Positioning
from gateway.ring import Place
from gateway.upstream import Upstream
from servicekit.identity.principals import ServicePrincipal, SessionPrincipal
from servicekit.rpc.context import enter_call
from servicekit.rpc.copies import Copy
from services.bridge.domain.bridge import Bridge
from services.bridge.domain.hub import HubOptions
from services.bridge.models import Append, ReadResult, Retention, StoredEvent
from services.bridge.service import BridgeServicer
from services.bridge.store_memory import MemoryEventLog
from services.bridge.store_rules import new_epoch
from tests.faults.oracle import Committed, LogEnd, Received

USER: Final = "alice"
_LOGIN: Final = Login(USER, 4e12)
_ENDS: Final = 4e12


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time stands still, and jumps to the next timer when nothing is left to do. Nothing may wait for real I/O."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__()

    def time(self) -> float:
        """Seconds of its own."""
        return self._now

    def _run_once(self) -> None:
        ready: Any = getattr(self, "_ready")  # noqa: B009 -- the base class's own
        scheduled: Any = getattr(self, "_scheduled")  # noqa: B009 -- as above
        if not ready and scheduled:
            self._now = max(self._now, scheduled[0].when())
        super()._run_once()  # type: ignore[misc]  # the base class's own


class SlowLog(MemoryEventLog):
    """Reads take as many turns of the loop as ``slowness`` says, before and after the look at the log."""

    def __init__(self, keep: int, slowness: Callable[[], int]) -> None:
        super().__init__(Retention(max_entries=keep))
        self._slowness = slowness

    async def read(self, user: str, after: int, limit: int, max_bytes: int = 1 << 20) -> ReadResult:
        await turns(self._slowness())
        result = await super().read(user, after, limit, max_bytes)
        await turns(self._slowness())
        return result

    def lose_tail(self, count: int, *, keep_epoch: bool) -> None:
        """The newest entries are gone, as after a failover to a copy that lacked them."""
        log = self._logs.get(USER)
        if log is None:
            return
        for _ in range(min(count, len(log.entries))):
            log.entries.pop()
            log.times.pop()
            log.state.top -= 1
        if not keep_epoch:
            log.state.epoch = new_epoch()

    def end(self) -> LogEnd:
        """What is there now."""
        log = self._logs.get(USER)
        if log is None:
            return LogEnd("", [])
        made = []
        for entry in log.entries:
            told = events_pb2.LogEntry.FromString(entry.blob)
            made.append(Committed(entry.offset, entry.event_id, told.event_type, told.run_id, told.thread_id))
        return LogEnd(log.state.epoch, made)


async def turns(count: int) -> None:
    """Let everybody else go on for so many turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


class Verifier:
    """Believes everybody."""

    identity_mismatch_total = 0

    def verify(self, message: context_pb2.UserExecutionContext, allow: object = None) -> Any:
        """The principal that the context claims."""
        if message.user_id:
            return SessionPrincipal(message.user_id, frozenset(), {}, _ENDS)
        return ServicePrincipal("gateway", frozenset(), _ENDS)

    def alike(self) -> Verifier:
        """Another that believes everybody."""
        return Verifier()


class Desk:
    """Gives contexts without tickets."""

    def own(self) -> context_pb2.UserExecutionContext:
        """The gateway's own."""
        return context_pb2.UserExecutionContext()

    def session(self, login: Login) -> context_pb2.UserExecutionContext:
        """A user's."""
        return context_pb2.UserExecutionContext(user_id=login.user_id)


class _Call:
    """One streaming call: the handler's generator, until it ends or ``cut``."""

    def __init__(self, handler: Callable[[AsyncIterator[Any]], AsyncGenerator[Any, None]]) -> None:
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._handler = handler
        self._cut = asyncio.Event()

    async def write(self, request: Any) -> None:
        """Send a request."""
        if self._cut.is_set():
            raise asyncio.InvalidStateError("the call has ended")
        self._requests.put_nowait(request)

    def cancel(self) -> None:
        """End it, from either side."""
        self._cut.set()

    async def _asked(self) -> AsyncGenerator[Any, None]:
        while True:
            yield await self._requests.get()

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        asked = self._asked()
        serving = self._handler(asked)
        ended = asyncio.ensure_future(self._cut.wait())
        coming: asyncio.Future[Any] = ended
        try:
            while True:
                coming = asyncio.ensure_future(_next(serving))
                await asyncio.wait({coming, ended}, return_when=asyncio.FIRST_COMPLETED)
                if self._cut.is_set():
                    raise aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), "cut")
                if (response := coming.result()) is None:
                    return
                yield response
        finally:
            ended.cancel()
            coming.cancel()
            # A generator that runs cannot be closed.
            await asyncio.wait({coming, ended})
            await serving.aclose()
            await asked.aclose()


async def _next(serving: AsyncGenerator[Any, None]) -> Any:
    return await anext(serving, None)


class Channel:
    """The gateway's channel to whatever bridge is there at the moment."""

    def __init__(self) -> None:
        self.servicer: BridgeServicer | None = None
        self._attached: list[_Call] = []
        self._up = asyncio.Event()

    def serve(self, servicer: BridgeServicer) -> None:
        """Calls from now on go to this one; those that are open break."""
        self.servicer = servicer
        self._up.set()
        self.cut()

    def cut(self) -> None:
        """Break the streams that are open."""
        for call in self._attached:
            call.cancel()
        self._attached.clear()

    async def channel_ready(self) -> None:
        """Return once there is a bridge."""
        await self._up.wait()

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Callable[..., _Call]:
        """``Attach``."""

        def call(**_: Any) -> _Call:
            assert self.servicer is not None
            servicer = self.servicer
            made = _Call(lambda requests: servicer.Attach(requests, None))  # type: ignore[arg-type, return-value]
            self._attached.append(made)
            return made

        return call

    def unary_stream(self, method: str, *_: Any, **__: Any) -> Callable[..., _Call]:
        """``ReadEvents``."""

        def call(request: Any, **_: Any) -> _Call:
            assert self.servicer is not None
            servicer = self.servicer

            async def handler(_requests: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
                enter_call(SessionPrincipal(request.context.user_id, frozenset(), {}, _ENDS), None)
                reading: Any = servicer.ReadEvents(request, None)  # type: ignore[arg-type]
                async with contextlib.aclosing(reading) as responses:
                    async for response in responses:
                        yield response

            made = _Call(handler)
            self._attached.append(made)
            return made

        return call

    def unary_unary(self, method: str, *_: Any, **__: Any) -> None:
        """Not called here."""

    stream_unary = unary_unary


class OneBridge:
    """Of the bridges that a gateway may attach to there is one."""

    several = False

    def __init__(self, channel: Any) -> None:
        self._copy = Copy("bridge", channel)

    async def choose(self) -> Copy:
        """The one, once it is there."""
        await self._copy.channel.channel_ready()
        return self._copy

    async def crowded(self, mine: Copy) -> None:
        """Never."""
        await asyncio.get_running_loop().create_future()


class Pipe:
    """The socket: frames as they were written, of which the client has taken the first ``taken``."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.taken = 0

    def write(self, data: bytes) -> None:
        """Frames of a server: one unmasked text frame after the other."""
        at = 0
        while at < len(data):
            size, head = data[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[at + 2 : at + 4]), 4
            elif size == 127:
                size, head = int.from_bytes(data[at + 2 : at + 10]), 10
            self.frames.append(orjson.loads(data[at + head : at + head + size]))
            at += head + size

    def get_write_buffer_size(self) -> int:
        """Nothing waits."""
        return 0

    def is_closing(self) -> bool:
        """Never."""
        return False


class _Listener:
    login = _LOGIN

    def __init__(self) -> None:
        self.out: Outflow | None = None

    def wake(self) -> None:
        if self.out is not None:
            self.out.wake()

    def end(self, code: CloseCode, error: CarrelError | None = None, retry_ms: int | None = None) -> None:
        raise AssertionError(f"the connection was ended: {code} {error}")


class Client:
    """A user's client that reconnects with its position, and what it was given."""

    def __init__(self, world: World, thread: str, *, batch: bool, everything: bool) -> None:
        from carrel.client.models import Position

        self._world = world
        self._thread = thread
        self._batch = batch
        self.reader = Reader(Position() if everything else None, filtered=bool(thread))
        self.received = Received(USER)
        self.begun_at: int | None = None
        self.astray = False
        self._pipe = Pipe()
        self._task: asyncio.Task[None] | None = None

    def connect(self) -> None:
        """A new connection, from where the client is."""
        self._pipe = Pipe()
        self.astray = False
        self.reader.begin()
        asked = self.reader.resume().get("resume")
        place = None
        if asked is not None:
            place = Place(asked.get("epoch", ""), asked["offset"], asked.get("event_id", ""))
        self._task = asyncio.create_task(self._serve(place, self._pipe), name="connection")

    async def _serve(self, place: Place | None, pipe: Pipe) -> None:
        """What the gateway does for a connection."""
        world, listener = self._world, _Listener()
        with world.hub.join(_LOGIN, listener) as feed:
            start = await world.positioning.find(_LOGIN, feed, place, self._thread)
            flow = Flow(batch=self._batch)
            listener.out = out = Outflow(pipe, feed, world.log_reader, start.cursor, flow)
            start.announce(out, "conn-1", 30.0)
            await out.run()

    def take(self, count: int | None = None) -> None:
        """Read so many of the frames that have been written; all of them without a number."""
        pipe = self._pipe
        if self.astray:
            return
        until = len(pipe.frames) if count is None else min(len(pipe.frames), pipe.taken + count)
        for frame in pipe.frames[pipe.taken : until]:
            if frame.get("type") == "connected":
                for notice in self.reader.connected(frame):
                    self.received.add(notice)
                if self.begun_at is None:
                    self.begun_at = int(frame["offset"])
                continue
            try:
                for item in self.reader.take(frame):
                    if isinstance(item, Event | Notice):
                        self.received.add(item)
            except AstrayError:
                # It comes back and asks; what else is on the way is for nobody.
                self.astray = True
                break
        pipe.taken = until

    async def hang_up(self) -> None:
        """The connection ends; what was not taken is lost."""
        if self._task is None:
            return
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._task = None

    @property
    def failed(self) -> BaseException | None:
        """Why the gateway's side ended, if it has."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()


class World:
    """The log, the bridge and the gateway; clients are made by ``client``."""

    def __init__(self, log: SlowLog, ring: int) -> None:
        self.log = log
        self.channel = Channel()
        self.hub = Hub(max_events=ring, max_bytes=1 << 20)
        desk: Any = Desk()
        stub_channel: Any = self.channel
        attachment: Any = OneBridge(stub_channel)
        self.upstream = Upstream(attachment, self.hub, desk, "gateway-1")
        from carrel.v1.bridge_pb2_grpc import BridgeServiceStub

        self.log_reader = BridgeLogReader(BridgeServiceStub(stub_channel), desk)
        self.positioning = Positioning(self.log_reader)
        self._runs = 0
        self._numbers: dict[str, int] = {}
        self._next_id = 0
        self._stack = contextlib.AsyncExitStack()
        self._bridge_stack = contextlib.AsyncExitStack()
        self.bridge: Bridge | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        """The world for the length of the block."""
        await self.start_bridge()
        attaching = asyncio.create_task(self.upstream.run(), name="upstream")
        try:
            yield self
        finally:
            failed = attaching.done()
            attaching.cancel()
            await asyncio.wait([attaching])
            await self._bridge_stack.aclose()
            assert not failed, f"the upstream ended: {attaching.exception()!r}"

    async def start_bridge(self) -> None:
        """Another bridge process over the same log."""
        self.channel.cut()
        await turns(3)
        await self._bridge_stack.aclose()
        options = HubOptions(queue_bytes=2000, readers=2, page_entries=3, page_bytes=600)
        self.bridge = await self._bridge_stack.enter_async_context(Bridge(self.log, hub_options=options))
        verifier: Any = Verifier()
        self.channel.serve(BridgeServicer(self.bridge, verifier))

    def append(self, count: int, producer: str, *, gap: bool = False) -> None:
        """So many more events of a producer, which has its run and thread of the same name; perhaps after a hole."""
        assert self.bridge is not None
        first = self._numbers.get(producer, 0) + (3 if gap else 1)
        self._numbers[producer] = first + count - 1
        run, thread = f"run-{producer}", f"thread-{producer}"
        events = tuple(self._event("agent_thinking", run, thread) for _ in range(count))
        lost = self._event("log_gap", run, thread) if gap else None
        _ = self.bridge.publish([Append(USER, run, thread, producer, 1, first, events, gap=lost)])

    def forget_producers(self) -> None:
        """What the log knows of them is as old as its entries: new ones begin."""
        self._numbers = {}
        self._runs += 1

    @property
    def generation(self) -> int:
        """How often producers were forgotten; a part of their names."""
        return self._runs

    def _event(self, kind: str, run: str, thread: str) -> StoredEvent:
        self._next_id += 1
        event_id = f"evt-{self._next_id}"
        entry = events_pb2.LogEntry(event_id=event_id, event_type=kind, run_id=run, thread_id=thread, data=b"{}")
        entry.timestamp.FromSeconds(1_700_000_000)
        return StoredEvent(event_id, entry.SerializeToString())


@contextlib.contextmanager
def _virtual_runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        yield runner


def run_virtually(main: Coroutine[Any, Any, None]) -> None:
    """Run it on a loop whose clock jumps."""
    with _virtual_runner() as runner:
        runner.run(main)

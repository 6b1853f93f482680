"""Bridges as processes over a real Redis, a real emitter with producers before them, gateways behind them.

    async with World(tmp_path, server.url, bridges=2) as world:
        writer = await world.writer("alice"); reader = world.reader("alice", bridge=1)

Oracle (``Reader.judge``): each acknowledged event arrived once and in order, or an explicit notice says that
some did not.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import orjson
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.v1 import bridge_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.delivery import Producer, ProducerOptions, ProducerStream, StreamOptions
from servicekit.identity.keys import KeySet, generate_key, write_jwks
from servicekit.identity.tickets import TicketMinter, TicketVerifier
from servicekit.rpc.channel import open_channel
from servicekit.rpc.copies import Copies
from services.emitter.app import serve_emitter
from services.emitter.config import EmitterSettings
from tests.support.redis_servers import free_port

ROOT = Path(__file__).resolve().parents[2]
KEY = generate_key()
MINTER = TicketMinter(KEY, "execution")
_READY_S = 30.0


class BridgeProcess:
    """``python -m services.bridge`` over a Redis, with a port that stays the same."""

    def __init__(self, folder: Path, url: str, settings: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{free_port()}"
        self._log = folder / "log"
        self._ready = folder / "ready"
        write_jwks(folder / "jwks.json", [KEY])
        self._environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "CARREL_STATE_DIR": str(folder),
            "CARREL_TICKET_JWKS": str(folder / "jwks.json"),
            "CARREL_BRIDGE_LISTEN": self.address,
            "CARREL_BRIDGE_LOG__URL": url,
            "CARREL_BRIDGE_LOG__TIMEOUT_S": "1",
            "CARREL_BRIDGE_RECOVERY_BASE_DELAY_S": "0.1",
            "CARREL_BRIDGE_FAILED_PROBE_INTERVAL_S": "0.5",
            "CARREL_READY_FILE": str(self._ready),
            "CARREL_DRAIN_SECONDS": "1",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self._ready.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            command = [sys.executable, "-P", "-m", "services.bridge"]
            self.process = await asyncio.to_thread(
                subprocess.Popen, command, env=self._environment, stderr=log, stdout=log
            )
        async with asyncio.timeout(_READY_S):
            while not self._ready.exists():
                assert self.process.poll() is None, self.log()
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None

    def log(self) -> str:
        """What it has written."""
        return self._log.read_text(errors="replace")

    async def serving(self) -> bool:
        """What its readiness says."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            with suppress(grpc.aio.AioRpcError):
                request = health_pb2.HealthCheckRequest(service="readiness")
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False


class Writer:
    """One run's producer that emits numbered events until told to stop; ``made`` of them so far."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.made = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def acknowledged(self) -> int:
        """How many of them the log has acknowledged."""
        return self.producer.acknowledged

    async def emit(self, count: int = 1) -> None:
        """So many more."""
        for _ in range(count):
            self.made += 1
            data = {"agent_name": "data", "description": f"{self.producer.producer_id} {self.made}"}
            await self.producer.emit("agent_started", data)

    def begin(self, pause_s: float = 0.002) -> None:
        """Emit on and on."""

        async def on_and_on() -> None:
            while True:
                await self.emit()
                await asyncio.sleep(pause_s)

        self._task = asyncio.create_task(on_and_on(), name="writer")

    async def end(self, flush_s: float = 30) -> None:
        """Emit no more, and wait until all is acknowledged."""
        await self.stop()
        await self.producer.flush(flush_s)

    async def stop(self) -> None:
        """Emit no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None


@dataclass
class Reader:
    """A gateway with one user: attaches to a bridge, resumes where it was, keeps what it is told."""

    user: str
    bridge: BridgeProcess
    items: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    position: events_pb2.Position | None = None
    task: asyncio.Task[None] | None = None
    offset: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        options = [("grpc.max_reconnect_backoff_ms", 100), ("grpc.initial_reconnect_backoff_ms", 50)]
        options += [("grpc.use_local_subchannel_pool", 1), ("grpc.min_reconnect_backoff_ms", 50)]
        async with grpc.aio.insecure_channel(self.bridge.address, options=options) as channel:
            while True:
                call = BridgeServiceStub(channel).Attach(wait_for_ready=True)
                try:
                    await self._stream(call)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    pass
                finally:
                    call.cancel()
                await asyncio.sleep(0.05)

    async def _stream(self, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]  # generic in the stubs only
        service = UserExecutionContext(ticket=MINTER.mint_service("gateway"))
        await call.write(bridge_pb2.AttachRequest(context=service, hello=bridge_pb2.AttachHello(gateway_id="g")))
        session = UserExecutionContext(user_id=self.user, ticket=MINTER.mint_session(self.user))
        subscribe = bridge_pb2.Subscribe(generation=1, position=self.position)
        await call.write(bridge_pb2.AttachRequest(context=session, subscribe=subscribe))
        while isinstance(response := await call.read(), bridge_pb2.AttachResponse):
            for item in response.items:
                if item.HasField("refused"):
                    return
                self._take(item)

    def _take(self, item: bridge_pb2.AttachItem) -> None:
        if item.HasField("subscribed") and self.position is None:
            self.position = item.subscribed.top
            self.offset = self.position.offset
        elif item.HasField("reset"):
            self.notices.append(events_pb2.ResetReason.Name(item.reset.reset.reason).removeprefix("RESET_REASON_"))
            self.position = item.reset.reset.position
            self.offset = self.position.offset
            self.items.append("reset")
        elif item.HasField("entries"):
            self._entries(item.entries)

    def _entries(self, told: bridge_pb2.UserEntries) -> None:
        assert told.user_id == self.user, "a foreign user's events"
        for entry in told.entries:
            assert entry.offset == self.offset + 1, f"offset {entry.offset} after {self.offset}"
            self.offset = entry.offset
            self.position = events_pb2.Position(epoch=told.epoch, offset=entry.offset, event_id=entry.event_id)
            if entry.event_type == "log_gap":
                self.items.append("log_gap")
                self.notices.append("log_gap")
            else:
                self.items.append(str(orjson.loads(entry.data)["description"]))

    def of(self, writer: Writer) -> list[int]:
        """The numbers of a writer's events, in the order they came."""
        head = f"{writer.producer.producer_id} "
        return [int(item.removeprefix(head)) for item in self.items if item.startswith(head)]

    def judge(self, writer: Writer) -> None:
        """The oracle, when everything is acknowledged and has had time to arrive."""
        numbers, wanted = self.of(writer), list(range(1, writer.acknowledged + 1))
        if not self.notices:
            assert numbers == wanted
            return
        # A reset may bring again what the log still has; between two notices everything is in order and once.
        part: list[int] = []
        for item in [*self.items, "reset"]:
            if item in {"reset", "log_gap"}:
                assert part == list(range(part[0], part[0] + len(part))) if part else True
                part = []
            elif item.startswith(f"{writer.producer.producer_id} "):
                part.append(int(item.rpartition(" ")[2]))
        assert wanted[-1] in numbers


class World:
    """Everything but Redis. The emitter publishes to the first bridge."""

    def __init__(self, folder: Path, url: str, *, bridges: int = 1, **settings: str) -> None:
        self.bridges = [BridgeProcess(folder / f"bridge{n}", url, settings) for n in range(bridges)]
        self._folder = folder
        self._stack = AsyncExitStack()
        self._stream: ProducerStream | None = None
        self._readers: list[Reader] = []
        self._writers: list[Writer] = []

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(bridge.start() for bridge in self.bridges))
            settings = EmitterSettings(listen="127.0.0.1:0", state_dir=self._folder)
            to_bridge = await self._stack.enter_async_context(open_channel(self.bridges[0].address))
            bridges = await self._stack.enter_async_context(Copies(self.bridges[0].address, "bridge"))
            verifier = TicketVerifier(KeySet([KEY]))
            server = await self._stack.enter_async_context(serve_emitter(settings, to_bridge, bridges, verifier))
            port = await server.start()
            emitters = await self._stack.enter_async_context(Copies(f"127.0.0.1:{port}", "emitter"))
            quick = StreamOptions(first_delay_s=0.01, max_delay_s=0.2)
            stream = ProducerStream.to_emitters(emitters, options=quick)
            self._stream = await self._stack.enter_async_context(stream)
            await stream.wait_connected()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(*(bridge.log()[-3000:] for bridge in self.bridges), sep="\n----\n")
        await self._end()

    async def _end(self) -> None:
        for reader in self._readers:
            assert reader.task is not None
            reader.task.cancel()
            with suppress(asyncio.CancelledError):
                await reader.task
        for writer in self._writers:
            await writer.stop()
            await writer.producer.aclose()
        await self._stack.aclose()
        for bridge in self.bridges:
            bridge.kill()

    def writer(self, user: str, run: str = "run1") -> Writer:
        """A producer of a run of the user's."""
        assert self._stream is not None
        ticket = MINTER.mint_run(user, "t1", run, "q1")
        context = UserExecutionContext(user_id=user, thread_id="t1", run_id=run, request_id="q1", ticket=ticket)
        quick = ProducerOptions(settle_s=0.005, first_delay_s=0.02, max_delay_s=0.2)
        writer = Writer(Producer(self._stream, f"{run}:0:1", context, fence=1, attempt=1, options=quick))
        self._writers.append(writer)
        return writer

    def reader(self, user: str, bridge: int = 0) -> Reader:
        """A gateway attached to one of the bridges."""
        reader = Reader(user, self.bridges[bridge])
        reader.task = asyncio.create_task(reader.run(), name=f"reader of {user}")
        self._readers.append(reader)
        return reader

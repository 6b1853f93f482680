"""The bridge's streams when things go wrong: stopped gateways, a failing store, overload, drain."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.v1 import bridge_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub, add_BridgeServiceServicer_to_server
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.identity.keys import KeySet, generate_key
from servicekit.identity.tickets import TicketMinter, TicketVerifier
from servicekit.rpc.channel import open_channel
from servicekit.rpc.server import RpcServer
from servicekit.settings import SharedSettings
from services.bridge.app import serve_bridge
from services.bridge.config import BridgeSettings
from services.bridge.domain.bridge import Bridge
from services.bridge.domain.hub import HubOptions
from services.bridge.domain.integration import RecoveryOptions
from services.bridge.models import IntegrationState
from services.bridge.service import BridgeServicer
from services.bridge.store_sqlite import SqliteEventLog, SqliteOptions
from tests.conftest import Eventually

KEY = generate_key()
MINTER = TicketMinter(KEY, "execution")
OVERLOADED = events_pb2.REFUSAL_REASON_OVERLOADED


class World:
    """A bridge whose log can be made to fail, served over gRPC."""

    def __init__(self, bridge: Bridge, server: RpcServer, servicer: BridgeServicer, stub: BridgeServiceStub) -> None:
        self.bridge = bridge
        self.server = server
        self.servicer = servicer
        self.stub = stub
        self.log: SqliteEventLog

    async def break_log(self, broken: bool) -> None:
        old, new = ("entries", "gone") if broken else ("gone", "entries")
        await self.log._writer.call(lambda session: session.connection.execute(f"ALTER TABLE {old} RENAME TO {new}"))

    async def until(self, state: IntegrationState) -> None:
        async with asyncio.timeout(10):
            while self.bridge.monitor.state is not state:  # noqa: ASYNC110  (states are announced to the app only)
                await asyncio.sleep(0.005)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    log = await SqliteEventLog.open(tmp_path / "events.db", options=SqliteOptions(max_queued_bytes=1 << 20))
    recovery = RecoveryOptions(base_delay_s=0.05, failed_probe_s=0.1)
    failures: list[str] = []
    verifier = TicketVerifier(KeySet([KEY]))
    async with Bridge(
        log,
        hub_options=HubOptions(queue_bytes=200_000),
        recovery=recovery,
        on_failure=lambda name, error: failures.append(name),
    ) as bridge:
        servicer = BridgeServicer(bridge, verifier)
        services = [(add_BridgeServiceServicer_to_server, servicer, "carrel.v1.BridgeService")]
        server = RpcServer("127.0.0.1:0", services, verifier, SharedSettings(drain_seconds=1))
        await server.start()
        async with server, open_channel(server.address) as channel:
            world = World(bridge, server, servicer, BridgeServiceStub(channel))
            world.log = log
            yield world
    await log.close()
    assert failures == []


def context(user: str = "alice") -> UserExecutionContext:
    ticket = MINTER.mint_run(user, "t", f"r-{user}", "q")
    return UserExecutionContext(user_id=user, thread_id="t", run_id=f"r-{user}", request_id="q", ticket=ticket)


def publish(
    first: int, last: int, *, who: UserExecutionContext | None = None, size: int = 20
) -> bridge_pb2.PublishRequest:
    who = who or context()
    events = [
        events_pb2.Event(event_id=f"e{n}", number=n, event_type="agent_thinking", data=b"x" * size)
        for n in range(first, last + 1)
    ]
    item = events_pb2.ProducerEvents(context=who, producer_id=f"{who.run_id}:0:1", events=events)
    return bridge_pb2.PublishRequest(items=[item])


async def attach(stub: BridgeServiceStub, user: str = "alice", position: events_pb2.Position | None = None) -> Any:
    call: Any = stub.Attach()
    service = UserExecutionContext(ticket=MINTER.mint_service("gateway"))
    await call.write(bridge_pb2.AttachRequest(context=service, hello=bridge_pb2.AttachHello(gateway_id="g")))
    session = UserExecutionContext(user_id=user, ticket=MINTER.mint_session(user))
    subscribe = bridge_pb2.Subscribe(generation=1, position=position)
    await call.write(bridge_pb2.AttachRequest(context=session, subscribe=subscribe))
    response = await call.read()
    assert response.items[0].WhichOneof("item") == "subscribed"
    return call


async def offsets_until(call: Any, top: int) -> list[int]:
    offsets: list[int] = []
    async with asyncio.timeout(20):
        while not offsets or offsets[-1] < top:
            response = await call.read()
            assert response is not grpc.aio.EOF
            offsets += (entry.offset for item in response.items for entry in item.entries.entries)
    return offsets


async def test_requests_are_read_while_commits_are_under_way_and_all_are_acknowledged(world: World) -> None:
    call: Any = world.stub.Publish()
    who = context()
    for first in range(1, 501, 5):
        await call.write(publish(first, first + 4, who=who))
    await call.done_writing()
    through = [ack.through async for response in call for ack in response.acks]
    assert through == sorted(through)
    assert through[-1] == 500
    assert len(through) < 100


async def test_gateway_that_stops_reading_holds_up_nobody_and_catches_up(world: World) -> None:
    stopped, quick = await attach(world.stub), await attach(world.stub)
    call: Any = world.stub.Publish()
    who = context()
    reading = asyncio.create_task(offsets_until(quick, 400))
    for first in range(1, 401, 4):
        await call.write(publish(first, first + 3, who=who, size=20_000))
        async with asyncio.timeout(10):
            await call.read()
    assert await reading == list(range(1, 401))
    assert world.bridge.hub.users_behind == 1
    assert sum(link.queued_bytes for link in world.bridge.hub._links) < 300_000
    assert await offsets_until(stopped, 400) == list(range(1, 401))
    for each in (call, stopped, quick):
        each.cancel()


async def test_failing_log_acknowledges_nothing_turns_degraded_failed_and_returns(world: World) -> None:
    call: Any = world.stub.Publish()
    who = context()
    gateway = await attach(world.stub)
    await call.write(publish(1, 2, who=who))
    assert (await call.read()).acks[0].through == 2
    await world.break_log(True)
    for _ in range(3):
        await call.write(publish(3, 4, who=who))
        (ack,) = (await call.read()).acks
        assert (ack.through, ack.refusal.reason) == (0, OVERLOADED)
        assert ack.refusal.retry_after.ToMilliseconds() > 0
    await world.break_log(False)
    await world.until(IntegrationState.ACTIVE)
    await call.write(publish(3, 4, who=who))
    assert (await call.read()).acks[0].through == 4
    assert await offsets_until(gateway, 4) == [1, 2, 3, 4]
    call.cancel()
    gateway.cancel()


async def test_log_that_stays_away_ends_in_failed_which_returns(world: World, tmp_path: Path) -> None:
    call: Any = world.stub.Publish()
    who = context()
    world.log._path = tmp_path / "missing" / "events.db"  # what the probe looks at
    await world.break_log(True)
    await call.write(publish(1, 1, who=who))
    assert (await call.read()).acks[0].refusal.reason == OVERLOADED
    await world.until(IntegrationState.FAILED)
    world.log._path = tmp_path / "events.db"
    await world.break_log(False)
    await world.until(IntegrationState.ACTIVE)
    await call.write(publish(1, 1, who=who))
    assert (await call.read()).acks[0].through == 1
    call.cancel()


async def test_overload_is_refused_and_taken_when_sent_again(world: World) -> None:
    release = threading.Event()
    held = world.log._writer.call(lambda session: release.wait(10))
    call: Any = world.stub.Publish()
    who = [context(f"u{n}") for n in range(8)]
    for each in who:
        await call.write(publish(1, 1, who=each, size=200_000))
    await asyncio.sleep(0.1)  # reading goes on while the writer is held: nothing else tells that all were read
    release.set()
    await held
    refused: set[str] = set()
    answered = 0
    while answered < len(who):
        for ack in (await call.read()).acks:
            answered += 1
            if ack.HasField("refusal"):
                assert ack.refusal.reason == OVERLOADED
                refused.add(ack.user_id)
    assert 0 < len(refused) < len(who)
    for each in who:
        await call.write(publish(1, 1, who=each, size=200_000))
        assert (await call.read()).acks[0].through == 1
    call.cancel()


async def test_drain_acknowledges_what_was_sent_says_bye_and_ends_every_stream(world: World) -> None:
    call: Any = world.stub.Publish()
    who = context()
    gateway = await attach(world.stub)
    session = UserExecutionContext(user_id="alice", ticket=MINTER.mint_session("alice"))
    follower: Any = world.stub.ReadEvents(bridge_pb2.ReadEventsRequest(context=session, follow=True))
    last = await follower.read()
    await call.write(publish(1, 50, who=who))
    assert (await call.read()).acks[0].through == 50
    world.servicer.end_streams()
    async with asyncio.timeout(5):
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        items = []
        while (response := await gateway.read()) is not grpc.aio.EOF:
            items += response.items
        assert items[-1].bye.retry_after.ToMilliseconds() == 200
        assert [entry.offset for item in items for entry in item.entries.entries] == list(range(1, 51))
        while (read := await follower.read()) is not grpc.aio.EOF:
            last = read
    assert last.through.offset == 50
    assert await follower.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("kind", ["no hello", "user's hello", "forged"])
async def test_attach_that_does_not_begin_with_a_service_hello_is_refused(world: World, kind: str) -> None:
    call = world.stub.Attach()
    session = UserExecutionContext(user_id="alice", ticket=MINTER.mint_session("alice"))
    service = UserExecutionContext(ticket=MINTER.mint_service("gateway"))
    hello = bridge_pb2.AttachHello(gateway_id="g")
    if kind == "no hello":
        request = bridge_pb2.AttachRequest(context=service, subscribe=bridge_pb2.Subscribe(generation=1))
    elif kind == "user's hello":
        request = bridge_pb2.AttachRequest(context=session, hello=hello)
    else:
        service.ticket = TicketMinter(generate_key(), "test").mint_service("gateway")
        request = bridge_pb2.AttachRequest(context=service, hello=hello)
    await call.write(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    expected = {
        "no hello": grpc.StatusCode.INVALID_ARGUMENT,
        "user's hello": grpc.StatusCode.PERMISSION_DENIED,
        "forged": grpc.StatusCode.UNAUTHENTICATED,
    }
    assert caught.value.code() is expected[kind]


async def test_subscription_with_anothers_ticket_is_refused_and_the_stream_goes_on(world: World) -> None:
    call = await attach(world.stub)
    forged = UserExecutionContext(user_id="bob", ticket=MINTER.mint_session("alice"))
    await call.write(bridge_pb2.AttachRequest(context=forged, subscribe=bridge_pb2.Subscribe(generation=7)))
    (item,) = (await call.read()).items
    assert (item.refused.user_id, item.refused.generation, item.refused.error.code) == ("bob", 7, "IDENTITY_MISMATCH")
    publisher = world.stub.Publish()
    await publisher.write(publish(1, 1, who=context("bob")))
    await publisher.write(publish(1, 1))
    assert await offsets_until(call, 1) == [1]
    call.cancel()
    publisher.cancel()


async def test_readiness_follows_the_log_and_liveness_does_not(tmp_path: Path, eventually: Eventually) -> None:
    log = await SqliteEventLog.open(tmp_path / "events.db")
    settings = BridgeSettings(listen="127.0.0.1:0", recovery_base_delay_s=0.3, drain_seconds=1)
    async with serve_bridge(settings, log, TicketVerifier(KeySet([KEY]))) as server:
        await server.start()
        async with open_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)

            async def serving(name: str) -> bool:
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

            assert await serving("readiness")
            # The probe looks for the file: gone from its place, the log is not to be relied on, whatever still works.
            log._path = tmp_path / "elsewhere.db"
            call: Any = BridgeServiceStub(channel).Publish()
            await log._writer.call(lambda session: session.connection.execute("ALTER TABLE entries RENAME TO gone"))
            await call.write(publish(1, 1))
            assert (await call.read()).acks[0].refusal.reason == OVERLOADED

            async def not_ready() -> bool:
                return not await serving("readiness")

            await eventually(not_ready)
            assert await serving("liveness")
            log._path = tmp_path / "events.db"
            await log._writer.call(lambda session: session.connection.execute("ALTER TABLE gone RENAME TO entries"))
            await eventually(lambda: serving("readiness"), within=10)
            await call.write(publish(1, 1))
            assert (await call.read()).acks[0].through == 1
            call.cancel()
    await log.close()

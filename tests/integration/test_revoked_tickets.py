"""Revoked and ended tickets at the bridge: what is open under them ends, what comes with them is refused, and a run's
last events still get into the log. Told as execution tells: by its teller, over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import CarrelError, PermissionDeniedError, TicketError, TicketExpiredError
from carrel.v1 import bridge_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.identity import tickets
from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.channel import open_channel, responses
from servicekit.rpc.copies import Copies
from servicekit.rpc.server import RpcServer
from services.bridge.app import serve_bridge
from services.bridge.config import BridgeSettings
from services.bridge.store_sqlite import SqliteEventLog
from services.execution.client_contexts import asking_context
from services.execution.client_revocations import RevocationTeller, to_bridge
from tests.conftest import Eventually
from tests.support.identity import identity, run_context, service_context, session_context

HOUR = 3600.0


@asynccontextmanager
async def bridge(folder: Path, *, listen: str = "127.0.0.1:0", leeway_s: float = 5.0) -> AsyncIterator[RpcServer]:
    folder.mkdir(parents=True, exist_ok=True)
    log = await SqliteEventLog.open(folder / "events.sqlite3")
    settings = BridgeSettings(state_dir=folder, drain_seconds=0.2, listen=listen)
    try:
        async with serve_bridge(settings, log, TicketVerifier(identity().keyset, leeway_s)) as server:
            await server.start()
            yield server
    finally:
        await log.close()


@dataclass
class Login:
    expires_at: int


@dataclass
class Known:
    """What execution knows of revocations; microseconds."""

    known: dict[str, int] = field(default_factory=dict)
    signed_out: dict[str, Login] = field(default_factory=dict)

    def revoke(self, user: str) -> None:
        self.known[user] = int((time.time() + 1) * 1e6)


def earlier(make: Any, *args: Any, by_s: float = 60.0, **options: Any) -> UserExecutionContext:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tickets, "_now", lambda: time.time() - by_s)
        made: UserExecutionContext = make(*args, lifetime_s=options.pop("lifetime_s", HOUR), **options)
        return made


def follow(stub: BridgeServiceStub, context: UserExecutionContext) -> asyncio.Task[CarrelError | None]:
    async def read() -> CarrelError | None:
        try:
            async for _ in responses(stub.ReadEvents(bridge_pb2.ReadEventsRequest(context=context, follow=True))):
                pass
        except CarrelError as error:
            return error
        return None

    return asyncio.create_task(read())


async def publish(stub: BridgeServiceStub, context: UserExecutionContext, number: int, kind: str) -> Any:
    event = events_pb2.Event(event_id=f"e{number}", number=number, event_type=kind, data=b'{"text":"hm"}')
    item = events_pb2.ProducerEvents(
        context=context, producer_id=f"{context.run_id}:0:1", fence=1, attempt=1, events=[event]
    )
    call: Any = stub.Publish()
    await call.write(bridge_pb2.PublishRequest(items=[item]))
    answer = await call.read()
    call.cancel()
    (ack,) = answer.acks
    return ack


async def subscribe(stub: BridgeServiceStub, *contexts: UserExecutionContext) -> Any:
    call: Any = stub.Attach()
    hello = bridge_pb2.AttachHello(gateway_id="g1")
    await call.write(bridge_pb2.AttachRequest(context=service_context(), hello=hello))
    for context in contexts:
        wanted = bridge_pb2.Subscribe(generation=7)
        await call.write(bridge_pb2.AttachRequest(context=context, subscribe=wanted))
    return call


async def told(call: Any, kind: str, times: int = 1) -> Any:
    """The last of so many items of this kind, of which one response may hold several."""
    found: list[Any] = []
    while len(found) < times:
        response = await call.read()
        assert isinstance(response, bridge_pb2.AttachResponse), response
        found += [getattr(item, kind) for item in response.items if item.WhichOneof("item") == kind]
    return found[times - 1]


async def test_what_is_open_under_a_revoked_users_tickets_ends_and_others_go_on(tmp_path: Path) -> None:
    async with bridge(tmp_path) as server, open_channel(server.address) as channel:
        stub, known = BridgeServiceStub(channel), Known()
        old = earlier(session_context, "alice")
        run = earlier(run_context, "alice")
        asked = earlier(run_context, "alice", run="run-2", issuer="gateway")
        await publish(stub, run, 1, "agent_thinking")
        mine, bobs = follow(stub, old), follow(stub, session_context("bob"))
        attached = await subscribe(stub, old, session_context("bob"))
        await told(attached, "subscribed", times=2)
        async with Copies(server.address, "bridge") as copies:
            await copies.wait_ready(5)
            known.revoke("alice")
            teller = RevocationTeller(known, lambda: asking_context(identity().execution_minter), [(copies, to_bridge)])
            await teller.tell()
        error = await asyncio.wait_for(mine, 5)
        assert type(error) is TicketError
        assert "revoked" in error.message
        refused = await asyncio.wait_for(told(attached, "refused"), 5)
        assert (refused.user_id, refused.generation) == ("alice", 7)
        again = await asyncio.wait_for(follow(stub, old), 5)
        assert type(again) is TicketError
        with pytest.raises(TicketError):
            await stub.ResolveRun(bridge_pb2.ResolveRunRequest(context=run, run_id=run.run_id), timeout=5)
        # The run's last words are let in under execution's ticket; what was asked for at the gateway is not.
        ack = await publish(stub, run, 2, "run_completed")
        assert (ack.through, ack.HasField("refusal")) == (2, False)
        assert (await publish(stub, run, 3, "agent_thinking")).refusal.reason == events_pb2.REFUSAL_REASON_SEALED
        assert (await publish(stub, asked, 1, "agent_thinking")).HasField("refusal")
        assert not bobs.done()
        for task in (bobs,):
            task.cancel()
        attached.cancel()
        await asyncio.wait([bobs])


async def test_a_signed_out_login_ends_and_the_users_others_go_on(tmp_path: Path) -> None:
    async with bridge(tmp_path) as server, open_channel(server.address) as channel:
        stub, known = BridgeServiceStub(channel), Known()
        minter = identity().minter
        gone, stays = (
            UserExecutionContext(user_id="alice", ticket=minter.mint_session("alice", login=login))
            for login in ("login-1", "login-2")
        )
        ending, going_on = follow(stub, gone), follow(stub, stays)
        async with Copies(server.address, "bridge") as copies:
            await copies.wait_ready(5)
            teller = RevocationTeller(known, lambda: asking_context(identity().execution_minter), [(copies, to_bridge)])
            await teller.tell()
            known.signed_out["login-1"] = Login(2**62)
            await teller.tell()
        assert type(await asyncio.wait_for(ending, 5)) is TicketError
        assert not going_on.done()
        going_on.cancel()
        await asyncio.wait([going_on])


async def test_every_copy_is_told_and_one_that_was_away_is_told_everything(
    tmp_path: Path, eventually: Eventually
) -> None:
    old, known = earlier(session_context, "alice"), Known()
    known.revoke("alice")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(bridge(tmp_path / "1"))
        second = AsyncExitStack()
        address = (await second.enter_async_context(bridge(tmp_path / "2"))).address
        copies = await stack.enter_async_context(Copies(f"{first.address},{address}", "bridge"))
        channels = [await stack.enter_async_context(open_channel(at)) for at in (first.address, address)]

        async def refused_by(channel: Any) -> bool:
            stub = BridgeServiceStub(channel)
            try:
                async for _ in responses(stub.ReadEvents(bridge_pb2.ReadEventsRequest(context=old))):
                    pass
            except CarrelError as error:
                return type(error) is TicketError
            return False

        teller = RevocationTeller(known, lambda: asking_context(identity().execution_minter), [(copies, to_bridge)])
        telling = asyncio.create_task(teller.tell_for_ever())
        try:
            for channel in channels:
                await eventually(lambda channel=channel: refused_by(channel), within=5)  # type: ignore[misc]
            await second.aclose()
            await eventually(lambda: len(copies.ready()) == 1)
            await second.enter_async_context(bridge(tmp_path / "2", listen=address))
            await eventually(lambda: refused_by(channels[1]), within=5)
        finally:
            telling.cancel()
            await asyncio.wait([telling])
            await second.aclose()


async def test_only_execution_itself_says_what_is_revoked(tmp_path: Path) -> None:
    async with bridge(tmp_path) as server, open_channel(server.address) as channel:
        stub = BridgeServiceStub(channel)
        gateways = identity().minter.mint_run("carrel-execution", "t", "r", "q")
        forged = UserExecutionContext(
            user_id="carrel-execution", thread_id="t", run_id="r", request_id="q", ticket=gateways
        )
        for context in (run_context(), forged, session_context(), service_context()):
            with pytest.raises(PermissionDeniedError):
                await stub.Revoke(bridge_pb2.BridgeServiceRevokeRequest(context=context), timeout=5)


async def test_a_stream_ends_with_its_ticket_and_a_fresh_one_goes_on(tmp_path: Path, eventually: Eventually) -> None:
    async with bridge(tmp_path, leeway_s=0.0) as server, open_channel(server.address) as channel:
        stub = BridgeServiceStub(channel)
        short = follow(stub, session_context("alice", lifetime_s=2.0))
        long = follow(stub, session_context("alice"))
        assert type(await asyncio.wait_for(short, 10)) is TicketExpiredError
        assert not long.done()
        long.cancel()
        await asyncio.wait([long])
        await eventually(lambda: len(server.guard) == 0)


async def test_a_subscription_takes_a_fresh_ticket_and_goes_on(tmp_path: Path) -> None:
    async with bridge(tmp_path) as server, open_channel(server.address) as channel:
        stub = BridgeServiceStub(channel)
        attached = await subscribe(stub, session_context("bob"))
        await asyncio.wait_for(told(attached, "subscribed"), 10)
        renew = bridge_pb2.RenewSubscription(generation=7)
        await attached.write(bridge_pb2.AttachRequest(context=session_context("bob"), renew=renew))
        await publish(stub, run_context("bob"), 1, "agent_thinking")
        entries = await asyncio.wait_for(told(attached, "entries"), 10)
        assert entries.user_id == "bob"
        attached.cancel()

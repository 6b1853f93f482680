"""The stream from the bridge, against one that does not behave: late items, holes, repeats, refusals, silence."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import aio

from carrel.errors import CarrelError, PermissionDeniedError, StoreUnavailableError, TicketExpiredError
from carrel.v1 import bridge_pb2, bridge_pb2_grpc, events_pb2
from carrel.wire import error_to_proto
from gateway.attachment import Attachment
from gateway.close_codes import CloseCode
from gateway.hub import Feed, Hub
from gateway.login import Login
from gateway.ring import Place
from gateway.tickets import TicketDesk
from gateway.upstream import Upstream, UpstreamOptions
from servicekit.identity.principals import ServicePrincipal, SessionPrincipal
from servicekit.rpc.copies import Copies
from tests.conftest import Eventually
from tests.support.identity import identity
from tests.support.rpc import Rpc, serving
from tests.unit.gateway.entries import entries

_never: Any = None


class StubbornBridge(bridge_pb2_grpc.BridgeServiceServicer):
    """Says what the test tells it to, and remembers what it was asked."""

    Publish = ReadEvents = ResolveRun = Revoke = _never

    def __init__(self) -> None:
        self.asked: list[bridge_pb2.AttachRequest] = []
        self.streams = 0
        self.others = 0
        self.attached = 0
        self.answers: asyncio.Queue[bridge_pb2.AttachResponse | CarrelError | None] = asyncio.Queue()
        self.answer_subscribe: Callable[[bridge_pb2.AttachRequest], None] = lambda request: None

    async def Attach(
        self, request_iterator: AsyncIterator[bridge_pb2.AttachRequest], context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bridge_pb2.AttachResponse]:
        self.streams += 1
        self.attached += 1

        async def listen() -> None:
            async for request in request_iterator:
                self.asked.append(request)
                if request.HasField("subscribe"):
                    self.answer_subscribe(request)

        listening = asyncio.create_task(listen())
        try:
            while (answer := await self.answers.get()) is not None:
                if isinstance(answer, CarrelError):
                    raise answer
                yield answer
        finally:
            self.attached -= 1
            listening.cancel()
            await asyncio.wait([listening])

    async def GetState(
        self, request: bridge_pb2.GetStateRequest, context: aio.ServicerContext[Any, Any]
    ) -> bridge_pb2.GetStateResponse:
        return bridge_pb2.GetStateResponse(gateways=self.attached + self.others)

    def say(self, **item: Any) -> None:
        self.answers.put_nowait(bridge_pb2.AttachResponse(items=[bridge_pb2.AttachItem(**item)]))

    def subscriptions(self, user: str = "alice") -> list[bridge_pb2.Subscribe]:
        found = [r.subscribe for r in self.asked if r.HasField("subscribe") and r.context.user_id == user]
        return list(found)

    def begin(self, generation: int, top: int = 0, user: str = "alice") -> None:
        position = events_pb2.Position(epoch="e", offset=top, event_id=f"evt-{top}" if top else "")
        self.say(subscribed=bridge_pb2.Subscribed(user_id=user, generation=generation, top=position))

    def entries(self, generation: int, first: int, last: int, user: str = "alice") -> None:
        item = bridge_pb2.UserEntries(user_id=user, generation=generation, epoch="e", entries=entries(first, last))
        self.say(entries=item)

    def refuse(self, generation: int, error: CarrelError) -> None:
        item = bridge_pb2.SubscriptionRefused(user_id="alice", generation=generation, error=error_to_proto(error))
        self.say(refused=item)


class Listener:
    """A connection that remembers how it was ended."""

    def __init__(self) -> None:
        self.ended: CloseCode | None = None
        self.login = _login()

    def wake(self) -> None:
        pass

    def end(self, code: CloseCode, error: CarrelError | None = None, retry_ms: int | None = None) -> None:
        self.ended = code


def _login(user: str = "alice") -> Login:
    return Login(user, time.time() + 600)


@asynccontextmanager
async def attached(options: UpstreamOptions | None = None) -> AsyncIterator[tuple[StubbornBridge, Hub, Upstream]]:
    bridge, hub = StubbornBridge(), Hub(100, 1 << 20)
    service = (bridge_pb2_grpc.add_BridgeServiceServicer_to_server, bridge, "carrel.v1.BridgeService")
    async with serving([service]) as rpc, upstream_to(rpc.address, hub, options) as upstream:
        yield bridge, hub, upstream


@asynccontextmanager
async def upstream_to(
    target: str, hub: Hub, options: UpstreamOptions | None = None, look_s: float = 60.0
) -> AsyncIterator[Upstream]:
    desk = TicketDesk(identity().minter, 1200)
    async with Copies(target, "bridge") as copies:
        upstream = Upstream(Attachment(copies, desk, look_s), hub, desk, "gw-1", options)
        running = asyncio.create_task(upstream.run())
        try:
            yield upstream
        finally:
            running.cancel()
            await asyncio.wait([running])


def _offsets(feed: Feed) -> list[int]:
    frames = feed.ring.after(feed.ring.base, 1000, 1 << 20)
    return [frame.offset for frame in frames or ()]


async def test_hello_is_a_services_and_each_subscription_its_users(eventually: Eventually) -> None:
    verify = identity().verifier().verify
    async with attached() as (bridge, hub, _):
        with hub.join(_login(), Listener()), hub.join(_login("bob"), Listener()):
            await eventually(lambda: len(bridge.asked) == 3)
        await eventually(lambda: len(bridge.asked) == 5)
    hello, *rest = bridge.asked
    assert isinstance(verify(hello.context), ServicePrincipal)
    assert hello.hello.gateway_id == "gw-1"
    users = []
    for request in rest:
        principal = verify(request.context)
        assert isinstance(principal, SessionPrincipal)
        users.append((principal.user_id, request.WhichOneof("message")))
    assert users[:2] == [("alice", "subscribe"), ("bob", "subscribe")]
    assert sorted(users[2:]) == [("alice", "unsubscribe"), ("bob", "unsubscribe")]


async def test_a_subscription_is_kept_under_fresh_tickets(
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every ticket is near its end at once.
    monkeypatch.setattr("gateway.tickets.SESSION_S", 60.0)
    async with attached(UpstreamOptions(renew_s=0.1)) as (bridge, hub, _):
        with hub.join(_login(), Listener()):
            await eventually(lambda: sum(request.HasField("renew") for request in bridge.asked) >= 2)
            (subscription,) = bridge.subscriptions()
    renewals = [request for request in bridge.asked if request.HasField("renew")]
    assert {request.renew.generation for request in renewals} == {subscription.generation}
    assert len({request.context.ticket for request in renewals}) == len(renewals)


async def test_late_items_of_an_earlier_subscription_are_passed_over(eventually: Eventually) -> None:
    async with attached() as (bridge, hub, _):
        with hub.join(_login(), Listener()):
            await eventually(lambda: len(bridge.subscriptions()) == 1)
        with hub.join(_login(), Listener()) as feed:
            await eventually(lambda: len(bridge.subscriptions()) == 2)
            old, new = (subscription.generation for subscription in bridge.subscriptions())
            assert new > old
            bridge.begin(old, 50)
            bridge.entries(old, 51, 60)
            bridge.begin(new, 3)
            bridge.entries(old, 4, 9)
            bridge.entries(new, 4, 5)
            bridge.entries(new, 4, 5, user="mallory")
            await eventually(lambda: _offsets(feed) == [4, 5])


async def test_a_broken_stream_is_opened_again_from_where_each_feed_is(eventually: Eventually) -> None:
    async with attached() as (bridge, hub, upstream):
        with hub.join(_login(), Listener()) as alice, hub.join(_login("bob"), Listener()) as bob:
            await eventually(lambda: len(bridge.subscriptions("bob")) == 1)
            generation = bridge.subscriptions()[0].generation
            bridge.begin(generation, 7)
            bridge.entries(generation, 8, 9)
            await eventually(lambda: _offsets(alice) == [8, 9])
            for end in (StoreUnavailableError("away"), None):
                before = bridge.streams
                bridge.answers.put_nowait(end)
                await eventually(lambda seen=before: bridge.streams > seen)  # type: ignore[misc]  # a bound default
                await eventually(lambda seen=before: len(bridge.subscriptions("bob")) > seen)  # type: ignore[misc]
            assert upstream.attached
            last = bridge.subscriptions()[-1]
            assert last.position == events_pb2.Position(epoch="e", offset=9, event_id="evt-9")
            assert last.generation > generation
            assert not bridge.subscriptions("bob")[-1].HasField("position")
            assert not bob.ready.is_set()
            bridge.entries(last.generation, 10, 10)
            await eventually(lambda: _offsets(alice) == [8, 9, 10])


async def test_a_refusal_that_may_pass_is_asked_again_and_one_that_may_not_ends_the_connections(
    eventually: Eventually,
) -> None:
    async with attached() as (bridge, hub, _):
        listener = Listener()
        with hub.join(_login(), listener):
            for number, error in enumerate((TicketExpiredError("old"), StoreUnavailableError("away")), 1):
                await eventually(lambda n=number: len(bridge.subscriptions()) == n)  # type: ignore[misc]
                bridge.refuse(bridge.subscriptions()[-1].generation, error)
            await eventually(lambda: len(bridge.subscriptions()) == 3)
            assert listener.ended is None
            bridge.refuse(bridge.subscriptions()[-1].generation, PermissionDeniedError("no"))
            await eventually(lambda: listener.ended is CloseCode.FORBIDDEN)


async def test_a_reset_moves_the_feed(eventually: Eventually) -> None:
    async with attached() as (bridge, hub, _):
        with hub.join(_login(), Listener()) as feed:
            await eventually(lambda: bridge.subscriptions())
            generation = bridge.subscriptions()[0].generation
            bridge.begin(generation, 7)
            position = events_pb2.Position(epoch="f", offset=2, event_id="")
            reset = events_pb2.Reset(reason=events_pb2.RESET_REASON_TRIMMED, position=position)
            bridge.say(reset=bridge_pb2.SubscriptionReset(user_id="alice", generation=generation, reset=reset))
            await eventually(lambda: feed.ring.top == Place("f", 2))


async def test_a_user_who_comes_while_the_stream_is_down_is_subscribed_by_the_next(eventually: Eventually) -> None:
    async with attached() as (bridge, hub, upstream):
        await eventually(lambda: upstream.attached)
        for number in range(5):
            bridge.answers.put_nowait(None)
            with hub.join(_login(f"user{number}"), Listener()) as feed:
                user = f"user{number}"

                def answered(user: str = user, feed: Feed = feed) -> bool:
                    for subscription in bridge.subscriptions(user):
                        bridge.begin(subscription.generation, 1, user)
                    return feed.ready.is_set()

                await eventually(answered)


async def test_an_entry_that_cannot_be_read_keeps_its_place_and_the_stream_goes_on(eventually: Eventually) -> None:
    async with attached() as (bridge, hub, _):
        with hub.join(_login(), Listener()) as alice, hub.join(_login("bob"), Listener()) as bob:
            await eventually(lambda: len(bridge.subscriptions("bob")) == 1)
            first, second = bridge.subscriptions()[0].generation, bridge.subscriptions("bob")[0].generation
            bridge.begin(first)
            bridge.begin(second, user="bob")
            bad = entries(1, 3)
            bad[1].timestamp.seconds = 2**62
            bridge.say(entries=bridge_pb2.UserEntries(user_id="alice", generation=first, epoch="e", entries=bad))
            bridge.entries(second, 1, 2, user="bob")
            await eventually(lambda: _offsets(bob) == [1, 2])
            assert _offsets(alice) == [1, 2, 3]
    assert bridge.streams == 1


async def test_a_feed_that_fails_ends_its_own_users_connections_only(
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with attached() as (bridge, hub, _):
        broken = Listener()
        with hub.join(_login(), broken) as alice, hub.join(_login("bob"), Listener()) as bob:
            await eventually(lambda: len(bridge.subscriptions("bob")) == 1)
            monkeypatch.setattr(alice.ring, "_max_bytes", None)
            bridge.entries(bridge.subscriptions()[0].generation, 1, 2)
            bridge.entries(bridge.subscriptions("bob")[0].generation, 1, 2, user="bob")
            await eventually(lambda: _offsets(bob) == [1, 2])
            assert broken.ended is CloseCode.INTERNAL
    assert bridge.streams == 1


# Several bridges.


@asynccontextmanager
async def two_bridges(look_s: float = 60.0) -> AsyncIterator[tuple[list[StubbornBridge], list[Rpc], Hub, Upstream]]:
    bridges, hub = [StubbornBridge(), StubbornBridge()], Hub(100, 1 << 20)
    add = bridge_pb2_grpc.add_BridgeServiceServicer_to_server
    async with (
        serving([(add, bridges[0], "carrel.v1.BridgeService")]) as one,
        serving([(add, bridges[1], "carrel.v1.BridgeService")]) as two,
        upstream_to(f"{one.address},{two.address}", hub, look_s=look_s) as upstream,
    ):
        yield bridges, [one, two], hub, upstream


async def _mine(bridges: list[StubbornBridge], eventually: Eventually) -> int:
    """Which bridge the gateway is attached to, once it is to one alone."""
    await eventually(lambda: [bridge.attached for bridge in bridges] in ([1, 0], [0, 1]))
    return 0 if bridges[0].attached else 1


@pytest.mark.parametrize("how", ["bye", "drained", "broken"])
async def test_a_bridge_that_ends_is_left_for_another_from_where_each_feed_is(how: str, eventually: Eventually) -> None:
    async with two_bridges() as (bridges, servers, hub, upstream):
        with hub.join(_login(), Listener()) as feed:
            first = await _mine(bridges, eventually)
            await eventually(lambda: bridges[first].subscriptions())
            generation = bridges[first].subscriptions()[0].generation
            bridges[first].begin(generation, 7)
            bridges[first].entries(generation, 8, 9)
            await eventually(lambda: _offsets(feed) == [8, 9])
            other = bridges[1 - first]
            other.others = 5  # more than there: it goes there all the same
            if how == "bye":
                servers[first].server.readiness.set_open(False)
                bridges[first].say(bye=bridge_pb2.AttachBye(reason="restart"))
            elif how == "drained":
                await servers[first].server.drain(grace_s=0)
            else:
                await servers[first].server.drain(grace_s=0)
                bridges[first].answers.put_nowait(StoreUnavailableError("away"))
            await eventually(lambda: other.subscriptions())
            wanted = other.subscriptions()[0]
            assert wanted.position == events_pb2.Position(epoch="e", offset=9, event_id="evt-9")
            # What it has sent again and what is new come in order, once.
            other.begin(wanted.generation, 11)
            other.entries(wanted.generation, 9, 10)
            other.entries(wanted.generation, 10, 11)
            await eventually(lambda: _offsets(feed) == [8, 9, 10, 11])
            assert upstream.attached


async def test_a_gateway_goes_where_few_are(eventually: Eventually) -> None:
    bridges, hub = [StubbornBridge(), StubbornBridge()], Hub(100, 1 << 20)
    bridges[0].others = 2
    add = bridge_pb2_grpc.add_BridgeServiceServicer_to_server
    async with (
        serving([(add, bridges[0], "carrel.v1.BridgeService")]) as one,
        serving([(add, bridges[1], "carrel.v1.BridgeService")]) as two,
        Copies(f"{one.address},{two.address}", "bridge") as copies,
    ):
        await eventually(lambda: len(copies.ready()) == 2)
        chosen = await Attachment(copies, TicketDesk(identity().minter, 1200)).choose()
        assert chosen.address == two.address
    assert not len(hub)


async def test_a_crowded_bridge_is_left_for_an_empty_one_and_an_even_one_is_kept(eventually: Eventually) -> None:
    async with two_bridges(look_s=0.05) as (bridges, _, _, upstream):
        first = await _mine(bridges, eventually)
        await asyncio.sleep(0.3)
        assert bridges[first].attached == 1, "one gateway here and none there is as even as it gets"
        bridges[first].others = 1
        await eventually(lambda: bridges[1 - first].attached == 1 and bridges[first].attached == 0)
        assert upstream.attached
        await asyncio.sleep(0.3)
        assert bridges[1 - first].attached == 1
        assert sum(bridge.streams for bridge in bridges) == 2

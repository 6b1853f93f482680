"""The one stream from a bridge: subscribes the hub's users, fills their feeds, opens again when it breaks.

What is subscribed is worked out from the hub, user by user, whenever something changed, so a lost stream loses nothing:
the next one subscribes every user again, each from the position that the feed has reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import Final, TypeAlias

from grpc import aio

from carrel.errors import CarrelError, InternalError, Status, TicketError, UnavailableError
from carrel.v1 import bridge_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.wire import error_from_proto
from gateway.attachment import Attachment
from gateway.close_codes import CloseCode, close_code_for
from gateway.hub import Feed, Hub
from gateway.log_reader import place_of, position_of
from gateway.login import Login
from gateway.tickets import TicketDesk
from servicekit.logs import get_logger, hash_user
from servicekit.rpc.channel import responses
from servicekit.tasks import end_service

__all__ = ["Upstream", "UpstreamOptions"]

_log = get_logger("gateway.upstream")
_Call: TypeAlias = aio.StreamStreamCall[bridge_pb2.AttachRequest, bridge_pb2.AttachResponse]
_Told: TypeAlias = bridge_pb2.UserEntries | bridge_pb2.Subscribed | bridge_pb2.SubscriptionReset

_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 2.0
_REFUSED_WAIT_S: Final = 0.5
# A bridge that ends a stream as soon as it is open is asked again like one that is away: not at once.
_SHORT_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """Args:
    reopen_s: Age at which a good stream is opened anew, so that tickets and connections are fresh.
    patience_s: How long connections are kept without a bridge before they are sent elsewhere.
    renew_s: How often subscriptions are looked at for tickets near their end; a ticket has twice as long when used.
    """

    reopen_s: float = 1500.0
    patience_s: float = 60.0
    renew_s: float = 60.0


@dataclass(slots=True)
class _Open:
    """A subscription on the present stream, and the ticket that the bridge has for it."""

    generation: int
    feed: Feed
    login: Login
    ticket: str


class Upstream:
    """Keeps the Attach stream."""

    def __init__(
        self,
        attachment: Attachment,
        hub: Hub,
        desk: TicketDesk,
        gateway_id: str,
        options: UpstreamOptions | None = None,
    ) -> None:
        self._attachment = attachment
        self._hub = hub
        self._desk = desk
        self._gateway_id = gateway_id
        self._options = options or UpstreamOptions()
        self._generation = 0
        self._open: dict[str, _Open] = {}
        self._changed: dict[str, None] = {}
        self._poke = asyncio.Event()
        self._down_since = time.monotonic()
        self.attached = False
        hub.on_change = self._on_change

    async def run(self) -> None:
        """Keep attached until cancelled."""
        wait = _FIRST_WAIT_S
        while True:
            began = time.monotonic()
            try:
                await self._attach()
                if time.monotonic() - began > _SHORT_S:
                    wait = _FIRST_WAIT_S
                    continue
            except CarrelError as error:
                was, self.attached = self.attached, False
                if was:
                    _log.warning("the bridge is away", code=error.code, users=len(self._hub))
                    self._down_since, wait = time.monotonic(), _FIRST_WAIT_S
                else:
                    _log.debug("cannot attach", code=error.code)
            if not self.attached:
                self._lose_patience()
            await asyncio.sleep(random.uniform(0.5, 1) * wait)  # noqa: S311 -- jitter
            wait = min(_LONGEST_WAIT_S, 2 * wait)

    async def _attach(self) -> None:
        """One stream, from its opening to its planned end: its age, or another bridge that is to be preferred.

        Raises:
            CarrelError: It could not be opened, or broke.
        """
        bridge = await self._attachment.choose()
        self._open.clear()
        self._changed = dict.fromkeys(self._hub.users())
        call = BridgeServiceStub(bridge.channel).Attach()
        # Not an iterator of requests: grpc leaves one waiting for ever when its call has ended by itself.
        asking = asyncio.create_task(self._ask(call), name="attach requests")
        asking.add_done_callback(_report)
        hearing = asyncio.create_task(self._hear(call), name="attach responses")
        crowded = asyncio.create_task(self._attachment.crowded(bridge), name="another bridge")
        renewing = asyncio.create_task(self._keep_renewing(), name="fresh tickets")
        tasks = {asking, hearing, crowded, renewing}
        try:
            with bridge.used():
                self.attached = True
                _log.info("attached", users=len(self._changed), bridge=bridge.address)
                await asyncio.wait(
                    {hearing, crowded}, timeout=self._options.reopen_s, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            call.cancel()
        if not hearing.cancelled():
            hearing.result()
            if self._attachment.several:
                return  # it said bye: there are others
            raise UnavailableError("the bridge ended the stream")
        if not crowded.cancelled():
            crowded.result()

    async def _hear(self, call: _Call) -> None:
        """Take what the bridge says, until it says bye or ends the stream.

        Raises:
            CarrelError: The stream broke.
        """
        async for response in responses(call):
            if not self._receive(response):
                return

    # What the gateway asks.

    def _on_change(self, user_id: str) -> None:
        self._changed[user_id] = None
        self._poke.set()

    async def _ask(self, call: _Call) -> None:
        hello = bridge_pb2.AttachHello(gateway_id=self._gateway_id)
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            # A stream that broke says so to its reader, which is where it is acted on.
            await call.write(bridge_pb2.AttachRequest(context=self._desk.own(), hello=hello))
            while True:
                while self._changed:
                    user_id = next(iter(self._changed))
                    del self._changed[user_id]
                    request = self._request_for(user_id)
                    if request is not None:
                        await call.write(request)
                self._poke.clear()
                await self._poke.wait()

    def _request_for(self, user_id: str) -> bridge_pb2.AttachRequest | None:
        """What makes the bridge's idea of this user the hub's; None when it is."""
        feed, now = self._hub.feed(user_id), self._open.get(user_id)
        if feed is None:
            if now is None:
                return None
            del self._open[user_id]
            ending = bridge_pb2.Unsubscribe(generation=now.generation)
            return bridge_pb2.AttachRequest(context=self._desk.session(now.login), unsubscribe=ending)
        context = self._desk.session(feed.login)
        if now is not None and now.feed is feed:
            if now.ticket == context.ticket:
                return None
            now.login, now.ticket = feed.login, context.ticket
            renewed = bridge_pb2.RenewSubscription(generation=now.generation)
            return bridge_pb2.AttachRequest(context=context, renew=renewed)
        self._generation += 1
        self._open[user_id] = _Open(self._generation, feed, feed.login, context.ticket)
        wanted = bridge_pb2.Subscribe(generation=self._generation, connections=len(feed.listeners))
        if feed.ready.is_set():
            wanted.position.CopyFrom(position_of(feed.ring.top))
        return bridge_pb2.AttachRequest(context=context, subscribe=wanted)

    async def _keep_renewing(self) -> None:
        """Show the bridge a fresh ticket for each subscription before it loses the one that it has."""
        while True:
            await asyncio.sleep(self._options.renew_s)
            self._changed |= dict.fromkeys(self._open)
            self._poke.set()

    # What the bridge says.

    def _receive(self, response: bridge_pb2.AttachResponse) -> bool:
        """Take one message; False when the bridge says bye."""
        for item in response.items:
            match item.WhichOneof("item"):
                case "entries" | "subscribed" | "reset" as kind:
                    told: _Told = getattr(item, kind)
                    if feed := self._feed(told.user_id, told.generation):
                        self._tell(feed, told)
                case "refused":
                    self._refused(item.refused)
                case "bye":
                    _log.info("the bridge says bye", reason=item.bye.reason)
                    return False
        return True

    def _tell(self, feed: Feed, told: _Told) -> None:
        try:
            match told:
                case bridge_pb2.UserEntries():
                    feed.extend(told.epoch, told.entries)
                case bridge_pb2.Subscribed():
                    feed.begin(place_of(told.top))
                case bridge_pb2.SubscriptionReset():
                    feed.reset(place_of(told.reset.position))
        except Exception as error:  # noqa: BLE001 -- the stream is everybody's: this user's connections end, no others
            _log.error("a user's feed failed", error=error, user=hash_user(told.user_id))
            feed.end(CloseCode.INTERNAL, InternalError("your events could not be read", advice="connect again"))

    def _feed(self, user_id: str, generation: int) -> Feed | None:
        # Late items of an earlier subscription would put entries into a feed that has moved on.
        now = self._open.get(user_id)
        return now.feed if now is not None and now.generation == generation else None

    def _refused(self, refused: bridge_pb2.SubscriptionRefused) -> None:
        feed = self._feed(refused.user_id, refused.generation)
        if feed is None:
            return
        del self._open[refused.user_id]
        error = error_from_proto(refused.error)
        _log.warning("a subscription was refused", code=error.code, user=hash_user(refused.user_id))
        if error.retryable or isinstance(error, TicketError) or error.status is Status.INTERNAL:
            # Connections stay; the feed is subscribed again, from where it is, under a fresh ticket.
            asyncio.get_running_loop().call_later(_REFUSED_WAIT_S, self._on_change, refused.user_id)
        else:
            feed.end(close_code_for(error), error)

    def _lose_patience(self) -> None:
        if time.monotonic() - self._down_since < self._options.patience_s or not len(self._hub):
            return
        _log.error("the bridge has been away for too long", users=len(self._hub))
        error = UnavailableError("the event log cannot be reached from here", advice="connect again with your position")
        self._hub.end_all(CloseCode.UPSTREAM, error)


def _report(asking: asyncio.Task[None]) -> None:
    if not asking.cancelled() and (error := asking.exception()) is not None:
        # A fault of ours: without requests the stream would go on, and new users would wait in vain.
        _log.error("asking the bridge failed", error=error)
        end_service(asking.get_name(), error)

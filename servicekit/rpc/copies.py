"""The copies behind one address, a channel to each, and which of them say that they are ready.

For those who choose a copy themselves: execution, which runs a stage where workers are free, and the gateway, whose one
stream goes where few are. Whoever takes any copy opens a channel to all of them (``servicekit.rpc.channel``) instead.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import Final, Self

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.errors import DownstreamUnavailableError, UnavailableError
from servicekit.addresses import addresses_of, has_copies
from servicekit.health import READINESS
from servicekit.logs import get_logger
from servicekit.rpc.channel import MAX_MESSAGE_BYTES, open_channel
from servicekit.rpc.waiting import wait_ready
from servicekit.tasks import TaskOwner
from servicekit.tls.peers import PLAIN, Tls

__all__ = ["Copies", "Copy", "Rotation"]

_log: Final = get_logger("servicekit.rpc")
_RESOLVE_S: Final = 5.0
_AGAIN_S: Final = 0.2


class Copy:
    """One process: where it is, a channel to it, and whether it says that it is ready."""

    def __init__(self, address: str, channel: aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.ready = False
        self.ready_since = 0.0
        self.listed = True
        self.uses = 0

    @contextmanager
    def used(self) -> Iterator[Self]:
        """Keep the channel open while the block lasts, also when the copy is no longer listed."""
        self.uses += 1
        try:
            yield self
        finally:
            self.uses -= 1


class Copies:
    """Keeps up with who is there. Use it as an async context manager.

    Args:
        target: A ``PeerAddress``: one address, several, or a name.
        name: The service, for logs and errors.
        max_message_bytes: Of each channel.
        tls: This process's; the copies must show certificates of the service ``name``.
    """

    def __init__(self, target: str, name: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES, tls: Tls = PLAIN) -> None:
        self.target = target
        self._tls = tls.to(name)
        self._name = name
        self._max_message_bytes = max_message_bytes
        self._known: dict[str, Copy] = {}
        self._tasks = TaskOwner()
        self._changed = asyncio.Event()

    @property
    def several(self) -> bool:
        """Whether there may be more than one."""
        return has_copies(self.target)

    def known(self) -> list[Copy]:
        """Every copy that is listed now, ready or not."""
        return [copy for copy in self._known.values() if copy.listed]

    def ready(self) -> list[Copy]:
        """Those that say that they are ready."""
        return [copy for copy in self._known.values() if copy.ready and copy.listed]

    async def wait_ready(self, timeout_s: float) -> list[Copy]:
        """Those that are ready, once there is one.

        Raises:
            UnavailableError: None was in time.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not (ready := self.ready()):
                    await self._changed.wait()
                return ready
        raise UnavailableError(f"no {self._name} at {self.target} is ready", advice="is it there?")

    async def wait_for_start(self, deadline_s: float) -> None:
        """Return once one is ready, as a service's start needs it.

        Raises:
            DownstreamUnavailableError: None was in time, or what is there is no Carrel service.
        """
        if not self.several:
            await wait_ready(self.known()[0].channel, f"{self._name} at {self.target}", deadline_s)
            return
        try:
            await self.wait_ready(deadline_s)
        except UnavailableError:
            raise DownstreamUnavailableError(
                f"no {self._name} at {self.target} was ready within {deadline_s:g} s",
                advice="start it, or correct the address that this service was given for it",
                service=self._name,
            ) from None

    async def __aenter__(self) -> Self:
        for address in await self._listed():
            self._meet(address)
        if self.several and self.target.startswith("dns:"):
            _ = self._tasks.start(self._resolve(), f"who is {self._name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()
        for copy in self._known.values():
            await copy.channel.close()

    async def _listed(self) -> list[str]:
        try:
            return await addresses_of(self.target)
        except UnavailableError as error:
            # Names may come and go while a cluster starts; whoever needs a copy is told that there is none.
            _log.warning("who is there is not known", service=self._name, reason=error.message)
            return []

    async def _resolve(self) -> None:
        """Ask again and again who is listed. Nobody listed means that the name service is at a loss."""
        while True:
            await asyncio.sleep(_RESOLVE_S)
            addresses = await self._listed()
            for address in addresses:
                if address not in self._known:
                    self._meet(address)
            for address, copy in list(self._known.items()):
                copy.listed = not addresses or address in addresses
                if not (copy.listed or copy.ready or copy.uses):
                    del self._known[address]
                    await copy.channel.close()

    def _meet(self, address: str) -> None:
        channel = open_channel(address, tls=self._tls, max_message_bytes=self._max_message_bytes, lively=self.several)
        copy = self._known[address] = Copy(address, channel)
        _ = self._tasks.start(self._watch(copy), f"watch over {self._name} at {address}")

    async def _watch(self, copy: Copy) -> None:
        stub = health_pb2_grpc.HealthStub(copy.channel)
        request = health_pb2.HealthCheckRequest(service=READINESS)
        while self._known.get(copy.address) is copy:
            again_s = _AGAIN_S
            try:
                # The channel is found again by the library; a call that waits for it would hide that it is away.
                async with _watching(stub, request) as call:
                    async for answer in call:
                        self._tell(copy, answer.status == health_pb2.HealthCheckResponse.SERVING)
                self._tell(copy, False)
            except aio.AioRpcError as error:
                # One that answers and says nothing of its health counts as ready, as channels have it.
                silent = error.code() is grpc.StatusCode.UNIMPLEMENTED
                self._tell(copy, silent)
                again_s = _RESOLVE_S if silent else _AGAIN_S
            await asyncio.sleep(again_s * random.uniform(0.5, 1.0))  # noqa: S311 -- spreads load, guards nothing

    def _tell(self, copy: Copy, ready: bool) -> None:
        if copy.ready != ready:
            copy.ready = ready
            if ready:
                copy.ready_since = time.monotonic()
            if self.several:
                _log.info("a copy is ready" if ready else "a copy is away", service=self._name, address=copy.address)
            # A new event for the next change: each waiter waits for the one it saw.
            self._changed.set()
            self._changed = asyncio.Event()


class Rotation:
    """Goes through the copies, for a stream that is opened anew again and again: each time the one that has been left
    alone for longest, and first of all one that has come since."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._used: dict[Copy, float] = {}

    def channel(self) -> aio.Channel:
        """The channel of the next copy; while none is ready, of one that may be soon.

        Raises:
            UnavailableError: Nobody is listed.
        """
        there = self._copies.ready() or self._copies.known()
        if not there:
            raise UnavailableError(f"nobody is known at {self._copies.target}", advice="is the name service there?")
        random.shuffle(there)
        chosen = min(there, key=self._used_at)
        self._used = {copy: at for copy, at in self._used.items() if copy in there} | {chosen: time.monotonic()}
        return chosen.channel

    def _used_at(self, copy: Copy) -> float:
        used = self._used.get(copy, 0.0)
        return used if used >= copy.ready_since else 0.0


@asynccontextmanager
async def _watching(
    stub: health_pb2_grpc.HealthStub, request: health_pb2.HealthCheckRequest
) -> AsyncIterator[aio.UnaryStreamCall[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]]:
    call = stub.Watch(request)
    try:
        yield call
    finally:
        call.cancel()

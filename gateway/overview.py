"""What an operator sees of the services behind this gateway: every copy's counts, as far as it answers in time.

Reads alone, in the gateway's own name; whether somebody may see it is the route's to check. Nothing of any one user.
However many operators look, the copies are asked about once a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from carrel.errors import CarrelError
from carrel.v1 import agent_instance_pb2, bridge_pb2, execution_pb2
from carrel.v1.agent_instance_pb2_grpc import AgentInstanceServiceStub
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from gateway.encoding import iso_time
from gateway.run_json import error_json
from gateway.tickets import TicketDesk

__all__ = ["Overview", "ServicesTold"]

_CALL_S: Final = 2.0
# Beyond so many copies of one service the page has no room, and the gateway better things to do.
_MOST: Final = 32
# What was told so short a time ago is told again. Half of what a page waits between two looks.
_FRESH_S: Final = 1.0


class _Copy(Protocol):
    address: str
    channel: aio.Channel
    ready: bool


class Listed(Protocol):
    """Who is there of a service; see ``servicekit.rpc.copies``."""

    def known(self) -> Iterable[_Copy]:
        """Every copy that is listed now."""
        ...


@dataclass(frozen=True, slots=True)
class _Asked:
    stub: Any
    method: str
    request: Any


_ASKED: Final[Mapping[str, _Asked]] = {
    "execution": _Asked(ExecutionServiceStub, "GetFactoryMetrics", execution_pb2.GetFactoryMetricsRequest),
    "agent_instance": _Asked(
        AgentInstanceServiceStub, "GetPoolStatistics", agent_instance_pb2.GetPoolStatisticsRequest
    ),
    "bridge": _Asked(BridgeServiceStub, "GetState", bridge_pb2.GetStateRequest),
}


@dataclass(frozen=True, slots=True)
class ServicesTold:
    """One answer.

    ``services`` has by service a list of its copies: ``address``, and ``counts``, or the ``error`` in their place.
    ``age_s`` is how long ago the last of them answered.
    """

    services: Mapping[str, list[dict[str, Any]]]
    age_s: float


class Overview:
    """Asks all copies at once; whoever asks meanwhile, or a moment later, gets the same answer.

    Args:
        services: Who is there, by the names of services.
        desk: Gives the gateway's own ticket.
        call_s: How long a copy has to answer.
        clock: Seconds; tests have their own.
    """

    def __init__(
        self,
        services: Mapping[str, Listed],
        desk: TicketDesk,
        call_s: float = _CALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = services
        self._desk = desk
        self._call_s = call_s
        self._clock = clock
        # Held by who asks: the others wait for his answer, and if he goes away the next one asks.
        self._asking = asyncio.Lock()
        self._told: dict[str, list[dict[str, Any]]] = {}
        self._told_at = float("-inf")

    async def ask(self) -> ServicesTold:
        """What the copies say, or have said less than a second ago."""
        async with self._asking:
            if self._clock() - self._told_at >= _FRESH_S:
                self._told = await self._all()
                self._told_at = self._clock()
            return ServicesTold(self._told, self._clock() - self._told_at)

    async def _all(self) -> dict[str, list[dict[str, Any]]]:
        names = [name for name in _ASKED if name in self._services]
        found = await asyncio.gather(*(self._of(name) for name in names))
        return dict(zip(names, found, strict=True))

    async def _of(self, name: str) -> list[dict[str, Any]]:
        copies = sorted(self._services[name].known(), key=lambda copy: copy.address)[:_MOST]
        return list(await asyncio.gather(*(self._one(_ASKED[name], copy) for copy in copies)))

    async def _one(self, asked: _Asked, copy: _Copy) -> dict[str, Any]:
        call = getattr(asked.stub(copy.channel), asked.method)
        told: dict[str, Any] = {"address": copy.address}
        try:
            answer = await call(asked.request(context=self._desk.own()), timeout=self._call_s)
        except CarrelError as error:
            return told | {"counts": None, "error": error_json(error)}
        return told | {"counts": _counts(answer), "error": None}


def _counts(message: Message) -> dict[str, Any]:
    """The fields by name: durations in milliseconds, times as text, enums without their prefix; no contracts."""
    told: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.name == "contract":
            continue
        if field.enum_type is not None:
            told[field.name] = field.enum_type.values_by_number[value].name.rpartition("STATE_")[2]
        elif field.message_type is None:
            told[field.name] = value
        elif field.message_type.GetOptions().map_entry:
            told[field.name] = dict(value)
        elif isinstance(value, Duration):
            told[f"{field.name}_ms"] = round(value.ToNanoseconds() / 1e6, 3)
        elif isinstance(value, Timestamp):
            told[field.name] = iso_time(value.seconds, value.nanos) if message.HasField(field.name) else None
    return told

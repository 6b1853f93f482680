"""Evidence that a fault was there: a fault that never reached its process would let every cell pass."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Final

import aiohttp

from carrel.errors import CarrelError, Status
from carrel.v1 import agent_instance_pb2, bridge_pb2, emitter_pb2, execution_pb2
from carrel.v1.agent_instance_pb2_grpc import AgentInstanceServiceStub
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.emitter_pb2_grpc import EmitterServiceStub
from carrel.v1.execution_pb2_grpc import ExecutionServiceStub
from servicekit.rpc.channel import open_channel, responses
from tests.support.stack import RunningStack

__all__ = ["clock_is_off"]

# Far less than clocks are shifted by, far more than a ticket's leeway and the time that a call takes.
_TICKET_S: Final = 60.0
_CALL_S: Final = 5.0


async def clock_is_off(stack: RunningStack, service: str) -> bool:
    """Whether a process lives in another time than we do, by more than a minute.

    The gateway dates its answers; the others refuse a ticket of this moment, as expired or as not valid yet.
    """
    if service == "gateway":
        async with aiohttp.ClientSession() as http, http.get(stack.url) as answer:
            told = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        return abs(told - time.time()) > _TICKET_S
    try:
        await _ask(stack, service)
    except CarrelError as error:
        if error.status is not Status.UNAUTHENTICATED:
            raise
        return True
    return False


async def _ask(stack: RunningStack, service: str) -> None:
    context = stack.session_context("evidence", lifetime_s=_TICKET_S)
    async with open_channel(stack.address(service)) as channel:
        match service:
            case "bridge":
                async for _ in responses(
                    BridgeServiceStub(channel).ReadEvents(
                        bridge_pb2.ReadEventsRequest(context=context), timeout=_CALL_S
                    )
                ):
                    pass
            case "emitter":
                asking = emitter_pb2.GetEmitterStatisticsRequest(context=stack.service_context(lifetime_s=_TICKET_S))
                _ = await EmitterServiceStub(channel).GetEmitterStatistics(asking, timeout=_CALL_S)
            case "agent_instance":
                listing = agent_instance_pb2.ListAgentsRequest(context=context)
                _ = await AgentInstanceServiceStub(channel).ListAgents(listing, timeout=_CALL_S)
            case _:
                runs = execution_pb2.ListRunsRequest(context=context)
                _ = await ExecutionServiceStub(channel).ListRuns(runs, timeout=_CALL_S)

"""Waiting for a service downstream at the start: a service that cannot do its work must not say that it can.

For the INTEGRATION phase only; later on, channels connect again by themselves.
"""

from __future__ import annotations

import asyncio
from typing import Final

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.errors import CarrelError, DownstreamUnavailableError
from carrel.rpc_errors import from_rpc_error
from servicekit.health import READINESS

__all__ = ["wait_ready"]

_POLL_S: Final = 0.05
_CALL_S: Final = 2.0


async def wait_ready(channel: aio.Channel, service: str, deadline: float = 10.0) -> None:
    """Return once the server at the other end says that it is ready.

    Args:
        channel: The channel that will be used for it.
        service: What to call it in the error, for example "the bridge at 127.0.0.1:50054".
        deadline: Seconds to wait at most.

    Raises:
        DownstreamUnavailableError: It did not become ready in time, or is no Carrel service.
    """
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=READINESS)
    last = "it did not answer"
    try:
        async with asyncio.timeout(deadline):
            while True:
                try:
                    answer = await stub.Check(request, timeout=_CALL_S, wait_for_ready=True)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                    last = "it answers, and is not ready"
                except (CarrelError, aio.AioRpcError) as raised:
                    error = raised if isinstance(raised, CarrelError) else from_rpc_error(raised)
                    last = f"{error.code}: {error.message}"
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise DownstreamUnavailableError(
            f"{service} was not ready within {deadline:g} s ({last})",
            advice="start it, or correct the address that this service was given for it",
            service=service,
        ) from None

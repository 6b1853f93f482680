"""Channels and streams of gRPC as the client of internal services uses them. What is called is ``internal``'s."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from grpc import aio

from carrel.rpc_errors import from_rpc_error

__all__ = ["open_channel", "stream"]

_MAX_MESSAGE: Final = 4 * 1024 * 1024
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    # Above the 10 s that the servers permit: pinging faster ends in too_many_pings.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def open_channel(target: str, tls: grpc.ChannelCredentials | None, server_name: str = "") -> aio.Channel:
    """A channel to a service; without credentials it is not encrypted.

    Args:
        target: Its address.
        tls: Credentials.
        server_name: What its certificate must name instead of the address that is dialled.
    """
    if tls is None:
        return aio.insecure_channel(target, options=_OPTIONS)
    named = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    return aio.secure_channel(target, tls, options=(*_OPTIONS, *named))


async def stream(call: Any) -> AsyncIterator[Any]:
    """The responses of a stream, which ends with the iteration.

    Raises:
        CarrelError: It ended with a status that is not OK.
    """
    try:
        async for response in call:
            yield response
    except aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()

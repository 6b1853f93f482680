"""Channels to the other services: deadlines that shrink, errors of the tree, retries where they do no harm.

Where an address stands for several copies, calls and streams go round among those that say they are ready; one that is
gone or drains is left at once and looked at again. The retry rule is one table (``IDEMPOTENT``). Streams get no
deadline and no retry here: whoever keeps one open decides when to open the next, and reads it through ``responses``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import socket
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
from grpc import aio

from carrel.errors import CarrelError, DeadlineError, StartupError, Status, UnavailableError
from carrel.rpc_errors import from_rpc_error
from servicekit.addresses import has_copies, split_addresses
from servicekit.health import READINESS
from servicekit.rpc.context import remaining_deadline_s
from servicekit.rpc.tracing import with_trace
from servicekit.tls.files import Material
from servicekit.tls.peers import PeerTls

__all__ = ["IDEMPOTENT", "MAX_MESSAGE_BYTES", "TlsChannel", "open_channel", "responses"]

T = TypeVar("T")

DEFAULT_TIMEOUT_S: Final = 5.0
_ATTEMPTS: Final = 4
_FIRST_WAIT_S: Final = 0.05
_LONGEST_WAIT_S: Final = 1.0
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
_GO_ROUND: Final = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": READINESS}}
)
_AMONG_COPIES: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.service_config", _GO_ROUND),
    # A name is asked again when a connection ends, which servers see to (max_connection_age): new copies are found.
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),
)
_OF_COPIES: Final[tuple[tuple[str, Any], ...]] = (
    # One that stands still without closing its connection is left after 17 s; the others serve meanwhile.
    ("grpc.keepalive_time_ms", 12_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
_OF_ONE: Final[tuple[tuple[str, Any], ...]] = (
    # Above the 10 s that servers permit, so that no connection ends in too_many_pings.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


def _always(_request: Any) -> bool:
    return True


def _has_client_ref(request: Any) -> bool:
    return bool(request.client_ref)


# Calls that do no harm when they arrive twice: only these are sent again. The value decides for one request.
IDEMPOTENT: Final[Mapping[str, Callable[[Any], bool]]] = {
    "/carrel.v1.ExecutionService/ExecutePipeline": _has_client_ref,
    **dict.fromkeys(
        (
            "/carrel.v1.ExecutionService/GetRun",
            "/carrel.v1.ExecutionService/ListRuns",
            "/carrel.v1.ExecutionService/CancelRun",
            "/carrel.v1.ExecutionService/ProvideInput",
            "/carrel.v1.ExecutionService/CleanupEngine",
            "/carrel.v1.ExecutionService/ListEngines",
            "/carrel.v1.ExecutionService/ListThreads",
            "/carrel.v1.ExecutionService/GetThread",
            "/carrel.v1.ExecutionService/DeleteThread",
            "/carrel.v1.ExecutionService/ListAuditRecords",
            "/carrel.v1.ExecutionService/GetFactoryMetrics",
            "/carrel.v1.ExecutionService/RevokeUser",
            "/carrel.v1.ExecutionService/ListRevocations",
            "/carrel.v1.AgentInstanceService/ListAgents",
            "/carrel.v1.AgentInstanceService/ReleaseInstance",
            "/carrel.v1.AgentInstanceService/GetPoolStatistics",
            "/carrel.v1.AgentInstanceService/GetLoad",
            "/carrel.v1.EmitterService/Notify",
            "/carrel.v1.EmitterService/GetEmitterStatistics",
            "/carrel.v1.EmitterService/Revoke",
            "/carrel.v1.BridgeService/ResolveRun",
            "/carrel.v1.BridgeService/GetState",
            "/carrel.v1.BridgeService/Revoke",
        ),
        _always,
    ),
}


def open_channel(
    target: str,
    *,
    tls: PeerTls | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    interceptors: Sequence[aio.ClientInterceptor] = (),
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    lively: bool = False,
) -> aio.Channel:
    """A channel for the generated stubs; connects when it is first used, and again by itself.

    A unary call gets the smaller of its own timeout (``timeout_s`` when it names none) and what remains of the call
    being served. Every failure of a unary call is raised as a ``CarrelError``.

    Args:
        target: A ``PeerAddress``. Names in a list of copies are resolved now, once.
        tls: For the service at the other end; None means no encryption.
        timeout_s: Default deadline of unary calls.
        interceptors: The telemetry seam.
        max_message_bytes: Largest message in either direction.
        lively: Whether one that stands still is to be noticed soon, as is done where there are copies.

    Raises:
        StartupError: A name in a list of copies cannot be resolved.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        *(_AMONG_COPIES if has_copies(target) else ()),
        *(_OF_COPIES if lively or has_copies(target) else _OF_ONE),
        ("grpc.keepalive_permit_without_calls", 1),
        # A service that was killed is back within a second or two; the library's defaults look again after up to 120 s.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Its own connection: a stream full of events does not hold up another channel's calls.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    seam = list(interceptors) or None
    dialled = _dialled(target)
    if tls is None:
        return _Channel(aio.insecure_channel(dialled, options=options, interceptors=seam), timeout_s)
    options.append(("grpc.ssl_target_name_override", tls.name))

    def dial(material: Material) -> aio.Channel:
        return aio.secure_channel(dialled, PeerTls.credentials(material), options=options, interceptors=seam)

    return TlsChannel(tls, dial, timeout_s)


def _dialled(target: str) -> str:
    """The target in gRPC's words, in which a list holds numbers of one kind only."""
    addresses = split_addresses(target)
    if len(addresses) == 1:
        return target
    resolved = [_numbered(address) for address in addresses]
    if all(number.version == 4 for number, _ in resolved):
        return "ipv4:" + ",".join(f"{number}:{port}" for number, port in resolved)
    return "ipv6:" + ",".join(f"[{_as_ipv6(number)}]:{port}" for number, port in resolved)


def _numbered(address: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, str]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise StartupError(
            f"the name {host} can't be resolved: {error.strerror or error}",
            advice="write the copies' numbers, or one name that has them all as dns:///name:port",
        ) from None
    # As Python's own servers and clients do with "localhost", the kind that more machines have goes first.
    numbers = sorted((ipaddress.ip_address(str(sockaddr[0])) for *_, sockaddr in found), key=lambda n: n.version)
    return numbers[0], port


def _as_ipv6(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(number) if number.version == 6 else f"::ffff:{number}"


async def responses(call: AsyncIterable[T]) -> AsyncIterator[T]:
    """Iterate over a stream's responses, raising a ``CarrelError`` where grpc raises its own.

    Raises:
        CarrelError: The stream ended with a status that is not OK.
    """
    try:
        async for response in call:
            yield response
    except asyncio.CancelledError:
        if _is_ours():
            raise
        raise _closed() from None
    except aio.AioRpcError as error:
        raise from_rpc_error(error) from None


def _is_ours() -> bool:
    # grpc.aio cancels the calls of a channel that is closed, which looks like a cancellation of whoever awaits them.
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _closed() -> UnavailableError:
    return UnavailableError("the channel was closed", advice="open another channel")


class _Channel(aio.Channel):
    """Wraps unary calls. By hand, because a grpc.aio interceptor costs a task and three objects for each call."""

    def __init__(self, inner: aio.Channel, timeout_s: float) -> None:
        self._inner = inner
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._inner.close()

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Unary(method, self._callable("unary_unary", method, args, kwargs), self._timeout_s)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _traced(self._callable("unary_stream", method, args, kwargs))

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._callable("stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _traced(self._callable("stream_stream", method, args, kwargs))

    def _callable(self, kind: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return getattr(self._inner, kind)(method, *args, **kwargs)


class TlsChannel(_Channel):
    """Follows the certificate's files: calls that begin after a change go over connections that were made with the new
    ones. Calls that are open go on over the old connections, which are closed when the last of them has ended."""

    def __init__(self, tls: PeerTls, dial: Callable[[Material], aio.Channel], timeout_s: float) -> None:
        material = tls.material()
        super().__init__(dial(material), timeout_s)
        self._tls = tls
        self._dial = dial
        self._generation = material.generation
        self._closed = False
        # Those of before, while calls are open on them: calls hold theirs, and the library closes what nobody holds.
        self.former: weakref.WeakSet[aio.Channel] = weakref.WeakSet()
        self._callables: weakref.WeakSet[_Following] = weakref.WeakSet()

    def current(self) -> aio.Channel:
        """The channel for what begins now."""
        material = self._tls.material()
        if material.generation != self._generation and not self._closed:
            self.former.add(self._inner)
            for known in self._callables:
                known.forget()
            self._inner, self._generation = self._dial(material), material.generation
        return self._inner

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        for channel in [self._inner, *self.former]:
            await channel.close(grace)

    def _callable(self, kind: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        following = _Following(self, kind, method, args, kwargs)
        self._callables.add(following)
        return following


class _Following:
    """The callable of one method, made anew on each new channel. An open call holds the channel that it is on."""

    __slots__ = ("__weakref__", "_args", "_call", "_channel", "_kind", "_kwargs", "_method")

    def __init__(
        self, channel: TlsChannel, kind: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._channel = channel
        self._kind, self._method, self._args, self._kwargs = kind, method, args, kwargs
        self._call: Callable[..., Any] | None = None

    def forget(self) -> None:
        """There is a new channel: hold nothing of the former."""
        self._call = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inner = self._channel.current()
        if self._call is None:
            self._call = getattr(inner, self._kind)(self._method, *self._args, **self._kwargs)
        call = self._call(*args, **kwargs)
        call.add_done_callback(_Held(inner))
        return call


class _Held:
    """A done-callback that does nothing but hold a channel while its call is open."""

    __slots__ = ("_channel",)

    def __init__(self, channel: aio.Channel) -> None:
        self._channel: aio.Channel | None = channel

    def __call__(self, _call: Any) -> None:
        self._channel = None


def _traced(call: Callable[..., Any]) -> Callable[..., Any]:
    def begin(*args: Any, **options: Any) -> Any:
        return call(*args, **with_trace(options))

    return begin


class _Unary:
    """The callable that a stub holds for one unary method. The call runs when it is awaited, not before."""

    __slots__ = ("_call", "_method", "_repeatable", "_timeout_s")

    def __init__(self, method: str, call: Callable[..., Any], timeout_s: float) -> None:
        self._method = method
        self._call = call
        self._timeout_s = timeout_s
        self._repeatable = IDEMPOTENT.get(method)

    def __call__(self, request: Any, *, timeout: float | None = None, **options: Any) -> Coroutine[Any, Any, Any]:
        own = self._timeout_s if timeout is None else timeout
        remaining = remaining_deadline_s()
        return self._run(request, own if remaining is None else min(own, remaining), with_trace(options))

    async def _run(self, request: Any, timeout: float, options: Mapping[str, Any]) -> Any:
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout
        attempt = 1
        error: CarrelError | None = None
        while True:
            left = ends - loop.time()
            if left <= 0:
                # What the last attempt met tells more than that the wait after it took the rest of the time.
                raise error or DeadlineError(f"no time is left to call {self._method}", method=self._method)
            try:
                return await self._call(request, timeout=left, **options)
            except aio.UsageError:
                raise _closed() from None
            except asyncio.CancelledError:
                if _is_ours():
                    raise
                raise _closed() from None
            except aio.AioRpcError as raised:
                error = from_rpc_error(raised)
            wait = self._wait_before_next(error, attempt, request)
            if wait is None or loop.time() + wait >= ends:
                raise error
            attempt += 1
            await asyncio.sleep(wait)

    def _wait_before_next(self, error: CarrelError, attempt: int, request: Any) -> float | None:
        # A limit that is reached or a time that is up does not get better by asking at once again.
        if attempt >= _ATTEMPTS or not error.retryable or error.status is not Status.UNAVAILABLE:
            return None
        if self._repeatable is None or not self._repeatable(request):
            return None
        if error.retry_after_s is not None:
            return error.retry_after_s if error.retry_after_s <= _LONGEST_WAIT_S else None
        # Full jitter, so that callers of a service that came back do not come back together.
        return random.uniform(0.5, 1) * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**attempt)  # noqa: S311

"""The one server interceptor: telemetry, errors, admission, deadline, ticket and scope, rules; outermost first.

One rather than six, because each layer of grpc.aio interceptors costs a coroutine per call. Handlers are coroutines
(unary) or async generators (streams). Health and reflection pass untouched.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from carrel.errors import (
    DrainingError,
    InternalError,
    InvalidRequestError,
    LimitExceededError,
    MissingDeadlineError,
    Status,
    TicketError,
)
from servicekit.identity.principals import Principal, Scope, ServicePrincipal
from servicekit.identity.scopes import METHOD_SCOPES, SERVICE_PERMISSIONS
from servicekit.identity.tickets import TicketVerifier
from servicekit.rpc.callers import CallerCheck
from servicekit.rpc.context import enter_call
from servicekit.rpc.edge import abort_with, as_carrel_error
from servicekit.rpc.guard import StreamGuard
from servicekit.rpc.telemetry import NO_TELEMETRY, Telemetry
from servicekit.rpc.tracing import span_of_call
from servicekit.rpc.validation import validate_message
from servicekit.telemetry.tracing import NO_TRACING, Tracing

__all__ = ["CallGate", "EdgeInterceptor", "is_open"]

_OPEN_SERVICES: Final = ("/grpc.health.", "/grpc.reflection.")
# Streams whose items are many users' events: checked item by item by their handlers, without protovalidate.
_EVENT_STREAMS: Final = frozenset({"/carrel.v1.EmitterService/Emit", "/carrel.v1.BridgeService/Publish"})

# Stands for a message that could not be read.
_MALFORMED: Final = object()

_Context = aio.ServicerContext[Any, Any]


def is_open(method: str) -> bool:
    """Whether a method needs neither ticket nor deadline."""
    return method.startswith(_OPEN_SERVICES)


@dataclass(slots=True)
class CallGate:
    """Counts open calls and says whether another may begin."""

    max_calls: int
    draining: asyncio.Event
    active: int = 0
    refused: int = 0

    def enter(self, stream: bool) -> None:
        """Raises:
        DrainingError: A stream is opened while the server drains.
        LimitExceededError: As many calls as allowed are open.
        """
        if stream and self.draining.is_set():
            raise DrainingError(
                "this server is draining", advice="connect again; another replica serves", retry_after_s=0.2
            )
        if self.active >= self.max_calls:
            self.refused += 1
            raise LimitExceededError(
                "the server serves as many calls as it may",
                advice="try again shortly",
                retry_after_s=0.5,
                limit="max_concurrent_calls",
                limit_value=self.max_calls,
                use=self.active,
            )
        self.active += 1


class EdgeInterceptor(aio.ServerInterceptor):
    """Wraps each handler once, on its first call.

    Args:
        verifier: Checks contexts.
        gate: Bounds concurrent calls.
        telemetry: Told about each call.
        scopes: Method → scopes; a method that is not in it is refused.
        permissions: Method → permission that a service ticket must hold for it.
        callers: Which services may call what, by their certificates; None without TLS.
        guard: Ends streams whose caller's ticket is worth nothing any more.
        tracing: Makes a span of each call of a kept trace.
    """

    def __init__(  # noqa: PLR0913 -- all but two have defaults
        self,
        verifier: TicketVerifier,
        gate: CallGate,
        telemetry: Telemetry = NO_TELEMETRY,
        scopes: Mapping[str, frozenset[Scope]] = METHOD_SCOPES,
        permissions: Mapping[str, str] = SERVICE_PERMISSIONS,
        tracing: Tracing = NO_TRACING,
        *,
        callers: CallerCheck | None = None,
        guard: StreamGuard | None = None,
    ) -> None:
        self._tracing = tracing
        self._guard = StreamGuard(verifier) if guard is None else guard
        self._callers = callers
        self._verifier = verifier
        self._gate = gate
        self._telemetry = telemetry
        self._scopes = scopes
        self._permissions = permissions
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Give the wrapped handler of the method."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            # An unknown method has no handler, and is not remembered: its name is the caller's.
            if handler is None or is_open(method):
                return handler
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Any:
        codecs = (_decoder(handler.request_deserializer), handler.response_serializer)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), *codecs)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._server_stream(method, handler.unary_stream), *codecs)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._bidi(method, handler.stream_stream), *codecs)
        raise NotImplementedError(f"{method}: the contract has no client-streaming calls")

    def _unary(self, method: str, handler: Callable[[Any, _Context], Awaitable[Any]]) -> Any:
        admit = self._admission(method, needs_deadline=True)
        gate, telemetry, tracing = self._gate, self._telemetry, self._tracing

        async def serve(request: Any, context: _Context) -> Any:
            began = time.perf_counter()
            telemetry.call_started(method)
            status, entered = Status.CANCELLED, False
            try:
                gate.enter(stream=False)
                entered = True
                # The caller's trace is known before the caller is: a refusal belongs to it, too.
                with span_of_call(tracing, method, context):
                    admit(request, context)
                    response = await handler(request, context)
                status = Status.OK
                return response
            except aio.AbortError:
                status = Status.UNKNOWN
                raise
            except Exception as raised:  # noqa: BLE001 -- the edge: nothing may leave unmapped
                error = as_carrel_error(raised, method)
                status = error.status
            finally:
                gate.active -= entered
                telemetry.call_ended(method, status, time.perf_counter() - began)
            return await abort_with(context, error)

        return serve

    def _server_stream(self, method: str, handler: Callable[[Any, _Context], AsyncIterator[Any]]) -> Any:
        admit, guard = self._admission(method, needs_deadline=False), self._guard

        def begin(request: Any, context: _Context) -> AsyncIterator[Any]:
            admit(request, context)
            return guard.guarded(handler(request, context))

        return self._stream(method, begin)

    def _bidi(self, method: str, handler: Callable[[Any, _Context], AsyncIterator[Any]]) -> Any:
        allow = self._scopes.get(method)
        if allow is None:
            raise InternalError(f"{method} is missing in METHOD_SCOPES")
        checked = method not in _EVENT_STREAMS
        check_caller = self._callers.check if self._callers is not None else _anybody

        async def first_checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
            first = True
            async for request in _decoded(requests, method):
                if first:
                    first = False
                    # As for other calls: who asks comes before what is asked. The handler narrows the scopes.
                    _ = self._identify(request, allow)
                    validate_message(request)
                yield request

        def begin(requests: Any, context: _Context) -> AsyncIterator[Any]:
            check_caller(method, context)
            enter_call(None, _remaining(context))
            return handler(first_checked(requests) if checked else _decoded(requests, method), context)

        return self._stream(method, begin)

    def _stream(self, method: str, begin: Callable[[Any, _Context], AsyncIterator[Any]]) -> Any:
        gate, telemetry, tracing = self._gate, self._telemetry, self._tracing

        async def serve(request: Any, context: _Context) -> AsyncIterator[Any]:
            began = time.perf_counter()
            telemetry.call_started(method)
            status, entered = Status.CANCELLED, False
            try:
                gate.enter(stream=True)
                entered = True
                # Closed here and now when the client leaves, instead of by the garbage collector some time later.
                with span_of_call(tracing, method, context):
                    async with aclosing(begin(request, context)) as responses:  # type: ignore[type-var]  # handlers are generators
                        async for response in responses:
                            yield response
                status = Status.OK
                return
            except aio.AbortError:
                status = Status.UNKNOWN
                raise
            except Exception as raised:  # noqa: BLE001 -- the edge: nothing may leave unmapped
                error = as_carrel_error(raised, method)
                status = error.status
            finally:
                gate.active -= entered
                telemetry.call_ended(method, status, time.perf_counter() - began)
            await abort_with(context, error)

        return serve

    def _admission(self, method: str, needs_deadline: bool) -> Callable[[Any, _Context], None]:
        allow = self._scopes.get(method)
        if allow is None:
            raise InternalError(f"{method} is missing in METHOD_SCOPES")
        permission = self._permissions.get(method, "")
        identify = self._identify
        check_caller = self._callers.check if self._callers is not None else _anybody

        def admit(request: Any, context: _Context) -> None:
            check_caller(method, context)
            remaining = _remaining(context)
            if remaining is None and needs_deadline:
                raise MissingDeadlineError(f"{method} was called without a deadline")
            if request is _MALFORMED:
                raise _malformed(method)
            principal = identify(request, allow)
            if permission and isinstance(principal, ServicePrincipal):
                principal.require(permission)
            validate_message(request)
            enter_call(principal, remaining)

        return admit

    def _identify(self, request: Any, allow: frozenset[Scope]) -> Principal:
        if not request.HasField("context"):
            raise self._verifier.refusal(
                "missing",
                TicketError("the request carries no context", advice="send a context with a ticket in it"),
            )
        return self._verifier.verify(request.context, allow)


def _decoder(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """As ``parse``, but never failing: what fails there is a fault of ours to the library, with a traceback each."""

    def decode(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _MALFORMED

    return decode


async def _decoded(requests: AsyncIterator[Any], method: str) -> AsyncIterator[Any]:
    # One that cannot be read ends the stream: nobody knows whose it was.
    async for request in requests:
        if request is _MALFORMED:
            raise _malformed(method)
        yield request


def _malformed(method: str) -> InvalidRequestError:
    return InvalidRequestError(
        "the request is no message of this method's type",
        advice="send what the method's .proto file says; see that both sides have the same version",
        method=method,
    )


def _anybody(_method: str, _context: _Context) -> None:
    """Without TLS nobody has a name; tickets are what there is."""


def _remaining(context: _Context) -> float | None:
    # The stubs' types leave out that a call without a deadline has None.
    return context.time_remaining()

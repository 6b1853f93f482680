"""What surrounds every REST handler: login, body and query checked, JSON out, errors of the tree as HTTP, CORS.

One middleware, one decorator. Nothing here knows a route.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final, TypeAlias

import orjson
from aiohttp import hdrs, web

from carrel.errors import (
    CarrelError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    UnauthenticatedError,
    http_status,
)
from carrel.ids import new_id
from gateway.doctor_users import acting
from gateway.headers import single_header
from gateway.login import Login, LoginVerifier, bearer_token
from gateway.origins import Origins
from gateway.twins import refuse_twins
from servicekit.logs import get_logger

__all__ = ["MAX_BODY_BYTES", "Handler", "authenticated", "edge", "int_query", "json_body", "json_response", "query"]

MAX_BODY_BYTES: Final = 1 << 20
BODY_S: float = 60.0
_LITTLE_BYTES: Final = 64 * 1024

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
LoginHandler: TypeAlias = Callable[[web.Request, Login], Awaitable[web.StreamResponse]]

_log = get_logger("gateway.rest")


class NoSuchRouteError(NotFoundError):
    """Nothing is served at this address."""

    default_advice = "docs/protocol.md lists every route"


class MethodNotAllowedError(InvalidRequestError):
    """The address is served, but not by this method."""


class UnsupportedMediaTypeError(InvalidRequestError):
    """The body is not JSON."""

    default_advice = "send Content-Type: application/json"


class BodyTimeoutError(InvalidRequestError):
    """The body did not come in time."""

    default_advice = "send the whole body at once"


# Where HTTP has a status of its own for what is one of a kind elsewhere.
_OWN_STATUS: Final[Mapping[str, int]] = {
    MethodNotAllowedError.code: 405,
    BodyTimeoutError.code: 408,
    UnsupportedMediaTypeError.code: 415,
}
_FIXED_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # In place of aiohttp's, which tells its version.
    "Server": "carrel",
}


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON response that no cache keeps."""
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        content_type="application/json",
        headers={hdrs.CACHE_CONTROL: "no-store", **(headers or {})},
    )


def error_response(error: CarrelError, more: Mapping[str, str] | None = None) -> web.Response:
    """An error as JSON, with the status and headers that HTTP wants for it, and those of ``more``."""
    status = _OWN_STATUS.get(error.code) or http_status(error)
    headers = dict(more or {})
    if isinstance(error, UnauthenticatedError):
        headers[hdrs.WWW_AUTHENTICATE] = 'Bearer realm="carrel"'
    if status in {429, 503}:
        headers[hdrs.RETRY_AFTER] = str(max(1, math.ceil(error.retry_after_s or 1)))
    return json_response({"error": error.to_dict()}, status, headers)


def authenticated(handler: LoginHandler, logins: LoginVerifier, parameters: Collection[str] = ()) -> Handler:
    """A handler that gets the login of the request's token; without one, nothing of the request is looked at.

    ``parameters`` are those that the query may have, each once at most.
    """

    async def checked(request: web.Request) -> web.StreamResponse:
        login = await logins.verified(bearer_token(single_header(request, hdrs.AUTHORIZATION)))
        login = acting(login, request, logins)
        query(request, parameters)
        return await handler(request, login)

    return checked


def edge(origins: Origins) -> Any:
    """The outermost middleware: origins, CORS, and every failure as JSON."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = single_header(request, hdrs.ORIGIN)
        try:
            if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
                return web.Response(status=204, headers=origins.preflight(origin))
            origins.check(origin)
            return await handler(request)
        except CarrelError as error:
            return error_response(error)
        except web.HTTPException as error:
            return error_response(_of_aiohttp(error), _allowed(error))
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 -- the edge: nothing may leave unmapped
            error_id = new_id("err")
            _log.error("unexpected error in a request", error=error, error_id=error_id, path=request.path)
            advice = f"report {error_id}; the gateway's log has the rest"
            return error_response(InternalError(f"internal error {error_id}", advice=advice, error_id=error_id))

    return middleware


def on_prepare(origins: Origins) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Adds the headers that every response has, streamed ones too."""

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        vary = response.headers.get(hdrs.VARY)
        response.headers.update(_FIXED_HEADERS)
        response.headers.update(origins.headers(single_header(request, hdrs.ORIGIN)))
        if vary:
            response.headers[hdrs.VARY] += f", {vary}"

    return prepare


async def json_body(request: web.Request) -> Any:
    """The body, parsed.

    Raises:
        UnsupportedMediaTypeError: It is not declared as JSON.
        TooLargeError: It is over MAX_BODY_BYTES.
        BodyTimeoutError: It takes longer than BODY_S.
        InvalidRequestError: It is empty, not JSON, or names one field twice.
    """
    if request.content_type != "application/json":
        raise UnsupportedMediaTypeError("the body must be declared as application/json")
    if request.content_length is not None and request.content_length > MAX_BODY_BYTES:
        raise _too_large(request.content_length)
    try:
        async with asyncio.timeout(BODY_S):
            data = await request.read()
    except TimeoutError:
        raise BodyTimeoutError(f"the body did not come within {BODY_S:g} s") from None
    try:
        body = orjson.loads(data)
        if len(data) <= _LITTLE_BYTES:
            refuse_twins(data.decode(), "the body", InvalidRequestError)
        else:
            # Up to 20 ms, in which others have their turn.
            await asyncio.to_thread(refuse_twins, data.decode(), "the body", InvalidRequestError)
        return body
    except (ValueError, RecursionError):
        what = "is empty" if not data else "is not valid JSON"
        raise InvalidRequestError(f"the body {what}", advice="send one JSON object, UTF-8") from None


def query(request: web.BaseRequest, known: Collection[str]) -> Mapping[str, str]:
    """The query's parameters.

    Raises:
        InvalidRequestError: One is unknown, or comes twice.
    """
    # Not keys(): that of newer multidicts gives a repeated name once.
    names = [name for name, _ in request.query.items()]
    wrong = {name[:40] for name in names if name not in known or names.count(name) > 1}
    if wrong:
        problems = dict.fromkeys(sorted(wrong), "is not known here, or comes twice")
        listed = ", ".join(known) or "none"
        raise InvalidRequestError(
            "the query has wrong parameters", advice=f"parameters here are: {listed}", fields=problems
        )
    return dict(request.query)


def int_query(values: Mapping[str, str], name: str, most: int) -> int:
    """A number from the query; 0 when it is not there.

    Raises:
        InvalidRequestError: It is none, or out of bounds.
    """
    text = values.get(name)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        problem = f"must be a number from 1 to {most}"
        raise InvalidRequestError(f"{name} {problem}", fields={name: problem})
    return int(text)


def _of_aiohttp(error: web.HTTPException) -> CarrelError:
    if error.status == 404:
        return NoSuchRouteError("nothing is served at this address")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = _allowed(error)[hdrs.ALLOW]
        return MethodNotAllowedError("this address does not take this method", advice=f"it takes {allowed}")
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return _too_large(None)
    return InvalidRequestError(f"the request cannot be served: {error.reason}")


def _allowed(error: web.HTTPException) -> dict[str, str]:
    """The header that goes with 405."""
    if not isinstance(error, web.HTTPMethodNotAllowed):
        return {}
    return {hdrs.ALLOW: ", ".join(sorted(error.allowed_methods - {hdrs.METH_HEAD}))}


def _too_large(size: int | None) -> TooLargeError:
    return TooLargeError(
        f"the body may have {MAX_BODY_BYTES} bytes",
        advice="send less, or put large inputs where tools can read them",
        limit="max_body_bytes",
        limit_value=MAX_BODY_BYTES,
        use=size,
    )

"""The application after: the same routes and the same engine, and for each route an adapter that may go to Carrel.

What is new beside ``before``: two handlers over the chain, one call of ``migrate_to_factory_pattern``, and what becomes
of the chain's errors. The user's own token goes along, so that the chain knows for whom it works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from carrel import FactoryAdapter, migrate_to_factory_pattern
from carrel.client import GatewayHttp
from carrel.errors import CarrelError, InvalidRequestError, UnavailableError
from carrel.migration import Attempt, FileRollout, Served, ask_chain
from examples.migration.before import Logins, body_of, handlers
from examples.migration.engine import Engine

__all__ = ["application"]

Adapter = FactoryAdapter["Asked", dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's body, and the token that it came with."""

    body: dict[str, Any]
    token: str


def application(
    secret: bytes, gateway_url: str, rollout: Path, *, served: Callable[[Served], None] | None = None
) -> web.Application:
    """The routes.

    Args:
        secret: Of the application's login tokens, which the gateway takes as well.
        gateway_url: The chain's gateway.
        rollout: The file that says who goes which way.
        served: Told of every call.

    Raises:
        InvalidConfigurationError: The rollout can't be read, or names a route that there is not.
    """
    old = {route: _unwrapped(handler) for route, handler in handlers(Engine()).items()}
    new = _new_handlers(gateway_url)
    adapters: Mapping[str, Adapter] = migrate_to_factory_pattern(
        old, new, FileRollout(rollout), idempotent={"POST /quote"}, served=served
    )
    app, logins = web.Application(), Logins(secret)
    for route, adapter in adapters.items():
        method, path = route.split()
        app.router.add_route(method, path, _answering(adapter, logins))

    async def ways(request: web.Request) -> web.Response:
        return web.json_response({route: dict(adapter.counts) for route, adapter in adapters.items()})

    async def closing(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for adapter in adapters.values():
                await stack.enter_async_context(adapter)
            yield

    app.router.add_get("/migration", ways)
    app.cleanup_ctx.append(closing)
    return app


def _unwrapped(
    handler: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]],
) -> Callable[[str, Asked], Awaitable[dict[str, Any]]]:
    return lambda user, asked: handler(user, asked.body)


def _new_handlers(url: str) -> dict[str, Callable[[Attempt, Asked], Awaitable[dict[str, Any]]]]:
    async def ask(attempt: Attempt, asked: Asked, agent: str, message: str) -> dict[str, Any]:
        async with GatewayHttp(url, asked.token, timeout_s=10) as gateway:
            return dict(await ask_chain(gateway, attempt, message, pipeline=(agent,), params=asked.body))

    async def quote(attempt: Attempt, asked: Asked) -> dict[str, Any]:
        return await ask(attempt, asked, "quote", "What does this cost?")

    async def delivery(attempt: Attempt, asked: Asked) -> dict[str, Any]:
        return await ask(attempt, asked, "delivery", "Book a delivery")

    return {"POST /quote": quote, "POST /delivery": delivery}


def _answering(adapter: Adapter, logins: Logins) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        user = logins.user_of(request)
        token = request.headers["Authorization"].removeprefix("Bearer ")
        try:
            return web.json_response(await adapter(user, Asked(await body_of(request), token)))
        except (ValueError, InvalidRequestError) as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except UnavailableError as error:
            raise web.HTTPServiceUnavailable(text=error.message) from None
        except (CarrelError, TimeoutError) as error:
            raise web.HTTPBadGateway(text=str(error)) from None

    return answer

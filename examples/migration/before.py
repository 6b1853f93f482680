"""The application as it was: two routes over an engine of its own, users known by their login token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import jwt
from aiohttp import web

from examples.migration.engine import Engine

__all__ = ["Logins", "application", "body_of", "handlers"]

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Logins:
    """Verifies the tokens that the application's issuer gives out."""

    def __init__(self, secret: bytes, *, issuer: str = "carrel-dev", audience: str = "carrel") -> None:
        self._secret, self._issuer, self._audience = secret, issuer, audience

    def user_of(self, request: web.Request) -> str:
        """The user that a request is from.

        Raises:
            HTTPUnauthorized: It has no good token.
        """
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            claims = jwt.decode(token, self._secret, ["HS256"], issuer=self._issuer, audience=self._audience)
        except jwt.PyJWTError:
            raise web.HTTPUnauthorized(text="log in first") from None
        return str(claims["sub"])


async def body_of(request: web.Request) -> dict[str, Any]:
    """The request's JSON object.

    Raises:
        HTTPBadRequest: It has none.
    """
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="send a JSON object")
    return body


def handlers(engine: Engine) -> dict[str, Handler]:
    """What answers each route: a function of the user and the request's body."""

    async def quote(user: str, body: dict[str, Any]) -> dict[str, Any]:
        return await engine.quote(list(body.get("items", [])))

    async def delivery(user: str, body: dict[str, Any]) -> dict[str, Any]:
        return await engine.book(int(body.get("pieces", 0)))

    return {"POST /quote": quote, "POST /delivery": delivery}


def application(secret: bytes) -> web.Application:
    """The routes."""
    app, logins = web.Application(), Logins(secret)

    def answering(handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            user, body = logins.user_of(request), await body_of(request)
            try:
                return web.json_response(await handler(user, body))
            except ValueError as error:
                raise web.HTTPBadRequest(text=str(error)) from None

        return answer

    for route, handler in handlers(Engine()).items():
        method, path = route.split()
        app.router.add_route(method, path, answering(handler))
    return app

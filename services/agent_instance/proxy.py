"""The local way to models for unmodified SDKs: HTTP on 127.0.0.1, under a key that lives as long as an agent's turn.

``openai.AsyncOpenAI()`` in a worker finds it by ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``. The key names the turn, so
that the user's budget, the audit trail and the agent's clock know the call; the endpoint's own key stays here.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import orjson
from aiohttp import web

from carrel.errors import CarrelError, ModelBudgetError, ModelBusyError, ModelRefusedError, ModelUnavailableError
from servicekit.logs import get_logger
from services.agent_instance.domain.model_calls import TurnModels
from services.agent_instance.domain.model_forward import FORWARDED, Forwarded, forward

__all__ = ["ModelProxy"]

_log: Final = get_logger("agent_instance.proxy")
_PREFIX: Final = "carrel-run"
_HOST: Final = "127.0.0.1"
_END_S: Final = 1.0
_CLIENT_ERROR: Final = frozenset({400, 404, 413, 422})


@dataclass(slots=True, eq=False)
class _Guest:
    name: str
    secret: str
    turn: TurnModels
    requests: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def key(self) -> str:
        return f"{_PREFIX}.{self.name}.{self.secret}"


class ModelProxy:
    """``domain.model_calls.ModelDoor`` over HTTP; an async context manager that listens on any free port.

    Args:
        max_request_bytes: Largest request.
    """

    def __init__(self, *, max_request_bytes: int) -> None:
        self._guests: dict[str, _Guest] = {}
        self._by_turn: dict[TurnModels, _Guest] = {}
        app = web.Application(client_max_size=max_request_bytes, middlewares=[_in_openais_shape])
        for path in FORWARDED:
            app.router.add_post(f"/v1/{path}", self._forward)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        # A client that goes away ends what is done for it.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_END_S)
        self.base_url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, _HOST, 0).start()
        self.base_url = f"http://{_HOST}:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def guests(self) -> int:
        """Turns that are let in now."""
        return len(self._guests)

    def admit(self, turn: TurnModels) -> Mapping[str, str]:
        """Let this turn in: the variables for its worker."""
        guest = self._by_turn.get(turn)
        if guest is None:
            guest = _Guest(secrets.token_hex(8), secrets.token_urlsafe(32), turn)
            self._guests[guest.name] = self._by_turn[turn] = guest
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": guest.key}

    async def dismiss(self, turn: TurnModels) -> None:
        """Its key names nothing from now on, and what it has under way ends."""
        guest = self._by_turn.pop(turn, None)
        if guest is None:
            return
        del self._guests[guest.name]
        for task in guest.requests:
            task.cancel()
        if guest.requests:
            await asyncio.wait(set(guest.requests), timeout=_END_S)

    def _guest(self, request: web.Request) -> _Guest:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        prefix, _, rest = key.strip().partition(".")
        name, _, secret = rest.partition(".")
        guest = self._guests.get(name)
        # Compared in any case, so that a name that nobody has takes as long as a wrong secret.
        same = hmac.compare_digest(secret.encode(), (guest.secret if guest is not None else "x" * 43).encode())
        if scheme.lower() != "bearer" or prefix != _PREFIX or guest is None or not same:
            raise _Unknown
        return guest

    async def _models(self, request: web.Request) -> web.Response:
        names = self._guest(request).turn.desk.policy.names
        return web.json_response({"object": "list", "data": [_listed(name) for name in names]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._guest(request).turn.desk.policy.names:
            return _error(404, "there is no such model here", "invalid_request_error", "model_not_found")
        return web.json_response(_listed(name))

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        guest = self._guest(request)
        task = asyncio.current_task()
        assert task is not None
        guest.requests.add(task)
        try:
            body = _object(await request.read())
            path = request.path.removeprefix("/v1/")
            async with forward(guest.turn, path, body) as answer:
                return await _pass_on(request, answer)
        finally:
            guest.requests.discard(task)


class _Unknown(Exception):  # noqa: N818  (no failure of ours: nobody is known by that key)
    pass


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise ModelRefusedError("the request is not a JSON object")
    return body


async def _pass_on(request: web.Request, answer: Forwarded) -> web.StreamResponse:
    if not answer.streamed:
        whole = b"".join([chunk async for chunk in answer.chunks])
        return web.Response(body=whole, content_type=answer.content_type)
    response = web.StreamResponse(headers={"Content-Type": answer.content_type, "Cache-Control": "no-store"})
    await response.prepare(request)
    try:
        async for chunk in answer.chunks:
            await response.write(chunk)
    except CarrelError as error:
        # The status is out already; in a stream, an error is an event, which SDKs raise.
        status, told, _ = _told(error)
        await response.write(b"data: " + orjson.dumps({"error": {**told, "code": status}}) + b"\n\n")
        _log.info("a proxied answer broke off", code=error.code)
        raise
    await response.write_eof()
    return response


@web.middleware
async def _in_openais_shape(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except _Unknown:
        return _error(
            401, "this key names no run: it ends with the agent's turn", "invalid_request_error", "invalid_api_key"
        )
    except CarrelError as error:
        status, told, headers = _told(error)
        return web.json_response({"error": told}, status=status, headers=headers)
    except web.HTTPException as error:
        return _error(error.status, error.reason, "invalid_request_error", error.reason.lower().replace(" ", "_"))
    return response


def _told(error: CarrelError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an error, as SDKs understand it: what is worth trying again, and what not."""
    headers = {} if error.retryable else {"x-should-retry": "false"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    kind, code, status = "server_error", error.code.lower(), 500
    said = error.details.get("endpoint_says")
    match error:
        case ModelBudgetError():
            kind, code, status = "insufficient_quota", "insufficient_quota", 429
        case ModelBusyError():
            kind, code, status = "rate_limit_error", "rate_limit_exceeded", 429
        case ModelUnavailableError():
            status = 503
        case ModelRefusedError():
            upstream = error.details.get("endpoint_status", 400)
            # A key that the endpoint refuses is the operator's, not the client's.
            status = upstream if upstream in _CLIENT_ERROR else 502
            kind, code = "invalid_request_error", str(error.details.get("code") or code)
    message = f"{error.message}: {said}" if said else str(error)
    return status, {"message": message, "type": kind, "code": code, "param": error.details.get("param")}, headers


def _error(status: int, message: str, kind: str, code: str) -> web.Response:
    told = {"message": message, "type": kind, "code": code, "param": None}
    return web.json_response({"error": told}, status=status)


def _listed(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "carrel"}

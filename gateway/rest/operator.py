"""What operators read of the gateway and what is behind it: connections, lag, runs, workers. Nobody's events.

``/readyz`` says whether it wants work; this says how it does what it has.
"""

from __future__ import annotations

from typing import Final

from aiohttp import web

from carrel import __version__
from carrel.errors import PermissionDeniedError
from gateway.login import Login
from gateway.parts import Parts
from gateway.rest.http import json_response
from servicekit.identity.principals import OPERATOR_READ

__all__ = ["OperatorHandlers"]

_ADVICE: Final = f"use a token with the permission {OPERATOR_READ}"


class OperatorHandlers:
    """``/api/operator/…``, for tokens with ``operator:read``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def gateway(self, _request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/operator/gateway``: this gateway's connections and what it has counted since its start."""
        _check(login)
        contract = {"version": __version__, **self._parts.runs.contract.to_dict()}
        return json_response({**self._parts.statistics().to_json(), "contract": contract})

    async def overview(self, _request: web.Request, login: Login) -> web.StreamResponse:
        """``GET /api/operator/overview``: this gateway, and every copy of the services behind it that answers."""
        _check(login)
        told = await self._parts.overview.ask()
        return json_response(
            {
                "version": __version__,
                "gateway": self._parts.statistics().to_json(),
                "services": told.services,
                "services_age_s": round(told.age_s, 3),
            }
        )


def _check(login: Login) -> None:
    if OPERATOR_READ not in login.permissions:
        raise PermissionDeniedError("only operators may read this", advice=_ADVICE)

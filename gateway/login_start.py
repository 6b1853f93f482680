"""Where the login keys come from, by the settings: read at the start, or fetched and kept fresh from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.config import GatewaySettings
from gateway.login import LoginVerifier
from gateway.login_jwks import FetchedKeys
from gateway.login_jwks_http import IssuerClient
from gateway.login_keys import KeySource, LoginKeys
from servicekit.contracts import Phase
from servicekit.lifecycle import Starter
from servicekit.tasks import TaskOwner

__all__ = ["LoginSource"]


class LoginSource:
    """The deployment's issuer.

    Raises:
        InvalidConfigurationError: A file with keys, a secret or a CA cannot be used.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        login = settings.login
        self._login = login
        self._wait_s = settings.downstream_wait_seconds
        self._client: IssuerClient | None = None
        self._keys: KeySource
        if login.fetched:
            self._client = IssuerClient(login.address(production=settings.production))
            self._keys = FetchedKeys(
                self._client.fetch, refresh_s=login.jwks_refresh_seconds, stale_s=login.jwks_stale_seconds
            )
        elif login.jwks is not None:
            self._keys = LoginKeys.from_jwks_file(login.jwks)
        else:
            self._keys = LoginKeys.from_secret_file(settings.login_secret)

    @property
    def usable(self) -> bool:
        """Whether anybody can log in: false when the issuer has been away for too long."""
        return not isinstance(self._keys, FetchedKeys) or self._keys.usable

    @asynccontextmanager
    async def opened(self, start: Starter) -> AsyncIterator[LoginVerifier]:
        """A verifier whose keys are there, and stay fresh until this is left.

        Raises:
            StartupError: The issuer's keys did not come in time.
        """
        login = self._login
        verifier = LoginVerifier(
            self._keys, login.issuer, login.audience, login.claim_names(), leeway_s=login.leeway_seconds
        )
        if self._client is None or not isinstance(self._keys, FetchedKeys):
            yield verifier
            return
        async with self._client, TaskOwner() as tasks:
            async with start.phase(Phase.INTEGRATION, needs=f"the login keys of {login.issuer}"):
                await self._keys.start(self._wait_s)
            _ = tasks.start(self._keys.keep_fresh(), "login keys")
            try:
                yield verifier
            finally:
                await self._keys.aclose()

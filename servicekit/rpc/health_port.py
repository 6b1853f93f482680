"""A second listener without TLS that answers health checks and nothing else: Kubernetes' gRPC probes speak no TLS."""

from __future__ import annotations

from typing import Final

from grpc import aio

from carrel.errors import StartupError
from servicekit.health import HealthServicer, add_health

__all__ = ["HealthPort"]

_CALLS: Final = 64


class HealthPort:
    """Serves one servicer's health on an address of its own."""

    def __init__(self, listen: str, health: HealthServicer) -> None:
        self._listen = listen
        self._health = health
        self._server: aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen.

        Raises:
            StartupError: The address cannot be listened on.
        """
        server = aio.server(options=[("grpc.so_reuseport", 0)], maximum_concurrent_rpcs=_CALLS)
        add_health(self._health, server)
        try:
            self.port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise StartupError(
                f"cannot listen on {self._listen} for health checks",
                advice="set CARREL_TLS__HEALTH_LISTEN to a free address",
                phase="READINESS",
                what=f"the address {self._listen}",
            ) from error
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Stop at once."""
        if self._server is not None:
            await self._server.stop(0)

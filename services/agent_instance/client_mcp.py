"""The way to MCP servers, without the package that speaks with them: that is loaded for the first session.

It takes a second or more to load, which a service that starts must not spend: others wait for it. Sessions themselves
are ``client_mcp_session``'s.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from typing import Final

from carrel.errors import StartupError, ToolUnavailableError
from servicekit.logs import get_logger
from services.agent_instance.config_mcp import McpServers, McpServerSettings
from services.agent_instance.domain.mcp_servers import FIRST_LISTS_S, Connection, Connector, McpToolServers

__all__ = ["open_servers"]

_log: Final = get_logger("agent_instance.mcp")
_SESSIONS: Final = "services.agent_instance.client_mcp_session"


def open_servers(servers: McpServers, *, first_lists_s: float = FIRST_LISTS_S) -> McpToolServers:
    """Everything that is set up, not connected yet.

    Raises:
        StartupError: The optional package is not installed.
    """
    if servers.by_name and importlib.util.find_spec("mcp") is None:
        raise StartupError(
            "CARREL_AGENT_INSTANCE_MCP sets up MCP servers, and the package mcp is not installed",
            advice="install carrel[mcp], or remove the setting",
        )
    return McpToolServers(
        {name: (settings.rules(name), _LateConnector(name, settings)) for name, settings in servers.by_name.items()},
        first_lists_s=first_lists_s,
    )


class _LateConnector:
    """A connector that is made when it is first used."""

    def __init__(self, name: str, settings: McpServerSettings) -> None:
        self._name = name
        self._settings = settings
        self._connector: Connector | None = None
        self._closed = False

    async def connect(self) -> Connection:
        if self._connector is None:
            try:
                module = await asyncio.to_thread(importlib.import_module, _SESSIONS)
            except ImportError as error:
                _log.error("the package mcp cannot be loaded", error=error)
                raise ToolUnavailableError("the package mcp cannot be loaded") from None
            # Another call may have made it meanwhile.
            if self._connector is None:
                made: Connector = module.McpConnector(self._name, self._settings)
                self._connector = made
        if self._closed:
            raise ToolUnavailableError("the service is ending")
        return await self._connector.connect()

    async def aclose(self) -> None:
        self._closed = True
        if self._connector is not None:
            await self._connector.aclose()

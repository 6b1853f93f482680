"""Clients: ``InternalClient`` for internal services (gRPC), ``SocketClient`` for users (WebSocket). Loaded when used.

A run and its events::

    async with SocketClient("http://127.0.0.1:8080", token) as socket:
        run = await socket.execute("Write a report")
        async for event in socket.run_events(run.run_id):
            ...

Not here: the command line, nor anything that serves.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from carrel.client.backoff import Backoff as Backoff
    from carrel.client.http import GatewayHttp as GatewayHttp
    from carrel.client.internal import Endpoints as Endpoints
    from carrel.client.internal import InternalClient as InternalClient
    from carrel.client.models import Accepted as Accepted
    from carrel.client.models import Artifact as Artifact
    from carrel.client.models import AuditRecord as AuditRecord
    from carrel.client.models import Event as Event
    from carrel.client.models import LogReset as LogReset
    from carrel.client.models import Position as Position
    from carrel.client.models import Question as Question
    from carrel.client.models import Run as Run
    from carrel.client.models import RunState as RunState
    from carrel.client.models import Stage as Stage
    from carrel.client.notices import Bye as Bye
    from carrel.client.notices import Gap as Gap
    from carrel.client.notices import Notice as Notice
    from carrel.client.notices import Reset as Reset
    from carrel.client.notices import RunStatus as RunStatus
    from carrel.client.states import ConnectionState as ConnectionState
    from carrel.client.states import Phase as Phase
    from carrel.client.tickets import GatewayTickets as GatewayTickets
    from carrel.client.tickets import Ticket as Ticket
    from carrel.client.tickets import TicketSource as TicketSource
    from carrel.client.websocket import SocketClient as SocketClient

_HOME: Final = {
    "Backoff": "carrel.client.backoff",
    "GatewayHttp": "carrel.client.http",
    "Endpoints": "carrel.client.internal",
    "InternalClient": "carrel.client.internal",
    "Accepted": "carrel.client.models",
    "Artifact": "carrel.client.models",
    "AuditRecord": "carrel.client.models",
    "Event": "carrel.client.models",
    "LogReset": "carrel.client.models",
    "Position": "carrel.client.models",
    "Question": "carrel.client.models",
    "Run": "carrel.client.models",
    "RunState": "carrel.client.models",
    "Stage": "carrel.client.models",
    "Bye": "carrel.client.notices",
    "Gap": "carrel.client.notices",
    "Notice": "carrel.client.notices",
    "Reset": "carrel.client.notices",
    "RunStatus": "carrel.client.notices",
    "GatewayTickets": "carrel.client.tickets",
    "Ticket": "carrel.client.tickets",
    "TicketSource": "carrel.client.tickets",
    "ConnectionState": "carrel.client.states",
    "Phase": "carrel.client.states",
    "SocketClient": "carrel.client.websocket",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'carrel.client' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value

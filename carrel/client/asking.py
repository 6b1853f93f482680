"""The request for a run as the socket and REST take it, and the answer to it. Nothing of how it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carrel.client.models import Accepted

__all__ = ["accepted_of", "execute_fields"]


def execute_fields(message: str, **optional: Any) -> dict[str, Any]:
    """The fields of ``agent_execute``; those that say nothing are left out."""
    return {"message": message, **{name: value for name, value in optional.items() if value}}


def accepted_of(body: Mapping[str, Any], client_ref: str) -> Accepted:
    """The gateway's ``run_accepted``."""
    return Accepted(
        run_id=str(body.get("run_id", "")),
        thread_id=str(body.get("thread_id", "")),
        request_id=str(body.get("request_id", "")),
        agent_name=str(body.get("agent_name", "")),
        status=str(body.get("status", "")),
        client_ref=client_ref,
        existing=body.get("existing") is True,
    )

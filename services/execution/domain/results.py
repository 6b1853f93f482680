"""A stage's result on its way into the store: checked, and put into an artifact where it is too large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from carrel.agent_memory import MAX_MEMORY_BYTES
from carrel.errors import InvalidResultError, PlanError, ProtocolError
from servicekit.logs import get_logger
from services.execution.domain.ports import StageResult
from services.execution.domain.services import RunServices
from services.execution.domain.uploads import store_artifact
from services.execution.models import RunRef
from services.execution.models_steps import Kept

__all__ = ["check_result", "keep_result", "kept_by", "merge_params"]

_log = get_logger("execution.results")


def check_result(agent_name: str, result: bytes) -> Mapping[str, Any]:
    """The result as an object.

    Raises:
        InvalidResultError: It is none.
    """
    try:
        value = orjson.loads(result)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise InvalidResultError(f"the result of {agent_name} is no JSON object", agent_name=agent_name)
    return value


async def keep_result(services: RunServices, ref: RunRef, name: str, data: bytes) -> dict[str, Any]:
    """Store a result that is too large to be passed on, and return the reference that stands for it."""
    content = (name, "application/json", data)
    limits = services.options.artifacts
    record = await store_artifact(services.store, services.folder, ref, limits, services.clock(), content)
    return {
        "name": name,
        "media_type": record.media_type,
        "size": record.size,
        "sha256": record.sha256,
        "url": f"/api/runs/{record.run_id}/artifacts/{name}",
    }


def kept_by(services: RunServices, agent_name: str, result: StageResult) -> Kept | None:
    """What a stage's agent keeps in the thread. It is the stage's own that keeps: a fallback's answer has nothing.

    Raises:
        ProtocolError: agent_instance gives what that agent cannot have kept.
    """
    if not result.memory:
        return None
    if result.answered_by != agent_name or len(result.memory) > MAX_MEMORY_BYTES:
        _log.warning("a stage keeps what it may not", agent=agent_name, bytes=len(result.memory))
        raise ProtocolError(f"agent_instance gave more to keep than {agent_name} may", agent_name=agent_name)
    return Kept(agent_name, result.memory, services.options.memories.quota)


def merge_params(params: bytes, added: bytes) -> bytes:
    """The run's parameters with a plan's put over them.

    Raises:
        PlanError: The plan's are no JSON object.
    """
    return orjson.dumps({**_object(params), **_object(added)})


def _object(data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise PlanError("the plan's params are no JSON object")
    return value

"""``WorkerOutputs``: what agents' workers have printed, kept for the run's owner as artifacts.

Never a reason for a run to fail or to wait long: what cannot be stored is said in the log and let go.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from carrel.errors import CarrelError
from servicekit.logs import get_logger
from services.agent_instance.domain.artifacts import ArtifactDesk
from services.agent_instance.domain.executor import AgentExecutor

__all__ = ["WorkerOutputs"]

_log: Final = get_logger("agent_instance.output")
_MEDIA_TYPE: Final = "text/plain; charset=utf-8"
_WAIT_S: Final = 5.0
_HURRIED_S: Final = 0.25


class WorkerOutputs:
    """Stores one attempt's outputs as ``output-<stage>-<attempt>-<agent>.txt``; a repeated agent's with a number."""

    def __init__(self, desk: ArtifactDesk, stage_index: int, attempt: int) -> None:
        self._desk = desk
        self._prefix = f"output-{stage_index}-{attempt}-"
        self._counts: Counter[str] = Counter()

    async def keep(self, executor: AgentExecutor, agent_name: str, *, hurry: bool = False) -> None:
        """Store what a worker that has ended has printed, if anything.

        Args:
            hurry: The run is being cancelled: wait a moment only.
        """
        output = executor.output
        if not output:
            return
        self._counts[agent_name] += 1
        count = self._counts[agent_name]
        name = f"{self._prefix}{agent_name}{'' if count == 1 else f'-{count}'}.txt"
        try:
            async with asyncio.timeout(_HURRIED_S if hurry else _WAIT_S):
                await self._desk.put(name, _MEDIA_TYPE, output)
        except (CarrelError, TimeoutError) as error:
            code = error.code if isinstance(error, CarrelError) else "DEADLINE"
            _log.warning("a worker's output is not kept", agent=agent_name, size=len(output), code=code)

"""A user's engine: the place where one run at a time runs, and what it tells about itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from services.execution.domain.driver import RunDriver
from services.execution.domain.requests import PipelineRequest
from services.execution.models import EngineRecord, RunIdentity, RunRecord, RunState, UserKey
from services.execution.models_steps import Admitted

__all__ = ["EngineOwner", "RunSummary", "UserExecutionEngine", "UserRuns"]

_HISTORY: Final = 50


@dataclass(frozen=True, slots=True)
class RunSummary:
    """An ended run, as a user's history keeps it."""

    run_id: str
    agent_name: str
    outcome: RunState
    seconds: float


@dataclass
class UserRuns:
    """One user's runs in this process; never shared between users."""

    active: dict[str, RunDriver] = field(default_factory=dict)
    history: deque[RunSummary] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    total: int = 0


class EngineOwner(Protocol):
    """What an engine asks of the factory that made it."""

    async def execute(self, request: PipelineRequest) -> Admitted: ...
    async def cleanup_engine(self, user: UserKey, engine_id: str) -> bool: ...


class UserExecutionEngine:
    """``UserExecutionEngine`` (also ``IsolatedExecutionEngine``) of the design documents.

    Made by ``ExecutionEngineFactory.create_for_user`` (a reservation) or by a run's admission. It counts against its
    user's limit until it is cleaned up or its run's outcome is decided.
    """

    def __init__(self, owner: EngineOwner, runs: UserRuns, record: EngineRecord) -> None:
        self.record = record
        self._owner = owner
        self._runs = runs
        self._run: RunRecord | None = None
        self._active = True

    async def execute_agent(self, identity: RunIdentity, agent_name: str, message: str) -> Admitted:
        """Run one agent here (a supervisor plans the rest); returns once the run is durable."""
        return await self.execute_agent_pipeline(PipelineRequest(identity, message, pipeline=(agent_name,)))

    async def execute_agent_pipeline(self, request: PipelineRequest) -> Admitted:
        """Run agents here, in dependency order; returns once the run is durable.

        Raises:
            UnknownEngineError: The engine has been cleaned up or has had its run.
            CarrelError: As ``ExecutionEngineFactory.execute``.
        """
        return await self._owner.execute(replace(request, engine_id=self.engine_id))

    def get_user_context(self) -> RunIdentity | None:
        """Whose run runs here; None while only reserved."""
        return self._run.identity if self._run is not None else None

    def get_user_execution_stats(self) -> Mapping[str, Any]:
        """The user's counts in this process."""
        ended = self._runs.history
        return {
            "engine_id": self.engine_id,
            "is_active": self._active,
            "active_runs": len(self._runs.active),
            "total_runs": self._runs.total,
            "successful_runs": sum(run.outcome is RunState.SUCCEEDED for run in ended),
            "failed_runs": sum(run.outcome is not RunState.SUCCEEDED for run in ended),
        }

    @property
    def active_runs(self) -> tuple[str, ...]:
        """Ids of the user's runs whose outcome is open."""
        return tuple(self._runs.active)

    @property
    def run_history(self) -> tuple[RunSummary, ...]:
        """The user's latest ended runs, oldest first."""
        return tuple(self._runs.history)

    def is_active(self) -> bool:
        """Whether it counts against the user's limit."""
        return self._active

    async def cleanup(self) -> bool:
        """End it, and what runs on it; False when it was over already."""
        return self._active and await self._owner.cleanup_engine(self.record.user, self.engine_id)

    @property
    def engine_id(self) -> str:
        """Its id, known to its user only."""
        return self.record.engine_id

    def begin(self, run: RunRecord) -> None:
        """A run has taken it."""
        self._run = run
        self.record = replace(self.record, run_id=run.identity.run_id, expires_at=run.deadline_at)

    def retire(self) -> None:
        """It no longer counts."""
        self._active = False

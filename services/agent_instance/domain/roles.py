"""What one agent's turn is given: ``StageTools``, which all turns of a stage share, and its ``TurnRole``.

The stage's agent, a fallback that answers in its place, and sub-agents have turns alike; their roles differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from carrel.agents import Plan, Request
from carrel.context import UserExecutionContext
from carrel.errors import CarrelError, LimitExceededError
from carrel.ids import ChildIds
from carrel.tools import Tool
from servicekit.telemetry.tracing import NO_TRACING, Tracing
from services.agent_instance.domain.activity import ActivityClock, TimeLimits, TimePolicy
from services.agent_instance.domain.artifacts import ArtifactDesk
from services.agent_instance.domain.calls import CallLedger
from services.agent_instance.domain.core import AgentExecutionCore, Instance
from services.agent_instance.domain.dispatcher import UnifiedToolDispatcherFactory
from services.agent_instance.domain.events import StageEvents
from services.agent_instance.domain.model_budget import StageBudget
from services.agent_instance.domain.outputs import WorkerOutputs
from services.agent_instance.domain.periodic import PeriodicUpdateManager
from services.agent_instance.domain.ports import AttemptTools, ModelAccess, OwnTools, Uplink
from services.agent_instance.domain.questions import StageQuestions, Work
from services.agent_instance.domain.registry import AgentEntry
from services.agent_instance.models import Caller, Question, StageStart

__all__ = ["FALLBACK", "MAX_SUB_AGENTS", "MAX_SUB_AGENT_DEPTH", "StageTools", "SubAgentCount", "TurnEnd", "TurnRole"]

FALLBACK: Final = "fb"
MAX_SUB_AGENTS: Final = 8
MAX_SUB_AGENT_DEPTH: Final = 4


@dataclass(slots=True)
class SubAgentCount:
    """Sub-agents of a run that are at work now, children of children included."""

    running: int = 0

    def take(self) -> None:
        """One more.

        Raises:
            LimitExceededError: ``MAX_SUB_AGENTS`` are at work.
        """
        if self.running >= MAX_SUB_AGENTS:
            raise LimitExceededError(
                f"{MAX_SUB_AGENTS} sub-agents of the run are at work",
                advice="wait for some of them before running more",
                limit="sub_agents",
                limit_value=MAX_SUB_AGENTS,
                use=self.running,
            )
        self.running += 1

    def give(self) -> None:
        """One less."""
        self.running -= 1


@dataclass(frozen=True, slots=True)
class StageTools:
    """What the turns of one stage share. ``caller`` gives the newest verified one."""

    start: StageStart
    caller: Callable[[], Caller]
    uplink: Uplink
    desk: ArtifactDesk
    ids: ChildIds
    core: AgentExecutionCore
    dispatchers: UnifiedToolDispatcherFactory
    periodic: PeriodicUpdateManager
    policy: TimePolicy
    questions: StageQuestions
    outputs: WorkerOutputs
    dead: asyncio.Future[CarrelError]
    models: ModelAccess | None = None
    servers: AttemptTools = field(default_factory=OwnTools)
    sub_agents: SubAgentCount = field(default_factory=SubAgentCount)
    grace_s: float = 0.5
    kill_s: float = 0.5
    tracing: Tracing = NO_TRACING


@dataclass(frozen=True, slots=True)
class TurnRole:
    """Whose turn it is: class, worker, context, request, tools and limits.

    ``whose`` is as in ``TurnTools``. The next three are a sub-agent's: how deep it is (0: the stage's agent), the work
    that it is, and the clock of the agent that it works for. ``traceparent`` is whose part the turn is in a trace.
    """

    entry: AgentEntry
    instance: Instance
    context: UserExecutionContext
    request: Request
    tools: Mapping[str, Tool]
    limits: TimeLimits
    ledger: CallLedger
    events: StageEvents
    budget: StageBudget
    whose: str = ""
    depth: int = 0
    work: Work | None = None
    outer: ActivityClock | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How a turn ended: one of ``result``, ``plan``, ``error`` and ``question``.

    ``muted``: nothing more is to be said of it. ``lost``: its worker ended without a word, or could not be had.
    """

    seconds: float
    result: Mapping[str, Any] | None = None
    plan: Plan | None = None
    error: CarrelError | None = None
    question: Question | None = None
    killed: bool = False
    muted: bool = False
    lost: bool = False
    past_deadline: bool = False
    memory: bytes = b""

"""Settings of agent_instance: ``CARREL_AGENT_INSTANCE_<FIELD>``, beside the shared ones. Durations are seconds."""

from __future__ import annotations

from pydantic import Field

from servicekit.settings import ListenAddress, PeerAddress, Section, SharedSettings
from services.agent_instance.config_mcp import McpServers
from services.agent_instance.config_models import ModelSettings
from services.agent_instance.config_workers import WorkerSettings
from services.agent_instance.domain.loading import ENTRY_POINTS

__all__ = ["AgentInstanceSettings", "TimeSettings", "ToolSettings"]


class TimeSettings(Section):
    """How long an agent may be silent and how long it may take."""

    idle: float = Field(30.0, gt=0, le=3600, description="seconds without activity before an agent is ended")
    idle_max: float = Field(300.0, gt=0, le=86_400, description="the most an agent class may ask for instead")
    wall: float = Field(300.0, gt=0, le=86_400, description="seconds one attempt may take")
    wall_max: float = Field(3600.0, gt=0, le=86_400, description="the most an agent class may ask for instead")
    periodic_update: float = Field(10.0, gt=0, le=3600, description="silence after which a sign of life is sent")
    grace: float = Field(0.5, ge=0, le=60, description="how long an agent may take to end when asked")
    kill: float = Field(0.5, gt=0, le=10, description="how long a killed agent may take before it is abandoned")
    log_wait: float = Field(300.0, gt=0, le=86_400, description="how long a result waits for the log")
    reserve: float = Field(30.0, gt=0, le=3600, description="how long a created instance is kept for its run")
    heartbeat: float = Field(5.0, gt=0, le=60, description="interval of heartbeats to execution")


class ToolSettings(Section):
    """How an agent's tool calls are dispatched."""

    sequential: bool = Field(False, description="run an agent's tool calls one after another")
    concurrency: int = Field(8, ge=1, le=1000, description="tool calls of one agent that run at once")
    max_open: int = Field(100, ge=1, le=10_000, description="tool calls of one agent that may be open")


class AgentInstanceSettings(SharedSettings):
    """What ``services.agent_instance`` is told at its start."""

    listen: ListenAddress = Field("127.0.0.1:50052", description="address to listen on; port 0 for any free one")
    emitter: PeerAddress = Field("127.0.0.1:50053", description="address of the emitter")
    agents: tuple[str, ...] = Field(
        (), description="modules, module:attribute, .py files, or entry-points; empty means entry-points"
    )
    doctor: bool = Field(
        True, description="load the agent of `carrel doctor`, which serves nobody without its permission"
    )
    database: bool = Field(False, description="whether a database that agents may depend on can be reached from here")
    max_workers: int = Field(50, ge=1, le=10_000, description="instances at once")
    max_workers_per_user: int = Field(10, ge=1, le=10_000, description="instances of one user at once")
    warm_workers: int = Field(4, ge=0, le=10_000, description="workers kept started ahead of need")
    max_fallbacks: int = Field(20, ge=0, le=10_000, description="fallbacks that answer at once")
    max_periodic_updates: int = Field(30, ge=0, le=10_000, description="silent agents that are spoken for at once")
    times: TimeSettings = Field(default_factory=TimeSettings)
    tools: ToolSettings = Field(default_factory=ToolSettings)
    workers: WorkerSettings = Field(default_factory=WorkerSettings)
    models: ModelSettings = Field(default_factory=ModelSettings)
    mcp: McpServers | None = Field(None, description="MCP servers by name, as JSON, or the path of a file with it")

    @property
    def sources(self) -> tuple[str, ...]:
        """Where all agents come from: those that are set, the packaged ones where none are, and the doctor's."""
        named = self.agents or (ENTRY_POINTS,)
        return (*named, "carrel.doctor_agent") if self.doctor else named

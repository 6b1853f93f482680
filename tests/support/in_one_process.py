"""The five services in one process and one loop, as their ``app``s build them, each with telemetry of its own.

For tests that look into what all of them do together; how they are as processes is ``stack``'s. Agents run in the
service's loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from carrel.cli.state import StateFolder
from carrel.cli.tokens import development_token
from carrel.client import SocketClient
from gateway.app import app as gateway_app
from gateway.config import GatewaySettings
from servicekit.lifecycle import Starter
from servicekit.settings import load_settings
from servicekit.telemetry.setup import telemetry
from servicekit.telemetry.trace_tree import TraceSpan, of_sdk
from services.agent_instance.app import app as agent_instance_app
from services.agent_instance.config import AgentInstanceSettings
from services.bridge.app import app as bridge_app
from services.bridge.config import BridgeSettings
from services.emitter.app import app as emitter_app
from services.emitter.config import EmitterSettings
from services.execution.app import app as execution_app
from services.execution.config import ExecutionSettings

__all__ = ["OneProcess", "in_one_process"]


@dataclass
class OneProcess:
    """The services, and what they have told."""

    state: StateFolder
    addresses: dict[str, str] = field(default_factory=dict)
    exporters: dict[str, InMemorySpanExporter] = field(default_factory=dict)

    def client(self, user: str) -> SocketClient:
        """The user's client."""
        token = development_token(self.state.login_secret, user, environ={})
        return SocketClient(f"http://{self.addresses['gateway']}", token)

    def spans(self) -> list[TraceSpan]:
        """Every span that has been handed over."""
        return [of_sdk(span) for exporter in self.exporters.values() for span in exporter.get_finished_spans()]


@asynccontextmanager
async def in_one_process(folder: Path, *, agents: Sequence[Path], **environ: str) -> AsyncIterator[OneProcess]:
    """The services, ready, in ``folder``; ``environ`` are settings of all of them."""
    state = StateFolder(folder)
    state.prepare()
    world = OneProcess(state)
    shared = {
        "CARREL_STATE_DIR": str(folder),
        "CARREL_TICKET_JWKS": str(state.jwks),
        "CARREL_DRAIN_SECONDS": "1",
        "CARREL_TELEMETRY__METRICS_LISTEN": "off",
        **environ,
    }
    async with AsyncExitStack() as stack:

        async def start(name: str, cls: Any, app: Callable[..., Any], own: Mapping[str, str]) -> None:
            mine = {f"CARREL_{name.upper()}_{key}": value for key, value in {"LISTEN": "127.0.0.1:0", **own}.items()}
            settings = load_settings(cls, name, {**shared, **mine})
            exporter = world.exporters[name] = InMemorySpanExporter()
            runtime = await stack.enter_async_context(telemetry(settings.telemetry, name, exporter=exporter))
            running = await stack.enter_async_context(app(settings, Starter(name, runtime)))
            stack.push_async_callback(running.drain)
            await running.start()
            world.addresses[name] = running.address

        there = world.addresses
        await start("bridge", BridgeSettings, bridge_app, {})
        await start("emitter", EmitterSettings, emitter_app, {"BRIDGE": there["bridge"]})
        loaded = {"EMITTER": there["emitter"], "AGENTS": ",".join(map(str, agents))}
        await start("agent_instance", AgentInstanceSettings, agent_instance_app, loaded)
        below = {name.upper(): there[name] for name in ("agent_instance", "emitter", "bridge")}
        key = {"TICKET_KEY": str(state.execution_key)}
        await start("execution", ExecutionSettings, execution_app, {**below, **key})
        peers = {name.upper(): there[name] for name in ("execution", "agent_instance", "bridge")}
        keys = {"TICKET_KEY": str(state.gateway_key), "LOGIN__SECRET_FILE": str(state.login_secret)}
        await start("gateway", GatewaySettings, gateway_app, {**peers, **keys})
        yield world

"""Shared by these tests: a data folder, the two traces, a small price table, and a host that agents run against."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from carrel.agent_codec import decode, encode
from carrel.agent_messages import (
    ROOT,
    ArtifactStored,
    CallModel,
    CallTool,
    CancelCall,
    ChildOpened,
    CloseChild,
    DownMessage,
    EmitEvent,
    EventAccepted,
    Failure,
    ModelReply,
    OpenChild,
    PutArtifact,
    Refused,
    Result,
    RunToolBody,
    Start,
    ToolBodyResult,
    ToolReply,
    UpMessage,
)
from carrel.agent_runtime import WorkerSession
from carrel.agents import Agent, Request
from carrel.context import UserExecutionContext
from carrel.errors import CarrelError, from_dict
from examples.llm_costs import agents, sources
from examples.llm_costs.prices import Model

REAL_TRACE = Path(__file__).parents[3].parent / "shared" / "data" / "azure_llm_trace_2023_code.csv"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty data folder, configured."""
    folder = tmp_path / "traces"
    folder.mkdir()
    monkeypatch.setenv("LLM_COSTS_DATA_DIR", str(folder))
    sources.settings.cache_clear()
    yield folder
    sources.settings.cache_clear()


@pytest.fixture
def no_data_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No data folder configured."""
    monkeypatch.delenv("LLM_COSTS_DATA_DIR", raising=False)
    sources.settings.cache_clear()
    yield
    sources.settings.cache_clear()


@pytest.fixture
def real_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The real trace's name, its folder configured as the data folder; skips where it is not at hand."""
    if not REAL_TRACE.is_file():
        pytest.skip(f"the real trace {REAL_TRACE.name} is not at {REAL_TRACE.parent}")
    monkeypatch.setenv("LLM_COSTS_DATA_DIR", str(REAL_TRACE.parent))
    sources.settings.cache_clear()
    yield REAL_TRACE.name
    sources.settings.cache_clear()


@pytest.fixture
def model() -> Callable[..., Model]:
    """Makes a model from what matters to a test."""

    def make(
        name: str, tier: str = "small", input_usd: float = 1.0, output_usd: float = 1.0, window: int = 10_000
    ) -> Model:
        return Model(name, "test", tier, input_usd, output_usd, window)

    return make


@dataclass
class Outcome:
    """What one stage left: its result or error, its events with the request they belong to, its artifacts."""

    result: dict[str, Any] | None = None
    error: CarrelError | None = None
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def told(self, kind: str, request_id: str = "req-1") -> list[dict[str, Any]]:
        """The data of the events of one kind, of the root request or of another."""
        return [data for owner, name, data in self.events if (owner, name) == (request_id, kind)]


class FakeHost:
    """The least of a host: answers every call and does what is asked, without permissions, limits or order.

    Every message crosses as bytes, so that what would not survive the way fails here too.
    """

    def __init__(self, agent: type[Agent], request: Request, model: Sequence[str | CarrelError] | None = None) -> None:
        self.outcome = Outcome()
        self._answers = list(model or ())
        self._down: asyncio.Queue[DownMessage | None] = asyncio.Queue()
        root = UserExecutionContext(user_id="alice", thread_id="thr-1", run_id="run-1", request_id="req-1")
        self._tools = tuple(tool.name for tool in agent.tools)
        self._contexts = {ROOT: (root, self._tools)}
        self._bodies: dict[str, CallTool] = {}
        self._pieces: dict[int, bytes] = {}
        environment = {} if model is None else {"CARREL_MODEL": "small"}
        self._put(Start(root.to_dict(), agent.name, request.to_dict(), self._tools, environment))

    def _put(self, message: DownMessage) -> None:
        crossed: Any = decode(encode(message))
        self._down.put_nowait(crossed)

    async def receive(self) -> DownMessage | None:
        return await self._down.get()

    async def send(self, message: UpMessage) -> None:
        crossed: Any = decode(encode(message))
        match crossed:
            case EmitEvent():
                self._event(crossed.handle, crossed.event_type, crossed.data)
                self._put(EventAccepted(crossed.call_id))
            case CallTool():
                self._call(crossed)
            case CallModel():
                self._ask(crossed)
            case CancelCall():
                pass
            case ToolBodyResult():
                self._called(crossed)
            case OpenChild():
                self._open(crossed)
            case PutArtifact():
                self._store(crossed)
            case Result():
                self.outcome.result = dict(crossed.result)
            case Failure():
                self.outcome.error = from_dict(crossed.error)
            case CloseChild():
                del self._contexts[crossed.handle]

    def _event(self, handle: int, kind: str, data: Mapping[str, Any]) -> None:
        self.outcome.events.append((self._contexts[handle][0].request_id, kind, dict(data)))

    def _ask(self, call: CallModel) -> None:
        self.outcome.asked.append(dict(call.request))
        if not self._answers:
            return  # silent
        answer = self._answers.pop(0)
        if isinstance(answer, CarrelError):
            self._put(Refused(call.call_id, answer.to_dict()))
            return
        message, usage = {"role": "assistant", "content": answer}, {"input_tokens": 1, "output_tokens": 1}
        told = {"message": message, "finish_reason": "stop", "usage": usage, "model": "small"}
        self._put(ModelReply(call.call_id, told))

    def _call(self, call: CallTool) -> None:
        context, tools = self._contexts[call.handle]
        assert call.name in tools
        number = f"call-{call.call_id}"
        self._bodies[number] = call
        self._event(call.handle, "tool_executing", {"tool_name": call.name})
        self._put(RunToolBody(number, call.name, call.arguments, call.handle, context.to_dict(), tools))

    def _called(self, done: ToolBodyResult) -> None:
        call = self._bodies.pop(done.tool_call_id)
        status = "ok" if done.error is None else "error"
        self._event(call.handle, "tool_completed", {"tool_name": call.name, "status": status})
        self._put(ToolReply(call.call_id, done.result) if done.error is None else Refused(call.call_id, done.error))

    def _open(self, call: OpenChild) -> None:
        context, tools = self._contexts[call.handle]
        child = context.create_child_context(call.operation_name)
        handle = max(self._contexts) + 1
        chosen = tools if call.tools is None else call.tools
        self._contexts[handle] = (child, chosen)
        self._put(ChildOpened(call.call_id, handle, child.to_dict(), chosen))

    def _store(self, piece: PutArtifact) -> None:
        content = self._pieces[piece.call_id] = self._pieces.get(piece.call_id, b"") + piece.data
        if piece.last:
            self.outcome.artifacts[piece.name] = content
            reference = {
                "name": piece.name,
                "media_type": piece.media_type,
                "size": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "url": f"/api/runs/run-1/artifacts/{piece.name}",
            }
            self._put(ArtifactStored(piece.call_id, reference))


RunStage = Callable[..., Awaitable[Outcome]]


@pytest.fixture
def run_stage() -> RunStage:
    """Runs one of the agents by name, with params, results of earlier stages and a message, to its end.

    ``model``: what a language model answers, in turn; silent when there is no more; None for no model.
    """
    classes = {agent.name: agent for agent in agents()}

    async def run(
        name: str,
        params: Mapping[str, Any] | None = None,
        results: Mapping[str, Any] | None = None,
        message: str = "",
        model: Sequence[str | CarrelError] | None = None,
    ) -> Outcome:
        host = FakeHost(classes[name], Request(message, params or {}, results or {}), model)
        await WorkerSession(host, classes.__getitem__, heartbeat_s=None).serve()
        assert len(json.dumps(host.outcome.result)) <= 64 * 1024
        return host.outcome

    return run

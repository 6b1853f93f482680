"""Model calls of one turn without a worker: the real desk and client, a scripted endpoint, a scripted way up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from carrel.agent_messages import CallModel, DownMessage, ModelDelta, ModelReply, Refused
from carrel.errors import CarrelError, from_dict
from carrel.ids import ChildIds
from carrel.tools import Tool
from services.agent_instance.client_model import OpenAiEndpoint
from services.agent_instance.config_models import ModelSettings
from services.agent_instance.domain.activity import ActivityClock, TimeLimits
from services.agent_instance.domain.calls import CallLedger
from services.agent_instance.domain.contexts import ContextTable
from services.agent_instance.domain.dispatcher import TurnTools
from services.agent_instance.domain.events import StageEvents
from services.agent_instance.domain.model_budget import StageBudget
from services.agent_instance.domain.model_calls import ModelDesk, ModelDoor, TurnModels
from services.agent_instance.domain.model_endpoint import ModelPolicy
from services.agent_instance.domain.questions import StageQuestions
from services.agent_instance.models import BudgetGrant, Caller, JournalItem, StoredArtifact
from tests.support.model_server import ModelServer, Step, model_server
from tests.unit.agent_instance.support import FakeProducer, FakeUplink, root_context

KEY = "sk-upstream-0123456789"


def model_settings(base_url: str, **changes: Any) -> ModelSettings:
    given: dict[str, Any] = {
        "base_url": base_url,
        "api_key": SecretStr(KEY),
        "default": "small",
        "allowed": ("large",),
        "retries": 0,
    }
    return ModelSettings.model_validate({**given, **changes})


@dataclass
class Asked:
    """One call and what came back."""

    number: int
    answers: list[DownMessage] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    async def reply(self, message: DownMessage) -> None:
        self.answers.append(message)
        if isinstance(message, ModelReply | Refused):
            self.done.set()

    @property
    def deltas(self) -> list[str]:
        return [message.text for message in self.answers if isinstance(message, ModelDelta)]

    async def end(self) -> ModelReply | Refused:
        async with asyncio.timeout(10):
            await self.done.wait()
        last = self.answers[-1]
        assert isinstance(last, ModelReply | Refused)
        return last

    async def answer(self) -> Any:
        end = await self.end()
        assert isinstance(end, ModelReply), end
        return end.answer

    async def error(self) -> CarrelError:
        end = await self.end()
        assert isinstance(end, Refused), end
        return from_dict(end.error)


class Turn:
    """One turn's calls."""

    def __init__(
        self,
        desk: ModelDesk,
        *,
        user: str = "alice",
        tools: Sequence[Tool] = (),
        permissions: frozenset[str] = frozenset(),
        journal: Sequence[JournalItem] = (),
        attempt: int = 1,
        grant: BudgetGrant | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.caller = caller or Caller(root_context(user), permissions)
        root = self.caller.context
        self.producer, self.uplink = FakeProducer(root), FakeUplink(root.run_id)
        self.clock = ActivityClock(TimeLimits(30, 300))
        self.scope = ContextTable(root, {tool.name: tool for tool in tools}, ChildIds(root.request_id)).root
        self.budget = StageBudget(grant)

        async def store(name: str, media_type: str, data: bytes) -> StoredArtifact:
            raise AssertionError("nothing here is too large for an event")

        self.events = StageEvents(self.producer, store, root, stage_index=0, attempt=attempt)
        turn = TurnTools(
            agent_name="talker",
            permissions=lambda: self.caller.permissions,
            events=self.events,
            uplink=self.uplink,
            ledger=CallLedger(0, journal=journal),
            clock=self.clock,
            runner=None,  # type: ignore[arg-type]  # no tool is called here
            questions=StageQuestions(0, (), lambda _: None),
        )
        self.models: TurnModels = desk.for_turn(turn, lambda: self.caller, self.budget)
        self._last = 0

    async def ask(self, request: Any = "hello", /, *, speak: str = "", deltas: bool = False, **options: Any) -> Asked:
        messages = [{"role": "user", "content": request}] if isinstance(request, str) else request
        self._last += 1
        asked = Asked(self._last)
        return await self.send({"messages": messages, **options}, asked, speak=speak, deltas=deltas)

    async def send(self, request: dict[str, Any], asked: Asked, *, speak: str = "", deltas: bool = False) -> Asked:
        """A request as it is."""
        call = CallModel(asked.number, 0, request, speak, deltas)
        await self.models.request(call, self.scope, asked.reply)
        return asked

    @property
    def said(self) -> str:
        """What a reader of the events has in front of them."""
        text = ""
        for event in self.producer.seen:
            if event.kind == "agent_message":
                text = event.data["text"] if "text" in event.data else text + event.data["delta"]
        return text


@dataclass
class ModelBench:
    """The endpoint and the desk."""

    server: ModelServer
    desk: ModelDesk
    turns: list[Turn] = field(default_factory=list)

    def turn(self, **options: Any) -> Turn:
        turn = Turn(self.desk, **options)
        self.turns.append(turn)
        return turn


@asynccontextmanager
async def bench(
    *script: Step, key: str | None = KEY, door: ModelDoor | None = None, policy: Any = None, **settings: Any
) -> AsyncIterator[ModelBench]:
    """A desk in front of a scripted endpoint; ends what is open when left."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(model_server(*script, key=key))
        base_url = settings.pop("base_url", server.base_url)
        endpoint = await stack.enter_async_context(OpenAiEndpoint(model_settings(base_url, **settings)))
        chosen = ModelPolicy("small", frozenset({"large"}), **(policy or {}))
        made = ModelBench(server, ModelDesk(endpoint, chosen, door=door))
        try:
            yield made
        finally:
            for turn in made.turns:
                await turn.models.aclose()

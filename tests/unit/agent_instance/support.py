"""A stage's whole host without gRPC: real domain, real in-loop worker, a producer and an uplink that are scripted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from carrel import Agent, Request, UserContextFactory, UserExecutionContext
from carrel.errors import CarrelError, DeadlineError
from carrel.events import EVENTS, check_event_size, validate_event
from services.agent_instance.domain.activity import TimePolicy
from services.agent_instance.domain.artifacts import ArtifactDesk, artifact_url
from services.agent_instance.domain.calls import hash_arguments
from services.agent_instance.domain.core import AgentExecutionCore, CoreLimits, Instance
from services.agent_instance.domain.dispatcher import DispatchStrategy, UnifiedToolDispatcherFactory
from services.agent_instance.domain.executor import ExecutorFactory
from services.agent_instance.domain.fallback import FallbackManager
from services.agent_instance.domain.periodic import PeriodicUpdateManager
from services.agent_instance.domain.pool import ResourcePool
from services.agent_instance.domain.receipts import Receipt, Receipts
from services.agent_instance.domain.registry import AgentClassRegistry
from services.agent_instance.domain.stage import StageAttempt, StageServices, StageTimes
from services.agent_instance.domain.validation import DependencyChecker
from services.agent_instance.models import (
    AuditEntry,
    BudgetGrant,
    BudgetUse,
    Caller,
    ChunkUp,
    JournalItem,
    ProvidedInput,
    Question,
    StageOutcome,
    StageStart,
    StoredArtifact,
)
from services.agent_instance.workers.in_loop import InLoopExecutor


def call_id(tool: str, n: int = 1, /, **arguments: Any) -> str:
    """The ``tool_call_id`` of the n-th call of a tool with these arguments."""
    return f"call-0-{tool}-{hash_arguments(arguments)[:8]}-{n}"


def root_context(user: str = "alice") -> UserExecutionContext:
    return UserContextFactory.from_request(user)


@dataclass(frozen=True)
class Seen:
    """One event as it reached the producer."""

    kind: str
    data: dict[str, Any]
    agent: str
    request_id: str


class FakeProducer:
    """Takes every event, holds it to the table, and acknowledges it unless told to wait."""

    def __init__(self, root: UserExecutionContext) -> None:
        self.root = root
        self.seen: list[Seen] = []
        self.contexts: list[UserExecutionContext] = []
        self.closed = False
        self.limit: int | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.dead: asyncio.Future[CarrelError] = asyncio.get_running_loop().create_future()

    @property
    def emitted(self) -> int:
        return len(self.seen)

    @property
    def hops(self) -> tuple[float, float]:
        return 0.0, 0.0

    @property
    def acknowledged(self) -> int:
        return len(self.seen) if self.open.is_set() else 0

    async def emit(
        self, event_type: str, data: Mapping[str, Any], *, agent_name: str, context: UserExecutionContext | None
    ) -> int:
        if self.dead.done():
            raise self.dead.result()
        if self.limit is not None and len(self.seen) >= self.limit:
            if EVENTS[event_type].sheddable:
                return 0
            await self.open.wait()
        encoded = orjson.dumps(data)
        validate_event(event_type, orjson.loads(encoded))
        check_event_size(event_type, len(encoded))
        request_id = (context or self.root).request_id
        self.seen.append(Seen(event_type, orjson.loads(encoded), agent_name, request_id))
        return len(self.seen)

    async def flush(self, timeout: float | None) -> int:
        if self.dead.done():
            raise self.dead.result()
        try:
            async with asyncio.timeout(timeout):
                await self.open.wait()
        except TimeoutError:
            raise DeadlineError("not in time") from None
        return len(self.seen)

    def refresh(self, context: UserExecutionContext) -> None:
        self.contexts.append(context)

    async def aclose(self) -> None:
        self.closed = True


class FakeUplink:
    """Execution's side: keeps what comes up, and stores artifacts unless told to refuse or to stay silent.

    ``withhold``: entries of the journal are kept, but not acknowledged before ``acknowledge``.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.journaled: list[JournalItem] = []
        self.withhold = False
        self.receipts = Receipts()
        self.used: list[BudgetUse] = []
        self.audited: list[AuditEntry] = []
        self.stored: dict[str, bytes] = {}
        self.refuse: CarrelError | None = None
        self.silent = False
        self.desk = ArtifactDesk(self.chunk, timeout_s=20.0)
        self._parts: dict[str, tuple[str, str, bytearray]] = {}

    async def journal(self, item: JournalItem) -> Receipt:
        receipt = self.receipts.expect(item.number)
        self.journaled.append(item)
        if not self.withhold:
            self.acknowledge()
        return receipt

    def acknowledge(self, through: int | None = None) -> None:
        self.receipts.stored(self.journaled[-1].number if through is None else through)

    async def budget_use(self, use: BudgetUse) -> None:
        self.used.append(use)

    async def audit(self, entry: AuditEntry) -> None:
        self.audited.append(entry)

    async def chunk(self, chunk: ChunkUp) -> None:
        if chunk.name:
            self._parts[chunk.upload_id] = (chunk.name, chunk.media_type, bytearray())
        name, media_type, data = self._parts[chunk.upload_id]
        data += chunk.data
        if not chunk.last or self.silent:
            return
        if self.refuse is not None:
            self.desk.answered(chunk.upload_id, self.refuse)
            return
        self.stored[name] = bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        reference = StoredArtifact(name, media_type, len(data), digest, artifact_url(self.run_id, name))
        self.desk.answered(chunk.upload_id, reference)


@dataclass
class Options:
    """What a test changes."""

    permissions: frozenset[str] = frozenset({"*"})
    idle_s: float = 5.0
    wall_s: float = 10.0
    grace_s: float = 0.3
    kill_s: float = 0.2
    log_wait_s: float = 2.0
    periodic_s: float = 10.0
    max_periodic: int = 30
    max_fallbacks: int = 20
    capacity: int = 50
    strategy: DispatchStrategy = DispatchStrategy.CONCURRENT
    concurrency: int = 8
    deadline: float | None = None
    journaled: int = 0
    attempt: int = 1
    journal: tuple[JournalItem, ...] = ()
    inputs: tuple[ProvidedInput, ...] = ()
    quiet_until: str = ""
    last_attempt: bool = True
    budget: BudgetGrant | None = None
    memory: bytes = b""
    caller: Caller | None = None
    params: dict[str, Any] = field(default_factory=dict)
    message: str = "hello"


class Bench:
    """Agents, and stages of them, with everything around scripted."""

    def __init__(self, *agents: type[Agent], make: ExecutorFactory | None = None, **options: Any) -> None:
        self.options = Options(**options)
        o = self.options
        self.registry = AgentClassRegistry.of(*agents)
        self.pool = ResourcePool(make or (lambda: InLoopExecutor(kill_s=o.kill_s)), warm=0)
        self.core = AgentExecutionCore(self.registry, self.pool, DependencyChecker({}), CoreLimits(capacity=o.capacity))
        self.services = StageServices(
            core=self.core,
            fallbacks=FallbackManager(self.registry, limit=o.max_fallbacks),
            periodic=PeriodicUpdateManager(interval_s=o.periodic_s, limit=o.max_periodic),
            dispatchers=UnifiedToolDispatcherFactory(o.strategy, concurrency=o.concurrency),
            policy=TimePolicy(idle_s=o.idle_s, wall_s=o.wall_s, deadline_margin_s=0.1),
            times=StageTimes(o.grace_s, o.kill_s, o.log_wait_s, 0.1),
        )

    async def stage(self, agent: str, *, user: str = "alice", **changes: Any) -> Stage:
        """A claimed attempt, ready to run."""
        options = Options(**{**vars(self.options), **changes})
        caller = options.caller or Caller(root_context(user), options.permissions)
        request = Request(options.message, options.params, attempt=options.attempt)
        start = StageStart(
            agent_name=agent,
            stage_index=0,
            attempt=options.attempt,
            fence=1,
            producer_id=f"{caller.run_id}:0:1",
            request=request,
            deadline=options.deadline,
            journal=(JournalItem(options.journaled, "earlier", "tool", "x", ""),)
            if options.journaled
            else options.journal,
            inputs=options.inputs,
            quiet_until_input=options.quiet_until,
            last_attempt=options.last_attempt,
            budget=options.budget,
            memory=options.memory,
        )
        instance = await self.core.claim(caller, "", agent)
        producer, uplink = FakeProducer(caller.context), FakeUplink(caller.run_id)
        attempt = StageAttempt(
            self.services, instance, start, caller, producer=producer, uplink=uplink, desk=uplink.desk
        )
        return Stage(
            self,
            attempt,
            producer,
            uplink,
            caller,
            agent=agent,
            number=options.attempt,
            journal=options.journal,
            inputs=options.inputs,
            instance=instance,
        )

    async def run(self, agent: str, **changes: Any) -> Stage:
        """A stage that has been run to its end."""
        stage = await self.stage(agent, **changes)
        await stage.run()
        return stage


@dataclass
class Stage:
    """One attempt with its fakes, and its outcome once it has one."""

    bench: Bench
    attempt: StageAttempt
    producer: FakeProducer
    uplink: FakeUplink
    caller: Caller
    outcome: StageOutcome | None = None
    agent: str = ""
    number: int = 1
    journal: tuple[JournalItem, ...] = ()
    inputs: tuple[ProvidedInput, ...] = ()
    instance: Instance | None = None

    async def again(self, *answers: Any, last_attempt: bool = True, **changes: Any) -> Stage:
        """The next attempt of the same stage, run to its end: over this one's journal, with the question answered."""
        inputs = self.inputs
        for answer in answers:
            assert self.outcome is not None
            question = self.outcome.question
            assert question is not None
            inputs = (*inputs, ProvidedInput(question.input_id, orjson.dumps(answer), question.arguments_hash))
        journal = (*self.journal, *self.uplink.journaled)
        stage = await self.bench.stage(
            self.agent,
            caller=self.caller,
            attempt=self.number + 1,
            journal=journal,
            inputs=inputs,
            quiet_until=inputs[-1].input_id if inputs else "",
            last_attempt=last_attempt,
            **changes,
        )
        await stage.run()
        return stage

    @property
    def question(self) -> Question:
        assert self.outcome is not None
        assert self.outcome.error is None, self.outcome.error
        assert self.outcome.question is not None
        assert self.outcome.result is None
        return self.outcome.question

    async def run(self) -> StageOutcome:
        self.outcome = await self.attempt.run()
        return self.outcome

    @property
    def events(self) -> list[Seen]:
        return self.producer.seen

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.producer.seen]

    @property
    def result(self) -> Any:
        assert self.outcome is not None
        assert self.outcome.error is None, self.outcome.error
        assert self.outcome.result is not None
        return orjson.loads(self.outcome.result)

    @property
    def error(self) -> CarrelError:
        assert self.outcome is not None
        assert self.outcome.error is not None
        return self.outcome.error

    def of(self, kind: str) -> list[Seen]:
        return [event for event in self.producer.seen if event.kind == kind]

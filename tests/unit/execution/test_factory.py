"""The engine factory and the runs that it drives, over a real store, a scripted host and a log in memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from carrel.errors import (
    CancelledRunError,
    CarrelError,
    DrainingError,
    EnginesLimitError,
    InvalidRequestError,
    SealedLogError,
    StaleFenceError,
    StoreUnavailableError,
    UnknownEngineError,
    UnknownRunError,
    WorkerLostError,
    WorkersBusyError,
)
from servicekit.tasks import TaskOwner
from services.execution.domain.catalogue import AgentCatalogue
from services.execution.domain.factory import ExecutionEngineFactory
from services.execution.domain.loops import clean_up, expire_artifacts, take_over
from services.execution.domain.metrics import FactoryMetrics
from services.execution.domain.planning import AgentFacts, Catalogue
from services.execution.domain.ports import (
    CancelStage,
    Downlink,
    StageAccepted,
    StageFailure,
    StageResult,
    StageStart,
    Uplink,
)
from services.execution.domain.queue import DecisionWatch
from services.execution.domain.requests import PipelineRequest
from services.execution.domain.services import RunOptions, RunServices
from services.execution.domain.uploads import store_artifact
from services.execution.domain.watch import Changes
from services.execution.models import OutboxEvent, RunIdentity, RunRecord, RunRef, RunState, ThreadStrategy, UserKey
from services.execution.models_steps import Again, Checkpoint, Finish
from services.execution.store import RunStore
from services.execution.store_artifacts import LocalArtifactFolder
from services.execution.store_sql import wall_clock
from services.execution.store_sql_open import open_sqlite_store
from tests.conftest import Eventually

ALICE, BOB = UserKey("alice"), UserKey("bob")
SECOND = 1_000_000
ENQUEUE = ThreadStrategy.ENQUEUE


class Clock:
    """The wall clock, and what it was told to add."""

    ahead = 0

    def __call__(self) -> int:
        return wall_clock() + self.ahead


class Stream:
    """An attempt that waits until it is told its result, or to cancel."""

    def __init__(self) -> None:
        self.up: asyncio.Queue[Uplink | Exception] = asyncio.Queue()
        self.down: list[Downlink] = []

    async def __aiter__(self) -> AsyncIterator[Uplink]:
        while True:
            item = await self.up.get()
            if isinstance(item, Exception):
                raise item
            yield item

    async def send(self, message: Downlink) -> None:
        self.down.append(message)


class Host:
    """Agents "solo" and "next"; ``at_once`` gives every attempt this result as it begins."""

    address = "host:1"

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.starts: list[StageStart] = []
        self.at_once: bytes | None = None

    async def catalogue(self) -> Catalogue:
        return Catalogue({name: AgentFacts(name) for name in ("solo", "next")})

    @asynccontextmanager
    async def run_stage(self, start: StageStart) -> AsyncIterator[Stream]:
        stream = Stream()
        self.streams.append(stream)
        self.starts.append(start)
        if self.at_once is not None:
            stream.up.put_nowait(StageResult(self.at_once, start.agent_name))
        yield stream


@dataclass
class Channel:
    """A run's channel into the log in memory."""

    sink: "Sink"
    sent: list[OutboxEvent] = field(default_factory=list)
    closed: bool = False

    async def emit(self, event: OutboxEvent) -> None:
        if self.sink.refuse_emit:
            raise self.sink.refuse_emit.pop()
        self.sent.append(event)

    @property
    def hops(self) -> tuple[float, float]:
        return 0.0, 0.0

    async def settled(self) -> None:
        await self.sink.open.wait()
        if self.sink.refuse:
            raise self.sink.refuse.pop()
        # The log ignores what it has: a producer may send an event again at any time.
        first = {event.number: event for event in reversed(self.sent)}
        taken = [first[number] for number in sorted(first)]
        assert [event.number for event in taken] == list(range(1, len(taken) + 1)), "a hole"
        self.sink.log = taken

    async def aclose(self) -> None:
        self.closed = True


class Sink:
    """The way to the log; ``refuse`` holds errors that ``settled`` raises first."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.open = asyncio.Event()
        self.open.set()
        self.refuse: list[CarrelError] = []
        self.refuse_emit: list[CarrelError] = []
        self.log: Sequence[OutboxEvent] = ()

    def outbox(self, identity: RunIdentity, fence: int, deadline_at: int) -> Channel:
        self.channels.append(Channel(self))
        return self.channels[-1]


@dataclass
class World:
    """Everything below the factory."""

    store: RunStore
    host: Host
    sink: Sink
    services: RunServices
    factory: ExecutionEngineFactory
    clock: Clock
    path: Path

    async def execute(self, run: str = "run-1", user: UserKey = ALICE, **changes: Any) -> RunRecord:
        identity = RunIdentity(user, f"t-{run}", run, f"req-{run}")
        request = replace(PipelineRequest(identity, "hi", pipeline=("solo",)), **changes)
        return (await self.factory.execute(request)).run

    async def state(self, run: str = "run-1", user: UserKey = ALICE) -> RunState:
        record = await self.store.get_run(user, run)
        assert record is not None
        return record.state

    async def ended(self, eventually: Eventually, state: RunState, run: str = "run-1", user: UserKey = ALICE) -> None:
        async def reached() -> bool:
            return await self.state(run, user) is state

        await eventually(reached, what=f"{run} is {state}")


@asynccontextmanager
async def built(path: Path, **options: Any) -> AsyncIterator[World]:
    clock, host, sink = Clock(), Host(), Sink()
    store = await open_sqlite_store(path / "runs.sqlite3", migrate=True, clock=clock)
    async with TaskOwner(on_failure=lambda name, error: None) as tasks:
        services = RunServices(
            store=store,
            folder=LocalArtifactFolder(path / "artifacts"),
            host=cast(Any, host),
            sink=cast(Any, sink),
            catalogue=AgentCatalogue(cast(Any, host), tasks),
            tasks=tasks,
            metrics=FactoryMetrics(),
            changes=Changes(),
            clock=clock,
            options=RunOptions(retry_first_s=0.01, retry_max_s=0.02, cancel_grace_s=0.05, **options),
        )
        factory = ExecutionEngineFactory(services)
        await take_over(store, factory)
        yield World(store, host, sink, services, factory, clock, path)
        factory.stop()
    await store.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with built(tmp_path) as made:
        yield made


# Engines


async def test_engine_of_the_documents_counts_runs_and_keeps_its_users_history(
    world: World, eventually: Eventually
) -> None:
    engine = await world.factory.create_for_user(ALICE, {})
    other = await world.factory.create_for_user(BOB, {})
    assert engine.is_active()
    assert engine.get_user_context() is None
    world.host.at_once = b'{"ok":true}'
    identity = RunIdentity(ALICE, "t", "run-1", "req-1")
    admitted = await engine.execute_agent(identity, "solo", "hi")
    assert admitted.run.engine_id == engine.engine_id
    assert engine.get_user_context() == identity
    await world.ended(eventually, RunState.SUCCEEDED)
    assert not engine.is_active()
    assert [(run.run_id, run.outcome) for run in engine.run_history] == [("run-1", RunState.SUCCEEDED)]
    assert engine.active_runs == ()
    stats = engine.get_user_execution_stats()
    assert (stats["total_runs"], stats["successful_runs"], stats["active_runs"]) == (1, 1, 0)
    assert other.run_history == ()
    assert other.get_user_execution_stats()["total_runs"] == 0
    assert not await engine.cleanup()
    with pytest.raises(UnknownEngineError):
        await engine.execute_agent(replace(identity, run_id="run-2", thread_id="t2"), "solo", "hi")


async def test_scope_gives_its_engine_back_and_ends_what_runs_on_it(world: World, eventually: Eventually) -> None:
    async with world.factory.user_execution_scope(ALICE, {"max_engines_per_user": 1}) as engine:
        with pytest.raises(EnginesLimitError):
            await world.factory.create_for_user(ALICE, {"max_engines_per_user": 1})
        await engine.execute_agent(RunIdentity(ALICE, "t", "run-1", "req-1"), "solo", "hi")
    await world.ended(eventually, RunState.CANCELLED)
    async with world.factory.user_execution_scope(ALICE, {"max_engines_per_user": 1}) as engine:
        assert engine.is_active()
    assert not engine.is_active()
    metrics = world.factory.get_factory_metrics()
    assert (metrics.engines_created, metrics.engines_active, metrics.engines_cleaned) == (2, 0, 2)


async def test_clean_up_drops_lapsed_reservations_and_ends_overdue_runs(world: World, eventually: Eventually) -> None:
    engine = await world.factory.create_for_user(ALICE, {})
    await world.execute(user=BOB)
    assert await clean_up(world.store, world.factory) == 0
    world.clock.ahead = 301 * SECOND
    assert await clean_up(world.store, world.factory) == 1
    assert not engine.is_active()
    await world.ended(eventually, RunState.TIMED_OUT, user=BOB)
    assert world.factory.get_factory_metrics().engines_active == 0


# Runs


async def test_request_that_names_no_agent_gets_the_only_one_there_is(world: World) -> None:
    async def only() -> Catalogue:
        return Catalogue({"mine": AgentFacts("mine")})

    world.host.catalogue = only  # type: ignore[method-assign]  # another registry
    run = await world.execute(pipeline=())
    assert [stage.agent_name for stage in run.stages] == ["mine"]


async def test_admitted_run_is_driven_although_its_caller_has_gone(world: World, eventually: Eventually) -> None:
    world.host.at_once = b"{}"
    await world.services.catalogue.covering()
    asking = asyncio.create_task(world.execute())
    for _ in range(3):  # as far as the store
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])

    async def there() -> bool:
        return await world.store.get_run(ALICE, "run-1") is not None

    await eventually(there)
    await world.ended(eventually, RunState.SUCCEEDED)


async def test_request_without_ids_breaks_the_layers_contract(world: World) -> None:
    with pytest.raises(InvalidRequestError):
        await world.factory.execute(PipelineRequest(RunIdentity(ALICE, "", "run-1", "req-1")))


async def test_fault_of_ours_ends_its_run_only(world: World, eventually: Eventually) -> None:
    await world.execute("run-1")
    await eventually(lambda: world.host.streams)
    await world.execute("run-2", BOB)
    await eventually(lambda: len(world.host.streams) == 2)
    world.host.streams[0].up.put_nowait(KeyError("a fault"))
    world.host.streams[1].up.put_nowait(StageResult(b"{}"))
    await world.ended(eventually, RunState.FAILED, "run-1")
    await world.ended(eventually, RunState.SUCCEEDED, "run-2", BOB)
    run = await world.store.get_run(ALICE, "run-1")
    assert run is not None
    assert run.error is not None
    assert run.error["code"] == "INTERNAL"


async def test_only_known_runs_of_the_user_can_be_cancelled(world: World) -> None:
    await world.execute()
    for user, run_id in ((BOB, "run-1"), (ALICE, "run-2")):
        with pytest.raises(UnknownRunError):
            await world.factory.cancel(user, run_id, "")
    assert await world.state() is RunState.RUNNING


async def test_run_that_another_process_drives_can_be_cancelled_here(world: World, eventually: Eventually) -> None:
    await world.execute()
    stranger = ExecutionEngineFactory(world.services)
    run = await stranger.cancel(ALICE, "run-1", "")
    assert run.outcome is RunState.CANCELLED
    await world.ended(eventually, RunState.CANCELLED)
    assert [event.event_type for event in world.sink.log] == ["run_accepted", "agent_error", "run_completed"]


async def test_run_that_another_process_ended_is_stopped_here(world: World, eventually: Eventually) -> None:
    run = await world.execute()
    await eventually(lambda: world.host.streams)
    watch = DecisionWatch(world.services, world.factory.holdings)
    assert await watch.look() == 0
    error = CancelledRunError("cancelled elsewhere").to_dict()
    assert await world.store.finish(run.ref, Finish(RunState.CANCELLED, error=error, interrupts=True))
    assert await watch.look() == 1
    await eventually(lambda: any(isinstance(message, CancelStage) for message in world.host.streams[0].down))
    assert not world.factory.drives(run.ref)
    assert world.factory.get_factory_metrics().engines_active == 0
    # Whoever ended it may be gone: its last events are relayed from here as well.
    await world.ended(eventually, RunState.CANCELLED)
    assert [event.event_type for event in world.sink.log] == ["run_accepted", "agent_error", "run_completed"]


async def test_waiting_run_that_another_process_ended_is_forgotten_here(world: World, eventually: Eventually) -> None:
    await world.execute()
    run = await world.execute("run-2", identity=RunIdentity(ALICE, "t-run-1", "run-2", "req-2"), strategy=ENQUEUE)
    assert run.state is RunState.QUEUED
    assert world.factory.get_factory_metrics().runs_queued == 1
    error = CancelledRunError("cancelled elsewhere").to_dict()
    assert await world.store.finish(run.ref, Finish(RunState.CANCELLED, error=error, interrupts=True))
    assert await DecisionWatch(world.services, world.factory.holdings).look() == 1
    assert world.factory.get_factory_metrics().runs_queued == 0
    await world.ended(eventually, RunState.CANCELLED, "run-2")


async def test_cancel_wins_over_an_attempt_that_begins_in_the_same_moment(world: World, eventually: Eventually) -> None:
    run = await world.execute()
    await eventually(lambda: world.host.streams)
    world.host.streams[0].up.put_nowait(StageAccepted("i", warm=False, creation_s=0.0))
    world.host.streams[0].up.put_nowait(StageResult(StageFailure(WorkerLostError("dead").to_dict())))
    real, reached, go = world.store.begin_attempt, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **named: Any) -> Any:
        step = await real(*args, **named)
        reached.set()
        await go.wait()  # the store has raised the fence, and nobody here knows
        return step

    world.store.begin_attempt = slow  # type: ignore[method-assign]  # to meet it in the middle
    await reached.wait()
    cancelling = asyncio.create_task(world.factory.cancel(ALICE, "run-1", ""))
    await asyncio.sleep(0.02)
    go.set()
    assert (await cancelling).outcome is RunState.CANCELLED
    await world.ended(eventually, RunState.CANCELLED)
    assert not world.factory.drives(run.ref)
    for stream in world.host.streams[1:]:  # had it begun already
        await eventually(partial(_was_cancelled, stream))


async def test_next_stage_waits_while_the_store_is_away(world: World, eventually: Eventually) -> None:
    outages = [StoreUnavailableError("away") for _ in range(3)]
    real = world.store.checkpoint

    async def flaky(ref: RunRef, step: Checkpoint) -> RunRecord | None:
        if outages:
            raise outages.pop()
        return await real(ref, step)

    world.store.checkpoint = flaky  # type: ignore[method-assign]  # a store that is away
    world.host.at_once = b"{}"
    await world.execute(pipeline=("solo", "next"))
    await world.ended(eventually, RunState.SUCCEEDED)
    assert outages == []
    assert [start.agent_name for start in world.host.starts] == ["solo", "next"]


async def test_run_waits_for_a_worker_while_agent_instance_is_full(world: World, eventually: Eventually) -> None:
    await world.execute()
    for _ in range(3):
        await eventually(lambda: world.host.streams)
        world.host.streams.pop().up.put_nowait(WorkersBusyError("full", retry_after_s=0.01))
    await eventually(lambda: world.host.streams)
    world.host.streams.pop().up.put_nowait(StageResult(b"{}"))
    await world.ended(eventually, RunState.SUCCEEDED)
    assert {start.attempt for start in world.host.starts} == {1}


async def test_run_that_waits_for_a_worker_can_be_cancelled(world: World, eventually: Eventually) -> None:
    await world.execute()
    await eventually(lambda: world.host.streams)
    world.host.streams.pop().up.put_nowait(WorkersBusyError("full", retry_after_s=0.3))
    await world.factory.cancel(ALICE, "run-1", "")
    await world.ended(eventually, RunState.CANCELLED)


async def test_artifacts_past_their_retention_are_removed_with_their_bytes(world: World) -> None:
    run = await world.execute()
    limits = world.services.options.artifacts
    content = ("a.txt", "text/plain", b"x")
    await store_artifact(world.store, world.services.folder, run.ref, limits, world.clock(), content)
    assert await expire_artifacts(world.services) == 0
    world.clock.ahead = 31 * 86_400 * SECOND
    assert await expire_artifacts(world.services) == 1
    assert await world.store.get_artifact(ALICE, "run-1", "a.txt") is None
    assert not [path for path in (world.path / "artifacts").rglob("*") if path.is_file()]


async def test_shutdown_refuses_waits_for_runs_and_can_be_hastened(world: World, eventually: Eventually) -> None:
    await world.execute()
    await eventually(lambda: world.host.streams)
    closing = asyncio.create_task(world.factory.shutdown(grace_s=30))
    await asyncio.sleep(0)
    with pytest.raises(DrainingError):
        await world.execute("run-2")
    with pytest.raises(DrainingError):
        await world.factory.create_for_user(ALICE, {})
    assert not closing.done()
    world.host.streams[0].up.put_nowait(StageResult(b"{}"))
    await asyncio.wait_for(closing, 5)
    await world.ended(eventually, RunState.SUCCEEDED)


async def test_hastened_shutdown_leaves_runs_to_the_next_process(tmp_path: Path, eventually: Eventually) -> None:
    async with built(tmp_path) as world:
        await world.execute()
        closing = asyncio.create_task(world.factory.shutdown(grace_s=30))
        await asyncio.sleep(0)
        world.factory.hasten()
        await asyncio.wait_for(closing, 20)
    async with built(tmp_path) as world:
        await eventually(lambda: world.host.streams)
        assert [event.event_type for event in world.sink.log] == ["run_accepted", "run_attempt"]
        assert world.sink.log[1].data["reason"] == "execution_restarted"
        assert world.host.starts[0].attempt == 2
        assert not world.host.starts[0].last_attempt  # a restart of ours costs the run no try
        world.host.streams[0].up.put_nowait(StageResult(b"{}"))
        await world.ended(eventually, RunState.SUCCEEDED)
        assert world.factory.get_factory_metrics().runs_resumed == 1


# The outbox


@pytest.mark.parametrize("times", [1, 3])
async def test_outbox_is_sent_again_whole_when_the_log_did_not_take_it(
    world: World, eventually: Eventually, times: int
) -> None:
    world.sink.refuse = [InvalidRequestError("malformed") for _ in range(times)]
    world.host.at_once = b"{}"
    await world.execute()
    await world.ended(eventually, RunState.SUCCEEDED)
    assert len(world.sink.channels) == times + 1
    await eventually(lambda: all(channel.closed for channel in world.sink.channels))
    assert [event.event_type for event in world.sink.log] == ["run_accepted", "run_completed"]


async def test_event_that_could_not_be_sent_at_admission_is_sent_at_the_end(
    world: World, eventually: Eventually
) -> None:
    world.sink.refuse_emit = [InvalidRequestError("no")]
    world.host.at_once = b"{}"
    await world.execute()
    await world.ended(eventually, RunState.SUCCEEDED)
    assert [event.event_type for event in world.sink.log] == ["run_accepted", "run_completed"]


async def test_sealed_log_means_that_the_terminal_event_is_there(world: World, eventually: Eventually) -> None:
    world.sink.refuse = [SealedLogError("sealed")]
    world.host.at_once = b"{}"
    await world.execute()
    await world.ended(eventually, RunState.SUCCEEDED)


async def test_no_stage_begins_before_the_log_has_the_runs_first_event(world: World, eventually: Eventually) -> None:
    world.sink.open.clear()
    await world.execute()
    await eventually(lambda: world.sink.channels and world.sink.channels[0].sent)
    for _ in range(20):  # every task that could begin the stage gets its turn
        await asyncio.sleep(0)
    assert world.host.starts == []
    world.sink.open.set()
    await eventually(lambda: world.host.starts)
    assert [event.event_type for event in world.sink.log] == ["run_accepted"]


async def test_first_event_is_sent_again_until_the_log_takes_it(world: World, eventually: Eventually) -> None:
    world.sink.refuse = [StoreUnavailableError("away"), StoreUnavailableError("away")]
    await world.execute()
    await eventually(lambda: world.host.starts)
    assert [event.event_type for event in world.sink.log] == ["run_accepted"]


async def test_stale_fence_leaves_the_run_to_its_new_holder(world: World, eventually: Eventually) -> None:
    world.sink.open.clear()
    run = await world.execute()
    taken = await world.store.begin_attempt(run.ref, 0, Again.EXECUTION_RESTARTED, lost=False)
    assert taken is not None
    world.sink.refuse = [StaleFenceError("stale")]
    world.sink.open.set()
    await eventually(lambda: not world.factory.drives(run.ref))
    await eventually(lambda: all(channel.closed for channel in world.sink.channels))
    assert world.host.starts == []
    assert await world.state() is RunState.RUNNING
    assert world.factory.get_factory_metrics().engines_active == 0


async def test_store_that_lost_its_tail_passes_the_fence_that_the_log_has_seen(
    world: World, eventually: Eventually
) -> None:
    world.sink.refuse = [StaleFenceError("stale"), StaleFenceError("stale")]
    world.host.at_once = b"{}"
    await world.execute()
    await world.ended(eventually, RunState.SUCCEEDED)
    assert [start.fence for start in world.host.starts] == [3]


async def test_large_intermediate_result_is_passed_on_as_a_reference(world: World, eventually: Eventually) -> None:
    big = orjson.dumps({"rows": "x" * 70_000})
    await world.execute(pipeline=("solo", "next"))
    await eventually(lambda: world.host.streams)
    world.host.streams[0].up.put_nowait(StageResult(big, "solo"))
    await eventually(lambda: len(world.host.streams) == 2)
    passed = orjson.loads(world.host.starts[1].results["solo"])
    assert passed["artifact"]["name"] == "solo-result.json"
    assert passed["artifact"]["size"] == len(big)
    world.host.streams[1].up.put_nowait(StageResult(b"{}"))
    await world.ended(eventually, RunState.SUCCEEDED)


async def test_history_is_bounded_by_bytes(tmp_path: Path, eventually: Eventually) -> None:
    async with built(tmp_path, history_bytes=25) as world:
        world.host.at_once = orjson.dumps({"message": "x" * 20})
        for run in ("run-1", "run-2"):
            await world.execute(run, identity=RunIdentity(ALICE, "t", run, f"req-{run}"))
            await world.ended(eventually, RunState.SUCCEEDED, run)
        assert [message.text for message in world.host.starts[1].history] == ["hi", "x" * 20]
        await world.execute("run-3", identity=RunIdentity(ALICE, "t", "run-3", "req-run-3"))
        await world.ended(eventually, RunState.SUCCEEDED, "run-3")
        assert [message.text for message in world.host.starts[2].history] == ["hi", "x" * 20]


def _was_cancelled(stream: Any) -> bool:
    return any(isinstance(message, CancelStage) for message in stream.down)

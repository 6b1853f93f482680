"""``in_memory_chain``: agents as the services run them, in this process and loop, without sockets, for tests.

What is as in a deployment and what is not: docs/testing.md.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakSet

import orjson

from carrel.agents import Agent
from carrel.client.convert import event_of
from carrel.errors import InvalidRequestError
from carrel.ids import new_id
from carrel.testing.endpoint import ScriptedEndpoint
from carrel.testing.events import Events
from carrel.testing.model import ScriptedModel
from carrel.testing.options import ChainOptions
from carrel.testing.run import ChainRun
from carrel.testing.services import Services, open_services
from carrel.v1 import context_pb2, events_pb2
from carrel.v1 import execution_pb2 as pb
from servicekit.identity.principals import RunPrincipal, Scope
from servicekit.rpc.validation import validate_message
from services.agent_instance.domain.loading import Found, LoadedClass, load_classes
from services.agent_instance.domain.registry import AgentClassRegistry, AgentEntry
from services.agent_instance.workers.in_loop import InLoopExecutor
from services.bridge.models import Append, AppendResult
from services.bridge.store_memory import MemoryEventLog
from services.execution.convert import pipeline_request

__all__ = ["Chain", "in_memory_chain", "run_agent"]

_RUN: Final = frozenset({Scope.RUN})
_STRATEGIES: Final = ("reject", "enqueue", "interrupt", "rollback")


class _Log(MemoryEventLog):
    """The event log, which hands each new entry to the run that it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[tuple[str, str], Events] = defaultdict(Events)

    def append(self, batches: Sequence[Append]) -> asyncio.Future[list[AppendResult]]:
        """See ``EventLog``."""
        done = super().append(batches)
        for batch, result in zip(batches, done.result(), strict=True):
            for entry in result.entries:
                message = events_pb2.LogEntry.FromString(entry.blob)
                message.offset = entry.offset
                self.runs[batch.user, batch.run_id].append(event_of(message, batch.user, result.epoch))
        return done


class _Worker(InLoopExecutor):
    """A task in place of a process; knows whether an agent runs in it."""

    serving = False

    async def initialize(self, entry: AgentEntry) -> None:
        """See ``AgentExecutor``."""
        await super().initialize(entry)
        self.serving = True

    async def kill(self) -> None:
        """See ``AgentExecutor``."""
        self.serving = False
        await super().kill()


class Chain:
    """The services around the agents of one test. Made by ``in_memory_chain``.

    Each run has its own user, thread and permissions, as ``start`` is told; stores, budgets and limits last as long as
    the chain. Not for use from several threads.
    """

    def __init__(
        self,
        services: Services,
        log: _Log,
        *,
        workers: WeakSet[_Worker],
        permissions: frozenset[str],
        failure: asyncio.Future[BaseException],
    ) -> None:
        self._services = services
        self._log = log
        self._workers = workers
        self._permissions = permissions
        self._failure = failure

    async def start(  # noqa: PLR0913 -- what a request can say, by name
        self,
        message: str = "",
        *,
        agent: str = "",
        pipeline: Sequence[str] = (),
        params: Mapping[str, Any] | None = None,
        user: str = "alice",
        thread: str = "",
        permissions: Collection[str] | None = None,
        limits: Mapping[str, int] | None = None,
        strategy: str = "reject",
        client_ref: str = "",
    ) -> ChainRun:
        """Ask for a run, and return once it is admitted.

        Args:
            message: The user's words.
            agent: The agent that is asked; none where there is one agent only.
            pipeline: Several agents, in place of ``agent``.
            params: Parameters, JSON values.
            user: Whose run it is.
            thread: The conversation; a new one when empty.
            permissions: What the user may do; the chain's when None.
            limits: What the user's ticket claims in place of the deployment's limits.
            strategy: What happens to a run that the thread has: ``reject``, ``enqueue``, ``interrupt``, ``rollback``.
            client_ref: The request's name: asking twice gives the same run.

        Raises:
            CarrelError: It is refused, as the services refuse it.
        """
        if agent and pipeline:
            raise InvalidRequestError("agent and pipeline name two things to run", advice="give one of them")
        if strategy not in _STRATEGIES:
            raise InvalidRequestError(f"no strategy is called {strategy!r}", advice=f"use {', '.join(_STRATEGIES)}")
        context = self._context(user, thread, self._permissions if permissions is None else permissions, limits)
        request = pb.ExecutePipelineRequest(
            context=context,
            message=message,
            params_json=orjson.dumps(dict(params or {})),
            pipeline=[agent] if agent else list(pipeline),
            strategy=pb.ThreadStrategy.Value(f"THREAD_STRATEGY_{strategy.upper()}"),
            client_ref=client_ref,
        )
        validate_message(request)
        principal = self._services.verifier.verify(context, _RUN)
        assert isinstance(principal, RunPrincipal)
        admitted = await self._services.factory.execute(pipeline_request(request, principal))
        events = self._log.runs[user, admitted.run.identity.run_id]
        return ChainRun(self._services, user, admitted.run, events, self._failure)

    async def run(
        self, message: str = "", *, answers: Sequence[Any] = (), timeout_s: float = 30.0, **asked: Any
    ) -> ChainRun:
        """``start`` a run and wait until it has ended, whatever its end; ``answers`` go to its questions in turn.

        Raises:
            CarrelError: It is refused.
            AssertionError: It asks something that ``answers`` has nothing for, or does not end in ``timeout_s``.
        """
        run = await self.start(message, **asked)
        for answer in answers:
            question = await run.question(timeout_s=timeout_s)
            await run.answer(answer, question)
        return await run.ended(timeout_s=timeout_s)

    async def lose_workers(self) -> int:
        """Kill the workers of all attempts that are under way, as a crash would; how many there were.

        Each stage is tried again (``run_attempt``), with what was journaled. Agents with ``isolation = "task"`` have no
        worker that can be lost.
        """
        lost = [worker for worker in self._workers if worker.serving]
        for worker in lost:
            await worker.kill()
        return len(lost)

    def _context(
        self, user: str, thread: str, permissions: Collection[str], limits: Mapping[str, int] | None
    ) -> context_pb2.UserExecutionContext:
        context = context_pb2.UserExecutionContext(
            user_id=user, thread_id=thread or new_id("thread"), run_id=new_id("run"), request_id=new_id("req")
        )
        context.created_at.GetCurrentTime()
        context.ticket = self._services.minter.mint_run(
            user, context.thread_id, context.run_id, context.request_id, permissions, limits
        )
        return context


@asynccontextmanager
async def in_memory_chain(
    *agents: type[Agent] | str,
    model: ScriptedModel | None = None,
    permissions: Collection[str] = (),
    options: ChainOptions | None = None,
) -> AsyncIterator[Chain]:
    """The services around these agents, for the length of the block; what still runs at its end is ended.

    Args:
        agents: Classes, or where classes are: a module, ``module:attribute``, a path that ends in ``.py``. All that
            they require, fall back to and run must be among them.
        model: What ``ctx.llm`` asks; without one there is no model.
        permissions: What users may do whose runs do not say so themselves. ``("*",)`` for everything.
        options: Limits.

    Raises:
        StartupError: An agent class breaks a rule; the message says which.
    """
    chosen = options or ChainOptions()
    registry = _registry(agents)
    failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    workers: WeakSet[_Worker] = WeakSet()

    def worker() -> _Worker:
        made = _Worker(kill_s=chosen.grace_s)
        workers.add(made)
        return made

    def failed(name: str, error: BaseException) -> None:
        if not failure.done():
            error.add_note(f"in the chain's task {name!r}")
            failure.set_result(error)

    log, endpoint = _Log(), None if model is None else (ScriptedEndpoint(model), model.name)
    async with open_services(registry, log, chosen, model=endpoint, worker=worker, failed=failed) as services:
        yield Chain(services, log, workers=workers, permissions=frozenset(permissions), failure=failure)


async def run_agent(
    agent: type[Agent], message: str = "", *, model: ScriptedModel | None = None, **asked: Any
) -> ChainRun:
    """Run one agent once in a chain of its own; the ended run. ``asked`` is what ``Chain.run`` takes.

    For several runs open one chain for all of them: making it takes longer than a run.
    """
    async with in_memory_chain(agent, model=model) as chain:
        run = await chain.run(message, **asked)
        await run.keep()
        return run


def _registry(agents: Sequence[type[Agent] | str]) -> AgentClassRegistry:
    named = [agent for agent in agents if isinstance(agent, str)]
    found = load_classes(named) if named else Found(())
    given = [LoadedClass(agent, agent.__module__, _file(agent)) for agent in agents if not isinstance(agent, str)]
    known = {item.cls for item in found.classes}
    return AgentClassRegistry(
        Found((*found.classes, *(item for item in dict.fromkeys(given) if item.cls not in known)), found.problems)
    )


def _file(cls: type[Agent]) -> str:
    try:
        return inspect.getfile(cls)
    except (OSError, TypeError):
        return cls.__module__  # written at a prompt

"""``WorkerSession``: the worker's side of one attempt. Runs the agent and its tools' bodies, and nothing else.

Transport-agnostic: a ``HostPort`` is all it knows of the host. It limits nothing and trusts itself with nothing: time,
permissions and the order of events are the host's, which may kill the whole worker at any moment.
"""

from __future__ import annotations

import asyncio
import logging
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, assert_never

from carrel.agent_calls import HostCalls, HostPort
from carrel.agent_context import AgentContext
from carrel.agent_memory import Memory
from carrel.agent_messages import (
    AgentReply,
    ArtifactStored,
    Cancel,
    CancelToolBody,
    ChildOpened,
    EventAccepted,
    Failure,
    Heartbeat,
    InputReply,
    ModelDelta,
    ModelReply,
    Refused,
    Result,
    RunToolBody,
    Start,
    ToolBodyResult,
    ToolReply,
)
from carrel.agents import Agent, Plan, Request
from carrel.context import UserExecutionContext
from carrel.errors import (
    AgentFailedError,
    CancelledRunError,
    CarrelError,
    InvalidRequestError,
    InvalidResultError,
    ProtocolError,
    ToolError,
    ToolFailedError,
    UnknownToolError,
)
from carrel.frozen import JSON, freeze, freeze_map
from carrel.llm import MODEL_VARIABLE
from carrel.pseudonyms import hash_user
from carrel.tools import Tool

__all__ = ["HEARTBEAT_S", "AgentSource", "WorkerSession"]

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 5.0

AgentSource = Callable[[str], type[Agent]]
"""Gives the class for an agent's name; raises UnknownAgentError."""


class WorkerSession:
    """One attempt on the worker's side: ``serve`` it once.

    Whatever the agent or a tool's body raises is the attempt's or the call's failure, ``KeyboardInterrupt`` and
    ``SystemExit`` too. Not held: these two out of a task or a callback that the author's own code started, which
    asyncio hands to the loop at once; they end the process that the loop runs in.

    Args:
        port: The way to the host.
        agents: Finds the agent class by name.
        heartbeat_s: Seconds between heartbeats, which show that the loop is alive; None for none.
    """

    def __init__(self, port: HostPort, agents: AgentSource, heartbeat_s: float | None = HEARTBEAT_S) -> None:
        self._port = port
        self._agents = agents
        self._heartbeat_s = heartbeat_s
        self._calls = HostCalls(port)
        self._bodies: dict[str, asyncio.Task[None]] = {}
        self._tools: Mapping[str, Tool] = {}
        self._attempt = 1
        self._model = self._seed = ""
        self._memory = Memory()
        self._whose: Mapping[str, str] = {}
        self._cancelled: str | None = None

    async def serve(self) -> None:
        """Wait for ``Start``, run the agent, send exactly one ``Result`` or ``Failure`` as the last message, return.

        Sends neither when the host is gone. Every task it started has ended when it returns or raises.

        Raises:
            ProtocolError: The host sent what the protocol does not allow here; the agent has been cancelled.
        """
        start = await self._port.receive()
        if start is None:
            return
        if not isinstance(start, Start):
            raise ProtocolError(f"the first message was {type(start).__name__}, not Start")
        agent = asyncio.create_task(self._run_agent(start), name="agent")
        reader = asyncio.create_task(self._read(agent), name="reader")
        pulse = asyncio.create_task(self._beat(), name="heartbeat")
        try:
            await asyncio.wait({agent, reader}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                # The host is gone, or what it says makes no sense: nobody is left to work for.
                self._calls.abandon()
                await _end(agent)
                reader.result()
                return
            self._calls.abandon()
            await _end(pulse, *self._bodies.values())
            await self._port.send(agent.result())
        finally:
            self._calls.abandon()
            await _end(agent, reader, pulse, *self._bodies.values())

    async def _read(self, agent: asyncio.Task[Result | Failure]) -> None:
        while (message := await self._port.receive()) is not None:
            match message:
                case Cancel():
                    self._cancelled = message.reason
                    self._calls.abandon()
                    for task in (agent, *self._bodies.values()):
                        task.cancel()
                case RunToolBody():
                    self._start_body(message)
                case CancelToolBody():
                    if (body := self._bodies.get(message.tool_call_id)) is not None:
                        body.cancel()
                case Start():
                    raise ProtocolError("Start came twice")
                case ModelDelta():
                    self._calls.deliver_piece(message)
                case (
                    EventAccepted()
                    | ToolReply()
                    | AgentReply()
                    | InputReply()
                    | ModelReply()
                    | ChildOpened()
                    | ArtifactStored()
                    | Refused()
                ):
                    self._calls.deliver(message)
                case _:
                    assert_never(message)

    async def _beat(self) -> None:
        sequence = 0
        while self._heartbeat_s is not None:
            await asyncio.sleep(self._heartbeat_s)
            sequence += 1
            await self._port.send(Heartbeat(sequence))

    async def _run_agent(self, start: Start) -> Result | Failure:
        error: CarrelError
        try:
            outcome = await self._agent_result(start)
            if self._cancelled is None:
                return outcome
            # It finished although it was told to stop: the host waits for the word that it has stopped.
            error = _cancelled_run(self._cancelled)
        except asyncio.CancelledError:
            error = (
                AgentFailedError("the agent ended by a cancellation of its own", agent_name=start.agent_name)
                if self._cancelled is None
                else _cancelled_run(self._cancelled)
            )
        except CarrelError as raised:
            error = raised
        # SystemExit and KeyboardInterrupt too: out of a task they would end the loop, and with it every run beside.
        except BaseException as raised:  # noqa: BLE001  (the edge between the agent's code and ours)
            cause, where = _told("agent failed", raised, {"agent_name": start.agent_name, **self._whose})
            error = AgentFailedError(
                f"agent {start.agent_name} failed: {cause} at {where}",
                agent_name=start.agent_name,
                cause=cause,
                where=where,
            )
        return Failure(error.to_dict())

    async def _agent_result(self, start: Start) -> Result:
        agent_class = self._agents(start.agent_name)
        context = UserExecutionContext.from_dict(start.context)
        # What the host has bound to its log lines is not to be had here: a worker runs outside the host's context.
        self._whose = {"run_id": context.run_id, "user": hash_user(context.user_id)}
        request = Request.from_dict(start.request)
        self._tools = {item.name: item for item in agent_class.tools}
        self._attempt = request.attempt
        self._model = str(start.environment.get(MODEL_VARIABLE, ""))
        self._seed = start.seed
        memory = self._memory = Memory(start.memory, available=start.remembers)
        ctx = AgentContext(
            self._calls,
            context,
            tools=start.tools,
            attempt=request.attempt,
            model=self._model,
            seed=self._seed,
            memory=memory,
        )
        result: object = await agent_class().run(ctx, request)
        if isinstance(result, Plan):
            if not agent_class.plans:
                raise InvalidResultError(
                    f"agent {start.agent_name} returned a Plan, but does not declare `plans = True`",
                    agent_name=start.agent_name,
                )
            return Result(result.to_dict(), plan=True, memory=memory.kept)
        if not isinstance(result, Mapping):
            raise InvalidResultError(
                f"agent {start.agent_name} returned {type(result).__name__}, not a mapping",
                advice="return a dict of JSON values",
                agent_name=start.agent_name,
            )
        try:
            return Result(freeze_map(result, "result"), memory=memory.kept)
        except InvalidRequestError as error:
            raise InvalidResultError(
                f"agent {start.agent_name}: {error.message}",
                advice="return JSON values; convert dates, numbers of numpy and sets first",
                agent_name=start.agent_name,
            ) from None

    def _start_body(self, message: RunToolBody) -> None:
        if message.tool_call_id in self._bodies:
            raise ProtocolError("RunToolBody came twice for one call")
        task = asyncio.create_task(self._run_body(message), name=f"tool {message.name}")
        self._bodies[message.tool_call_id] = task
        task.add_done_callback(lambda _: self._bodies.pop(message.tool_call_id, None))

    async def _run_body(self, message: RunToolBody) -> None:
        call_id = message.tool_call_id
        try:
            answer = ToolBodyResult(call_id, result=await self._body_result(message))
        except asyncio.CancelledError:
            if self._calls.over:
                raise
            error: CarrelError = CancelledRunError(f"tool {message.name} was cancelled", tool_name=message.name)
            answer = ToolBodyResult(call_id, error=error.to_dict())
        except BaseException as raised:  # noqa: BLE001  (the edge between the tool's code and ours)
            error = _tool_error(message.name, raised, self._whose)
            answer = ToolBodyResult(call_id, error=error.to_dict())
        await self._port.send(answer)

    async def _body_result(self, message: RunToolBody) -> JSON:
        tool = self._tools.get(message.name)
        if tool is None or tool.host:
            raise UnknownToolError(f"the agent has no tool {message.name} of its own", tool_name=message.name)
        arguments = tool.check_arguments(message.arguments)
        if not tool.wants_context:
            result = await tool.func(**arguments)
        else:
            ctx = AgentContext(
                self._calls,
                UserExecutionContext.from_dict(message.context),
                handle=message.handle,
                tools=message.tools,
                attempt=self._attempt,
                tool_call_id=message.tool_call_id,
                model=self._model,
                seed=self._seed,
                memory=self._memory,
            )
            result = await tool.func(ctx, **arguments)
        return freeze(result, "result")


def _cancelled_run(reason: str) -> CancelledRunError:
    return CancelledRunError(f"the run was cancelled: {reason}" if reason else "the run was cancelled")


def _tool_error(name: str, raised: BaseException, whose: Mapping[str, str]) -> ToolError:
    if isinstance(raised, ToolError):
        return raised
    if isinstance(raised, CarrelError):
        # What the platform refused inside the body (quota, wrong result) speaks for itself, in a ToolError's clothes.
        return ToolFailedError(
            f"tool {name}: {raised.message}",
            advice=raised.advice,
            retry_after_s=raised.retry_after_s,
            tool_name=name,
            cause=raised.code,
        )
    cause, where = _told("tool failed", raised, {"tool_name": name, **whose})
    return ToolFailedError(f"tool {name} failed: {cause} at {where}", tool_name=name, cause=cause, where=where)


def _told(event: str, raised: BaseException, fields: Mapping[str, str]) -> tuple[str, str]:
    """Log what the author's code raised; its type and place. Its text, which may quote a user's data, at debug only."""
    cause, where = type(raised).__name__, _where(raised)
    trace = raised if logger.isEnabledFor(logging.DEBUG) else None
    logger.warning(event, extra={**fields, "cause": cause, "where": where}, exc_info=trace)
    return cause, where


_LIBRARIES: Final = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parent) + "/",
)


def _where(raised: BaseException) -> str:
    """Where in the author's code it was raised. The exception's own text is left out: it may quote a user's data."""
    frames = traceback.extract_tb(raised.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARIES)] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}" if own else "unknown place"


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""``MessageHandler``: what the host does about each message of a worker, or of a tool's body in the service.

The time limits and the end of a turn are ``turn``'s; here every message is taken for what it is: a wish of code that
the host does not trust.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from carrel.agent_messages import (
    ArtifactStored,
    Ask,
    CallModel,
    CallTool,
    CancelCall,
    ChildOpened,
    CloseChild,
    DownMessage,
    EmitEvent,
    EventAccepted,
    Heartbeat,
    OpenChild,
    PutArtifact,
    Refused,
    RunAgent,
    ToolBodyResult,
    ToolReply,
    UpMessage,
)
from carrel.errors import (
    CancelledRunError,
    CarrelError,
    InvalidEventError,
    ProtocolError,
    TooLargeError,
    ToolFailedError,
)
from carrel.events import validate_event
from servicekit.tasks import TaskOwner
from services.agent_instance.domain.artifacts import ArtifactDesk
from services.agent_instance.domain.calls import Asked
from services.agent_instance.domain.contexts import ContextTable, Scope
from services.agent_instance.domain.dispatcher import TurnTools, UnifiedToolDispatcher
from services.agent_instance.domain.routes import Routes
from services.agent_instance.domain.told_errors import told_error

__all__ = ["MessageHandler"]

Reply = Callable[[DownMessage], Awaitable[None]]
_Call = EmitEvent | OpenChild | PutArtifact | CallTool | RunAgent | Ask | CallModel

# All others are the host's to say: an agent that could emit tool_completed could lie about what it did.
_AGENTS_OWN: Final = frozenset({"agent_thinking", "agent_message"})
# Of tools that are no tools of ours, such as those of a library the agent is written with, only the agent knows. What
# it says of them is told as its word, not as ours, and never under a name or an id that is ours.
_REPORTS: Final = {
    "tool_executing": frozenset({"tool_name", "tool_call_id", "arguments"}),
    "tool_completed": frozenset({"tool_name", "tool_call_id", "status", "duration_ms", "result", "error"}),
}
_MAX_NAME: Final = 64


class MessageHandler:
    """Handles the messages of one turn. Messages of one source are handled in their order, one at a time."""

    def __init__(
        self,
        turn: TurnTools,
        table: ContextTable,
        dispatcher: UnifiedToolDispatcher,
        desk: ArtifactDesk,
        tasks: TaskOwner,
        routes: Routes,
    ) -> None:
        self._agent_name = turn.agent_name
        self._events = turn.events
        self._declared = turn.declared
        self._clock = turn.clock
        self._table = table
        self._dispatcher = dispatcher
        self._desk = desk
        self._tasks = tasks
        self._routes = routes
        self._worker_bodies: set[str] = set()
        self._uploads: dict[tuple[int, int], str] = {}
        self._refused_uploads: set[tuple[int, int]] = set()

    def expect_body(self, call_id: str) -> None:
        """The worker is about to run this call's body: its end is the worker's to tell."""
        self._worker_bodies.add(call_id)

    def forget_body(self, call_id: str) -> bool:
        """Its end is told by somebody else; whether it was expected."""
        known = call_id in self._worker_bodies
        self._worker_bodies.discard(call_id)
        return known

    async def handle(self, message: UpMessage, source: int, reply: Reply) -> None:
        """Do what a message asks, or refuse it.

        Args:
            source: Who sent it: 0 for the worker, others for bodies in the service. Call numbers are a source's own.
            reply: Answers it.

        Raises:
            ProtocolError: It makes no sense here.
        """
        match message:
            case EmitEvent() | OpenChild() | PutArtifact() | CallTool() | RunAgent() | Ask() | CallModel():
                try:
                    await self._asked(message, source, reply)
                except ProtocolError:
                    raise
                except CarrelError as error:
                    await reply(Refused(message.call_id, error.to_dict()))
            case CancelCall():
                await self._give_up((source, message.call_id))
            case CloseChild():
                await self._close_child(message.handle)
            case ToolBodyResult():
                await self._body_ended(message)
            case Heartbeat():
                pass
            case _:
                raise ProtocolError(f"{type(message).__name__} came where it cannot")

    async def close(self, scope: Scope) -> None:
        """Close a context with the children, tool calls and sub-agents it still has."""
        handles = frozenset(item.handle for item in self._table.close(scope))
        self._routes.agents.close_in(handles)
        calls = self._dispatcher.calls_in(handles)
        await self._dispatcher.stop_all(calls, CancelledRunError("the context of the tool call has been closed"))

    async def _give_up(self, key: tuple[int, int]) -> None:
        await self._routes.give_up(key)
        await self._dispatcher.give_up(key)

    async def _asked(self, message: _Call, source: int, reply: Reply) -> None:
        scope = self._table.get(message.handle)
        match message:
            case EmitEvent():
                await self._emit(message, scope)
                await reply(EventAccepted(message.call_id))
            case OpenChild():
                child = self._table.open(scope, message.operation_name, message.tools)
                self._clock.touch()
                told = child.context.to_dict()
                await reply(ChildOpened(message.call_id, child.handle, told, tuple(child.tools)))
            case PutArtifact():
                await self._piece(message, source, reply)
            case RunAgent():
                await self._routes.agents.request(message, source, scope, reply)
            case Ask():
                await self._routes.asking.request(message, source, scope, reply)
            case CallModel():
                await self._routes.models.request(message, source, scope, reply)
            case CallTool():
                await self._dispatcher.request(
                    Asked(
                        (source, message.call_id), scope, message.name, message.arguments, _tool_reply(message, reply)
                    )
                )

    async def _emit(self, message: EmitEvent, scope: Scope) -> None:
        if message.event_type not in _AGENTS_OWN and message.event_type not in _REPORTS:
            raise InvalidEventError(
                "an agent cannot emit this kind of event", advice=f"use one of {', '.join(sorted(_AGENTS_OWN))}"
            )
        validate_event(message.event_type, message.data)
        data = self._reported(message, scope) if message.event_type in _REPORTS else message.data
        # The wait for the log, when it is behind, holds up this agent's messages and nobody else's.
        with self._clock.stopped():
            await self._events.emit(message.event_type, data, self._agent_name, scope.context)
        self._clock.spoke()

    def _reported(self, message: EmitEvent, scope: Scope) -> dict[str, Any]:
        """What the agent says of a call that did not pass the dispatcher.

        Raises:
            InvalidEventError: The dispatcher has a tool of that name: its calls are the host's to tell.
        """
        name = message.data["tool_name"]
        if name in self._declared or name in scope.tools:
            raise InvalidEventError(
                f"the calls of {name[:_MAX_NAME]} are told by the host", advice="call it by ctx.call_tool"
            )
        data = {field: value for field, value in message.data.items() if field in _REPORTS[message.event_type]}
        names = {"tool_name": name[:_MAX_NAME], "tool_call_id": f"own-{data['tool_call_id'][:_MAX_NAME]}"}
        return {**data, **names, "attempt": self._events.attempt, "reported": True}

    async def _close_child(self, handle: int) -> None:
        try:
            scope = self._table.get(handle)
        except CarrelError:
            return  # closed already, with its parent
        if scope.parent is None or scope.call_id:
            raise ProtocolError("CloseChild for a context that is no child")
        await self.close(scope)

    async def _body_ended(self, message: ToolBodyResult) -> None:
        # One that was not expected is late: its call has been stopped meanwhile.
        if self.forget_body(message.tool_call_id):
            error = None if message.error is None else told_error(message.error)
            await self._dispatcher.ended(message.tool_call_id, message.result, error)

    async def _piece(self, message: PutArtifact, source: int, reply: Reply) -> None:
        key = (source, message.call_id)
        if key in self._refused_uploads:
            # Sent before the refusal arrived there.
            if message.last:
                self._refused_uploads.discard(key)
            return
        try:
            upload_id = self._uploads.get(key)
            if upload_id is None:
                upload_id = self._desk.begin(message.name, message.media_type, size=message.total_size)
                self._uploads[key] = upload_id
            with self._clock.stopped():
                await self._desk.piece(upload_id, message.data, last=message.last)
        except CarrelError:
            self._desk.abandon(self._uploads.pop(key, ""))
            if not message.last:
                self._refused_uploads.add(key)
            raise
        self._clock.touch()
        if message.last:
            del self._uploads[key]
            _ = self._tasks.start(self._await_stored(message.call_id, upload_id, reply), "storing of an artifact")

    async def _await_stored(self, call_id: int, upload_id: str, reply: Reply) -> None:
        answer: DownMessage
        try:
            with self._clock.stopped():
                stored = await self._desk.stored(upload_id)
            answer = ArtifactStored(call_id, stored.to_dict())
        except CarrelError as error:
            answer = Refused(call_id, error.to_dict())
        self._clock.touch()
        await reply(answer)


def _tool_reply(message: CallTool, reply: Reply) -> Callable[[Any, CarrelError | None], Awaitable[None]]:
    async def tell(value: Any, error: CarrelError | None) -> None:
        if error is None:
            try:
                await reply(ToolReply(message.call_id, value))
                return
            except TooLargeError as over:
                error = ToolFailedError(f"tool {message.name}: {over.message}", advice=over.advice)
        await reply(Refused(message.call_id, error.to_dict()))

    return tell

"""``AgentContext``: all that an agent and its tools can reach of the platform, as messages to the host.

Not where anything is decided: names, arguments, permissions, child contexts, quotas and event order are the host's.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, overload

from carrel.agent_answers import answer_schema
from carrel.agent_calls import HostCalls, HostPort
from carrel.agent_memory import Memory
from carrel.agent_messages import (
    CHUNK_BYTES,
    ROOT,
    AgentReply,
    ArtifactStored,
    Ask,
    CallTool,
    ChildOpened,
    CloseChild,
    EmitEvent,
    EventAccepted,
    InputReply,
    OpenChild,
    PutArtifact,
    RunAgent,
    ToolReply,
)
from carrel.context import UserExecutionContext
from carrel.errors import (
    InvalidContextError,
    InvalidRequestError,
    ProtocolError,
    TooLargeError,
    ToolArgumentsError,
)
from carrel.events import validate_event
from carrel.frozen import JSON, freeze_map
from carrel.ids import check_operation_name
from carrel.llm import Llm

__all__ = ["MAX_ARTIFACT_BYTES", "AgentContext", "ArtifactRef", "Artifacts", "HostPort", "check_artifact_name"]

T = TypeVar("T")

MAX_ARTIFACT_BYTES: Final = 8 * 1024 * 1024
_MAX_NAME: Final = 128
_MEDIA_TYPE: Final = re.compile(r"[a-zA-Z0-9!#$&^_.+-]{1,64}/[a-zA-Z0-9!#$&^_.+-]{1,64}(;[ -~]{1,128})?")


@dataclass(frozen=True, slots=True)
class ArtifactRef:
    """Where a stored artifact is: ``url`` is the path on the gateway, for its owner; ``size`` is bytes."""

    name: str
    media_type: str
    size: int
    sha256: str
    url: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for results and events."""
        return {
            "name": self.name,
            "media_type": self.media_type,
            "size": self.size,
            "sha256": self.sha256,
            "url": self.url,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ArtifactRef:
        """What ``to_dict`` gave.

        Raises:
            ProtocolError: It is no artifact's reference.
        """
        try:
            return cls(
                str(data["name"]), str(data["media_type"]), int(data["size"]), str(data["sha256"]), str(data["url"])
            )
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("an artifact's reference is incomplete") from None


def check_artifact_name(name: object) -> str:
    """Return ``name`` when it can name an artifact: a plain file name of printable characters, at most 128.

    Raises:
        InvalidRequestError: It cannot.
    """
    if (
        isinstance(name, str)
        and 0 < len(name) <= _MAX_NAME
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and not name.startswith(".")
        and name == name.strip()
    ):
        return name
    problem = "must be a plain file name: no '/', no leading dot or space, printable, at most 128 characters"
    raise InvalidRequestError(f"an artifact's name {problem}", fields={"name": problem})


class Artifacts:
    """``ctx.artifacts``: files that a run leaves for its user."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context

    async def put(self, name: str, data: bytes | str, media_type: str) -> ArtifactRef:
        """Store a file of at most 8 MiB and return its reference; text is stored as UTF-8.

        Raises:
            InvalidRequestError: The name is no plain file name, or the media type is malformed.
            TooLargeError: It is over 8 MiB.
            QuotaError: The user's space is used up.
        """
        check_artifact_name(name)
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise InvalidRequestError("media_type must look like text/csv", fields={"media_type": "is malformed"})
        content = data.encode() if isinstance(data, str) else bytes(data)
        if len(content) > MAX_ARTIFACT_BYTES:
            raise TooLargeError(
                f"the artifact is {len(content)} bytes; at most {MAX_ARTIFACT_BYTES} are allowed",
                advice="split it, or store a summary",
                limit="artifact_bytes",
                limit_value=MAX_ARTIFACT_BYTES,
                use=len(content),
            )
        ref = await self._context._upload(name, media_type, content)  # noqa: SLF001  (one class in two parts)
        if ref.size != len(content) or ref.sha256 != hashlib.sha256(content).hexdigest():
            raise ProtocolError("the stored artifact is not the one that was sent")
        return ref


class AgentContext:
    """What ``Agent.run`` and tools are given: the context they work for, and what they may ask of the host.

    Every method may be called from several tasks at once. When the run is cancelled they raise
    ``asyncio.CancelledError``, those that wait and all later ones. An agent does not make one: the runtime does.

    Attributes:
        context: For whom this work is; a child's has its own ``request_id``.
        tools: Names of the tools that may be called.
        attempt: From 1; above 1 the stage is being tried again.
        tool_call_id: In a tool's body, the id of the call, the same in its events; "" elsewhere.
        artifacts: Files for the user.
        memory: What the agent keeps from one run of the thread to the next.
    """

    def __init__(  # noqa: PLR0913  (made by the runtime only)
        self,
        calls: HostCalls,
        context: UserExecutionContext,
        *,
        handle: int = ROOT,
        tools: Sequence[str] = (),
        attempt: int = 1,
        tool_call_id: str = "",
        model: str = "",
        seed: str = "",
        memory: Memory | None = None,
    ) -> None:
        self._calls = calls
        self._model = model
        self._seed = seed
        self._messages = 0
        self._handle = handle
        self._closed = False
        self.context = context
        self.tools = tuple(tools)
        self.attempt = attempt
        self.tool_call_id = tool_call_id
        self.artifacts = Artifacts(self)
        self.memory = memory or Memory()

    @property
    def handle(self) -> int:
        """The number of this context in the host's table."""
        return self._handle

    async def thinking(self, text: str, /, **data: JSON) -> None:
        """Say what the agent is doing (``agent_thinking``); may be left out when the reader is far behind.

        Raises:
            InvalidEventError: ``data`` does not fit.
        """
        await self._emit("agent_thinking", {**data, "text": text})

    async def message(self, text: str | None = None, *, delta: str | None = None, message_id: str | None = None) -> str:
        """Say something to the user (``agent_message``): a whole ``text``, or a ``delta`` to append to ``message_id``.

        Returns the message's id, a new one when none is given; a repeated attempt of the stage gives the same ones.

        Raises:
            InvalidEventError: Not exactly one of ``text`` and ``delta``.
        """
        number = message_id or self._next_message_id()
        parts = {"text": text, "delta": delta}
        data = {name: part for name, part in parts.items() if part is not None}
        await self._emit("agent_message", {"message_id": number, **data})
        return number

    async def call_tool(self, name: str, /, **arguments: JSON) -> JSON:
        """Call one of the agent's tools and return its result.

        Raises:
            ToolError: Whatever went wrong: UnknownToolError, ToolPermissionError, ToolArgumentsError,
                ToolTimeoutError, ToolFailedError.
        """
        self._check_open()
        try:
            frozen = freeze_map(arguments, "arguments")
        except InvalidRequestError as error:
            raise ToolArgumentsError(f"{name}: {error.message}", fields=dict(error.fields), tool_name=name) from None
        call = CallTool(self._calls.next_id(), self._handle, name, frozen)
        return (await self._calls.ask(call, ToolReply)).result

    @contextlib.asynccontextmanager
    async def child(self, operation_name: str, *, tools: Sequence[str] | None = None) -> AsyncIterator[AgentContext]:
        """A child context for part of the work: its own ``request_id``, and ``tools`` or all of this one's.

        ``async with ctx.child("validation") as child``; it cannot be used after the block.

        Raises:
            InvalidContextError: The name is malformed or contexts nest too deeply.
            UnknownToolError: ``tools`` names one that this context does not have.
        """
        self._check_open()
        check_operation_name(operation_name)
        if isinstance(tools, str):
            raise InvalidRequestError("tools must be a list of names", fields={"tools": "must be a list of names"})
        chosen = None if tools is None else tuple(tools)
        call = OpenChild(self._calls.next_id(), self._handle, operation_name, chosen)
        opened = await self._calls.ask(call, ChildOpened)
        context = UserExecutionContext.from_dict(opened.context)
        child = AgentContext(
            self._calls,
            context,
            handle=opened.handle,
            tools=opened.tools,
            attempt=self.attempt,
            model=self._model,
            seed=self._seed,
            memory=self.memory,
        )
        try:
            yield child
        finally:
            child._closed = True
            await self._calls.tell(CloseChild(child._handle))

    async def run_agent(
        self,
        name: str,
        message: str | None = None,
        *,
        params: Mapping[str, JSON] | None = None,
        tools: Sequence[str] | None = None,
        timeout_s: float | None = None,
        model_tokens: int | None = None,
    ) -> Mapping[str, JSON]:
        """Run another agent inside this one and return its result; several may run at once.

        It has a context of its own below this one, a worker of its own, and its own events. It ends with this agent,
        with the block that waits for it (``asyncio.timeout``), and with the run. Its failure is raised here, for this
        agent to handle::

            data = await ctx.run_agent("data", params={"days": 7}, timeout_s=60)

        Args:
            message: Its request's message.
            params: Its request's parameters.
            tools: Names of the tools that it may use; by default all that its class declares and this context has.
                It never has others.
            timeout_s: Seconds that it may take, within what is left of this agent's.
            model_tokens: Tokens that its model calls may use, within what is left of the user's.

        Raises:
            UnknownAgentError: There is no such agent.
            ToolError: ``tools`` names one that it cannot have.
            LimitExceededError: Too many are at work (WorkersBusyError: in the whole service), or they nest too deeply.
            AgentError: It failed, took too long, or its worker was lost.
            CarrelError: Whatever else it raised.
        """
        self._check_open()
        if isinstance(tools, str):
            raise InvalidRequestError("tools must be a list of names", fields={"tools": "must be a list of names"})
        _check_positive("timeout_s", timeout_s, int, float)
        _check_positive("model_tokens", model_tokens, int)
        call = RunAgent(
            self._calls.next_id(),
            self._handle,
            name,
            message or "",
            freeze_map(params, "params"),
            None if tools is None else tuple(tools),
            None if timeout_s is None else float(timeout_s),
            model_tokens,
        )
        return (await self._calls.ask(call, AgentReply)).result

    @overload
    async def ask(self, prompt: str, schema: type[T]) -> T: ...
    @overload
    async def ask(
        self, prompt: str, schema: Mapping[str, JSON] | None = None, *, choices: Sequence[str] | None = None
    ) -> JSON: ...

    async def ask(
        self,
        prompt: str,
        schema: type[Any] | Mapping[str, JSON] | None = None,
        *,
        choices: Sequence[str] | None = None,
    ) -> JSON:
        """Ask the run's user, and return the answer, however long it takes.

        The run waits without a worker: this attempt ends here, and when there is an answer a new one runs the agent
        from its beginning. So what comes before must lead to the same question again: finished tool calls, model calls
        and sub-agents are answered from a journal; give time, chance and the like to a tool. Other calls under way
        end before the wait begins::

            plan = await ctx.ask("How deep shall I look?", choices=["quick", "thorough"])
            limit = await ctx.ask("Up to which amount?", float)

        Args:
            prompt: For a person to read; at most 8 KiB.
            schema: What the answer must be: JSON Schema, or a type (``bool``, ``int``, ``list[str]``, a pydantic model
                …), of which the answer is then an instance. A string by default.
            choices: The strings to choose from, in the schema's place.

        Raises:
            InvalidRequestError: The question cannot be asked.
            InvalidInputError: The answer does not fit the type.
        """
        self._check_open()
        asked, convert = answer_schema(schema, choices)
        call = Ask(self._calls.next_id(), self._handle, prompt, freeze_map(asked, "schema"))
        return convert((await self._calls.ask(call, InputReply)).value)

    @property
    def llm(self) -> Llm:
        """Language models; ``ctx.llm.available`` says whether there is one."""
        return Llm(self, self._calls, self._model)

    async def _emit(self, event_type: str, data: Mapping[str, Any]) -> None:
        self._check_open()
        frozen = freeze_map(data, event_type)
        validate_event(event_type, frozen)
        call = EmitEvent(self._calls.next_id(), self._handle, event_type, frozen)
        await self._calls.ask(call, EventAccepted)

    async def _upload(self, name: str, media_type: str, content: bytes) -> ArtifactRef:
        self._check_open()
        calls, call_id, size = self._calls, self._calls.next_id(), len(content)
        future = calls.expect(call_id)
        try:
            for start in range(0, max(size, 1), CHUNK_BYTES):
                piece, last = content[start : start + CHUNK_BYTES], start + CHUNK_BYTES >= size
                await calls.tell(PutArtifact(call_id, self._handle, name, media_type, size, piece, last))
                # The host may refuse at the first piece (quota); then the others need not travel.
                if future.done():
                    break
            stored = await calls.answer(future, ArtifactStored)
        finally:
            calls.forget(call_id)
        return ArtifactRef.from_dict(stored.artifact)

    def _next_message_id(self) -> str:
        self._messages += 1
        whose = f"{self._seed}|{self.context.request_id}|{self.tool_call_id}|{self._messages}"
        return f"msg-{hashlib.sha256(whose.encode()).hexdigest()[:24]}"

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidContextError("this child context is closed: its `async with` block has ended")


def _check_positive(name: str, value: object, *types: type) -> None:
    if value is None or (isinstance(value, types) and not isinstance(value, bool) and 0 < value < math.inf):  # type: ignore[operator]
        return
    raise InvalidRequestError(f"{name} must be above 0", fields={name: "must be above 0"})

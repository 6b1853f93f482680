"""The messages between an agent's worker and its host: all that ever crosses, whatever carries them.

Up (worker to host) and down (host to worker), as frozen dataclasses of JSON values. A message with a ``call_id``
asks and is answered once, by the type named beside it or by ``Refused``. ``handle`` names a context of the host's
table: ``ROOT`` (0) for the run's own, others as ``ChildOpened`` gave them.

    up    EmitEvent → EventAccepted · CallTool → ToolReply · OpenChild → ChildOpened · RunAgent → AgentReply
          Ask → InputReply · CallModel → ModelDelta … then ModelReply · PutArtifact (the last piece) → ArtifactStored
          CancelCall · CloseChild · ToolBodyResult · Heartbeat · then exactly one of Result, Failure
    down  Start first · the answers above · RunToolBody → ToolBodyResult · CancelToolBody · Cancel

Not a transport: ``carrel.agent_codec`` gives and takes bytes, pipes and queues carry them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from carrel.frozen import JSON

__all__ = [
    "CHUNK_BYTES",
    "MAX_MESSAGE_BYTES",
    "ROOT",
    "AgentReply",
    "ArtifactStored",
    "Ask",
    "CallModel",
    "CallTool",
    "Cancel",
    "CancelCall",
    "CancelToolBody",
    "ChildOpened",
    "CloseChild",
    "DownMessage",
    "EmitEvent",
    "EventAccepted",
    "Failure",
    "Heartbeat",
    "InputReply",
    "Message",
    "ModelDelta",
    "ModelReply",
    "Object",
    "OpenChild",
    "PutArtifact",
    "Refused",
    "Result",
    "RunAgent",
    "RunToolBody",
    "Start",
    "ToolBodyResult",
    "ToolReply",
    "UpMessage",
]

ROOT: Final = 0
CHUNK_BYTES: Final = 256 * 1024
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EmitEvent:
    """An event of the context ``handle``; accepted once the host has a place for it."""

    call_id: int
    handle: int
    event_type: str
    data: Object


@dataclass(frozen=True, slots=True)
class CallTool:
    """Call a tool in the context ``handle``."""

    call_id: int
    handle: int
    name: str
    arguments: Object


@dataclass(frozen=True, slots=True)
class RunAgent:
    """Run another agent under ``handle``, in a child context and a worker of its own.

    ``tools``: names that it may use (None: all that it declares and its parent has). ``timeout_s``: seconds it may
    take; ``model_tokens``: tokens it may use; None for the limits that hold anyway.
    """

    call_id: int
    handle: int
    agent_name: str
    message: str
    params: Object
    tools: tuple[str, ...] | None = None
    timeout_s: float | None = None
    model_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the user; ``schema`` is the JSON Schema of the answer. Answered in this attempt or in a later one."""

    call_id: int
    handle: int
    prompt: str
    schema: Object


@dataclass(frozen=True, slots=True)
class CallModel:
    """Call a language model.

    ``request`` is that of an OpenAI-compatible chat completion: ``messages``, ``model``?, ``tools``? … ``speak`` says
    what becomes of the text as it comes: ``message`` or ``thinking`` (the host turns it into events), or "" (nothing).
    ``deltas``: whether ``ModelDelta`` messages are wanted before the ``ModelReply``.
    """

    call_id: int
    handle: int
    request: Object
    speak: str = ""
    deltas: bool = False


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Nobody waits for this call's answer any more."""

    call_id: int


@dataclass(frozen=True, slots=True)
class OpenChild:
    """Open a child context of ``handle`` that may use ``tools`` (None: all of its parent's)."""

    call_id: int
    handle: int
    operation_name: str
    tools: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class CloseChild:
    """The child context is done with."""

    handle: int


@dataclass(frozen=True, slots=True)
class PutArtifact:
    """One piece of an artifact; all pieces have one ``call_id``, arrive in order, and the last one says so."""

    call_id: int
    handle: int
    name: str
    media_type: str
    total_size: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class ToolBodyResult:
    """How a tool's body ended: its result, or an error as ``CarrelError.to_dict`` gives it."""

    tool_call_id: str
    result: JSON = None
    error: Object | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker's loop is alive; says nothing about the agent's activity."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Result:
    """The agent has returned. ``plan``: the result is ``Plan.to_dict()``; ``memory``: what it keeps, if anything."""

    result: Object
    plan: bool = False
    memory: bytes = b""


@dataclass(frozen=True, slots=True)
class Failure:
    """The agent has raised, or was cancelled; an error as ``CarrelError.to_dict`` gives it."""

    error: Object


@dataclass(frozen=True, slots=True)
class Start:
    """What to run: the context (without ticket), the agent's name, ``Request.to_dict()`` and the tools it may use.

    ``environment``: variables for this attempt alone, set before the agent's code runs (worker processes only).
    ``seed``: what ids are made from that must be the same in every attempt of the stage. ``memory``: what the agent has
    kept in the thread; ``remembers``: whether it may keep anything.
    """

    context: Object
    agent_name: str
    request: Object
    tools: tuple[str, ...] = ()
    environment: Object = field(default_factory=dict)
    seed: str = ""
    memory: bytes = b""
    remembers: bool = False


@dataclass(frozen=True, slots=True)
class EventAccepted:
    """The host has taken the event and will deliver it."""

    call_id: int


@dataclass(frozen=True, slots=True)
class ToolReply:
    """The tool's result."""

    call_id: int
    result: JSON = None


@dataclass(frozen=True, slots=True)
class ChildOpened:
    """The child context, its handle, and the tools it may use."""

    call_id: int
    handle: int
    context: Object
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentReply:
    """The sub-agent's result."""

    call_id: int
    result: Object


@dataclass(frozen=True, slots=True)
class InputReply:
    """The user's answer; it fits the schema."""

    call_id: int
    value: JSON = None


@dataclass(frozen=True, slots=True)
class ModelDelta:
    """A piece of the model's text; not the call's answer."""

    call_id: int
    text: str


@dataclass(frozen=True, slots=True)
class ModelReply:
    """The model's whole answer: ``message`` (role, content, tool_calls?), ``finish_reason``, ``usage``, ``model``."""

    call_id: int
    answer: Object


@dataclass(frozen=True, slots=True)
class ArtifactStored:
    """The stored artifact's reference: ``ArtifactRef.to_dict()``."""

    call_id: int
    artifact: Object


@dataclass(frozen=True, slots=True)
class Refused:
    """The call failed; an error as ``CarrelError.to_dict`` gives it."""

    call_id: int
    error: Object


@dataclass(frozen=True, slots=True)
class RunToolBody:
    """Run a tool's body; name, arguments and permission have been checked. ``handle``, ``context`` and ``tools`` are
    those of the context that it runs in, as in ``ChildOpened``."""

    tool_call_id: str
    name: str
    arguments: Object
    handle: int
    context: Object
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CancelToolBody:
    """End a tool's body: out of time, or nobody waits for it."""

    tool_call_id: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the attempt: the agent is cancelled now and killed when it does not end by itself."""

    reason: str = field(default="")


UpMessage = (
    EmitEvent
    | CallTool
    | RunAgent
    | Ask
    | CallModel
    | CancelCall
    | OpenChild
    | CloseChild
    | PutArtifact
    | ToolBodyResult
    | Heartbeat
    | Result
    | Failure
)
DownMessage = (
    Start
    | EventAccepted
    | ToolReply
    | AgentReply
    | InputReply
    | ModelDelta
    | ModelReply
    | ChildOpened
    | ArtifactStored
    | Refused
    | RunToolBody
    | CancelToolBody
    | Cancel
)
Message = UpMessage | DownMessage

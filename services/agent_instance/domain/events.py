"""``StageEvents``: everything an attempt tells its user, in order, under one producer.

It makes the stage's own kinds (``agent_started`` …), keeps their order and number right, and turns data over its kind's
bound into an artifact and a reference. Numbering, resending and shedding are the producer's.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

import orjson

from carrel.context import UserExecutionContext
from carrel.errors import CarrelError
from carrel.events import EVENTS, validate_event
from services.agent_instance.models import StoredArtifact

__all__ = ["EventProducer", "StageEvents", "StoreArtifact"]

_PREVIEW_CHARS: Final = 1024
_SMALL_BYTES: Final = 2048
_RESERVE_BYTES: Final = 1024

StoreArtifact = Callable[[str, str, bytes], Awaitable[StoredArtifact]]


class EventProducer(Protocol):
    """Numbers events and keeps each until the log has it (``servicekit.delivery.Producer``, behind ``client_emitter``).

    ``dead`` resolves with the error that ends the producer for good.
    """

    @property
    def dead(self) -> asyncio.Future[CarrelError]: ...

    @property
    def emitted(self) -> int: ...

    @property
    def acknowledged(self) -> int: ...

    @property
    def hops(self) -> tuple[float, float]: ...

    async def emit(
        self, event_type: str, data: Mapping[str, Any], *, agent_name: str, context: UserExecutionContext | None
    ) -> int: ...

    async def flush(self, timeout: float | None) -> int: ...

    def refresh(self, context: UserExecutionContext) -> None: ...

    async def aclose(self) -> None: ...


class StageEvents:
    """Emits one stage's events. After ``mute`` it emits nothing: the run is cancelled, or somebody else's.

    Args:
        quiet_until: The question whose answer begins this attempt. Until it is taken (``heard``) nothing is emitted:
            all of it is in the log, from the attempt that asked. ``speak`` ends the quiet as well.
    """

    def __init__(
        self,
        producer: EventProducer,
        store: StoreArtifact,
        root: UserExecutionContext,
        *,
        stage_index: int,
        attempt: int,
        quiet_until: str = "",
    ) -> None:
        self._producer = producer
        self._store = store
        self._root_request = root.request_id
        self._stage_index = stage_index
        self._attempt = attempt
        self._muted = False
        self._outer: StageEvents | None = None
        self._quiet_until = quiet_until
        self._oversize = 0

    @property
    def attempt(self) -> int:
        """The stage's attempt."""
        return self._attempt

    @property
    def heard_of(self) -> bool:
        """Whether what is emitted now is heard: neither muted nor quiet."""
        return not self._silent and not self._root._quiet_until  # noqa: SLF001  (another of this class)

    @property
    def quiet_until(self) -> str:
        """The question whose answer ends the quiet; "" when it is over."""
        return self._root._quiet_until  # noqa: SLF001

    def mute(self) -> None:
        """From now on, nothing."""
        self._muted = True

    def heard(self, input_id: str) -> None:
        """The answer to this question has been taken."""
        if input_id == self._root._quiet_until:  # noqa: SLF001
            self.speak()

    def speak(self) -> None:
        """What comes now is new: the quiet is over."""
        self._root._quiet_until = ""  # noqa: SLF001

    def branch(self) -> StageEvents:
        """The events of a sub-agent: the same ones, which can be muted for it alone."""
        branch = copy.copy(self)
        branch._outer, branch._muted = self, False  # noqa: SLF001
        return branch

    @property
    def _root(self) -> StageEvents:
        return self if self._outer is None else self._outer._root  # noqa: SLF001

    @property
    def _silent(self) -> bool:
        return self._muted or (self._outer is not None and self._outer._silent)  # noqa: SLF001

    async def started(
        self,
        agent_name: str,
        description: str,
        context: UserExecutionContext | None = None,
        *,
        replayed: bool = False,
    ) -> None:
        """``agent_started``: the first event of an agent's turn. ``context``: a sub-agent's."""
        data: dict[str, Any] = {"agent_name": agent_name, "stage": self._stage_index, "attempt": self._attempt}
        if description:
            data["description"] = description[:512]
        await self.emit("agent_started", data | _replay(replayed), agent_name, context)

    async def completed(
        self,
        agent_name: str,
        result: Mapping[str, Any],
        seconds: float,
        context: UserExecutionContext | None = None,
        *,
        replayed: bool = False,
    ) -> None:
        """``agent_completed``: the last event of a turn that succeeded."""
        data = {"agent_name": agent_name, "result": dict(result), "duration_ms": round(seconds * 1000, 3)}
        await self.emit("agent_completed", data | _replay(replayed), agent_name, context)

    async def failed(
        self,
        agent_name: str,
        error: CarrelError,
        context: UserExecutionContext | None = None,
        *,
        fallback: str | None = None,
        replayed: bool = False,
    ) -> None:
        """``agent_error``: the last event of a turn that failed; with ``fallback``, that agent answers next."""
        told = error.to_dict()
        data: dict[str, Any] = {
            "agent_name": agent_name,
            "code": told["code"],
            "message": told["message"],
            "advice": told["advice"],
            "retryable": told["retryable"],
            "recovered": fallback is not None,
        }
        data |= {name: told[name] for name in ("retry_after_s", "details") if name in told}
        if fallback is not None:
            data["fallback"] = fallback
        await self.emit("agent_error", data | _replay(replayed), agent_name, context)

    async def still_working(self, agent_name: str, silent_s: float) -> None:
        """``agent_thinking`` in a silent agent's place; left out when the log is far behind."""
        seconds = round(silent_s)
        data = {"text": f"Still working ({seconds} s)", "heartbeat": True, "status": "working", "elapsed_s": seconds}
        await self.emit("agent_thinking", data, agent_name)

    async def emit(
        self, kind: str, data: Mapping[str, Any], agent_name: str, context: UserExecutionContext | None = None
    ) -> None:
        """Emit one event; waits while too many are unacknowledged. Over its kind's bound it carries a reference.

        Args:
            context: The child's, for a child's event.

        Raises:
            CarrelError: The producer is dead.
        """
        if not self.heard_of:
            return
        encoded = orjson.dumps(data)
        if len(encoded) > EVENTS[kind].max_bytes:
            data = await self._shrunk(kind, encoded)
        if context is not None and context.request_id == self._root_request:
            context = None  # the producer's own, which it keeps fresh
        await self._producer.emit(kind, data, agent_name=agent_name, context=context)

    async def put_aside(self, name: str, data: bytes) -> dict[str, Any]:
        """Store JSON that is too large for an event; returns the reference, or what went wrong in its place.

        An event matters more than its bulk: it goes out in any case.
        """
        try:
            return (await self._store(name, "application/json", data)).to_dict()
        except CarrelError as error:
            return {"name": name, "size": len(data), "error": error.code}

    async def _shrunk(self, kind: str, encoded: bytes) -> dict[str, Any]:
        root = self._root
        root._oversize += 1  # noqa: SLF001
        name = f"event-{self._stage_index}-{self._attempt}-{root._oversize}-{kind}.json"  # noqa: SLF001
        reference = await self.put_aside(name, encoded)
        data = shorten(orjson.loads(encoded), reference, EVENTS[kind].max_bytes - _RESERVE_BYTES)
        validate_event(kind, data)
        return data


def _replay(replayed: bool) -> dict[str, Any]:
    return {"replayed": True} if replayed else {}


def shorten(data: dict[str, Any], reference: Mapping[str, Any], max_bytes: int) -> dict[str, Any]:
    """``data`` with its largest fields cut until it fits, and ``artifact`` saying where the whole is.

    Text keeps its beginning; an object or a list gives way to the reference.
    """
    short = dict(data)
    sizes = {name: len(orjson.dumps(value)) for name, value in data.items()}
    total = sum(sizes.values()) + sum(len(name) + 4 for name in data)
    for name in sorted(sizes, key=lambda n: sizes[n], reverse=True):
        if total <= max_bytes or sizes[name] <= _SMALL_BYTES:
            break
        value = short[name]
        if isinstance(value, str):
            short[name] = value[:_PREVIEW_CHARS] + "…"
        else:
            short[name] = {"artifact": dict(reference)}
        total += len(orjson.dumps(short[name])) - sizes[name]
    short["artifact"] = dict(reference)
    return short

"""Reading a user's log piece by piece, for connections that are off the ring. Not following it.

A piece is bounded in entries and bytes, and how many are read at once is bounded too: ten thousand clients that come
back together are served in turn.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from carrel.errors import NotFoundError
from carrel.v1 import bridge_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from gateway.encoding import Frame, encode_entry
from gateway.login import Login
from gateway.ring import Place
from gateway.tickets import TicketDesk
from servicekit.rpc.channel import responses

__all__ = ["BridgeLogReader", "Extent", "LogReader", "Piece", "RunLog", "reset_reason"]

_ENTRIES: Final = 200
_BYTES: Final = 1 << 20
_CALL_S: Final = 15.0


@dataclass(slots=True)
class Piece:
    """A part of a log.

    Args:
        place: Where reading began: the place that was asked for, or where it went on after a reset.
        reset: Why the place that was asked for is unusable; empty when it is not.
        frames: Entries after ``place``, consecutive unless they are one run's.
    """

    place: Place
    reset: str = ""
    frames: list[Frame] = field(default_factory=list)


class LogReader(Protocol):
    """Reads logs."""

    async def read(self, login: Login, place: Place | None) -> Piece:
        """Entries of the login's user after ``place`` (whose event is compared); from the oldest kept when None.

        Raises:
            CarrelError: The log cannot be read now.
        """
        ...


class Extent(NamedTuple):
    """How far a run goes in its user's log, and whether its terminal event is in."""

    epoch: str
    last_offset: int
    sealed: bool


class RunLog(Protocol):
    """What is in the log of one run. Both raise ``CarrelError`` when the log cannot be read now."""

    async def first(self, login: Login, run_id: str) -> Piece | None:
        """The run's first entries, with ``reset`` set when older ones are not kept; None: the log knows no such run."""
        ...

    async def extent(self, login: Login, run_id: str) -> Extent | None:
        """Where the run ends, as of now; None: the log knows no such run."""
        ...


class BridgeLogReader:
    """Reads from the bridge, ``at_once`` pieces at a time."""

    def __init__(self, stub: BridgeServiceStub, desk: TicketDesk, at_once: int = 32) -> None:
        self._stub = stub
        self._desk = desk
        self._turn = asyncio.Semaphore(at_once)

    async def read(self, login: Login, place: Place | None) -> Piece:
        """See ``LogReader``."""
        async with self._turn:
            request = bridge_pb2.ReadEventsRequest(context=self._desk.session(login), limit=_ENTRIES)
            if place is not None:
                request.position.CopyFrom(position_of(place))
            return await self._piece(request, login.user_id, place)

    async def first(self, login: Login, run_id: str) -> Piece | None:
        """See ``RunLog``."""
        async with self._turn:
            context = self._desk.session(login)
            request = bridge_pb2.ReadEventsRequest(context=context, limit=_ENTRIES, run_id=run_id)
            try:
                return await self._piece(request, login.user_id, None)
            except NotFoundError:
                return None

    async def extent(self, login: Login, run_id: str) -> Extent | None:
        """See ``RunLog``."""
        request = bridge_pb2.ResolveRunRequest(context=self._desk.session(login), run_id=run_id)
        try:
            found = await self._stub.ResolveRun(request)
        except NotFoundError:
            return None
        return Extent(found.epoch, found.last_offset, found.sealed)

    async def _piece(self, request: bridge_pb2.ReadEventsRequest, user_id: str, place: Place | None) -> Piece:
        piece = Piece(place or Place("", 0))
        call = self._stub.ReadEvents(request, timeout=_CALL_S)
        try:
            await _collect(call, user_id, piece, from_oldest=place is None)
        finally:
            call.cancel()
        return piece


async def _collect(call: object, user_id: str, piece: Piece, from_oldest: bool) -> None:
    size = 0
    async for response in responses(call):  # type: ignore[arg-type, var-annotated]  # the stub's call is an async iterable
        match response.WhichOneof("item"):
            case "reset":
                if piece.frames:
                    # What was read so far is right; the next piece begins with the reset.
                    return
                piece.reset = reset_reason(response.reset.reason)
                piece.place = place_of(response.reset.position)
            case "entries":
                entries = response.entries.entries
                if from_oldest and not piece.frames and entries:
                    piece.place = Place(response.entries.epoch, entries[0].offset - 1)
                piece.frames += [encode_entry(user_id, entry) for entry in entries]
                size += sum(len(frame.wire) for frame in piece.frames[-len(entries) :])
                if size >= _BYTES:
                    return
            case "through":
                if from_oldest and not piece.frames:
                    piece.place = place_of(response.through)


def place_of(position: events_pb2.Position) -> Place:
    """A position of the contract as a place."""
    return Place(position.epoch, position.offset, position.event_id)


def position_of(place: Place) -> events_pb2.Position:
    """A place as a position of the contract."""
    return events_pb2.Position(epoch=place.epoch, offset=place.offset, event_id=place.event_id)


def reset_reason(reason: events_pb2.ResetReason.ValueType) -> str:
    """The reason as clients read it: ``trimmed``, ``epoch_changed`` …"""
    return events_pb2.ResetReason.Name(reason).removeprefix("RESET_REASON_").lower()

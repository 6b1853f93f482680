"""``carrel watch``: a user's events as they come, from a place in the log, or one run's from its first to its last."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carrel.cli.output import EXIT_OK
from carrel.cli.reconnect import reconnect_backoff
from carrel.cli.run import show_lost_end
from carrel.cli.show import Show
from carrel.cli.signals import on_signals
from carrel.cli.target import Target
from carrel.client import Event, Notice, Position, RunState, SocketClient
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError, InvalidPositionError

__all__ = ["OLDEST", "PositionFile", "Watched", "save_place", "watch_events"]

OLDEST: Final = "oldest"
# A process that is killed shows again what came in this time.
_SAVE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Watched:
    """What is to be watched: everything, a thread or a run; and from where.

    ``start`` is ``oldest``, a position as text, or empty for what comes from now on; a run begins with its first event.
    """

    run_id: str = ""
    thread_id: str = ""
    start: str = ""
    save: Path | None = None


class PositionFile:
    """Keeps the place of the last event that was shown, for the next time. A file of one line, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved = Position()
        self._saved_at = float("-inf")

    def load(self) -> Position | None:
        """What was saved; None when nothing was.

        Raises:
            InvalidPositionError: The file holds something else.
            CarrelError: It cannot be read.
        """
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CarrelError(f"the position cannot be read: {error}", advice="name another file") from None
        return Position.parse(text) if text.strip() else None

    async def save(self, position: Position, *, now: bool = False) -> None:
        """Keep the position; a few of many in a row, unless ``now``.

        Raises:
            CarrelError: It cannot be written.
        """
        if not position.epoch or position == self._saved or not (now or time.monotonic() - self._saved_at > _SAVE_S):
            return
        self._saved, self._saved_at = position, time.monotonic()
        try:
            await asyncio.to_thread(self._write, str(position))
        except OSError as error:
            raise CarrelError(f"the position cannot be saved: {error}", advice="name another file") from None

    def _write(self, text: str) -> None:
        part = self._path.with_name(self._path.name + ".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(self._path)


async def watch_events(target: Target, watched: Watched, *, as_json: bool) -> int:
    """Show events until a signal, or until the run's end; the exit code.

    Raises:
        CarrelError: There is no such run, the position is none, or the gateway refused or cannot be reached.
    """
    backoff = reconnect_backoff()
    file = PositionFile(watched.save) if watched.save is not None else None
    resume = _resume(watched, file)
    thread_id, status = watched.thread_id, ""
    if watched.run_id:
        async with GatewayHttp(target.url, target.token) as http:
            run = await http.run(watched.run_id)
        thread_id, status = str(run["thread_id"]), str(run["status"])
    show = Show(as_json=as_json, labels=not watched.run_id)
    with on_signals() as stop:
        async with SocketClient(
            target.url, target.token, thread_id=thread_id, resume=resume, backoff=backoff, on_state=show.connection
        ) as socket:
            watching = asyncio.create_task(_watch(socket, watched.run_id, status, show, file), name="watch")
            asked = asyncio.create_task(stop.requested.wait(), name="wait for a signal")
            try:
                await asyncio.wait([watching, asked], return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()
            finally:
                watching.cancel()
                asked.cancel()
                await asyncio.gather(watching, asked, return_exceptions=True)
                show.flush()
                if file is not None:
                    with contextlib.suppress(CarrelError):
                        await file.save(socket.position, now=True)
    return EXIT_OK


def _resume(watched: Watched, file: PositionFile | None) -> Position | None:
    if watched.start:
        if watched.start == OLDEST:
            return Position()
        try:
            return Position.parse(watched.start)
        except InvalidPositionError as error:
            error.advice = "write oldest, or a position as --save-position keeps it: epoch:offset:event_id"
            raise
    saved = file.load() if file is not None else None
    return saved or (Position() if watched.run_id else None)


async def _watch(socket: SocketClient, run_id: str, status: str, show: Show, file: PositionFile | None) -> None:
    if not run_id:
        async for item in socket.items():
            show.item(item)
            await save_place(file, item, show)
        return
    ended = [run_id] if status in RunState.__members__ and RunState(status).terminal else []
    async for item in socket.run_items(run_id, known_ended=ended):
        show.item(item)
        await save_place(file, item, show)
        if isinstance(item, Event) and item.terminal:
            return
    show_lost_end(socket, run_id, show, status)


async def save_place(file: PositionFile | None, item: Event | Notice, show: Show) -> None:
    """Keep the place after an item, unless something up to it is held back: a process that is killed now must show
    that the next time."""
    if file is not None and isinstance(item, Event) and not show.holds:
        await file.save(item.position)

"""``carrel run``: one message from the request to the saved artifacts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carrel.cli.output import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Printer
from carrel.cli.reconnect import reconnect_backoff
from carrel.cli.render import clean, describe
from carrel.cli.result import Said, result_text
from carrel.cli.signals import Stop, on_signals
from carrel.cli.target import Target
from carrel.client import Event, Notice, SocketClient
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError

__all__ = ["Show", "Wish", "run_message"]

_CANCEL_S: Final = 20.0
# Ids begin with the time: it is their ends that differ.
_LABEL: Final = 8


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be run, and where its artifacts go."""

    message: str
    params: Mapping[str, Any]
    agent: str = ""
    pipeline: tuple[str, ...] = ()
    thread: str = ""
    save: Path | None = None


class Show:
    """Prints events for a person, with the seconds since the start, or as one JSON object a line.

    Args:
        as_json: JSON is what is wanted.
        labels: Whether each line begins with the end of its run's id, because there may be several runs.
    """

    def __init__(self, *, as_json: bool, labels: bool = False) -> None:
        self.as_json = as_json
        self.printer = Printer()
        self._labels = labels
        self._said = Said()
        self._began = time.monotonic()

    def item(self, item: Event | Notice) -> None:
        """One event or notice."""
        if self.as_json:
            body = item.to_json() if isinstance(item, Event) else dict(item.body)
            self.json(body)
        elif isinstance(item, Event):
            self._event(item)
        elif item.kind in {"reset", "gap"}:
            self.text(f"… some events are gone ({clean(item.body.get('reason', item.kind))})")

    def text(self, text: str, label: str = "") -> None:
        """Lines for a person."""
        clock = self.printer.paint(f"{time.monotonic() - self._began:7.2f}", "2")
        mark = self.printer.paint(label, "2") + "  " if label else ""
        first, *rest = text.split("\n")
        self.printer.say(f"{clock}  {mark}{first}")
        for part in rest:
            self.printer.say(f"{'':7}  {mark}{part}")

    def _event(self, event: Event) -> None:
        label = clean(event.run_id)[-_LABEL:] if self._labels else ""
        line = describe(event)
        self.text(self.printer.paint(line.text, line.style) if line.style else line.text, label)
        said = self._said.take(event)
        if event.terminal and (result := result_text(event.data, already=said)):
            self.text(result, label)

    def json(self, body: Mapping[str, Any]) -> None:
        """One object for a machine."""
        self.printer.say(json.dumps(body, ensure_ascii=False, separators=(",", ":")))


async def run_message(wish: Wish, target: Target, *, as_json: bool) -> int:
    """Run it and show it; the exit code.

    Raises:
        CarrelError: The gateway refused it or cannot be reached.
    """
    show = Show(as_json=as_json)
    backoff = reconnect_backoff()
    with on_signals() as stop:
        async with SocketClient(target.url, target.token, backoff=backoff) as socket:
            pipeline = wish.pipeline or ((wish.agent,) if wish.agent else ())
            accepted = await socket.execute(wish.message, params=wish.params, pipeline=pipeline, thread_id=wish.thread)
            end = await _follow(socket, accepted.run_id, show, stop)
        if end is None:
            print("carrel: the run was left running", file=sys.stderr)  # noqa: T201 -- for the person
            return EXIT_INTERRUPTED
        async with GatewayHttp(target.url, target.token) as http:
            folder = wish.save or target.state / "saved" / accepted.run_id
            await _save(http, accepted.run_id, folder, show)
    if stop.requested.is_set():
        return EXIT_INTERRUPTED
    return EXIT_OK if end.data.get("status") == "SUCCEEDED" else EXIT_FAILED


async def _follow(socket: SocketClient, run_id: str, show: Show, stop: Stop) -> Event | None:
    """Show the run's events to its end. A signal cancels the run; a second one, or silence after it, leaves it."""
    following = asyncio.create_task(_to_the_end(socket, run_id, show), name="follow the run")
    asked = asyncio.create_task(stop.requested.wait(), name="wait for a signal")
    hastened = asyncio.create_task(stop.hasten.wait(), name="wait for another signal")
    try:
        await asyncio.wait([following, asked], return_when=asyncio.FIRST_COMPLETED)
        if not following.done():
            print("carrel: cancelling the run", file=sys.stderr)  # noqa: T201 -- for the person
            with contextlib.suppress(CarrelError):
                await socket.cancel(run_id, "interrupted in the terminal")
            await asyncio.wait([following, hastened], timeout=_CANCEL_S, return_when=asyncio.FIRST_COMPLETED)
        return following.result() if following.done() else None
    finally:
        for task in (following, asked, hastened):
            task.cancel()
        await asyncio.gather(following, asked, hastened, return_exceptions=True)


async def _to_the_end(socket: SocketClient, run_id: str, show: Show) -> Event:
    async for item in socket.items():
        if isinstance(item, Event) and item.run_id != run_id:
            continue
        show.item(item)
        if isinstance(item, Event) and item.terminal:
            return item
    raise AssertionError("items() ends by raising only")


async def _save(http: GatewayHttp, run_id: str, folder: Path, show: Show) -> None:
    paths = [await http.save(artifact, folder) for artifact in await http.artifacts(run_id)]
    if show.as_json:
        show.json({"type": "saved", "run_id": run_id, "paths": [str(path) for path in paths]})
        return
    report = next((path for path in paths if path.suffix == ".md"), None)
    if report is not None:
        show.text(f"report: {report}")
    if others := [path for path in paths if path != report]:
        show.text(f"saved:  {folder}/  " + ", ".join(path.name for path in others))

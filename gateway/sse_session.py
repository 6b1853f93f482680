"""One reader of server-sent events, from the place where it begins to its end: what it is told, and why it ends.

Not what is refused before (rest/events), nor how things are written (sse_outflow).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from carrel.errors import CarrelError
from gateway.close_codes import CloseCode
from gateway.log_reader import Extent
from gateway.login import Login
from gateway.outflow import Stalled
from gateway.parts import Parts
from gateway.positioning import Start
from gateway.run_json import run_json
from gateway.runs import TERMINAL
from gateway.sockets import Ending
from gateway.sse_outflow import SseOutflow
from servicekit.logs import get_logger
from servicekit.tasks import TaskOwner

__all__ = ["EventStream", "StreamOptions"]

_log = get_logger("gateway.sse")


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Args:
    heartbeat_s: How often a sign of life goes out.
    close_s: How long a peer may take to read the rest when its stream ends.
    """

    heartbeat_s: float = 30.0
    close_s: float = 2.0


class EventStream:
    """A reader that is logged in: a listener of the hub, and told by a drain to go. ``run`` is called once."""

    def __init__(self, stream_id: str, login: Login, parts: Parts, options: StreamOptions, run_id: str = "") -> None:
        self.stream_id = stream_id
        self.login = login
        self._parts = parts
        self._options = options
        self._run_id = run_id
        # None is the regular end: the run's terminal event has been written.
        self._ending: asyncio.Future[Ending | None] = asyncio.get_running_loop().create_future()
        self._out: SseOutflow | None = None

    def wake(self) -> None:
        """There may be something new in the feed."""
        if self._out is not None:
            self._out.wake()

    def end(self, code: CloseCode, error: CarrelError | None = None, retry_ms: int | None = None) -> None:
        """End the stream, for the first of the reasons that are given."""
        self._end(Ending(code, error) if retry_ms is None else Ending(code, error, retry_ms))

    def finish(self) -> None:
        """End the stream: nothing more is to come."""
        self._end(None)

    def _end(self, ending: Ending | None) -> None:
        if not self._ending.done():
            self._ending.set_result(ending)

    async def run(
        self, response: web.StreamResponse, transport: asyncio.Transport, out: SseOutflow, start: Start | None
    ) -> None:
        """Serve the stream until it ends.

        Args:
            response: Prepared; its head is sent.
            transport: What it is sent through.
            out: What writes.
            start: Where it begins; None when it has been told to end already.
        """
        ended = "lost"
        try:
            with self._parts.connections.lane(out):
                ending = await (self._told(out, start) if start is not None else self._ending)
            ended = ending.code.name.lower() if ending is not None else "complete"
            await self._close(response, transport, out, ending)
        finally:
            self._parts.tally.ended[ended] += 1

    async def _told(self, out: SseOutflow, start: Start) -> Ending | None:
        """Everything that the reader is to be told, until there is a reason to end."""
        self._out = out
        async with TaskOwner(on_failure=lambda *_: self.end(CloseCode.INTERNAL)) as tasks:
            out.on_reset = lambda: self._start(tasks, self._tell_runs, "run states after a reset")
            start.announce(out, self.stream_id, self._options.heartbeat_s)
            _ = tasks.start(self._write(out), f"writer of {self.stream_id}")
            _ = tasks.start(self._beat(out), f"heartbeat of {self.stream_id}")
            self._start(tasks, self._look, f"first look of {self.stream_id}")
            _ = tasks.start(self._expire(), f"expiry of {self.stream_id}")
            return await self._ending

    def _start(self, tasks: TaskOwner, work: Callable[[], Any], name: str) -> None:
        if not self._ending.done():
            _ = tasks.start(work(), name)

    async def _write(self, out: SseOutflow) -> None:
        try:
            await out.run()
        except Stalled:
            _log.info("a reader stalled and was cut off", stream=self.stream_id)
            self.end(CloseCode.SLOW)

    async def _expire(self) -> None:
        # In steps, because clocks are set: a token ends by the wall's.
        while self.login.expires_at > time.time():  # noqa: ASYNC110 -- time is what is waited for
            await asyncio.sleep(min(max(self.login.expires_at - time.time(), 0.001), 60.0))
        self.end(CloseCode.EXPIRED)

    async def _beat(self, out: SseOutflow) -> None:
        while True:
            await asyncio.sleep(self._options.heartbeat_s)
            await out.room()
            out.beat()
            await self._look()

    async def _tell_runs(self) -> None:
        """A reader that lost its place learns how its runs stand."""
        assert self._out is not None
        try:
            runs = await self._parts.runs.recent(self.login, self._run_id)
        except CarrelError as error:
            _log.info("run states are not known", code=error.code, stream=self.stream_id)
            return
        for run in runs:
            self._out.say("run_state", **run_json(run))
        await self._look()

    async def _look(self) -> None:
        """End one run's stream when the log will never have more of it: its tail is lost, or no longer kept.

        A run's state turns terminal only after its terminal event is in the log: a reader at that time's end of the run
        has got it, or never will.
        """
        if not self._run_id:
            return
        try:
            run = await self._parts.runs.get(self.login, self._run_id)
            if run.state not in TERMINAL:
                return
            extent = await self._parts.run_log.extent(self.login, self._run_id)
        except CarrelError as error:
            _log.info("the end of a run is not known", code=error.code, stream=self.stream_id)
            return
        if self._is_past(extent):
            assert self._out is not None
            self._out.gone(run)
            self.finish()

    def _is_past(self, extent: Extent | None) -> bool:
        assert self._out is not None
        place = self._out.place
        return extent is None or (extent.epoch == place.epoch and extent.sealed and place.offset >= extent.last_offset)

    async def _close(
        self, response: web.StreamResponse, transport: asyncio.Transport, out: SseOutflow, ending: Ending | None
    ) -> None:
        if ending is not None and ending.code is CloseCode.SLOW:
            transport.abort()
            return
        if ending is not None:
            out.farewell(ending)
        try:
            async with asyncio.timeout(self._options.close_s):
                await out.flush()
        except (TimeoutError, Stalled):
            transport.abort()
            return
        await response.write_eof()

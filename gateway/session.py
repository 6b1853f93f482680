"""One connection from its login to its end: frames in, acted on; the outflow; the reasons to close.

Not the handshake before it, nor what is sent and how (outflow).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from aiohttp import web

from carrel.errors import CarrelError, FrameError, InternalError, TokenError, TooLargeError
from gateway.bound import BoundRuns
from gateway.close_codes import CloseCode
from gateway.frames import Inbound, connect_options
from gateway.hub import Feed
from gateway.login import Login
from gateway.outflow import Outflow, Stalled
from gateway.positioning import Positioning, Start
from gateway.requests import Answer, ExecuteRequest, answer_of, execute_request
from gateway.run_json import run_json, run_status
from gateway.runs import TERMINAL, Runs
from gateway.sockets import Ending, Socket, close_socket, error_fields, read_frame
from servicekit.logs import get_logger

__all__ = ["Session", "SessionOptions"]

_log = get_logger("gateway.session")

Command: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

_BAD_IN_A_ROW: Final = 10
_AT_ONCE: Final = 8


class Logins(Protocol):
    """Verifies tokens."""

    def verify(self, token: str) -> Login: ...


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Args:
    heartbeat_s: How often ``ping`` goes out.
    close_s: How long a closing handshake may take before the connection is cut.
    """

    heartbeat_s: float = 30.0
    close_s: float = 2.0


class Session:
    """A connection that is logged in. Its owner calls ``run`` once; ``end`` may be called at any time."""

    def __init__(
        self,
        connection_id: str,
        login: Login,
        thread_id: str,
        *,
        logins: Logins,
        runs: Runs,
        positioning: Positioning,
        options: SessionOptions,
    ) -> None:
        self.connection_id = connection_id
        self.login = login
        self._thread_id = thread_id
        self._logins = logins
        self._runs = runs
        self._bound = BoundRuns(runs, lambda: self.login)
        self._positioning = positioning
        self._options = options
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._may_connect = False
        self._bad_in_a_row = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._feed: Feed | None = None
        self._out: Outflow | None = None

    # A listener of the hub.

    def wake(self) -> None:
        """There may be something new in the feed."""
        if self._out is not None:
            self._out.wake()

    def end(self, code: CloseCode, error: CarrelError | None = None, retry_ms: int = 0) -> None:
        """Close, for the first of the reasons that are given."""
        if not self._ending.done():
            self._ending.set_result(Ending(code, error, retry_ms))

    # Life.

    async def run(self, socket: Socket, feed: Feed, out: Outflow, start: Start, *, may_connect: bool) -> None:
        """Serve the connection until it ends, and close it.

        Args:
            socket: The connection, upgraded.
            feed: The user's feed; this session listens to it.
            out: What writes to the socket, from the start on.
            start: Where it begins.
            may_connect: Whether the first frame may still be ``connect``.
        """
        self._feed, self._out, self._may_connect = feed, out, may_connect
        out.on_reset = partial(self._after_reset, out)
        start.announce(out, self.connection_id, self._options.heartbeat_s)
        self._beat()
        self._watch_expiry()
        reader = asyncio.create_task(self._read(socket.ws, out), name=f"reader of {self.connection_id}")
        writer = asyncio.create_task(self._write(out), name=f"writer of {self.connection_id}")
        try:
            waited: set[asyncio.Future[Any]] = {reader, writer, self._ending}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for timer in self._timers.values():
                timer.cancel()
            await _stop(reader, writer, *self._tasks)
            await self._bound.aclose()
        if self._ending.done() and not socket.ws.closed:
            await close_socket(socket, self._ending.result(), out, self._options.close_s)
        elif socket.transport.is_closing():
            # aiohttp gave up on a silent peer: what is unsent would be held until TCP gives up, too.
            socket.transport.abort()

    async def _write(self, out: Outflow) -> None:
        try:
            await out.run()
        except Stalled:
            _log.info("a reader stalled and was cut off", connection=self.connection_id)
            self.end(CloseCode.SLOW)
        except Exception as error:  # noqa: BLE001 -- one connection's fault must not pass in silence, nor reach others
            _log.error("writing failed", error=error, connection=self.connection_id)
            self.end(CloseCode.INTERNAL)

    def _beat(self) -> None:
        if self._out is not None:
            place = self._out.place
            if "beat" in self._timers:
                self._out.say("ping", epoch=place.epoch, offset=place.offset)
        self._timers["beat"] = asyncio.get_running_loop().call_later(self._options.heartbeat_s, self._beat)

    def _watch_expiry(self) -> None:
        if "expiry" in self._timers:
            self._timers["expiry"].cancel()
        left = self.login.expires_at - time.time()
        # A timer beyond a day or so is of no use to anybody, and loops refuse very long ones.
        self._timers["expiry"] = asyncio.get_running_loop().call_later(min(max(left, 0.0), 86_400.0), self._expire)

    def _expire(self) -> None:
        if self.login.expires_at > time.time():
            self._watch_expiry()
        else:
            self.end(CloseCode.EXPIRED)

    # Frames in.

    async def _read(self, ws: web.WebSocketResponse, out: Outflow) -> None:
        async for message in ws:
            await out.room()
            frame: Inbound | None = None
            try:
                frame = read_frame(message)
                await self._handle(frame, out)
                self._bad_in_a_row = 0
            except CarrelError as error:
                out.say("error", client_ref=frame.client_ref if frame else None, **error_fields(error))
                self._bad_in_a_row += 1
                if isinstance(error, TooLargeError) or self._bad_in_a_row >= _BAD_IN_A_ROW:
                    self.end(CloseCode.BAD_FRAME)
                    return

    async def _handle(self, frame: Inbound, out: Outflow) -> None:
        may_connect, self._may_connect = self._may_connect, False
        if frame.type == "agent_execute":
            asked = execute_request(frame.body, "agent_execute", thread_id=self._thread_id)
            await self._start(frame, out, partial(self._execute, asked, out))
            return
        fields = frame.checked()
        match frame.type:
            case "agent_cancel":
                await self._start(frame, out, partial(self._cancel, fields, out))
            case "input_provide":
                answer = answer_of(fields, frame.body, fields["run_id"])
                await self._start(frame, out, partial(self._provide, answer, frame.client_ref, out))
            case "ping":
                out.say("pong", client_ref=frame.client_ref)
            case "refresh":
                self._refresh(fields["token"], out)
            case "connect":
                await self._connect(frame, out, may_connect)

    async def _start(self, frame: Inbound, out: Outflow, command: Command) -> None:
        # Beside the reader, so that a slow admission does not hold up a ping; a few at once, so that nobody floods.
        while len(self._tasks) >= _AT_ONCE:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self._beside(self._answer(command, frame.client_ref, out), f"{frame.type} command")

    def _beside(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _after_reset(self, out: Outflow) -> None:
        self._beside(self._tell_runs(out), "run states after a reset")

    async def _tell_runs(self, out: Outflow) -> None:
        """A client that lost its place learns how its runs stand: those unended, or ended within a day."""
        try:
            runs = await self._runs.recent(self.login)
        except CarrelError as error:
            _log.info("run states are not known", code=error.code, connection=self.connection_id)
            return
        for run in runs:
            out.say("run_state", **run_json(run))

    async def _answer(self, command: Command, client_ref: str | None, out: Outflow) -> None:
        try:
            await command()
        except CarrelError as error:
            out.say("error", client_ref=client_ref, **error_fields(error))
        except Exception as error:  # noqa: BLE001 -- the client is told that there was a fault, the log which
            _log.error("a command failed", error=error, connection=self.connection_id)
            out.say("error", client_ref=client_ref, **error_fields(InternalError("the gateway failed at this frame")))

    async def _execute(self, asked: ExecuteRequest, out: Outflow) -> None:
        with self._bound.place() if asked.bound else nullcontext() as keep:
            run, existing = await self._runs.execute(
                self.login, asked, connection_id=self.connection_id, audit={"source": "websocket"}
            )
            if keep is not None and run.state not in TERMINAL:
                keep(run.run_id)
        out.say(
            "run_accepted",
            run_id=run.run_id,
            thread_id=run.thread_id,
            request_id=run.request_id,
            agent_name=run.agent_name,
            status=run_status(run),
            client_ref=asked.client_ref or None,
            existing=True if existing else None,
        )

    async def _cancel(self, fields: dict[str, Any], out: Outflow) -> None:
        run = await self._runs.cancel(self.login, fields["run_id"], fields.get("reason", ""))
        out.say("cancel_accepted", run_id=run.run_id, status=run_status(run), client_ref=fields.get("client_ref"))

    async def _provide(self, answer: Answer, ref: str | None, out: Outflow) -> None:
        run = await self._runs.provide_input(self.login, answer)
        out.say("input_accepted", run_id=run.run_id, input_id=answer.input_id, status=run_status(run), client_ref=ref)

    def _refresh(self, token: str, out: Outflow) -> None:
        login = self._logins.verify(token)
        if login.user_id != self.login.user_id:
            raise TokenError("the token is another user's", advice="open another connection for another user")
        self.login = login
        if self._feed is not None:
            self._feed.renew(login)
        self._watch_expiry()
        out.say("refreshed", expires_at=int(login.expires_at))

    async def _connect(self, frame: Inbound, out: Outflow, may_connect: bool) -> None:
        options = connect_options(frame)
        if not may_connect:
            raise FrameError("connect is the first frame or none", advice="open another connection")
        if options.token or options.socket_token:
            raise FrameError("this connection is logged in by its header", advice="use refresh for a fresh token")
        assert self._feed is not None
        self._thread_id = options.thread_id or self._thread_id
        start = await self._positioning.find(self.login, self._feed, options.resume, self._thread_id)
        out.move(start.cursor, batch=options.batch)
        start.announce(out, self.connection_id, self._options.heartbeat_s)


async def _stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""One connection from its login to its end: frames in, acted on; the outflow; the reasons to close.

It has a task only while something has to be waited for, and a timer only when its token is about to end. Not the
handshake before it, nor what is sent and how (outflow).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

from carrel.errors import CarrelError, FrameError, InternalError, TokenError, TooLargeError
from gateway.close_codes import CloseCode
from gateway.commands import Commands
from gateway.connections import Connections
from gateway.frames import Inbound, connect_options
from gateway.held import Held
from gateway.hub import Feed
from gateway.log_reader import LogReader
from gateway.login import Login
from gateway.outflow import Flow
from gateway.positioning import Positioning, Start
from gateway.requests import answer_of, execute_request
from gateway.runs import Runs
from gateway.socket_outflow import SocketOutflow
from gateway.sockets import Ending, Socket, error_fields, read_frame
from gateway.tally import Tally
from gateway.terms import Terms
from gateway.wheel import Wheel
from gateway.window import Window
from servicekit.logs import get_logger

__all__ = ["Session", "SessionOptions", "SessionParts"]

_log = get_logger("gateway.session")

Command: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
Waiting: TypeAlias = Coroutine[Any, Any, None]

_BAD_IN_A_ROW: Final = 10
_AT_ONCE: Final = 8


class Logins(Protocol):
    """Verifies tokens."""

    async def verified(self, token: str) -> Login: ...


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Args:
    heartbeat_s: How often ``ping`` goes out.
    close_s: How long a closing handshake may take before the connection is cut.
    """

    heartbeat_s: float = 30.0
    close_s: float = 2.0


@dataclass(frozen=True, slots=True)
class SessionParts:
    """What all sessions share."""

    logins: Logins
    runs: Runs
    log: LogReader
    positioning: Positioning
    connections: Connections
    terms: Terms
    wheel: Wheel
    tally: Tally
    options: SessionOptions


class Session:
    """A connection that is logged in. Its owner calls ``begin`` once; ``end`` may be called at any time."""

    __slots__ = (
        "_bad_in_a_row", "_commands", "_ending", "_expiry", "_feed", "_finishing", "_held", "_may_connect", "_out",
        "_parts", "_reading", "_socket", "_tasks", "_thread_id", "connection_id", "login",
    )  # fmt: skip

    def __init__(self, connection_id: str, login: Login, thread_id: str, parts: SessionParts) -> None:
        self.connection_id = connection_id
        self.login = login
        self._thread_id = thread_id
        self._parts = parts
        self._ending: Ending | None = None
        self._finishing = False
        self._may_connect = False
        self._reading = False
        self._bad_in_a_row = 0
        self._tasks: set[asyncio.Task[None]] | None = None
        self._commands: Commands | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._feed: Feed | None = None
        self._out: SocketOutflow | None = None
        self._socket: Socket | None = None
        self._held: Held | None = None

    # A listener of the hub.

    def wake(self) -> None:
        """There may be something new in the feed."""
        if self._out is not None:
            self._out.wake()

    def end(self, code: CloseCode, error: CarrelError | None = None, retry_ms: int | None = None) -> None:
        """Close, for the first of the reasons that are given."""
        if self._ending is None:
            self._ending = Ending(code, error) if retry_ms is None else Ending(code, error, retry_ms)
            if self._socket is not None:
                self._finish()

    # Life.

    def begin(
        self, socket: Socket, feed: Feed, start: Start, flow: Flow, window: Window | None, held: Held, *,
        may_connect: bool,
    ) -> None:  # fmt: skip
        """Serve the connection from now on, until it ends.

        Args:
            socket: The connection, upgraded and alive.
            feed: The user's feed; this session listens to it.
            start: Where it begins.
            flow: How it is written to.
            window: The send window of a client that acknowledges.
            held: What is to be given back when it has ended.
            may_connect: Whether the client may still send ``connect`` before anything else.
        """
        parts = self._parts
        out = SocketOutflow(socket, feed, parts.log, start.cursor, flow, tally=parts.tally, window=window)
        self._socket, self._feed, self._out, self._held, self._may_connect = socket, feed, out, held, may_connect
        out.on_reset, out.on_end = self._after_reset, self.end
        socket.on_inbox, socket.on_lost = self._arrived, self._lost
        held.enter(parts.wheel.add(self))
        held.enter(parts.connections.lane(out))
        start.announce(out, self.connection_id, parts.options.heartbeat_s, Terms.granted(flow, window))
        self._watch_expiry()
        if self._ending is not None:
            self._finish()
        elif socket.inbox:
            self._arrived()

    def _lost(self) -> None:
        """The connection has ended, by the peer, the network or us."""
        self._parts.tally.ended["lost" if self._ending is None else self._ending.code.name.lower()] += 1
        self._finish()

    def _finish(self) -> None:
        if self._finishing:
            return
        self._finishing = True
        assert self._socket is not None
        if self._socket.lost and not self._tasks and self._commands is None:
            self._release()
            return
        closing = self._close()
        try:
            _ = self._parts.connections.start(closing, f"end of {self.connection_id}")
        except RuntimeError:
            # The gateway has ended meanwhile; the connection is cut, and nobody is left to be told.
            closing.close()
            self._release()

    async def _close(self) -> None:
        assert self._socket is not None
        assert self._out is not None
        try:
            if self._tasks:
                tasks = list(self._tasks)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if self._commands is not None:
                await self._commands.aclose()
            if self._ending is not None:
                await self._socket.close(self._ending, self._out.take_rest(), self._parts.options.close_s)
        finally:
            if not self._socket.lost:
                self._socket.abort()
            self._release()

    def _release(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self._out is not None:
            self._out.close()
        if self._held is not None:
            self._held.close()

    # Of the wheel.

    def beat(self) -> None:
        """A heartbeat is due."""
        socket, out = self._socket, self._out
        if self._finishing or socket is None or out is None:
            return
        self._watch_expiry()
        if not socket.full:
            # Of one whose transport is full the outflow knows better whether it lives.
            socket.heard = False
            self._parts.tally.heartbeats += 1
            out.beat()

    def check(self) -> None:
        """Whoever has not answered the heartbeat by now is gone."""
        socket = self._socket
        if self._finishing or socket is None:
            return
        self._watch_expiry()
        if not socket.heard:
            _log.info("a silent peer was cut off", connection=self.connection_id)
            self._parts.tally.silent += 1
            socket.abort()

    def _watch_expiry(self) -> None:
        """Set a timer for a token that ends before this is asked again."""
        left = self.login.expires_at - time.time()
        if self._expiry is None and left < self._parts.options.heartbeat_s:
            self._expiry = asyncio.get_running_loop().call_later(max(left, 0.0), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        if self.login.expires_at > time.time():
            self._watch_expiry()
        else:
            self.end(CloseCode.EXPIRED)

    # Frames in.

    def _arrived(self) -> None:
        """Messages wait: act on them here as far as nothing has to be waited for, on the rest in a task."""
        if self._reading or self._finishing:
            return
        try:
            waiting = self._advance()
        except Exception as error:  # noqa: BLE001 -- one connection's fault must not pass in silence, nor reach others
            self._fail(error)
            return
        if waiting is not None:
            self._reading = True
            self._beside(self._read(waiting), f"reader of {self.connection_id}")

    async def _read(self, waiting: Waiting | None) -> None:
        try:
            while waiting is not None:
                await waiting
                waiting = self._advance()
        except Exception as error:  # noqa: BLE001 -- as in _arrived
            self._fail(error)
        finally:
            self._reading = False

    def _fail(self, error: Exception) -> None:
        _log.error("reading failed", error=error, connection=self.connection_id)
        self.end(CloseCode.INTERNAL)

    def _advance(self) -> Waiting | None:
        """Act on messages in their order, until there are none, or something has to be waited for.

        How many there are at once the socket bounds.
        """
        socket, out = self._socket, self._out
        assert socket is not None
        assert out is not None
        while self._ending is None:
            if not out.has_room:
                return out.room()
            message = socket.next_message()
            if message is None:
                break
            frame: Inbound | None = None
            try:
                frame = read_frame(message)
                waiting = self._handle(frame, out)
            except CarrelError as error:
                self._refuse(error, frame, out)
                continue
            if waiting is not None:
                return self._awaited(waiting, frame, out)
            self._bad_in_a_row = 0
        return None

    async def _awaited(self, waiting: Waiting, frame: Inbound, out: SocketOutflow) -> None:
        try:
            await waiting
            self._bad_in_a_row = 0
        except CarrelError as error:
            self._refuse(error, frame, out)

    def _refuse(self, error: CarrelError, frame: Inbound | None, out: SocketOutflow) -> None:
        out.say("error", client_ref=frame.client_ref if frame else None, **error_fields(error))
        self._bad_in_a_row += 1
        if isinstance(error, TooLargeError) or self._bad_in_a_row >= _BAD_IN_A_ROW:
            self.end(CloseCode.BAD_FRAME)

    def _handle(self, frame: Inbound, out: SocketOutflow) -> Waiting | None:
        """Act on a frame; what has to be waited for before the next one."""
        # A connect that is refused has changed nothing: its sender may mend it.
        self._may_connect &= frame.type == "connect"
        if frame.type == "agent_execute":
            asked = execute_request(frame.body, "agent_execute", thread_id=self._thread_id)
            return self._start(frame, out, partial(self._commanded().execute, asked))
        fields = frame.checked()
        match frame.type:
            case "agent_cancel":
                return self._start(frame, out, partial(self._commanded().cancel, fields))
            case "input_provide":
                answer = answer_of(fields, frame.body, fields["run_id"])
                return self._start(frame, out, partial(self._commanded().provide, answer, frame.client_ref))
            case "ack":
                out.acknowledge(fields["offset"])
            case "ping":
                out.say("pong", client_ref=frame.client_ref)
            case "refresh":
                return self._refresh(fields["token"], out)
            case "connect":
                return self._connect(frame, out)
        return None

    def _start(self, frame: Inbound, out: SocketOutflow, command: Command) -> Waiting | None:
        # Beside the reader, so that a slow admission does not hold up a ping; a few at once, so that nobody floods.
        if self._tasks is not None and len(self._tasks) - self._reading >= _AT_ONCE:
            return self._start_later(frame, out, command)
        self._beside(self._answer(command, frame.client_ref, out), f"{frame.type} command")
        return None

    async def _start_later(self, frame: Inbound, out: SocketOutflow, command: Command) -> None:
        while self._tasks is not None and len(self._tasks) > _AT_ONCE:
            others = [task for task in self._tasks if task is not asyncio.current_task()]
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        self._beside(self._answer(command, frame.client_ref, out), f"{frame.type} command")

    def _beside(self, work: Waiting, name: str) -> None:
        if self._tasks is None:
            self._tasks = set()
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._tasks is not None:
            self._tasks.discard(task)
            if not self._tasks:
                self._tasks = None

    def _after_reset(self) -> None:
        if self._out is not None and not self._finishing:
            self._beside(self._commanded().tell_runs(), "run states after a reset")

    def _commanded(self) -> Commands:
        if self._commands is None:
            assert self._out is not None
            self._commands = Commands(self._parts.runs, lambda: self.login, self.connection_id, self._out)
        return self._commands

    async def _answer(self, command: Command, client_ref: str | None, out: SocketOutflow) -> None:
        try:
            await command()
        except CarrelError as error:
            out.say("error", client_ref=client_ref, **error_fields(error))
        except Exception as error:  # noqa: BLE001 -- the client is told that there was a fault, the log which
            _log.error("a command failed", error=error, connection=self.connection_id)
            out.say("error", client_ref=client_ref, **error_fields(InternalError("the gateway failed at this frame")))

    async def _refresh(self, token: str, out: SocketOutflow) -> None:
        login = await self._parts.logins.verified(token)
        if login.user_id != self.login.user_id:
            raise TokenError("the token is another user's", advice="open another connection for another user")
        self.login = login
        if self._feed is not None:
            self._feed.renew(login)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._watch_expiry()
        out.say("refreshed", expires_at=int(login.expires_at))

    async def _connect(self, frame: Inbound, out: SocketOutflow) -> None:
        options = connect_options(frame)
        if not self._may_connect:
            raise FrameError("connect is the first frame or none", advice="open another connection")
        if options.token or options.socket_token:
            raise FrameError("this connection is logged in by its header", advice="use refresh for a fresh token")
        assert self._feed is not None
        assert self._socket is not None
        parts, thread_id = self._parts, options.thread_id or self._thread_id
        start = await parts.positioning.find(self.login, self._feed, options.resume, thread_id)
        flow = parts.terms.flow_for(options, self._socket.deflate_bits, self.login.user_id)
        window = parts.terms.window_for(options)
        self._thread_id, self._may_connect = thread_id, False
        out.move(start.cursor, flow, window)
        start.announce(out, self.connection_id, parts.options.heartbeat_s, Terms.granted(flow, window))

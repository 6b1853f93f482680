"""A user's WebSocket client: runs, and events that survive a lost connection, each once and in order.

It reconnects by itself with its position (full jitter, a bounded number of times in a row), drops what it has given
already, and repeats unanswered commands, which are idempotent by their ``client_ref``. It holds at most a window of
events that the application has not taken: it acknowledges what was *worked on* (taken, and the next one asked for), and
a gateway that counts (``ack``) sends no more than the window meanwhile; with one that does not, the client stops
reading. Nothing is ever dropped.

**At least once, or exactly once.** Within one client each event is given once. An application that may die keeps a
position: saved after an event was worked on, the event may come again after a crash (at least once). Saved together
with what the event changed, in one transaction, ``event.position`` makes its effect happen exactly once: what comes
after a restart with ``resume`` begins right after it.

**What is wrong on the wire** is never passed over. Messages that break the protocol, offsets that jump unexplained and
heartbeats that tell another position than the client's end the connection, and the log decides when the client comes
back: what is missing comes, or a ``Reset`` or ``Gap`` says that it does not. Three times in a row raises ProtocolError.

The protocol is docs/protocol.md. Not for internal services: they use ``InternalClient``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
import orjson

from carrel.client.asking import accepted_of, execute_fields
from carrel.client.backoff import Backoff
from carrel.client.commands import Commands
from carrel.client.following import follow
from carrel.client.http import GatewayHttp
from carrel.client.inbox import Inbox
from carrel.client.link import Link, LinkOptions, LostError
from carrel.client.login import Login, TokenSource
from carrel.client.models import Accepted, Event, Position
from carrel.client.notices import Notice, Reset, RunStatus
from carrel.client.reading import Reader
from carrel.client.states import ConnectionState, Phase
from carrel.error_base import InternalError
from carrel.errors import CarrelError, InvalidPositionError, ProtocolError, UnavailableError
from carrel.ids import new_id

__all__ = ["SocketClient", "TokenSource"]

_STEADY_AFTER_S: Final = 5.0
_BROKEN_IN_A_ROW: Final = 3
_BYTES: Final = 16 * 1024 * 1024


class SocketClient:
    """One user's connection.

    Args:
        url: The gateway, ``http://host:port`` or ``https://…``.
        token: The user's token, or what gives a fresh one: for each connection, and before the present one ends.
        user_id: The user that the token must be of; not checked when empty.
        thread_id: Only events of this thread; also the thread of runs that name none.
        resume: Where to go on reading; ``Position()`` for everything that is kept; None for what comes from now on.
        batch: Ask for ``event_batch`` frames.
        compress: Ask for compressed ones.
        window: Events that may wait for the application; the gateway is asked to send no more. 0 asks it for nothing.
        repeat: Give again after a reset what was given before it.
        backoff: How often and how fast to reconnect.
        patient: Whether the first connection is tried again, too, when it fails.
        on_reset: Called, and awaited, when the stream comes to a reset: after the events before it were taken.
        on_state: Called when the connection's state changes; must not block.

    Raises:
        InvalidPositionError: ``resume`` lacks its epoch.
    """

    def __init__(  # noqa: PLR0913 -- each is a choice of the application's, and has a default
        self,
        url: str,
        token: TokenSource,
        *,
        user_id: str = "",
        thread_id: str = "",
        resume: Position | None = None,
        batch: bool = True,
        compress: bool = True,
        window: int = 1000,
        repeat: bool = False,
        backoff: Backoff | None = None,
        patient: bool = False,
        on_reset: Callable[[Reset], Awaitable[None] | None] | None = None,
        on_state: Callable[[ConnectionState], None] | None = None,
    ) -> None:
        if resume is not None and resume.offset and not resume.epoch:
            raise InvalidPositionError("a position needs its epoch", advice="save whole positions: str(event.position)")
        self._url = url.rstrip("/")
        self._login = Login(token)
        self._backoff = backoff or Backoff()
        self._patient = patient
        self._on_reset = on_reset
        self._on_state = on_state
        self.reader = Reader(resume, filtered=bool(thread_id), repeat=repeat)
        self.reconnects = 0
        self.state = ConnectionState(Phase.CONNECTING)
        self._inbox = Inbox(window or 1000, _BYTES, self.reader.position)
        self._commands = Commands(self._send, self._backoff, self._why_waiting)
        path = f"/ws/{quote(user_id, safe='')}" if user_id else "/ws"
        self._options = LinkOptions(self._url + path, thread_id, batch, compress, acknowledge=window > 0)
        self._link: Link | None = None
        self._ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: CarrelError | None = None
        self._statuses: dict[str, RunStatus] = {}

    @property
    def position(self) -> Position:
        """The place after what the application has taken last; give it as ``resume`` to go on from there."""
        return self._inbox.taken

    @property
    def connection_id(self) -> str:
        """The gateway's name for the present connection; empty when there is none."""
        return self._link.connection_id if self._link is not None else ""

    @property
    def held(self) -> int:
        """How many events and notices have come that the application has not taken."""
        return len(self._inbox)

    async def __aenter__(self) -> Self:
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(), name=f"socket to {self._url}")
        try:
            await asyncio.shield(self._ready)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the connection. What has come may still be taken; then iterators end. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._end(UnavailableError("the client was closed"), wished=True)

    # What a user asks for.

    async def execute(  # noqa: PLR0913 -- one for each field of the request
        self,
        message: str,
        *,
        params: Mapping[str, Any] | None = None,
        pipeline: Sequence[str] = (),
        thread_id: str = "",
        strategy: str = "",
        client_ref: str = "",
        bound: bool = False,
        timeout_s: float = 30.0,
    ) -> Accepted:
        """Ask for a run; returns once it is admitted. A lost connection meanwhile neither loses nor doubles it.

        Args:
            message: What is wanted.
            params: Parameters for the agents.
            pipeline: One agent, or several, which are put in order; empty for the deployment's default.
            thread_id: The conversation; a new one when empty.
            strategy: What to do about a run that the thread has already: reject, enqueue, interrupt or rollback.
            client_ref: Names the request: within 24 h the same one gives the same run. Minted when empty.
            bound: The run ends when the connection that asked for it does, a lost one too.
            timeout_s: How long to wait for the answer, lost connections included.

        Raises:
            CarrelError: It was refused, or not answered in time.
        """
        ref = client_ref or new_id("ref")
        fields = execute_fields(
            message,
            params=dict(params or {}),
            pipeline=list(pipeline),
            thread_id=thread_id,
            strategy=strategy,
            bound=bound,
        )
        return accepted_of(await self._commands.ask(ref, {"type": "agent_execute", **fields}, timeout_s), ref)

    async def cancel(self, run_id: str, reason: str = "", timeout_s: float = 10.0) -> str:
        """Ask for a run's end; the run's status then.

        Raises:
            CarrelError: There is no such run, or no answer came in time.
        """
        frame = {"type": "agent_cancel", "run_id": run_id, **({"reason": reason} if reason else {})}
        return str((await self._commands.ask(new_id("ref"), frame, timeout_s)).get("status", ""))

    async def provide_input(self, run_id: str, input_id: str, value: object, timeout_s: float = 10.0) -> str:
        """Answer a run's question; the run's status then. The same answer may be given twice.

        Raises:
            NotWaitingError: The run does not wait for it (any more).
            InvalidInputError: The answer does not fit the question's schema.
            CarrelError: There is no such run, or no answer came in time.
        """
        frame = {"type": "input_provide", "run_id": run_id, "input_id": input_id, "value": value}
        return str((await self._commands.ask(new_id("ref"), frame, timeout_s)).get("status", ""))

    async def ping(self, timeout_s: float = 10.0) -> None:
        """Return once the gateway has answered.

        Raises:
            CarrelError: No answer came in time.
        """
        await self._commands.ask(new_id("ref"), {"type": "ping"}, timeout_s)

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send any frame as it is, for what has no method here; its answer, if any, is a notice.

        Raises:
            UnavailableError: There is no connection at this moment.
        """
        if self._link is None or not self._link.open:
            raise UnavailableError("there is no connection at this moment")
        await self._link.send(orjson.dumps(frame).decode())

    # What a user reads: in one task at a time.

    async def events(self) -> AsyncIterator[Event]:
        """Events as they come, until the client is closed.

        Raises:
            CarrelError: The connection was refused, or could not be made again.
        """
        async for item in self.items():
            if isinstance(item, Event):
                yield item

    async def items(self) -> AsyncIterator[Event | Notice]:
        """Events, and notices about them: ``Reset``, ``Gap``, ``RunStatus``, ``Bye``, and what else answers no command.

        Raises:
            CarrelError: The connection was refused, or could not be made again.
        """
        while (item := await self._next(None)) is not None:
            yield item

    async def run_events(self, *run_ids: str) -> AsyncIterator[Event]:
        """The events of one run, or of several, until each has ended; those of other runs pass by.

        A reset may have taken a run's last event with it: then ``run_status`` knows how it ended.

        Raises:
            UnknownRunError: After a reset, the run does not exist any more.
            CarrelError: The connection was refused, or could not be made again.
        """
        async for item in self.run_items(*run_ids):
            if isinstance(item, Event):
                yield item

    async def run_items(self, *run_ids: str, known_ended: Sequence[str] = ()) -> AsyncIterator[Event | Notice]:
        """As ``run_events``, with what the stream says about itself.

        Args:
            run_ids: The runs.
            known_ended: Those of them that had ended already: their last event may be older than what the log keeps.
        """
        steps = follow(run_ids, self._next, self._look, known_ended=known_ended, steady=self._is_steady)
        async for item in steps:
            yield item

    def run_status(self, run_id: str) -> RunStatus | None:
        """How a run stood after the last reset, if there was one and the gateway said so."""
        return self._statuses.get(run_id)

    async def _next(self, wait_s: float | None) -> Event | Notice | None:
        async with asyncio.timeout(wait_s):
            item = await self._inbox.take()
        if isinstance(item, Reset):
            self._statuses.clear()
            if self._on_reset is not None:
                called = self._on_reset(item)
                if inspect.isawaitable(called):
                    await called
        elif isinstance(item, RunStatus):
            self._statuses[item.run_id] = item
        return item

    async def _look(self, run_id: str) -> RunStatus:
        async with GatewayHttp(self._url, self._login.current) as http:
            status = RunStatus("run_state", {"type": "run_state", **(await http.run(run_id))})
        self._statuses[run_id] = status
        return status

    # The connections' life.

    async def _send(self, text: str) -> None:
        if self._link is not None and self._link.open:
            await self._link.send(text)
        else:
            self._inbox.nudge()

    def _is_steady(self) -> bool:
        return self.state.phase in {Phase.CONNECTED, Phase.CLOSED}

    def _why_waiting(self) -> str:
        if self._inbox.full():
            return f"{len(self._inbox)} events have come that the application does not take"
        return self.state.reason if self.state.phase is not Phase.CONNECTED else ""

    def _turn(self, phase: Phase, reason: str = "", retry_s: float = 0.0, failures: int = 0) -> None:
        self.state = ConnectionState(phase, reason, retry_s, failures)
        if self._on_state is not None:
            self._on_state(self.state)

    async def _live(self) -> None:
        try:
            await self._connections()
        except CarrelError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 -- whoever waits for events must learn that none will come
            fault = InternalError(f"the client failed: {type(error).__name__}: {error}")
            fault.__cause__ = error
            self._end(fault)

    async def _connections(self) -> None:
        failures = broken = 0
        loop = asyncio.get_running_loop()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=15.0)
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            while True:
                await self._inbox.half_empty(lambda: bool(self._commands.texts))
                self._turn(Phase.CONNECTING, failures=failures)
                began, seen = loop.time(), self.reader.position
                self._link = link = Link(
                    self._options, self._login, self.reader, self._inbox, self._commands, self._on_connected
                )
                try:
                    await link.run(session)
                except LostError as error:
                    lost = error
                moved = self.reader.position != seen
                steady = moved or loop.time() - began >= _STEADY_AFTER_S
                failures = 1 if steady and self._connected_once else failures + 1
                broken = (1 if moved else broken + 1) if lost.broken else 0
                if broken >= _BROKEN_IN_A_ROW:
                    raise ProtocolError(lost.problem, advice="coming back changes nothing; tell the gateway's operator")
                await self._pause(lost, failures)

    async def _pause(self, lost: LostError, failures: int) -> None:
        delay = self._backoff.delay_s(failures, lost.retry_s)
        if lost.at_once:
            return
        if delay is None or not (self._connected_once or self._patient):
            raise _unreachable(self._url, lost.problem, failures)
        reason = lost.problem
        if self._inbox.full():
            reason = f"{len(self._inbox)} events wait for the application; {reason}"
        self._turn(Phase.WAITING, reason, delay, failures)
        await asyncio.sleep(delay)

    @property
    def _connected_once(self) -> bool:
        return self._ready is not None and self._ready.done()

    def _on_connected(self) -> None:
        self._turn(Phase.CONNECTED)
        if self._connected_once:
            self.reconnects += 1
        elif self._ready is not None:
            self._ready.set_result(None)

    def _end(self, error: CarrelError, *, wished: bool = False) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self._commands.fail(error)
        self._inbox.end(None if wished else error)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
            # Whoever entered the client raises it; nobody else need look at the future.
            self._ready.exception()
        self._turn(Phase.CLOSED, "" if wished else error.message)


def _unreachable(url: str, problem: str, failures: int) -> UnavailableError:
    tries = "once" if failures == 1 else f"{failures} times"
    return UnavailableError(
        f"the gateway at {url} cannot be reached: {problem} (tried {tries})",
        advice="start it with `carrel up`, or name another with --url",
    )

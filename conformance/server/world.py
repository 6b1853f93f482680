"""What scenarios have to work with: the gateway, two users, and runs that fill the first one's log."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from conformance.report import BreachError, SkipError, expect
from conformance.wire import ClosedError, Frame, Socket

__all__ = ["Options", "World", "position"]


@dataclass(frozen=True)
class Options:
    """Args:
    url: The gateway, ``http://host:port``.
    token_a: The user whose log is filled.
    token_b: Another user.
    execute: The fields of the ``agent_execute`` that makes events, as many as it can.
    least: How many events the log needs before scenarios begin.
    most_runs: How many runs may be made to fill it, or to have its beginning trimmed.
    ack_s: How long a full window may go unacknowledged before the gateway must end the connection.
    drain: A command that makes the gateway drain; None when that is not to be tried.
    slow: Whether scenarios that wait for timeouts of the protocol are played.
    patience_s: How long a frame is waited for that is due at once.
    """

    url: str
    token_a: str = field(repr=False)
    token_b: str = field(repr=False)
    execute: Mapping[str, Any]
    least: int = 60
    most_runs: int = 20
    ack_s: float = 10.0
    drain: str | None = None
    slow: bool = False
    patience_s: float = 10.0


class World:
    """One suite's state: ``log`` is what the first user's log holds from ``base`` + 1 on, as ``fill`` has read it."""

    def __init__(self, options: Options, http: aiohttp.ClientSession) -> None:
        self.options = options
        self.http = http
        self.user_a = ""
        self.user_b = ""
        self.epoch = ""
        self.base = 0
        self.log: list[Frame] = []
        # How runs of ``execute`` have ended that did not succeed: the status, with the error's code.
        self.failures: Counter[str] = Counter()
        self.ended = 0

    # Connections.

    async def open(self, token: str = "", path: str = "/ws") -> Socket:
        """A socket before its first frame."""
        return await Socket.open(self.http, self.options.url, token, path, self.options.patience_s)

    async def connect(self, *, token: str = "", **options: Any) -> tuple[Socket, Frame]:
        """A socket of the first user's that has sent ``connect``, and the ``connected`` that answered."""
        socket = await self.open()
        await socket.send(type="connect", token=token or self.options.token_a, **options)
        newer = {"ack", "compress"} & options.keys()
        try:
            frame = await socket.next()
        except ClosedError as error:
            raise BreachError(f"connect {sorted(options)} was not answered: {error}") from None
        if newer and frame.get("type") == "error" and frame.get("status") == "INVALID_ARGUMENT":
            raise SkipError(f"the gateway, of an earlier release, does not know {' and '.join(sorted(newer))}")
        expect(frame.get("type") == "connected", f"connect {sorted(options)} was answered by {str(frame)[:200]}")
        return socket, frame

    async def rest(
        self, method: str, path: str, *, token: str | None = None, body: Any = None, headers: Any = None
    ) -> tuple[int, Any]:
        """A REST call as the first user, or with another token (empty for none): the status and the JSON."""
        token = self.options.token_a if token is None else token
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.http.request(
            method, self.options.url + path, headers={**sent, **(headers or {})}, json=body
        ) as response:
            text = await response.text()
            return response.status, (await response.json() if "json" in response.content_type else text)

    # Events.

    async def begin(self) -> None:
        """Learn who the users are, and fill the first one's log."""
        for name, token in (("user_a", self.options.token_a), ("user_b", self.options.token_b)):
            status, body = await self.rest("POST", "/api/socket-tokens", token=token)
            expect(status == 201, f"POST /api/socket-tokens answered {status}: {body}")
            setattr(self, name, body["user_id"])
        expect(self.user_a != self.user_b, "both tokens are of the same user")
        await self.reread()
        for _ in range(self.options.most_runs):
            if len(self.log) >= self.options.least:
                return
            await self.run()
            await self.reread()
        raise BreachError(
            f"{self.options.most_runs} runs made {len(self.log)} events; "
            + (self.shortcoming() or "name an agent that makes more with --execute")
        )

    async def reread(self) -> None:
        """Read everything that the log keeps."""
        socket, connected = await self.connect(resume={"offset": 0}, batch=True)
        async with socket:
            self.epoch, self.base = connected["epoch"], connected["offset"]
            top = await self.top()
            self.log = await socket.events(top["offset"] - self.base)

    async def top(self) -> Frame:
        """``connected`` of a connection that begins now: where the top of the log is."""
        socket, connected = await self.connect()
        await socket.__aexit__()
        return connected

    async def run(self, thread_id: str = "", **fields: Any) -> list[Frame]:
        """Make a run and wait for its end; its events."""
        socket, _ = await self.connect()
        async with socket:
            run = await self.start(socket, thread_id=thread_id, **fields)
            events: list[Frame] = []
            while not events or events[-1]["event_type"] != "run_completed":
                event = await socket.event()
                if event["run_id"] == run["run_id"]:
                    events.append(event)
            self._note_end(events[-1])
            return events

    def _note_end(self, end: Frame) -> None:
        self.ended += 1
        status, error = str(end["data"].get("status")), end["data"].get("error")
        if status != "SUCCEEDED":
            self.failures[f"{status} {error.get('code', '')}".strip() if isinstance(error, dict) else status] += 1

    def shortcoming(self) -> str:
        """What must be known of the runs, in a sentence; empty when all that were awaited have succeeded."""
        if not self.failures:
            return ""
        ways = ", ".join(f"{count} {way}" for way, count in sorted(self.failures.items()))
        return (
            f"of {self.ended} runs that the suite waited for {self.failures.total()} did not succeed ({ways}): "
            "they make few events; name a request that succeeds here with --execute"
        )

    async def start(self, socket: Socket, thread_id: str = "", **fields: Any) -> Frame:
        """Ask for a run on a connection; its ``run_accepted``. Limits are waited out."""
        ref = fields.pop("client_ref", "") or f"conformance-{uuid.uuid4().hex}"
        wanted = {**self.options.execute, **({"thread_id": thread_id} if thread_id else {}), **fields}
        while True:
            await socket.send(type="agent_execute", client_ref=ref, **wanted)
            answer = await socket.answer(ref)
            if answer["type"] == "run_accepted":
                return answer
            expect(answer["type"] == "error", f"agent_execute was answered by {answer}")
            if answer.get("code") == "IDEMPOTENCY_CONFLICT" or not answer.get("retryable"):
                raise BreachError(f"agent_execute was refused: {answer.get('code')} {answer.get('message')}")
            await asyncio.sleep(float(answer.get("retry_after_s") or 0.2))

    def at(self, index: int) -> Frame:
        """The position after an entry of ``log``."""
        return position(self.epoch, self.log[index])

    async def whole_log(self, frames: list[Frame], start: int) -> None:
        """Compare events with the log from index ``start`` on.

        Raises:
            BreachError: They differ.
        """
        wanted = self.log[start : start + len(frames)]
        for got, want in zip(frames, wanted, strict=True):
            expect(got == want, f"offset {want['offset']} is {want['event_id']} in the log, and {str(got)[:160]} came")

    def skip_unless(self, holds: object, why: str) -> None:
        """Raises:
        SkipError: It does not hold.
        """
        if not holds:
            raise SkipError(why)


def position(epoch: str, event: Frame) -> Frame:
    """The ``resume`` that goes on after an event."""
    return {"epoch": epoch, "offset": event["offset"], "event_id": event["event_id"]}

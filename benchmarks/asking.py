"""A user on a socket, for cases that ask for runs: as lean as the product's protocol allows, one frame at a time.

Not the library's client: it neither reconnects nor keeps positions, and any refusal is a broken measurement.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from carrel.cli.stack import Stack
from carrel.cli.tokens import development_token

__all__ = ["UNLIMITED", "Asker", "RefusedError", "asker"]

# Claims that leave a user's own limits out of a measurement.
UNLIMITED: Final = {"max_engines_per_user": 1000, "max_unended_runs_per_user": 5000}


class RefusedError(RuntimeError):
    """The gateway answered with an ``error`` frame."""

    def __init__(self, frame: Mapping[str, Any]) -> None:
        super().__init__(f"the gateway answered {frame}")
        self.retry_after_s = float(frame.get("retry_after_s") or 0.0)


class Asker:
    """One connection; ``frames`` gives control frames and events, events of a batch one by one."""

    def __init__(self, ws: ClientWebSocketResponse) -> None:
        self._ws = ws

    async def send(self, **frame: Any) -> None:
        """Send one frame."""
        await self._ws.send_str(orjson.dumps(frame).decode())

    async def execute(self, agent: str, *, client_ref: str = "", params: Mapping[str, Any] | None = None) -> None:
        """Ask for a run."""
        frame: dict[str, Any] = {"type": "agent_execute", "message": "hello", "agent_name": agent}
        if client_ref:
            frame["client_ref"] = client_ref
        if params:
            frame["params"] = dict(params)
        await self.send(**frame)

    async def receive(self, timeout: float = 30.0) -> list[dict[str, Any]]:
        """The frames of the next message.

        Raises:
            RefusedError: The gateway refused something.
            RuntimeError: It closed.
        """
        message = await self._ws.receive(timeout)
        if message.type is not WSMsgType.TEXT:
            raise RuntimeError(f"the connection ended: {message.type.name} {message.data}")
        frames = list(_flat(orjson.loads(message.data)))
        for frame in frames:
            if frame.get("type") == "error":
                raise RefusedError(frame)
        return frames

    async def until(self, event_type: str, *, run_id: str = "", timeout: float = 30.0) -> dict[str, Any]:
        """The next event of this kind (of this run); what comes before it is dropped."""
        while True:
            for frame in await self.receive(timeout):
                if frame.get("event_type") == event_type and frame["run_id"] == (run_id or frame["run_id"]):
                    return frame

    async def run(self, agent: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A run from asking to its terminal event."""
        await self.execute(agent, params=params)
        return await self.until("run_completed")


@asynccontextmanager
async def asker(
    stack: Stack, user: str, *, limits: Mapping[str, int] | None = UNLIMITED, batch: bool = False
) -> AsyncIterator[Asker]:
    """The user's connection, logged in."""
    token = development_token(stack.state.login_secret, user, limits=limits, environ={})
    url = stack.url.replace("http", "ws", 1) + "/ws"
    async with ClientSession() as session, session.ws_connect(url, max_msg_size=0) as ws:
        one = Asker(ws)
        await one.send(type="connect", token=token, batch=batch)
        await one.receive(10)
        yield one


def _flat(frame: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if frame.get("event_type") == "event_batch":
        yield from frame["events"]
    else:
        yield frame

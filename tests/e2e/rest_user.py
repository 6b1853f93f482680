"""One user over REST, as the tests of bad input need one: what is refused, what fails, and whether all still works."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from carrel.client import Event, Position
from carrel.ids import new_id
from tests.support.stack import ROOT, RunningStack


class User:
    """One user over REST."""

    def __init__(self, stack: RunningStack, http: aiohttp.ClientSession, user: str) -> None:
        self.user = user
        self.stack = stack
        self.http = http

    async def execute(self, **body: Any) -> tuple[int, dict[str, Any]]:
        """What POST /api/agents/execute answers once the run has ended."""
        async with self.http.post("/api/agents/execute", json={"message": "hello"} | body) as response:
            return response.status, await response.json()

    async def refused(self, code: str, status: int, **body: Any) -> dict[str, Any]:
        """The error of a request that starts nothing."""
        found, answer = await self.execute(**body)
        assert (found, answer.get("error", {}).get("code")) == (status, code), answer
        return told(answer["error"])

    async def failed(self, code: str, **body: Any) -> dict[str, Any]:
        """The error of a run that was admitted and failed; it is the run's own and that of its terminal event."""
        status, answer = await self.execute(**body)
        assert (status, answer["status"]) == (200, "FAILED"), answer
        assert answer["error"]["code"] == code, answer["error"]
        events = await self.events(answer["run_id"])
        assert events[-1].event_type == "run_completed"
        assert events[-1].data["error"]["code"] == code
        return told(answer["error"])

    async def events(self, run_id: str) -> list[Event]:
        """The run's events from the log."""
        found: list[Event] = []
        async with self.stack.client(self.user, resume=Position()) as client:
            async for event in client.events():
                if event.run_id == run_id:
                    found.append(event)
                    if event.terminal:
                        break
        return found

    async def still_works(self) -> None:
        """A good request succeeds."""
        status, answer = await self.execute(agent_name="echo", message="still here")
        assert (status, answer["status"], answer["result"]) == (200, "SUCCEEDED", {"answer": "still here"})


def told(error: dict[str, Any]) -> dict[str, Any]:
    """The error, which says what went wrong and what to do, and nothing that is not the user's."""
    assert error["message"], error
    assert error["advice"], error
    assert "Traceback" not in str(error)
    assert str(ROOT) not in str(error)
    return error


@asynccontextmanager
async def new_user(stack: RunningStack, **token: Any) -> AsyncIterator[User]:
    """A user that no other test has, for whom all must still work at the end; ``token`` as in ``stack.token``."""
    name = new_id("user")
    headers = {"Authorization": f"Bearer {stack.token(name, **token)}"}
    async with aiohttp.ClientSession(stack.url, headers=headers, timeout=aiohttp.ClientTimeout(45)) as http:
        user = User(stack, http, name)
        yield user
        await user.still_works()

"""The two test users: who they are, that nobody else uses them now, and that nothing of theirs is left behind.

A thread's id says until when the examination that made it may go on. So an examination knows a thread that another one
is using from one that was left by an examination that was killed: the latter it removes. It removes no other thread.
Events stay in the two users' logs until these are trimmed, and audit records as long as all do.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from carrel.cli.doctor.http import User, from_answer
from carrel.doctor_names import DOCTOR_PREFIX
from carrel.errors import CarrelError, UnavailableError

__all__ = ["SLOTS", "Headers", "Pair", "claimed_pair"]

SLOTS: Final = 16
_END_S: Final = 10.0
_PAGE: Final = 200
_MARK: Final = "x"

Headers = Callable[[str], Mapping[str, str]]
"""Given a user's id: the headers that log them in."""


@dataclass(slots=True)
class Pair:
    """Two users who are this examination's own until its end."""

    a: User
    b: User
    leftovers: int = 0
    cleaned: int = 0
    not_cleaned: list[str] = field(default_factory=list)

    @property
    def both(self) -> tuple[User, User]:
        """The two."""
        return self.a, self.b

    async def clean(self) -> None:
        """End the runs and remove the threads of this examination; what can't be is noted."""
        for user in self.both:
            try:
                for thread in await _threads(user):
                    if str(thread["thread_id"]).startswith(user.prefix):
                        await _remove(user, str(thread["thread_id"]), thread.get("unended_run_id"))
                        self.cleaned += 1
            except CarrelError as error:
                self.not_cleaned.append(f"threads of {user.user_id} ({error.message})")


@asynccontextmanager
async def claimed_pair(
    urls: Sequence[str], ids: Sequence[tuple[str, str]], headers: Headers, lasts_s: float
) -> AsyncIterator[Pair]:
    """Two users that no other examination is using, in a random order of those that may be taken.

    Args:
        urls: Gateways.
        ids: Pairs that may be taken.
        headers: Logs a user in.
        lasts_s: How long the examination may last at most.

    Raises:
        UnavailableError: All are in use, or the gateway cannot be reached.
        CarrelError: The gateway refuses them.
    """
    prefix = f"{DOCTOR_PREFIX}{_MARK}{int(time.time() + lasts_s):x}-{secrets.token_hex(4)}-"
    order = secrets.SystemRandom().sample(ids, len(ids))
    looks = [_look_at(pair, headers, urls, prefix) for pair in order]
    found = await asyncio.gather(*looks, return_exceptions=True)
    for look in found:
        if isinstance(look, BaseException):
            raise look
    known = [look for look in found if not isinstance(look, BaseException)]
    leftovers, busy_until = sum(removed for removed, _ in known), max(until for _, until in known)
    chosen = next((pair for pair, (_, until) in zip(order, known, strict=True) if not until), None)
    if chosen is None:
        wait_s = max(1.0, busy_until - time.time())
        raise UnavailableError(
            "another examination is using the test users, or was killed a moment ago",
            advice=f"try again in {wait_s:.0f} s",
            retry_after_s=wait_s,
        )
    a, b = (User(user_id, headers(user_id), urls, prefix) for user_id in chosen)
    async with a, b:
        yield Pair(a, b, leftovers)


async def _look_at(pair: tuple[str, str], headers: Headers, urls: Sequence[str], prefix: str) -> tuple[int, float]:
    """``_look`` at both users."""
    removed, in_use = 0, 0.0
    for user_id in pair:
        async with User(user_id, headers(user_id), urls, prefix) as user:
            of_one, until = await _look(user)
        removed, in_use = removed + of_one, max(in_use, until)
    return removed, in_use


async def _look(user: User) -> tuple[int, float]:
    """Remove what is left of examinations that are over: how many threads, and until when a live one may go on."""
    removed, in_use = 0, 0.0
    for thread in await _threads(user):
        thread_id = str(thread["thread_id"])
        until = _deadline(thread_id)
        if until is None:
            continue
        if until > time.time():
            in_use = max(in_use, until)
            continue
        await _remove(user, thread_id, thread.get("unended_run_id"))
        removed += 1
    return removed, in_use


def _deadline(thread_id: str) -> float | None:
    """Until when the examination may go on that made the thread; None for a thread that is not the doctor's."""
    rest = thread_id.removeprefix(DOCTOR_PREFIX + _MARK)
    if rest == thread_id:
        return None
    try:
        return float(int(rest.partition("-")[0], 16))
    except ValueError:
        return None


async def _threads(user: User) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    token = ""
    while True:
        answer = await user.get(f"/api/threads?page_size={_PAGE}" + (f"&page_token={token}" if token else ""))
        if answer.status != 200:
            raise from_answer(answer)
        found += answer.json.get("threads", [])
        token = answer.json.get("next_page_token") or ""
        if not token:
            return found


async def _remove(user: User, thread_id: str, run_id: object) -> None:
    """Cancel the thread's run, if one goes on, and delete the thread.

    Raises:
        UnavailableError: It is still there after a while.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + _END_S
    if run_id:
        _ = await user.call("POST", f"/api/runs/{run_id}/cancel", {"reason": "the examination is over"})
    while (answer := await user.call("DELETE", f"/api/threads/{thread_id}")).status not in {204, 404}:
        if loop.time() >= until:
            raise UnavailableError(f"the thread {thread_id} cannot be removed: {answer}")
        # It may have got a run since it was listed.
        thread = (await user.get(f"/api/threads/{thread_id}/messages?page_size=1")).json.get("thread") or {}
        if unended := thread.get("unended_run_id"):
            _ = await user.call("POST", f"/api/runs/{unended}/cancel", {"reason": "the examination is over"})
        await asyncio.sleep(0.1)

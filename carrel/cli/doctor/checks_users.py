"""``user_isolation`` and ``concurrent_execution``: nobody sees another's, and nobody waits for another."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from carrel.cli.doctor.http import User, engine_error
from carrel.cli.doctor.report import Check
from carrel.cli.doctor.world import RUN_S, World, canary

__all__ = ["concurrent_execution", "user_isolation"]

_LEAK: Final = "stop the deployment from serving users, keep its logs, and report it: one user is shown another's data"
_HELD: Final = "compare workers, max_active_runs and the stores' load: runs of one user hold up another's"
_LIMIT: Final = "look at CARREL_EXECUTION_MAX_ENGINES_PER_USER and at the limits in tokens"


@dataclass(frozen=True, slots=True)
class _Trace:
    """A user's run with words that nobody else knows."""

    user: User
    words: str
    thread: str
    run_id: str


async def user_isolation(world: World, check: Check) -> None:
    """Two users run at once, each with secret words; neither is shown the other's, or gets at it by its ids."""
    a, b = world.pair.both
    traces = await asyncio.gather(_trace(world, check, a), _trace(world, check, b))
    for mine, other in (traces, traces[::-1]):
        who = "a" if mine.user is a else "b"
        # Without this, a check that looks at nothing would find nothing.
        shown = mine.user.was_shown(mine.words)
        advice = "see the run's error; the check cannot say anything without it"
        _ = check.expect(shown, f"user {who} is shown their own words", mine.run_id, advice)
        leaked = mine.user.was_shown(other.words) or mine.user.was_shown(other.run_id)
        evidence = f"{len(mine.user.seen)} answers and frames were looked through"
        _ = check.expect(not leaked, f"user {who} is shown nothing of the other's", evidence, _LEAK)
    await _trespass(check, *traces)
    await _trespass(check, *traces[::-1])


async def _trace(world: World, check: Check, user: User) -> _Trace:
    words, thread = canary(), user.new_thread()
    async with user.socket() as socket:
        _ = await socket.wait(lambda s: s.controls("connected"), RUN_S)
        answer = await world.run(user, words, thread=thread, events=3, artifact=True, hold=0.5)
        run_id = str(answer.json.get("run_id", ""))
        _ = await socket.run_over(run_id, RUN_S)
        foreign = [e for e in socket.events if e["user_id"] != user.user_id]
    _ = check.expect(not foreign, f"the socket of {user.user_id} has their own events alone", len(foreign), _LEAK)
    for path in (
        f"/api/runs/{run_id}",
        "/api/runs",
        "/api/agents/status",
        "/api/threads",
        f"/api/threads/{thread}/messages",
        f"/api/runs/{run_id}/artifacts",
        f"/api/runs/{run_id}/artifacts/doctor.txt",
    ):
        own = await user.get(path)
        advice = "see the answer and the gateway's log"
        _ = check.expect(own.status == 200, f"{user.user_id} reads {path.replace(run_id, '…')}", own, advice)
    logged = await user.log(RUN_S, run_id)
    foreign = [e for e in logged if e["user_id"] != user.user_id]
    what = f"the log of {user.user_id} has their own events alone"
    _ = check.expect(bool(logged) and not foreign, what, f"{len(logged)} events, {len(foreign)} of others", _LEAK)
    return _Trace(user, words, thread, run_id)


async def _trespass(check: Check, mine: _Trace, other: _Trace) -> None:
    """Ask with the other's ids, in every way there is. Nothing changes if it works: both are the doctor's."""
    run, thread = f"/api/runs/{other.run_id}", f"/api/threads/{other.thread}"
    for method, path, body in (
        ("GET", run, None),
        ("GET", f"/api/agents/status/{other.run_id}", None),
        ("GET", f"{run}/events", None),
        ("GET", f"{run}/artifacts", None),
        ("GET", f"{run}/artifacts/doctor.txt", None),
        ("POST", f"{run}/cancel", {}),
        ("POST", f"{run}/input", {"input_id": "i", "value": 1}),
        ("GET", f"{thread}/messages", None),
        ("DELETE", thread, None),
        ("POST", "/api/tickets", {"scope": "run", "run_id": other.run_id}),
        ("POST", "/api/tickets", {"scope": "session", "user_id": other.user.user_id}),
    ):
        answer = await mine.user.call(method, path, body)
        wanted = {403} if body and "user_id" in body else {404}
        shown = path.replace(other.run_id, "{the other's run}").replace(other.thread, "{the other's thread}")
        _ = check.expect(answer.status in wanted, f"{method} {shown} is refused", answer, _LEAK)


async def concurrent_execution(world: World, check: Check) -> None:
    """A user's runs go on at once up to the limit, which is a typed refusal; the other user's run waits for none."""
    a, b = world.pair.both
    began = await asyncio.gather(*(world.begin(a, hold=15, thread=a.new_thread()) for _ in range(world.max_engines)))
    try:
        runs = await asyncio.gather(*(a.until(run, lambda r: r.get("status") == "RUNNING", RUN_S) for run in began))
        states = [str(run.get("status")) for run in runs]
        what = f"{world.max_engines} runs of one user go on at once"
        _ = check.expect(states == ["RUNNING"] * len(began), what, ", ".join(states), _HELD)
        await _one_too_many(world, check)
        at = time.perf_counter()
        other = await world.run(b, events=1)
        took = time.perf_counter() - at
        still = [str((await a.get(f"/api/runs/{run}")).json.get("status")) for run in began]
        _ = check.expect(
            other.json.get("status") == "SUCCEEDED" and still == ["RUNNING"] * len(began),
            "the other user's run ends while they go on",
            f"{other.json.get('status', other)} in {took:.2f} s; the first user's are {', '.join(still)}",
            _HELD,
        )
    finally:
        await world.cancel(a, *began)
    again = await world.run(a, events=1)
    what = "a run is admitted again once the others have ended"
    _ = check.expect(again.json.get("status") == "SUCCEEDED", what, again.json.get("status", again), _LIMIT)


async def _one_too_many(world: World, check: Check) -> None:
    user = world.pair.a
    answer = await user.execute("carrel_doctor", "hello", {"hold": 15}, thread=user.new_thread(), wait=False)
    if "run_id" in answer.json:
        check.fail(f"a run beyond {world.max_engines} is refused", answer, _LIMIT)
        await world.cancel(user, str(answer.json["run_id"]))
        return
    error, limit = engine_error(answer), (engine_error(answer).get("details") or {})
    typed = answer.status == 429 and error.get("status") == "RESOURCE_EXHAUSTED"
    _ = check.expect(typed, f"a run beyond {world.max_engines} is refused as RESOURCE_EXHAUSTED", answer, _LIMIT)
    named = limit.get("limit") == "max_engines_per_user" and limit.get("limit_value") == world.max_engines
    _ = check.expect(named, "the refusal names the limit and its value", limit, _LIMIT)
    told = error.get("retry_after_s") is not None and "Retry-After" in answer.headers
    what = "the refusal says when to try again"
    _ = check.expect(told, what, f"{error.get('retry_after_s')} s, {answer.headers.get('Retry-After')}", _LIMIT)

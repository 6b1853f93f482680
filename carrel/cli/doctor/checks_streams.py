"""``websocket_isolation`` and ``resource_cleanup``: sockets give each their own, and what was used is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final

from carrel.cli.doctor.http import Socket, User
from carrel.cli.doctor.report import Check, SkipCheck
from carrel.cli.doctor.world import RUN_S, World, canary

__all__ = ["resource_cleanup", "websocket_isolation"]

_GIVEN_BACK_S: Final = 5.0
_LOST: Final = "compare the gateways' and the bridge's logs for resets; events were lost, repeated or out of order"
_LEAK: Final = "stop the deployment from serving users, keep its logs, and report it: one user is shown another's data"
_DOOR: Final = "look at CARREL_GATEWAY_ALLOWED_ORIGINS and at the proxy before the gateway"
_KEPT: Final = "look for runs that hang and workers that do not die in the log of execution and agent_instance"

# How runs end: what it is called, what the agent is told, and the status and error that must follow.
_ENDS: Final[Sequence[tuple[str, Mapping[str, Any], str]]] = (
    ("an end", {"events": 2}, "SUCCEEDED"),
    ("a cancel", {"hold": 15}, "CANCELLED CANCELLED_RUN"),
    ("a time-out", {"hold": 20, "silent": True}, "FAILED AGENT_IDLE_TIMEOUT"),
)


async def websocket_isolation(world: World, check: Check) -> None:
    """Several sockets of each user: each its own events; a resumed one has the rest once; wrong doors are shut."""
    a, b = world.pair.both
    async with AsyncExitStack() as stack:
        sockets: dict[str, list[Socket]] = {user.user_id: [] for user in (a, b)}
        for user in (a, b, a, b):
            sockets[user.user_id].append(await stack.enter_async_context(user.socket()))
        every = [socket for mine in sockets.values() for socket in mine]
        for socket in every:
            _ = await socket.wait(lambda s: s.controls("connected"), RUN_S)
        words = {user.user_id: canary() for user in (a, b)}
        answers = await asyncio.gather(*(world.run(user, words[user.user_id], events=8) for user in (a, b)))
        for user, answer in zip((a, b), answers, strict=True):
            run_id = str(answer.json.get("run_id", ""))
            other = b if user is a else a
            for socket in sockets[user.user_id]:
                whole = await socket.run_over(run_id, RUN_S)
                _ = check.expect(whole, f"a socket of {user.user_id} gets the run to its end", run_id, _LOST)
                foreign = [e for e in socket.events if e["user_id"] != user.user_id]
                clean = not foreign and words[other.user_id] not in str(socket.frames)
                _ = check.expect(clean, f"a socket of {user.user_id} gets nothing foreign", len(foreign), _LEAK)
            one, two = (_ids(socket.events, run_id) for socket in sockets[user.user_id])
            same = bool(one) and one == two
            _ = check.expect(same, f"both sockets of {user.user_id} get the same", f"{len(one)} events", _LOST)
            epoch = str(sockets[user.user_id][0].controls("connected")[0].get("epoch", ""))
            await _resume(check, user, epoch, [e for e in sockets[user.user_id][0].events if e["run_id"] == run_id])
    await _doors(check, a, b)


async def _resume(check: Check, user: User, epoch: str, had: Sequence[Mapping[str, Any]]) -> None:
    """Come back after the third event: the rest comes, once, in order, and without a hole."""
    if len(had) < 4:
        check.fail(f"{user.user_id} has events to resume from", f"{len(had)} events", _LOST)
        return
    place = {"epoch": epoch, "offset": had[2]["offset"], "event_id": had[2]["event_id"]}
    # A client that sent the header may send connect too; what counts is what follows its answer.
    async with user.socket(connect={"resume": place}) as socket:
        _ = await socket.wait(lambda s: len(s.controls("connected")) >= 2 or s.controls("reset"), RUN_S)
        _ = await socket.wait(lambda s: any(e["event_id"] == had[-1]["event_id"] for e in s.events), RUN_S)
        offsets = [e["offset"] for e in socket.events]
        resets = socket.controls("reset")
    first, last = int(had[2]["offset"]) + 1, int(had[-1]["offset"])
    wanted = list(range(first, last + 1))
    what = f"{user.user_id} resumes without a loss or a repeat"
    evidence = f"offsets {offsets} of {first} to {last}" + (f", reset: {resets}" if resets else "")
    _ = check.expect(offsets[: len(wanted)] == wanted and not resets, what, evidence, _LOST)
    _ = check.expect(len(set(offsets)) == len(offsets), f"no event of {user.user_id} comes twice", offsets, _LOST)


async def _doors(check: Check, a: User, b: User) -> None:
    foreign = await a.refused("/ws", Origin="https://carrel-doctor.invalid")
    _ = check.expect(foreign == 403, "a page of a foreign origin is refused", foreign, _DOOR)
    other = await a.refused(f"/ws/{b.user_id}")
    _ = check.expect(other == 403, "another user's address is refused", other, _LEAK)
    async with User("nobody", {}, a.urls, a.prefix) as nobody, nobody.socket(connect={"token": "a.b.c"}) as socket:
        _ = await socket.wait(lambda s: s.ended, RUN_S)
        let_in = bool(socket.controls("connected"))
        _ = check.expect(socket.ended and not let_in, "a token of nobody's is refused", socket.frames, _DOOR)


def _ids(events: Sequence[Mapping[str, Any]], run_id: str) -> list[str]:
    return [str(event["event_id"]) for event in events if event["run_id"] == run_id]


@dataclass(frozen=True, slots=True)
class _Figures:
    """What is in use. ``others`` are engines of other users, whose coming and going is no leak of ours."""

    engines: int
    others: int
    workers: int | None = None
    emitters: int | None = None
    contexts: int | None = None

    def given_back(self, name: str, before: _Figures) -> bool:
        """Whether no more of it is in use than before, but for what others have begun meanwhile."""
        now: int | None = getattr(self, name)
        then: int | None = getattr(before, name)
        if now is None or then is None or name == "engines":
            return not now or then is None or now <= then
        return now <= max(then, before.others) + max(0, self.others - before.others)


async def resource_cleanup(world: World, check: Check) -> None:
    """After an end, a cancel and a time-out, engines, workers, emitters and contexts are given back within 5 s."""
    user = world.pair.a
    try:
        before: _Figures | None = await _figures(world)
    except SkipCheck as skipped:
        check.skip("engines, workers, emitters and contexts are counted", str(skipped))
        before = None
    for how, params, wanted in _ENDS:
        run_id = await world.begin(user, thread=user.new_thread(), **params)
        if how == "a cancel":
            _ = await user.until(run_id, lambda run: run.get("status") == "RUNNING", RUN_S)
            _ = await user.call("POST", f"/api/runs/{run_id}/cancel", {})
        run = await user.ended(run_id, RUN_S)
        ended = f"{run.get('status')} {(run.get('error') or {}).get('code', '')}".strip()
        _ = check.expect(ended == wanted, f"{how} ends a run as {wanted}", ended, _KEPT)
        if before is not None:
            await _given_back(world, check, how, before)
    runs = (await user.get("/api/runs?status=QUEUED,RUNNING,WAITING,FINISHING")).json.get("runs")
    _ = check.expect(runs == [], "the user has no run that has not ended", runs, _KEPT)
    full = [await world.begin(user, thread=user.new_thread(), hold=15) for _ in range(world.max_engines)]
    await world.cancel(user, *full)
    _ = check.expect(True, "all of the user's engines can be had again", f"{len(full)}")
    await _connections(world, check)


async def _given_back(world: World, check: Check, how: str, before: _Figures) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + _GIVEN_BACK_S
    names = [name for name in ("engines", "workers", "emitters", "contexts") if getattr(before, name) is not None]
    left, began, now = list(names), loop.time(), before
    while left:
        try:
            now = await _figures(world)
        except SkipCheck as skipped:
            check.skip(f"what is in use after {how}", str(skipped))
            return
        left = [name for name in left if not now.given_back(name, before)]
        if loop.time() >= until:
            break
        await asyncio.sleep(0.1)
    for name in names:
        evidence = f"{getattr(before, name)} before, {getattr(now, name)} after {loop.time() - began:.1f} s"
        _ = check.expect(name not in left, f"{name} are given back after {how}", evidence, _KEPT)


async def _figures(world: World) -> _Figures:
    engines = await world.services.engines()
    users = {user.user_id for user in world.pair.both}
    mine = sum(engine.user_id in users for engine in engines)
    contexts = await _sum(world, "execution", lambda one: one.contexts_created - one.contexts_cleaned)
    workers = await _sum(world, "agent_instance", lambda one: one.active)
    emitters = await _sum(world, "emitter", lambda one: one.emitters_active)
    return _Figures(mine, len(engines) - mine, workers, emitters, contexts)


async def _sum(world: World, service: str, figure: Any) -> int | None:
    try:
        return sum(int(figure(one)) for one in await world.services.statistics(service))
    except SkipCheck:
        return None


async def _connections(world: World, check: Check) -> None:
    """Sockets that end are given back: the gateway counts fewer than while they were open."""
    if not world.operator_headers:
        check.skip("connections are given back", "no token with operator:read: set CARREL_DOCTOR_TOKEN_FILE")
        return
    url = world.urls[0]
    async with User("operator", world.operator_headers, [url], "") as operator:
        before = await operator.get("/api/operator/gateway")
        if before.status != 200:
            check.skip("connections are given back", f"the gateway's counts cannot be read: {before}")
            return
        user = User(world.pair.b.user_id, world.pair.b.headers, [url], world.pair.b.prefix)
        async with user, AsyncExitStack() as stack:
            for _ in range(5):
                socket = await stack.enter_async_context(user.socket())
                _ = await socket.wait(lambda s: s.controls("connected"), RUN_S)
            during = (await operator.get("/api/operator/gateway")).json["connections"]
        loop = asyncio.get_running_loop()
        until = loop.time() + _GIVEN_BACK_S
        while True:
            after = (await operator.get("/api/operator/gateway")).json["connections"]
            # Others come and go: at least most of ours must be gone.
            given_back = after <= before.json["connections"] or after <= during - 3
            if given_back or loop.time() >= until:
                break
            await asyncio.sleep(0.1)
    evidence = f"{before.json['connections']} before, {during} with 5 of ours, {after} after"
    _ = check.expect(given_back, "connections are given back", evidence, _KEPT)

"""``factories_configured`` and ``backward_compatibility``: is all there, and does it speak as the documents say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from carrel.cli.doctor.http import Answer, User
from carrel.cli.doctor.report import Check, SkipCheck
from carrel.cli.doctor.services import SERVICES, Services
from carrel.cli.doctor.world import RUN_S, World
from carrel.doctor_names import DOCTOR_AGENT
from carrel.v1 import bridge_pb2

__all__ = ["backward_compatibility", "compatible", "factories_configured", "what_is_missing"]

_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.")
_NUMBER: Final = (int, float)
# What the documents promise of the answer to POST /api/agents/execute.
_EXECUTED: Final[Mapping[str, Any]] = {
    "run_id": str,
    "thread_id": str,
    "agent_name": str,
    "status": str,
    "result": dict,
    "execution_time": _NUMBER,
}
_EVENT: Final[Mapping[str, Any]] = {
    "event_type": str,
    "event_id": str,
    "offset": int,
    "user_id": str,
    "thread_id": str,
    "run_id": str,
    "request_id": str,
    "agent_name": str,
    "attempt": int,
    "timestamp": str,
    "data": dict,
}
_KINDS: Final = (
    "agent_started",
    "agent_thinking",
    "tool_executing",
    "tool_completed",
    "agent_completed",
    "agent_error",
)
_UPGRADE: Final = "upgrade what is older, or run the doctor of the release that is deployed"
_CLIENTS: Final = "clients of the last release break: roll back, and compare docs/protocol.md with what was changed"


async def factories_configured(world: World, check: Check) -> None:
    """Every gateway and every service within reach is ready, of a fitting version, and has the agents."""
    for url in world.urls:
        await _gateway(world, check, url)
    answer = await world.pair.a.get("/api/agents")
    agents = {agent["name"]: agent for agent in answer.json.get("agents", [])}
    mine = agents.pop(DOCTOR_AGENT, None)
    _ = check.expect(
        answer.status == 200 and bool(agents),
        "agents are registered",
        f"{len(agents)}: {', '.join(sorted(agents))}" if agents else answer,
        "install or name agents in CARREL_AGENT_INSTANCE_AGENTS, and look whether agent_instance runs",
    )
    _ = check.expect(
        mine is not None and mine.get("available", False),
        f"the agent {DOCTOR_AGENT} is there for the checks",
        "available" if mine else "it is not listed",
        "set CARREL_AGENT_INSTANCE_DOCTOR=true; the doctor's token needs the permission carrel:doctor",
    )
    for service in SERVICES:
        await _service(world, check, service)


async def what_is_missing(urls: Sequence[str], services: Services, check: Check) -> None:
    """The part of it that needs no user: who is not ready.

    Raises:
        UnavailableError: A gateway cannot be reached.
    """
    for url in urls:
        async with User("", {}, [url], "") as nobody:
            await _gateway_ready(nobody, check, url)
    for service in SERVICES:
        _ = await _service_ready(services, check, service)


async def _gateway_ready(user: User, check: Check, url: str) -> None:
    ready = await user.get("/readyz")
    advice = "see what /readyz names as failing, and that process's log"
    missing = ready.json.get("failing")
    _ = check.expect(ready.status == 200, f"the gateway {url} is ready", missing or ready, advice)


async def _gateway(world: World, check: Check, url: str) -> None:
    user = User(world.pair.a.user_id, world.pair.a.headers, [url], world.pair.a.prefix)
    async with user:
        await _gateway_ready(user, check, url)
        version = str((await user.get("/")).json.get("version", ""))
        _ = check.expect(compatible(version, world.version), f"the version of {url} fits", version, _UPGRADE)


async def _service_ready(services: Services, check: Check, service: str) -> bool:
    for address in services.addresses[service]:
        wrong = await services.ready(service, address)
        advice = f"start {service}, or correct CARREL_DOCTOR_{service.upper()}; its log says what it waits for"
        if not check.expect(not wrong, f"{service} at {address} is ready", wrong or "SERVING", advice):
            return False
    return True


async def _service(world: World, check: Check, service: str) -> None:
    addresses = world.services.addresses[service]
    if not await _service_ready(world.services, check, service):
        return
    try:
        found = await world.services.statistics(service)
    except SkipCheck as skipped:
        check.skip(f"{service}'s state and version", str(skipped))
        return
    for address, told in zip(addresses, found, strict=True):
        version = told.contract.version
        if version:
            _ = check.expect(compatible(version, world.version), f"the version of {service} fits", version, _UPGRADE)
        else:
            check.skip(f"the version of {service} fits", "it is of a release that does not tell its version")
        if service == "bridge":
            state = bridge_pb2.IntegrationState.Name(told.state).removeprefix("INTEGRATION_STATE_")
            advice = "look at the event log's store: " + (told.last_error or "the bridge's log says what fails")
            _ = check.expect(state == "ACTIVE", f"the integration state of {address}", state, advice)


def compatible(theirs: str, ours: str) -> bool:
    """Whether a part of this version may work with this command: the same major version, one minor version apart."""
    one, two = _VERSION.match(theirs), _VERSION.match(ours)
    if one is None or two is None:
        return False
    return one[1] == two[1] and abs(int(one[2]) - int(two[2])) <= 1


async def backward_compatibility(world: World, check: Check) -> None:
    """A client of the documents' interface, which knows nothing newer, is served as ever."""
    await _rest(world, check)
    await _only_reads(world, check)
    await _old_frames(world, check)


async def _rest(world: World, check: Check) -> None:
    user = world.pair.a
    thread = user.new_thread()
    answer = await world.run(user, thread=thread, events=1)
    wrong = _misfits(answer.json, _EXECUTED)
    _ = check.expect(
        answer.status == 200 and not wrong and answer.json["status"] == "SUCCEEDED",
        "POST /api/agents/execute waits and answers with the documents' fields",
        wrong or answer,
        _CLIENTS,
    )
    run_id = str(answer.json.get("run_id", ""))
    one, many = await user.get(f"/api/agents/status/{run_id}"), await user.get("/api/agents/status")
    listed = [run.get("run_id") for run in many.json.get("runs", [])]
    what = "GET /api/agents/status tells of it, alone and in the list"
    _ = check.expect(one.json.get("run_id") == run_id and run_id in listed, what, f"{one}, {many}", _CLIENTS)
    unknown = await user.execute("no_such_agent_here", "hello", {})
    wrong = _misfits(unknown.json.get("error") or {}, {"code": str, "status": str, "message": str, "retryable": bool})
    what = "an error is an object with code, status, message and retryable"
    _ = check.expect(unknown.status == 404 and not wrong, what, wrong or unknown, _CLIENTS)


async def _only_reads(world: World, check: Check) -> None:
    """A socket at /ws/{user_id} with a thread-id header, whose client never sends a word."""
    user = world.pair.a
    thread, other = user.new_thread(), user.new_thread()
    async with user.socket(f"/ws/{user.user_id}", thread_id=thread) as socket:
        _ = await socket.wait(lambda s: s.controls("connected"), RUN_S)
        good = await world.run(user, thread=thread, events=1)
        bad = await world.run(user, thread=thread, fail=True)
        _ = await world.run(user, thread=other)
        whole = await socket.run_over(str(bad.json.get("run_id", "")), RUN_S)
        events = list(socket.events)
    kinds = {event["event_type"] for event in events}
    missing = [kind for kind in _KINDS if kind not in kinds]
    what = "a client that only reads gets the six events by their names"
    _ = check.expect(whole and not missing, what, f"missing: {', '.join(missing)}" if missing else good, _CLIENTS)
    misfits = sorted({problem for event in events for problem in _misfits(event, _EVENT)})
    _ = check.expect(not misfits, "every event has the documents' fields", misfits or f"{len(events)} events", _CLIENTS)
    # Whether it has another user's events is for the checks of isolation to say.
    threads = {event.get("thread_id") for event in events if event.get("user_id") == user.user_id}
    _ = check.expect(threads <= {thread}, "the thread-id header keeps other threads out", threads, _CLIENTS)


async def _old_frames(world: World, check: Check) -> None:
    """The frames of the first release: no options, one object per event."""
    user = world.pair.b
    async with user.socket() as socket:
        _ = await socket.wait(lambda s: s.controls("connected"), RUN_S)
        await socket.send({"type": "ping"})
        ponged = await socket.wait(lambda s: s.controls("pong"), RUN_S)
        _ = check.expect(ponged, "ping is answered by pong", "", _CLIENTS)
        frame = {"message": "hello", "agent_name": DOCTOR_AGENT, "params": {"hold": 15}, "client_ref": "doctor-old"}
        await socket.send({"type": "agent_execute", "thread_id": user.new_thread(), **frame})
        _ = await socket.wait(lambda s: s.controls("run_accepted") or s.controls("error"), RUN_S)
        accepted = (socket.controls("run_accepted") or [{}])[0]
        run_id = accepted.get("run_id", "")
        _ = check.expect(bool(run_id), "agent_execute is answered by run_accepted", socket.controls("error"), _CLIENTS)
        await socket.send({"type": "agent_cancel", "run_id": run_id})
        over = await socket.run_over(run_id, RUN_S)
        last = next((e for e in socket.events if e["event_type"] == "run_completed"), {})
        status = last.get("data", {}).get("status")
        _ = check.expect(over and status == "CANCELLED", "agent_cancel ends the run", status, _CLIENTS)
        batched = any("events" in frame for frame in socket.frames)
        _ = check.expect(not batched, "nobody gets batches who did not ask for them", "", _CLIENTS)


def _misfits(found: Answer | Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Which fields are missing or of another kind."""
    values = found.json if isinstance(found, Answer) else found
    return [
        f"{name} is {type(values[name]).__name__}" if name in values else f"{name} is missing"
        for name, kind in wanted.items()
        if not isinstance(values.get(name), kind)
    ]

"""Every check can fail: a stack with one planted fault fails the check that is there for it, and no other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import pytest
from grpc import aio

from carrel.cli.doctor.access import Access
from carrel.cli.doctor.report import Report
from carrel.client.http import GatewayHttp
from carrel.errors import CarrelError
from carrel.v1 import agent_instance_pb2, bridge_pb2
from tests.conftest import Eventually
from tests.doctor.conftest import Examine
from tests.support.faulty_gateway import Asked, Fault, Json, changed, faulty_gateway
from tests.support.stack import RunningStack

pytestmark = pytest.mark.slow

_AT_ONCE: Final = 7


def _other(user: str) -> str:
    return f"{user[:-1]}{'b' if user.endswith('a') else 'a'}"


def _another_version(asked: Asked, status: int, body: bytes, memory: Json) -> tuple[int, bytes]:
    return status, changed(body, lambda b: b | {"version": "7.0.0"}) if asked.path == "/" else body


def _one_is_not_ready(asked: Asked, status: int, body: bytes, memory: Json) -> tuple[int, bytes]:
    return (503, b'{"failing": ["bridge"]}') if asked.path == "/readyz" else (status, body)


def _asks_as_owner(asked: Asked, memory: Json) -> None:
    """Whoever knows a run's id is served it: what its maker started is remembered, and asked for in their name."""
    owner = next((user for run, user in memory.items() if f"/api/runs/{run}/artifacts/" in asked.path), None)
    if owner is not None:
        asked.headers["Carrel-Doctor-User"] = owner


def _remembers_owner(asked: Asked, status: int, body: bytes, memory: Json) -> tuple[int, bytes]:
    if asked.path == "/api/agents/execute" and status == 200:
        memory[json.loads(body)["run_id"]] = asked.user
    return status, body


def _thread_shows_others(asked: Asked, status: int, body: bytes, memory: Json) -> tuple[int, bytes]:
    if asked.path.endswith("/messages") and status == 200:
        said = json.loads(body)["messages"]
        memory.setdefault(asked.user, []).extend(said)
        foreign = memory.get(_other(asked.user), [])
        return status, changed(body, lambda b: b | {"messages": said + foreign})
    return status, body


def _stream_leaks(user: str, line: bytes, memory: Json) -> list[bytes]:
    """The second user to read the log is given the first one's lines, too."""
    memory.setdefault(user, []).append(line)
    foreign = memory.pop(_other(user), []) if line == b"\n" else []
    return [line, *foreign]


def _socket_leaks(user: str, frame: Json, memory: Json) -> list[Json]:
    """Thoughts of one user are sent to the other's sockets as well."""
    shared = memory["shared"]
    if frame.get("event_type") == "agent_thinking":
        shared[user] = frame
    foreign = shared.get(_other(user)) if frame.get("event_type") == "agent_completed" else None
    return [frame, foreign] if foreign else [frame]


def _repeats_after_resume(user: str, frame: Json, memory: Json) -> list[Json]:
    memory["connected"] = memory.get("connected", 0) + (frame.get("type") == "connected")
    return [frame, frame] if memory["connected"] > 1 and "event_type" in frame else [frame]


def _loses_after_resume(user: str, frame: Json, memory: Json) -> list[Json]:
    memory["connected"] = memory.get("connected", 0) + (frame.get("type") == "connected")
    if memory["connected"] > 1 and "event_type" in frame and not memory.get("lost"):
        memory["lost"] = True
        return []
    return [frame]


def _any_origin(asked: Asked, memory: Json) -> None:
    _ = asked.headers.pop("Origin", None)


def _no_limit(asked: Asked, memory: Json) -> None:
    """Asynchronous requests of a user beyond the second are made by somebody else, who has room."""
    if asked.path == "/api/agents/execute" and "Prefer" in asked.headers and asked.user.endswith("-a"):
        memory["asked"] = memory.get("asked", 0) + 1
        if memory["asked"] == 3:
            asked.headers["Carrel-Doctor-User"] = "carrel-doctor-spare-a"


def _untyped_limit(asked: Asked, status: int, body: bytes, memory: Json) -> tuple[int, bytes]:
    return (500, b'{"error": {"code": "INTERNAL", "message": "no"}}') if status == 429 else (status, body)


def _field_renamed(asked: Asked, status: int, body: bytes, memory: Json) -> tuple[int, bytes]:
    if asked.path == "/api/agents/execute" and status == 200:
        return status, changed(body, lambda b: {"took": b.pop("execution_time"), **b})
    return status, body


def _event_renamed(user: str, frame: Json, memory: Json) -> list[Json]:
    return [frame | {"event_type": "tool_done"}] if frame.get("event_type") == "tool_completed" else [frame]


_GATEWAYS: Final[Mapping[str, tuple[Callable[[], Fault], set[str]]]] = {
    "version": (lambda: Fault(answer=_another_version), {"factories_configured"}),
    "notready": (lambda: Fault(answer=_one_is_not_ready), {"factories_configured"}),
    "artifact": (lambda: Fault(ask=_asks_as_owner, answer=_remembers_owner), {"user_isolation"}),
    "thread": (lambda: Fault(answer=_thread_shows_others), {"user_isolation"}),
    "stream": (lambda: Fault(line=_stream_leaks), {"user_isolation"}),
    # Sockets are looked at by both.
    "socket": (lambda: Fault(frame=_socket_leaks), {"user_isolation", "websocket_isolation"}),
    "repeat": (lambda: Fault(frame=_repeats_after_resume), {"websocket_isolation"}),
    "loss": (lambda: Fault(frame=_loses_after_resume), {"websocket_isolation"}),
    "origin": (lambda: Fault(ask=_any_origin), {"websocket_isolation"}),
    "limit": (lambda: Fault(ask=_no_limit), {"concurrent_execution"}),
    "untyped": (lambda: Fault(answer=_untyped_limit), {"concurrent_execution"}),
    "field": (lambda: Fault(answer=_field_renamed), {"backward_compatibility"}),
    "event": (lambda: Fault(frame=_event_renamed), {"backward_compatibility"}),
}


def _failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if check.status == "fail"}


def _told(report: Report) -> str:
    steps = [(c.name, s.what, s.evidence) for c in report.checks for s in c.steps if s.status == "fail"]
    return json.dumps([steps, report.not_cleaned], indent=1)


@pytest.mark.timeout(150)
async def test_each_fault_of_a_gateway_fails_its_check_and_no_other(stack: RunningStack, examined: Examine) -> None:
    room = asyncio.Semaphore(_AT_ONCE)

    async def examine(name: str, fault: Fault) -> Report:
        async with room, faulty_gateway(stack.url, fault) as url:
            headers = _service_headers(stack)
            return await examined(name, urls=[url], headers=headers)

    made = {name: fault() for name, (fault, _) in _GATEWAYS.items()}
    reports = dict(zip(made, await asyncio.gather(*(examine(*item) for item in made.items())), strict=True))
    await _end_runs_of(stack, "carrel-doctor-spare-a")
    found = {name: _failed(report) for name, report in reports.items()}
    wanted = {name: checks for name, (_, checks) in _GATEWAYS.items()}
    assert found == wanted, "\n".join(f"{n}: {_told(r)}" for n, r in reports.items() if found[n] != wanted[n])
    assert all(report.exit_code == 1 for report in reports.values())
    advised = [check.to_json()["advice"] for report in reports.values() for check in report.checks]
    assert sum(bool(advice) for advice in advised) == sum(map(len, wanted.values()))


async def _end_runs_of(stack: RunningStack, user: str) -> None:
    """Of somebody whom a fault has given a run that no examination knows of."""
    async with GatewayHttp(stack.url, stack.token(user)) as http:
        for thread in (await http.get("/api/threads"))["threads"]:
            if thread["unended_run_id"]:
                _ = await http.cancel(thread["unended_run_id"])


def _service_headers(stack: RunningStack) -> Callable[[str], Mapping[str, str]]:
    token = stack.token("a-service", permissions=["carrel:doctor"])
    return lambda user: {"Authorization": f"Bearer {token}", "Carrel-Doctor-User": user}


# Faults that show in what services tell operators.


class _Copy(grpc.GenericRpcHandler):
    """Hands unary calls on to a real service; ``change`` may alter an answer's bytes."""

    def __init__(self, channel: aio.Channel, change: Callable[[str, bytes], bytes]) -> None:
        self._channel, self._change = channel, change

    def service(self, details: Any) -> Any:
        call: Any = self._channel.unary_unary(details.method)

        async def handle(request: bytes, context: Any) -> bytes:
            return self._change(details.method, await call(request, timeout=5))

        return grpc.unary_unary_rpc_method_handler(handle)


@asynccontextmanager
async def _copy_of(address: str, change: Callable[[str, bytes], bytes]) -> AsyncIterator[str]:
    async with aio.insecure_channel(address) as channel:
        server = aio.server()
        server.add_generic_rpc_handlers((_Copy(channel, change),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0.1)


def _leaks_a_worker() -> Callable[[str, bytes], bytes]:
    asked = 0

    def change(method: str, answer: bytes) -> bytes:
        nonlocal asked
        if not method.endswith("GetPoolStatistics"):
            return answer
        asked += 1
        told = agent_instance_pb2.GetPoolStatisticsResponse.FromString(answer)
        # Seven answers are those of before: one for the setup, six looks at rest.
        told.active += int(asked > 7)
        return told.SerializeToString()

    return change


def _degraded(method: str, answer: bytes) -> bytes:
    if not method.endswith("GetState"):
        return answer
    told = bridge_pb2.GetStateResponse.FromString(answer)
    told.state = bridge_pb2.INTEGRATION_STATE_DEGRADED
    told.last_error = "the disk is full"
    return told.SerializeToString()


async def test_worker_that_is_not_given_back_fails_resource_cleanup(access: Access, examined: Examine) -> None:
    async with _copy_of(access.addresses["agent_instance"][0], _leaks_a_worker()) as copy:
        checks = ("factories_configured", "resource_cleanup")
        report = await examined("leak", checks=checks, addresses={**access.addresses, "agent_instance": [copy]})
    assert _failed(report) == {"resource_cleanup"}, _told(report)
    failed = [step for step in report.checks[1].steps if step.status == "fail"]
    assert failed[0].what == "workers are given back after an end"
    assert "0 before, 1 after 5" in failed[0].evidence


async def test_missing_service_fails_factories_configured_and_the_rest_is_skipped(
    access: Access, examined: Examine, free_port: Callable[[], int]
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    report = await examined("missing", addresses={**access.addresses, "emitter": [nobody]})
    statuses = {check.name: check.status for check in report.checks}
    assert statuses.pop("factories_configured") == "fail"
    assert set(statuses.values()) == {"skipped"}
    assert f"emitter at {nobody}" in _told(report)


def _threads_are_late(asked: Asked, status: int, body: bytes, memory: Json) -> tuple[int, bytes]:
    error = b'{"error": {"code": "DEADLINE", "message": "the call failed with DEADLINE_EXCEEDED"}}'
    return (504, error) if asked.path.startswith("/api/threads") else (status, body)


async def test_service_that_hangs_is_named_though_no_test_users_can_be_had(
    stack: RunningStack, access: Access, examined: Examine, free_port: Callable[[], int]
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    async with faulty_gateway(stack.url, Fault(answer=_threads_are_late)) as url:
        report = await examined("hangs", urls=[url], addresses={**access.addresses, "execution": [nobody]})
        with pytest.raises(CarrelError, match="DEADLINE_EXCEEDED"):
            await examined("late", urls=[url])
    assert report.exit_code == 1
    statuses = {check.name: check.status for check in report.checks}
    assert statuses.pop("factories_configured") == "fail"
    assert list(statuses.values()) == ["skipped"] * 5
    assert report.checks[0].to_json()["advice"].startswith("start execution")


async def test_degraded_bridge_fails_factories_configured(access: Access, examined: Examine) -> None:
    async with _copy_of(access.addresses["bridge"][0], _degraded) as copy:
        checks = ("factories_configured",)
        report = await examined("degraded", checks=checks, addresses={**access.addresses, "bridge": [copy]})
    assert _failed(report) == {"factories_configured"}
    assert "the disk is full" in report.checks[0].to_json()["advice"]


async def test_key_of_the_gateway_that_services_do_not_know_is_a_finding(
    stack: RunningStack, examined: Examine, eventually: Eventually
) -> None:
    whole = stack.state.jwks.read_text(encoding="utf-8")
    listed = json.loads(whole)["keys"]
    others = [key for key in listed if key.get("iss") != "gateway"]

    async def answers(code: str) -> bool:
        try:
            async with stack.http("somebody") as http:
                await http.get("/api/threads")
        except CarrelError as error:
            return error.code == code
        return not code

    stack.state.jwks.write_text(json.dumps({"keys": others}), encoding="utf-8")
    try:
        await eventually(lambda: answers("TICKET"), within=10)
        report = await examined("unknown-key")
    finally:
        stack.state.jwks.write_text(whole, encoding="utf-8")
        await eventually(lambda: answers(""), within=10)
    (kid,) = (key["kid"] for key in listed if key not in others)
    assert _failed(report) == {"factories_configured"}
    assert f"the services know the key {kid}" in _told(report)
    assert "tickets.jwks.json" in report.to_json()["checks"][0]["advice"]

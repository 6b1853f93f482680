"""Bound runs at the gateway: kept for as long as their connection or request lasts, no longer."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from carrel.errors import CarrelError, TicketExpiredError
from tests.conftest import Eventually
from tests.unit.gateway.harness import Gateway, Socket, gateway, token

EXECUTE = "/api/agents/execute"


def _headers(user: str = "alice") -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


async def _bound(g: Gateway, socket: Socket, eventually: Eventually, **more: Any) -> str:
    await socket.send(type="agent_execute", message="m", bound=True, **more)
    run_id = str((await socket.control("run_accepted"))["run_id"])
    await eventually(lambda: g.execution.kept.get(run_id))
    return run_id


async def test_a_bound_run_ends_with_its_connection_and_no_other_does(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        other, _ = await g.ready()
        run_id = await _bound(g, socket, eventually)
        hers = await _bound(g, other, eventually)
        await socket.send(type="agent_execute", message="m", bound=False)
        free = (await socket.control("run_accepted"))["run_id"]
        await socket.ws.close()
        await eventually(lambda: g.execution.runs["alice", run_id].state == 7)
        assert {g.execution.runs["alice", name].state for name in (hers, free)} == {2}
        await eventually(lambda: g.execution.watchers == 1)


async def test_a_cut_connection_ends_it_too(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        async with aiohttp.ClientSession() as session:
            socket = Socket(await session.ws_connect(g.url + "/ws", headers=_headers()))
            await socket.control("connected")
            run_id = await _bound(g, socket, eventually)
            connection = socket.ws._response.connection
            assert connection is not None
            assert connection.transport is not None
            # Without a good-bye.
            connection.transport.abort()
        await eventually(lambda: g.execution.runs["alice", run_id].state == 7)


async def test_the_stream_ends_with_the_run(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        run_id = await _bound(g, socket, eventually)
        g.execution.finish("alice", run_id)
        await eventually(lambda: g.execution.watchers == 0)
        assert g.execution.runs["alice", run_id].state == 5


async def test_a_bound_run_is_kept_while_it_waits_for_an_answer(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        run_id = await _bound(g, socket, eventually)
        g.execution.ask("alice", run_id)
        await socket.send(type="ping")
        await socket.control("pong")
        assert g.execution.kept[run_id] == 1
        await socket.send(type="input_provide", run_id=run_id, input_id="input-1", value=True)
        assert (await socket.control("input_accepted"))["status"] == "QUEUED"
        assert g.execution.kept[run_id] == 1


@pytest.mark.parametrize("error", [None, TicketExpiredError("the ticket has expired")], ids=["restart", "ticket's end"])
async def test_the_stream_is_opened_again_after_execution_s_restart_and_its_ticket_s_end(
    tmp_path: Path, eventually: Eventually, error: CarrelError | None
) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        run_id = await _bound(g, socket, eventually)
        g.execution.break_watches(error)
        await eventually(lambda: g.execution.kept[run_id] == 0)
        await eventually(lambda: g.execution.kept[run_id] == 1, within=5)
        await socket.ws.close()
        await eventually(lambda: g.execution.runs["alice", run_id].state == 7)


async def test_a_connection_has_a_bounded_number_of_bound_runs(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        runs = [await _bound(g, socket, eventually) for _ in range(16)]
        await socket.send(type="agent_execute", message="m", bound=True, client_ref="one-more")
        error = await socket.control("error")
        assert (error["code"], error["client_ref"]) == ("BOUND_RUNS_LIMIT", "one-more")
        assert error["details"] == {"limit": "max_bound_runs_per_connection", "limit_value": 16, "use": 16}
        assert len(g.execution.requests) == 16
        g.execution.finish("alice", runs[0])
        await eventually(lambda: g.execution.watchers == 15)
        await _bound(g, socket, eventually)


async def test_a_request_sent_twice_is_kept_once(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        socket, _ = await g.ready()
        run_id = await _bound(g, socket, eventually, client_ref="r1")
        assert await _bound(g, socket, eventually, client_ref="r1") == run_id
        assert g.execution.kept[run_id] == 1


async def test_a_rest_client_that_goes_away_cancels_its_bound_run(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        body = {"message": "m", "bound": True}
        asking = asyncio.create_task(g.http.post(g.url + EXECUTE, json=body, headers=_headers()))
        await eventually(lambda: g.execution.watchers == 1)
        ((_, run_id),) = g.execution.runs
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        await eventually(lambda: g.execution.runs["alice", run_id].state == 7)


async def test_a_rest_client_that_stays_gets_its_bound_run_s_end(tmp_path: Path, eventually: Eventually) -> None:
    async with gateway(tmp_path) as g:
        body = {"message": "m", "bound": True}
        asking = asyncio.create_task(g.http.post(g.url + EXECUTE, json=body, headers=_headers()))
        await eventually(lambda: g.execution.watchers == 1)
        ((_, run_id),) = g.execution.runs
        # It would end with an answer: the question is answered elsewhere.
        g.execution.ask("alice", run_id)
        answer = {"input_id": "input-1", "value": True}
        async with g.http.post(f"{g.url}/api/runs/{run_id}/input", json=answer, headers=_headers()) as response:
            assert response.status == 202
        assert not asking.done()
        g.execution.finish("alice", run_id)
        async with await asking as response:
            assert (response.status, (await response.json())["status"]) == (200, "SUCCEEDED")


async def test_a_bound_request_whose_time_is_up_ends_its_run(tmp_path: Path) -> None:
    async with gateway(tmp_path, execute_wait_seconds=0.2) as g:
        body = {"message": "m", "bound": True}
        async with g.http.post(g.url + EXECUTE, json=body, headers=_headers()) as response:
            assert (response.status, (await response.json())["status"]) == (200, "CANCELLED")


async def test_a_bound_run_cannot_outlive_a_request_that_does_not_wait(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        headers = _headers() | {"Prefer": "respond-async"}
        async with g.http.post(g.url + EXECUTE, json={"message": "m", "bound": True}, headers=headers) as response:
            error = (await response.json())["error"]
            assert (response.status, error["details"]["fields"]) == (400, {"bound": "excludes respond-async"})
        assert not g.execution.requests

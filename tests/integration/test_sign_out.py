"""Signing out: one login ends, at every gateway and at execution, also after a restart; the user's others go on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from carrel.client import GatewayHttp
from carrel.errors import InvalidRequestError, LimitExceededError, NotImplementedYetError, TicketError, TokenError
from carrel.v1 import context_pb2
from carrel.v1 import execution_pb2 as pb
from gateway.app import app
from servicekit.identity.principals import AUDIT_WRITE, OPERATOR_READ
from servicekit.lifecycle import Starter
from services.execution.models import UserKey
from services.execution.store_sql_open import open_sqlite_store
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.execution import World, running_execution, stuck
from tests.support.identity import identity, service_context, session_context
from tests.unit.gateway.harness import Gateway, Socket, gateway, token


@asynccontextmanager
async def two_gateways(tmp_path: Path) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway, and the address of another one with the same execution."""
    async with gateway(tmp_path) as g, app(g.settings, Starter("gateway")) as other:
        await other.start()
        yield g, f"http://{other.address}"


async def open_at(http: aiohttp.ClientSession, url: str, login: str) -> Socket:
    ws = await http.ws_connect(url + "/ws", headers={"Authorization": f"Bearer {login}"})
    socket = Socket(ws)
    assert (await socket.frame())["type"] == "connected"
    return socket


async def test_a_signed_out_token_is_refused_at_both_gateways_and_its_connections_close(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with two_gateways(tmp_path) as (g, other):
        mine, second = token("alice", jti="phone"), token("alice", jti="laptop")
        here, there = await open_at(g.http, g.url, mine), await open_at(g.http, other, mine)
        stays = await open_at(g.http, other, second)
        headers = {"Authorization": f"Bearer {mine}"}
        events = await g.http.get(other + "/api/events", headers=headers)
        async with g.http.post(other + "/api/socket-tokens", headers=headers) as response:
            socket_token = (await response.json())["socket_token"]
        with Awake() as took:
            async with GatewayHttp(g.url, mine) as http:
                assert await http.logout() == 0
                with pytest.raises(TokenError, match="signed out"):
                    await http.get("/api/runs")
            for socket in (here, there):
                frames, code = await socket.closed()
                assert code == 4500, "the client is not to come back"
                assert "signed out" in str(frames)
            assert b"signed out" in await events.content.read()
        assert took.seconds < 5
        async with GatewayHttp(other, mine) as http:
            with pytest.raises(TokenError, match="signed out"):
                await http.get("/api/runs")
        again = Socket(await g.http.ws_connect(other + "/ws"))
        await again.send(type="connect", socket_token=socket_token)
        _, code = await again.closed()
        assert code == 4500
        await stays.send(type="ping")
        assert (await stays.control("pong"))["type"] == "pong"
        await stays.ws.close()


async def test_signing_out_everywhere_ends_all_logins_of_before(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        socket = await g.connect("alice", token=token("alice", jti="laptop"))
        assert (await socket.frame())["type"] == "connected"
        async with GatewayHttp(g.url, token("alice", jti="phone")) as http:
            assert await http.logout(everywhere=True) == 1
        frames, code = await socket.closed(within_s=5)
        assert code == 4500
        assert "revoked" in str(frames)


async def test_a_body_is_checked_and_not_needed_and_a_failure_changes_nothing(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g:
        headers = {"Authorization": f"Bearer {token('alice')}"}
        async with g.http.post(g.url + "/api/logout", headers=headers, json={"every": 1}) as response:
            assert response.status == 400
        g.execution.error = LimitExceededError("too many", limit="signed_out_logins_per_user", limit_value=1, use=1)
        async with g.http.post(g.url + "/api/logout", headers=headers) as response:
            assert response.status == 429
        g.execution.error = None
        async with g.http.get(g.url + "/api/runs", headers=headers) as response:
            assert response.status == 200
        async with g.http.post(g.url + "/api/logout", headers=headers) as response:
            assert await response.json() == {"signed_out": "login", "cancelled_runs": 0}
        async with g.http.post(g.url + "/api/logout", headers=headers) as response:
            assert response.status == 401


async def test_nobody_acts_for_another_without_a_record(tmp_path: Path) -> None:
    async with gateway(tmp_path) as g, GatewayHttp(g.url, token("shop", permissions=["act_as"])) as http:
        await http.post("/api/tickets", {"user_id": "alice"})
        await http.post("/api/tickets", {"scope": "service"})
        await http.post("/api/tickets")
        assert g.execution.audited == [("alice", "ticket.act_as.session", "shop"), ("shop", "ticket.service", "")]
        g.execution.error = LimitExceededError("full", limit="x", limit_value=1, use=1)
        with pytest.raises(LimitExceededError):
            await http.post("/api/tickets", {"user_id": "alice"})


async def test_an_execution_of_the_former_release_keeps_no_record_and_the_gateway_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with gateway(tmp_path) as g, GatewayHttp(g.url, token("shop", permissions=["act_as"])) as http:
        g.execution.error = NotImplementedYetError("RecordAudit is not implemented by this version")
        for _ in range(3):
            assert (await http.post("/api/tickets", {"user_id": "alice"}))["ticket"]
        assert caplog.text.count("not in the audit trail") == 3, "each act"
        assert caplog.text.count("execution is of the former release") == 1, "why, once"


def from_login(user: str, login: str) -> context_pb2.UserExecutionContext:
    ticket = identity().minter.mint_session(user, login=login)
    return context_pb2.UserExecutionContext(user_id=user, ticket=ticket)


async def sign_out(world: World, user: str, login: str, *, ttl_s: int = 600, everywhere: bool = False) -> None:
    request = pb.SignOutRequest(context=from_login(user, login), everywhere=everywhere)
    request.expires_at.FromSeconds(int(time.time()) + ttl_s)
    await world.stub.SignOut(request, timeout=5)


async def test_execution_refuses_tickets_of_a_signed_out_login_and_its_runs_go_on(tmp_path: Path) -> None:
    async with running_execution(tmp_path, scripts={"data": stuck}) as world:
        run = (await world.execute()).run.run_id
        await world.reaches(run, pb.RUN_STATE_RUNNING)
        await sign_out(world, "alice", "phone")
        with pytest.raises(TicketError, match="signed out"):
            await world.stub.GetRun(pb.GetRunRequest(context=from_login("alice", "phone"), run_id=run), timeout=5)
        for context in (from_login("alice", "laptop"), session_context("alice")):
            found = await world.stub.GetRun(pb.GetRunRequest(context=context, run_id=run), timeout=5)
            assert found.run.state == pb.RUN_STATE_RUNNING
        with pytest.raises(InvalidRequestError, match="no login"):
            await world.stub.SignOut(_unnamed(), timeout=5)
        operator = service_context(permissions=(OPERATOR_READ, AUDIT_WRITE))
        record = pb.RecordAuditRequest(context=operator, user_id="alice", action="ticket.act_as", target="shop")
        await world.stub.RecordAudit(record, timeout=5)
        for made_up in ("user.revoke", "login.sign_out", "tool.call", "run.cancel", "audit.export", "encryption"):
            with pytest.raises(InvalidRequestError, match="where they are done"):
                await world.stub.RecordAudit(
                    pb.RecordAuditRequest(context=operator, user_id="alice", action=made_up, target="shop"), timeout=5
                )
        listed = await world.stub.ListAuditRecords(pb.ListAuditRecordsRequest(context=operator, user_id="alice"))
        acts = [(item.action, item.target) for item in listed.records]
        assert acts == [("ticket.act_as", "shop"), ("login.sign_out", "phone")]
        await sign_out(world, "alice", "laptop", everywhere=True)
        ended = await world.stub.GetRun(
            pb.GetRunRequest(context=identity_of_next_second("alice"), run_id=run), timeout=5
        )
        assert ended.run.outcome == pb.RUN_STATE_CANCELLED


def identity_of_next_second(user: str) -> context_pb2.UserExecutionContext:
    """A login of the next second, as far as a ticket says; within the leeway of clocks."""
    import servicekit.identity.tickets as module

    real, module._now = module._now, lambda: time.time() + 1
    try:
        return session_context(user)
    finally:
        module._now = real


def _unnamed() -> pb.SignOutRequest:
    request = pb.SignOutRequest(context=session_context("alice"))
    request.expires_at.FromSeconds(int(time.time()) + 600)
    return request


async def test_a_signed_out_login_is_remembered_over_a_restart_and_listed_by_pages(tmp_path: Path) -> None:
    async with running_execution(tmp_path) as world:
        await sign_out(world, "alice", "phone")
        await sign_out(world, "bob", "old", ttl_s=-10)
    async with running_execution(tmp_path) as world:
        with pytest.raises(TicketError):
            await world.stub.ListRuns(pb.ListRunsRequest(context=from_login("alice", "phone")), timeout=5)
        service = service_context(permissions=(OPERATOR_READ,))
        answer = await world.stub.ListRevocations(pb.ListRevocationsRequest(context=service), timeout=5)
        assert [(item.user_id, item.login) for item in answer.signed_out] == [("alice", "phone")]
        later = pb.ListRevocationsRequest(context=service, after=answer.as_of)
        assert len((await world.stub.ListRevocations(later, timeout=5)).signed_out) == 1, "told again for half a minute"


async def test_too_many_signed_out_logins_are_refused_and_ended_ones_make_room(tmp_path: Path) -> None:
    store = await open_sqlite_store(tmp_path / "runs.sqlite3", migrate=True)
    try:
        alice, far = UserKey("alice"), store.now() + 3_600_000_000
        for number in range(1000):
            await store.sign_out(alice, f"login-{number}", far if number else store.now() + 200_000)
        seen: list[str] = []
        page = await store.signed_out(0, 300, None)
        seen += [item.login for item in page.items]
        while page.next is not None:
            page = await store.signed_out(0, 300, page.next)
            seen += [item.login for item in page.items]
        assert len(set(seen)) == len(seen) >= 999
        if len(seen) == 999:
            await store.sign_out(alice, "in the room of the one that has ended", far)
        with pytest.raises(LimitExceededError) as caught:
            await store.sign_out(alice, "too many", far)
        assert caught.value.details["limit"] == "signed_out_logins_per_user"
        await store.sign_out(UserKey("bob"), "another", far)
    finally:
        await store.close()

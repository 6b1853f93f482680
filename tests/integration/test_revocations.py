"""A revoked user: what they have begun ends, what was issued before opens nothing, and a new login is a good one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from carrel.errors import InvalidRequestError, PermissionDeniedError, TicketError, UnknownArtifactError
from carrel.v1 import execution_pb2 as pb
from servicekit.identity.principals import OPERATOR_READ, OPERATOR_REVOKE
from servicekit.rpc.channel import responses
from services.execution.domain.revocations import RevokedUsers
from services.execution.models import UserKey
from services.execution.store_sql_open import open_sqlite_store
from tests.conftest import Eventually
from tests.contract.run_support import admission
from tests.support.execution import running_execution, stuck
from tests.support.identity import service_context, session_context
from tests.unit.gateway.harness import gateway, token

OPERATOR = (OPERATOR_READ, OPERATOR_REVOKE)


async def test_a_revoked_users_runs_end_and_tickets_of_before_are_refused(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with running_execution(tmp_path, scripts={"data": stuck}) as world:
        mine = (await world.execute()).run.run_id
        other = (await world.execute(user="bob")).run.run_id
        await world.reaches(mine, pb.RUN_STATE_RUNNING)
        old, bobs = session_context("alice"), session_context("bob")
        request = pb.RevokeUserRequest(context=service_context(permissions=OPERATOR), user_id="alice", reason="left")
        answer = await world.stub.RevokeUser(request, timeout=5)
        assert answer.cancelled_runs == 1
        with pytest.raises(TicketError, match="revoked"):
            await world.stub.GetRun(pb.GetRunRequest(context=old, run_id=mine), timeout=5)
        assert (await world.stub.GetRun(pb.GetRunRequest(context=bobs, run_id=other), timeout=5)).run.run_id == other

        async def let_in_again() -> bool:
            try:
                run = (await world.stub.GetRun(pb.GetRunRequest(context=session_context("alice"), run_id=mine))).run
            except TicketError:  # of the same second still
                return False
            assert "the user was revoked: left" in run.error.message
            return bool(run.outcome == pb.RUN_STATE_CANCELLED)

        await eventually(let_in_again)
        listed = pb.ListRevocationsRequest(context=service_context(permissions=OPERATOR))
        (revocation,) = (await world.stub.ListRevocations(listed, timeout=5)).revocations
        assert (revocation.user_id, revocation.not_before) == ("alice", answer.not_before)


async def test_reading_is_not_enough_to_revoke(tmp_path: Path) -> None:
    async with running_execution(tmp_path) as world:
        context = service_context(permissions=(OPERATOR_READ,))
        with pytest.raises(PermissionDeniedError):
            await world.stub.RevokeUser(pb.RevokeUserRequest(context=context, user_id="alice"), timeout=5)


async def test_odd_reasons_times_and_names_are_taken_or_refused_and_break_nothing(tmp_path: Path) -> None:
    async with running_execution(tmp_path) as world:
        service = service_context(permissions=OPERATOR)
        await world.stub.RevokeUser(pb.RevokeUserRequest(context=service, user_id="carol", reason="a\0b"), timeout=5)
        for seconds, wanted in ((2**62, "a day at most"), (-(2**62), None)):
            claim = pb.ClaimOnceRequest(context=service, name="n")
            claim.expires_at.seconds = seconds
            if wanted is None:
                assert not (await world.stub.ClaimOnce(claim, timeout=5)).first
            else:
                with pytest.raises(InvalidRequestError, match=wanted):
                    await world.stub.ClaimOnce(claim, timeout=5)
        run = (await world.execute()).run.run_id
        asked = pb.GetArtifactRequest(context=session_context("alice"), run_id=run, name="a\0b")
        with pytest.raises(UnknownArtifactError):
            _ = [piece async for piece in responses(world.stub.GetArtifact(asked))]


async def test_another_replica_learns_of_it_from_the_store_and_ends_what_it_has_begun(
    tmp_path: Path, eventually: Eventually
) -> None:
    ended: list[tuple[str, str]] = []

    class Ender:
        async def cancel(self, user: UserKey, run_id: str, reason: str) -> None:
            ended.append((user, run_id))

    store = await open_sqlite_store(tmp_path / "runs.sqlite3", migrate=True, engine_timeout_s=300)
    here, there = RevokedUsers(store, Ender()), RevokedUsers(store, Ender())  # type: ignore[arg-type]
    try:
        for replica in (here, there):
            await replica.look()
        await store.admit(admission("run-1"))
        _, count = await here.revoke(UserKey("alice"), "")
        assert count == 1
        assert not there.known
        await there.look()
        assert there.known == here.known
        # A run that the other replica admitted in between ends with those of before.
        assert ended == [("alice", "run-1")] * 2
        await there.look()
        assert len(ended) == 2, "the same revocation is acted on once"
    finally:
        await store.close()


async def test_a_gateway_closes_a_revoked_users_sockets_and_takes_a_new_login_only(
    tmp_path: Path, eventually: Eventually
) -> None:
    async with gateway(tmp_path) as g:
        old = token("alice")
        mine, bobs = await g.connect("alice", token=old), await g.connect("bob")
        for socket in (mine, bobs):
            assert (await socket.frame())["type"] == "connected"
        async with g.http.post(g.url + "/api/socket-tokens", headers={"Authorization": f"Bearer {old}"}) as response:
            socket_token = (await response.json())["socket_token"]
        g.execution.revoke("alice")
        frames, code = await mine.closed(within_s=5)
        assert code == 4500
        assert any("revoked" in str(frame) for frame in frames)
        async with g.http.get(g.url + "/api/runs", headers={"Authorization": f"Bearer {old}"}) as response:
            assert response.status == 401
        again = await g.open()
        await again.send(type="connect", socket_token=socket_token)
        _, code = await again.closed()
        assert code == 4500
        await asyncio.sleep(1)
        fresh = await g.connect("alice")
        assert (await fresh.frame())["type"] == "connected"
        await bobs.send(type="ping")
        assert (await bobs.frame())["type"] == "pong"

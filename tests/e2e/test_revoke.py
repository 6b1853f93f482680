"""``carrel revoke`` on a running stack: the user is out, at once and everywhere, and nobody else notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from carrel.client import SocketClient
from carrel.errors import CarrelError, TokenError
from carrel.ids import new_id
from tests.support.stack import RunningStack, run_carrel


async def _read_to_the_end(client: SocketClient) -> None:
    async for _ in client.events():
        pass


async def test_a_revoked_user_is_out_and_may_log_in_anew(shared_stack: RunningStack, tmp_path: Path) -> None:
    user, other = new_id("user"), new_id("user")
    old = shared_stack.token(user)
    async with SocketClient(shared_stack.url, old) as mine, shared_stack.client(other) as others:
        run = await mine.execute("Write a report")
        revoked = await asyncio.to_thread(
            run_carrel, "revoke", user, "--reason", "left", "--state", str(shared_stack.state.root), cwd=tmp_path
        )
        assert revoked.returncode == 0, revoked.stderr
        assert revoked.stdout.startswith(f"{user} is out: ")
        with pytest.raises(CarrelError) as caught:
            await asyncio.wait_for(_read_to_the_end(mine), 10)
        assert caught.value.code == TokenError.code
        await others.ping()
    with pytest.raises(TokenError):
        async with SocketClient(shared_stack.url, old):
            pass
    await asyncio.sleep(1)  # a login of the same second is refused, too
    async with shared_stack.http(user) as http:
        found = await http.get(f"/api/runs/{run.run_id}")
        assert found["status"] in {"CANCELLED", "FINISHING", "SUCCEEDED"}


def test_revoke_needs_a_stack(tmp_path: Path) -> None:
    revoked = run_carrel("revoke", "alice", "--state", str(tmp_path / "none"), cwd=tmp_path)
    assert revoked.returncode == 1
    assert "no stack runs" in revoked.stderr

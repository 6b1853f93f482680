"""Signing out on a stack with two gateways: out at both, over restarts; its run goes on; what is stored is sealed."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from carrel.client import GatewayHttp, SocketClient
from carrel.errors import CarrelError, TokenError
from servicekit.sealing_keys import add_key
from tests.conftest import Eventually
from tests.support.stack import RunningStack, run_carrel, running_stack

CANARY = "canary-of-this-user"
_SLOW = Path(__file__).parent / "slow_agents.py"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[RunningStack]:
    keys = tmp_path / "encryption.json"
    add_key(keys, "k1")
    sealed = {f"CARREL_{service}_ENCRYPTION__KEY_FILE": str(keys) for service in ("EXECUTION", "BRIDGE")}
    with running_stack(tmp_path, agents=[str(_SLOW)], replicas={"gateway": 2}, environment=sealed) as running:
        yield running


async def _read_to_the_end(client: SocketClient) -> None:
    async for _ in client.events():
        pass


async def _refused(url: str, token: str) -> bool:
    async with GatewayHttp(url, token) as http:
        try:
            await http.get("/api/runs")
        except TokenError:
            return True
        except CarrelError:  # it has just been started again
            return False
    return False


@pytest.mark.timeout(120)
async def test_a_signed_out_login_is_out_everywhere_and_its_run_goes_on(
    stack: RunningStack, tmp_path: Path, eventually: Eventually
) -> None:
    here, there = stack.urls
    mine, other = stack.token("ann"), stack.token("ann", lifetime_s=1800)
    async with SocketClient(there, mine) as socket, GatewayHttp(here, mine) as http, GatewayHttp(here, other) as second:
        run = await socket.execute(CANARY, params={"steps": 30}, pipeline=["slow"])
        await http.logout()
        with pytest.raises(CarrelError) as caught:
            await asyncio.wait_for(_read_to_the_end(socket), 5)
        assert caught.value.code == TokenError.code
        assert await _refused(here, mine)
        assert await _refused(there, mine)

        async def finished() -> bool:
            return bool((await second.run(run.run_id))["status"] == "SUCCEEDED")

        await eventually(finished, within=20)
        for service in ("execution", *stack.copies("gateway")):
            pid = stack.kill(service)
            await eventually(partial(stack.restarted, service, pid), within=20)
        for url in (here, there):
            await eventually(partial(_refused, url, mine), within=10)
        assert (await second.run(run.run_id))["status"] == "SUCCEEDED"
    lying = b"".join(path.read_bytes() for path in stack.state.root.rglob("*") if path.is_file())
    assert CANARY.encode() not in lying
    assert b"run_completed" not in lying, "nor any event"
    output = tmp_path / "audit.jsonl"
    now = dt.datetime.now(dt.UTC).isoformat()
    exported = await asyncio.to_thread(
        run_carrel, "audit", "export", str(output), "--until", now, "--state", str(stack.state.root), cwd=tmp_path
    )
    assert exported.returncode == 0, exported.stderr
    acts = {json.loads(line).get("record", {}).get("action") for line in output.read_text().splitlines()}
    assert {"login.sign_out", "encryption.key_added"} <= acts
    verified = await asyncio.to_thread(run_carrel, "audit", "verify", str(output), cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr

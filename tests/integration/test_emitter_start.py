"""The emitter as a process: how it starts, how it refuses to, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from servicekit.delivery import Producer, ProducerStream
from servicekit.identity.keys import SigningKey, generate_key, write_jwks
from servicekit.identity.tickets import TicketMinter
from servicekit.rpc.copies import Copies
from servicekit.rpc.server import RpcServer
from tests.integration.emitter_harness import QUICK, TEXT, Harness

ROOT = Path(__file__).parents[2]


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    key = generate_key()
    (tmp_path / "keys").mkdir(mode=0o700)
    write_jwks(tmp_path / "keys" / "tickets.jwks.json", [key])
    return key


@asynccontextmanager
async def emitter(state: Path, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("CARREL_", "WEBSOCKET_"))}
    environ |= {"CARREL_STATE_DIR": str(state), "CARREL_EMITTER_LISTEN": "127.0.0.1:0", **settings}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "services.emitter", cwd=ROOT, env=environ, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    _, stderr = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, stderr.decode()


async def test_without_a_bridge_it_does_not_start_and_says_what_to_do(tmp_path: Path, key: SigningKey) -> None:
    settings = {"CARREL_EMITTER_BRIDGE": "127.0.0.1:1", "CARREL_DOWNSTREAM_WAIT_SECONDS": "0.5"}
    async with emitter(tmp_path, **settings) as process:
        code, text = await ended(process)
    assert code == 1
    assert "INTEGRATION" in text
    assert "the bridge at 127.0.0.1:1" in text


async def test_every_wrong_setting_is_reported_at_once(tmp_path: Path, key: SigningKey) -> None:
    settings = {
        "WEBSOCKET_DELIVERY_RETRIES": "none",
        "CARREL_EMITTER_QUEUE__USER_BYTES": "1",
        "CARREL_EMITTER_COLOUR": "red",
    }
    async with emitter(tmp_path, **settings) as process:
        code, text = await ended(process)
    assert code == 78
    for name in settings:
        assert name in text


async def test_it_starts_serves_and_ends_in_order_on_sigterm(tmp_path: Path, key: SigningKey) -> None:
    harness = Harness(tmp_path)
    await harness.start_bridge()
    health = await bridge_with_health(harness)
    ready = tmp_path / "ready"
    settings = {"CARREL_EMITTER_BRIDGE": health.address, "CARREL_READY_FILE": str(ready)}
    try:
        async with emitter(tmp_path, **settings) as process:
            for _ in range(1000):
                if ready.exists() or process.returncode is not None:
                    break
                await asyncio.sleep(0.02)
            address = ready.read_text().strip()
            harness.minter = TicketMinter(key, "execution")
            async with (
                Copies(address, "emitter") as emitters,
                ProducerStream.to_emitters(emitters, options=QUICK) as stream,
            ):
                producer = Producer(stream, "r1:0:1", harness.context())
                await producer.emit("agent_thinking", TEXT)
                assert await producer.flush(10) == 1
                process.send_signal(signal.SIGTERM)
                code, text = await ended(process)
                await producer.aclose()
        assert code == 0, text
    finally:
        await health.drain(0)
        await harness.kill_bridge()


async def bridge_with_health(harness: Harness) -> RpcServer:
    """The fake bridge behind a server that also says that it is ready."""
    from carrel.v1.bridge_pb2_grpc import add_BridgeServiceServicer_to_server
    from servicekit.settings import SharedSettings

    server = RpcServer(
        "127.0.0.1:0",
        [(add_BridgeServiceServicer_to_server, harness.bridge, "carrel.v1.BridgeService")],
        harness.verifier,
        SharedSettings(),
    )
    await server.start()
    return server

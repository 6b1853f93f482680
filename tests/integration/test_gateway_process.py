"""The gateway as a process: a start that fails says what is missing, a flood stops nobody, a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from carrel.v1 import execution_pb2_grpc
from services.bridge.store_memory import MemoryEventLog
from tests.conftest import Eventually
from tests.support.awake import Awake
from tests.support.identity import identity
from tests.support.rpc import serving
from tests.unit.gateway.harness import SECRET, Bridge, FakeExecution, token
from tests.unit.gateway.test_wire import frame

ROOT = Path(__file__).resolve().parents[2]


def _keys(folder: Path) -> None:
    identity().write(folder / "keys")
    secret = folder / "keys" / "login.secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)


async def _start(folder: Path, **environment: str) -> asyncio.subprocess.Process:
    names = {
        "CARREL_STATE_DIR": str(folder),
        "CARREL_GATEWAY_LISTEN": "127.0.0.1:0",
        "CARREL_GATEWAY_BRIDGE": "127.0.0.1:1",
        "CARREL_GATEWAY_EXECUTION": "127.0.0.1:1",
        "CARREL_DOWNSTREAM_WAIT_SECONDS": "0.3",
        "CARREL_READY_FILE": str(folder / "ready"),
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "gateway"),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **names, **environment},
        stderr=asyncio.subprocess.PIPE,
    )


async def _failed(folder: Path, **environment: str) -> tuple[int | None, str]:
    process = await _start(folder, **environment)
    _, text = await process.communicate()
    return process.returncode, text.decode()


@asynccontextmanager
async def _upstream(folder: Path) -> AsyncIterator[dict[str, str]]:
    bridge = await Bridge(MemoryEventLog(), folder).start()
    add = execution_pb2_grpc.add_ExecutionServiceServicer_to_server
    try:
        async with serving([(add, FakeExecution(), "carrel.v1.ExecutionService")]) as execution:
            yield {
                "CARREL_GATEWAY_BRIDGE": bridge.address,
                "CARREL_GATEWAY_EXECUTION": execution.address,
                "CARREL_DOWNSTREAM_WAIT_SECONDS": "20",
            }
    finally:
        await bridge.kill()


async def test_without_keys_it_says_which_and_ends_with_78(tmp_path: Path) -> None:
    code, text = await _failed(tmp_path)
    assert code == 78
    assert "CONFIGURATION" in text
    assert "gateway.jwk.json" in text
    assert "Traceback" not in text


async def test_without_a_bridge_it_says_so_and_ends_with_1(tmp_path: Path) -> None:
    _keys(tmp_path)
    code, text = await _failed(tmp_path)
    assert code == 1
    assert "INTEGRATION" in text
    assert "the bridge at 127.0.0.1:1" in text
    assert "Traceback" not in text


async def test_an_unknown_variable_and_a_wrong_value_are_both_named(tmp_path: Path) -> None:
    code, text = await _failed(
        tmp_path, CARREL_GATEWAY_LISTN="x", CARREL_GATEWAY_LIMITS__PER_USER="none", CARREL_ENVIRONMENT="production"
    )
    assert code == 78
    assert "CARREL_GATEWAY_LISTN" in text
    assert "CARREL_GATEWAY_LIMITS__PER_USER" in text


async def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    _keys(tmp_path)
    async with _upstream(tmp_path) as addresses:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            code, text = await _failed(tmp_path, **addresses, CARREL_GATEWAY_LISTEN=address)
    assert code == 1
    assert address in text
    assert "CARREL_GATEWAY_LISTEN" in text


async def test_it_becomes_ready_and_a_signal_ends_it_with_0(tmp_path: Path, eventually: Eventually) -> None:
    _keys(tmp_path)
    async with _upstream(tmp_path) as addresses:
        process = await _start(tmp_path, **addresses)
        await eventually(lambda: (tmp_path / "ready").exists(), within=30)
        process.send_signal(signal.SIGTERM)
        _, text = await process.communicate()
    assert process.returncode == 0
    assert "Traceback" not in text.decode()
    assert SECRET not in text.decode()


FLOODS = {
    "acks": (b"", frame(1, b'{"type":"ack","offset":0}')),
    "pongs": (b"", frame(10)),
    "pings": (b"", frame(9)),
    "empty fragments": (frame(1, fin=False), frame(0, fin=False)),
}


@pytest.mark.parametrize(("first", "flood"), [pytest.param(*parts, id=name) for name, parts in FLOODS.items()])
async def test_whoever_floods_the_gateway_holds_up_nobody_else(
    tmp_path: Path, eventually: Eventually, first: bytes, flood: bytes
) -> None:
    _keys(tmp_path)
    began = time.monotonic()
    with Awake() as awake:
        async with _upstream(tmp_path) as addresses, aiohttp.ClientSession() as http:
            process = await _start(tmp_path, **addresses)
            try:
                await eventually(lambda: (tmp_path / "ready").exists(), within=30)
                port = int((tmp_path / "ready").read_text().rpartition(":")[2])
                bearer = {"Authorization": f"Bearer {token('bob')}"}
                async with http.ws_connect(f"http://127.0.0.1:{port}/ws", headers=bearer) as ws:
                    await ws.receive(timeout=20)
                    # A machine that stands still holds everybody up, and once; a flood that holds up does so each time.
                    longest = [await _longest_wait(ws, port, first, flood)]
                    while longest[-1] >= 1.0 and len(longest) < 3:
                        longest.append(await _longest_wait(ws, port, first, flood))
                assert longest[-1] < 1.0, longest
            finally:
                process.send_signal(signal.SIGTERM)
                _, text = await process.communicate()
    stood_still = time.monotonic() - began - awake.seconds
    assert len(longest) > 1 or stood_still > 0.5 or b"held up" not in text


async def _longest_wait(ws: Any, port: int, first: bytes, flood: bytes) -> float:
    """The longest that somebody else waits for the answer to a ping during a flood; seconds."""
    flooding = asyncio.create_task(asyncio.to_thread(_flood, port, first, flood * ((1 << 20) // len(flood)), 1.5))
    waits = list[float]()
    while not flooding.done():
        began = time.monotonic()
        await ws.send_str('{"type":"ping"}')
        while orjson.loads((await ws.receive(timeout=20)).data)["type"] != "pong":
            pass
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    assert await flooding > 1 << 20, "it was a flood"
    return max(waits)


def _flood(port: int, first: bytes, chunk: bytes, seconds: float) -> int:
    """Send as fast as the gateway reads, taking whatever comes back; how much there was. In a thread of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        raw.sendall(
            b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Authorization: Bearer %b\r\n\r\n" % token("mallory").encode()
        )
        assert b" 101 " in raw.recv(65_536)
        raw.sendall(frame(1, b'{"type":"connect","ack":true}') + first)
        taking = threading.Thread(target=_take_all, args=(raw,))
        taking.start()
        raw.settimeout(seconds)
        until, sent = time.monotonic() + seconds, 0
        try:
            while time.monotonic() < until:
                sent += raw.send(chunk)
        except TimeoutError:
            pass
        finally:
            raw.shutdown(socket.SHUT_RDWR)
            taking.join()
    return sent


def _take_all(raw: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while raw.recv(65_536):
            pass

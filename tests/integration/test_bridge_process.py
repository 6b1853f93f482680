"""The bridge as a process: starts that must fail, an ordered end, and `kill -9` under a publisher and a gateway."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from carrel.v1 import bridge_pb2, events_pb2
from carrel.v1.bridge_pb2_grpc import BridgeServiceStub
from carrel.v1.context_pb2 import UserExecutionContext
from servicekit.identity.keys import generate_key, write_jwks
from servicekit.identity.tickets import TicketMinter
from servicekit.sealing_keys import add_key
from tests.conftest import Eventually
from tests.support.awake import Awake

KEY = generate_key()
MINTER = TicketMinter(KEY, "execution")
ROOT = Path(__file__).resolve().parents[2]
ENDLESS = 1 << 40


class Process:
    """`python -m services.bridge` with a state folder and a port that stay the same."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{port}"
        self._ready = folder / "ready"
        self._process: subprocess.Popen[bytes] | None = None
        write_jwks(folder / "jwks.json", [KEY])

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        self._ready.unlink(missing_ok=True)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "CARREL_STATE_DIR": str(self.folder),
            "CARREL_TICKET_JWKS": str(self.folder / "jwks.json"),
            "CARREL_BRIDGE_LISTEN": self.address,
            "CARREL_READY_FILE": str(self._ready),
            "CARREL_DRAIN_SECONDS": "2",
            **settings,
        }
        command = [sys.executable, "-P", "-m", "services.bridge"]
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        return self._process

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while not self._ready.exists():
                assert self._process is not None
                assert self._process.poll() is None, self.end()
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self.end()

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Wait for the end, after a signal if one is given; the exit code and what was logged."""
        assert self._process is not None
        if number is not None:
            self._process.send_signal(number)
        _, errors = self._process.communicate(timeout=20)
        return self._process.returncode, errors.decode()


@pytest.fixture
async def process(tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[Process]:
    process = Process(tmp_path, free_port())
    yield process
    if process._process is not None and process._process.poll() is None:
        process.kill()


@asynccontextmanager
async def channel_to(process: Process) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.min_reconnect_backoff_ms", 50), ("grpc.initial_reconnect_backoff_ms", 50)]
    options += [("grpc.max_reconnect_backoff_ms", 100), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(process.address, options=options) as channel:
        yield channel


class Publisher:
    """Sends one user's numbers 1 … ``goal``, at most 100 ahead of the acknowledgements, from there after a loss."""

    def __init__(self, user: str) -> None:
        ticket = MINTER.mint_run(user, "t", "r", "q")
        self._context = UserExecutionContext(user_id=user, thread_id="t", run_id="r", request_id="q", ticket=ticket)
        self.user = user
        self.acked = 0
        self.goal = ENDLESS

    async def run(self, channel: grpc.aio.Channel) -> None:
        while self.acked < self.goal:
            call = BridgeServiceStub(channel).Publish(wait_for_ready=True)
            try:
                await self._stream(call)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(0.02)
            finally:
                call.cancel()

    async def _stream(self, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]  # generic in the stubs only
        sent = self.acked
        while self.acked < self.goal:
            while sent < min(self.acked + 100, self.goal):
                last = min(sent + random.randint(1, 9), self.goal)
                await call.write(bridge_pb2.PublishRequest(items=[self._item(sent + 1, last)]))
                sent = last
            response = await call.read()
            if not isinstance(response, bridge_pb2.PublishResponse):
                return
            for ack in response.acks:
                assert not ack.HasField("refusal"), ack
                self.acked = max(self.acked, ack.through)
            await asyncio.sleep(0.002)

    def _item(self, first: int, last: int) -> events_pb2.ProducerEvents:
        events = [
            events_pb2.Event(event_id=f"e{n}", number=n, event_type="agent_thinking", data=b"{}")
            for n in range(first, last + 1)
        ]
        return events_pb2.ProducerEvents(context=self._context, producer_id="r:0:1", events=events)


class Gateway:
    """Attaches, subscribes from its last position, attaches again after a loss."""

    def __init__(self, users: list[str]) -> None:
        self.positions: dict[str, events_pb2.Position | None] = dict.fromkeys(users)
        self.ids: dict[str, list[str]] = {user: [] for user in users}
        self.attached = 0
        self.done = False
        self.resets = 0

    def has_attached(self, times: int) -> bool:
        return self.attached == times

    async def run(self, channel: grpc.aio.Channel) -> None:
        while not self.done:
            call = BridgeServiceStub(channel).Attach(wait_for_ready=True)
            try:
                await self._stream(call)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await asyncio.sleep(0.02)
            finally:
                call.cancel()

    async def _stream(self, call: grpc.aio.StreamStreamCall) -> None:  # type: ignore[type-arg]  # generic in the stubs only
        service = UserExecutionContext(ticket=MINTER.mint_service("gateway"))
        await call.write(bridge_pb2.AttachRequest(context=service, hello=bridge_pb2.AttachHello(gateway_id="g")))
        for user, position in self.positions.items():
            session = UserExecutionContext(user_id=user, ticket=MINTER.mint_session(user))
            subscribe = bridge_pb2.Subscribe(generation=1, position=position)
            await call.write(bridge_pb2.AttachRequest(context=session, subscribe=subscribe))
        self.attached += 1
        while not self.done:
            response = await call.read()
            if not isinstance(response, bridge_pb2.AttachResponse):
                return
            for item in response.items:
                self._take(item)

    def _take(self, item: bridge_pb2.AttachItem) -> None:
        if item.HasField("reset"):
            self.resets += 1
        elif item.HasField("subscribed") and self.positions[item.subscribed.user_id] is None:
            self.positions[item.subscribed.user_id] = item.subscribed.top
        elif item.HasField("entries"):
            user, epoch = item.entries.user_id, item.entries.epoch
            for entry in item.entries.entries:
                self.ids[user].append(entry.event_id)
                assert entry.offset == len(self.ids[user])
                self.positions[user] = events_pb2.Position(epoch=epoch, offset=entry.offset, event_id=entry.event_id)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_kill_9_at_ten_random_moments_loses_and_repeats_nothing(process: Process, eventually: Eventually) -> None:
    users = ["alice", "bob"]
    gateway, publishers = Gateway(users), [Publisher(user) for user in users]
    process.start()
    await process.ready()
    async with channel_to(process) as gateways, channel_to(process) as emitters:
        attached = asyncio.create_task(gateway.run(gateways))
        await eventually(lambda: None not in gateway.positions.values())
        publishing = [asyncio.create_task(publisher.run(emitters)) for publisher in publishers]
        moments = random.Random(7)
        for attachments in range(1, 11):
            await eventually(partial(gateway.has_attached, attachments), within=20)
            # However slow the machine is: so much is under way between two kills.
            await eventually(partial(_acknowledged, publishers, 80 * attachments), within=20)
            await asyncio.sleep(moments.uniform(0, 0.15))
            process.kill()
            process.start()
            await process.ready()
        goals = {publisher.user: publisher.acked + 200 for publisher in publishers}
        for publisher in publishers:
            publisher.goal = goals[publisher.user]
        async with asyncio.timeout(60):
            await asyncio.gather(*publishing)
        await eventually(lambda: all(len(gateway.ids[user]) >= goal for user, goal in goals.items()), within=20)
        attached.cancel()
        await asyncio.wait([attached])
    assert gateway.ids == {user: [f"e{n}" for n in range(1, goal + 1)] for user, goal in goals.items()}
    assert gateway.resets == 0
    assert gateway.attached == 11
    assert min(goals.values()) >= 1000


def _acknowledged(publishers: list[Publisher], count: int) -> bool:
    return all(publisher.acked >= count for publisher in publishers)


async def test_sigterm_ends_within_the_drain_and_health_was_honest(process: Process, eventually: Eventually) -> None:
    process.start()
    await process.ready()
    async with channel_to(process) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("liveness", "readiness", ""):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        gateway = Gateway(["alice"])
        attached = asyncio.create_task(gateway.run(channel))
        await eventually(lambda: gateway.positions["alice"] is not None)
        with Awake() as took:
            code, errors = await asyncio.to_thread(process.end, signal.SIGTERM)
        attached.cancel()
        await asyncio.wait([attached])
    assert code == 0, errors
    assert took.seconds < 2
    assert "Traceback" not in errors


async def test_second_bridge_on_the_same_log_is_refused_with_what_to_do(
    process: Process, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    process.start()
    await process.ready()
    second = Process(tmp_path, free_port())
    second.start(CARREL_READY_FILE=str(tmp_path / "other"))
    code, errors = await asyncio.to_thread(second.end)
    assert code == 1
    assert "in use by another process" in errors
    assert "CARREL_BRIDGE_LOG__URL" in errors
    assert "INTEGRATION" in errors


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        ({"CARREL_TICKET_JWKS": "/nowhere/jwks.json"}, 78, "jwks"),
        ({"CARREL_BRIDGE_LOG__PATH": "/proc/no/log.db"}, 1, "/proc/no"),
        ({"CARREL_BRIDGE_LOG__PATH": "/dev/full/log.db"}, 1, "/dev/full"),
        ({"CARREL_BRIDGE_LOG__SYNCHRONOUS": "OFF"}, 78, "CARREL_BRIDGE_LOG__SYNCHRONOUS"),
        ({"CARREL_BRIDGE_RETENTION__MAX_ENTRIES": "0"}, 78, "CARREL_BRIDGE_RETENTION__MAX_ENTRIES"),
        ({"CARREL_BRIDGE_LISTE": "x"}, 78, "CARREL_BRIDGE_LISTEN"),
        ({"CARREL_BRIDGE_LOG__URL": "redis+sentinel://h:1"}, 78, "the name of the master is missing"),
        (
            {"CARREL_BRIDGE_LOG__URL": "redis://127.0.0.1:1", "CARREL_DOWNSTREAM_WAIT_SECONDS": "0.1"},
            1,
            "cannot be reached",
        ),
        (
            {"CARREL_BRIDGE_LOG__URL": "redis://127.0.0.1:1", "CARREL_BRIDGE_LOG__PASSWORD_FILE": "/nowhere"},
            78,
            "/nowhere cannot be read",
        ),
    ],
)
async def test_start_with_a_wrong_setting_ends_with_what_to_do(
    process: Process, settings: dict[str, str], code: int, says: str
) -> None:
    process.start(**settings)
    ended, errors = await asyncio.to_thread(process.end)
    assert ended == code, errors
    assert says in errors
    assert "to do" in errors


async def test_start_without_a_key_that_the_log_needs_ends_with_what_to_do(process: Process) -> None:
    keys = process.folder / "keys.json"
    kid = add_key(keys)
    process.start(CARREL_BRIDGE_ENCRYPTION__KEY_FILE=str(keys))
    await process.ready()
    assert process.end(signal.SIGTERM)[0] == 0
    process.start()
    code, told = process.end()
    assert code == 1
    assert f"sealed with the key '{kid}', which is not here" in told
    assert "CARREL_BRIDGE_ENCRYPTION__KEY_FILE" in told

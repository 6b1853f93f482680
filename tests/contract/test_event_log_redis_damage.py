"""What damage to one user's keys in Redis means: to that user something honest, to everybody else nothing."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from services.bridge.config_redis import RedisUrl
from services.bridge.models import Append, AppendResult, Refusal, RefusalReason, StoredEvent
from services.bridge.store_redis import RedisEventLog, RedisOptions
from tests.support.redis_servers import RedisServer, single_server

Opener = Callable[[], Awaitable[RedisEventLog]]
FAILED = Refusal(RefusalReason.FAILED, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with single_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"t-{uuid.uuid4().hex}"


@pytest.fixture
async def opener(server: RedisServer, prefix: str) -> AsyncIterator[Opener]:
    async with AsyncExitStack() as stack:

        async def opened() -> RedisEventLog:
            log = await RedisEventLog.open(RedisOptions(RedisUrl.parse(server.url), prefix=prefix))
            stack.push_async_callback(log.close)
            return log

        yield opened


def make(first: int, last: int, *, user: str = "alice", gap: bool = False) -> Append:
    events = tuple(StoredEvent(f"{user}-{n}", b"blob") for n in range(first, last + 1))
    return Append(user, "r", "t", "p", 1, first, events, gap=StoredEvent("gap", b"") if gap else None)


async def put(log: RedisEventLog, *appends: Append) -> list[AppendResult]:
    return await log.append(appends)


async def ids(log: RedisEventLog, user: str) -> list[str]:
    return [entry.event_id for entry in (await log.read(user, 0, 1000)).entries]


def wrong_type(server: RedisServer, key: str) -> None:
    server.call("DEL", key)
    # A stream or a hash of another kind than ours is of no other type, so none of ours is a list.
    server.call("RPUSH", key, "x")


@pytest.mark.parametrize("key", ["s", "r:r"])
async def test_keys_of_a_wrong_type_fail_their_users_appends_alone(
    opener: Opener, server: RedisServer, prefix: str, key: str
) -> None:
    log = await opener()
    users = ("bob", "alice", "carol")
    await put(log, *(make(1, 2, user=user) for user in users))
    wrong_type(server, f"{prefix}:{{alice}}:{key}")
    for n in (3, 4):
        bob, alice, carol = await put(log, *(make(3, n, user=user) for user in users))
        assert (alice.refusal, alice.events) == (FAILED, ())
        assert (bob.first_offset, carol.first_offset, bob.refusal, carol.refusal) == (n, n, None, None)
    # Once the key is out of the way, what the producer could not send is a gap or goes on; nothing is stuck.
    server.call("DEL", f"{prefix}:{{alice}}:{key}")
    (again,) = await put(log, make(3, 4, gap=True))
    assert (again.refusal, again.through) == (None, 4)

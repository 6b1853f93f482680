"""What damage to one user's keys in Redis means: to that user something honest, to everybody else nothing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from carrel.errors import StoreUnavailableError
from services.bridge.config_redis import RedisUrl
from services.bridge.domain.hub import Hub
from services.bridge.domain.reading import ReadQuery, read_events
from services.bridge.models import (
    Append,
    AppendResult,
    Change,
    Entries,
    Page,
    Refusal,
    RefusalReason,
    Reset,
    ResetReason,
    ResumePoint,
    StoredEvent,
)
from services.bridge.store_redis import RedisEventLog, RedisOptions
from tests.conftest import Eventually
from tests.support.needs import unavailable
from tests.support.redis_servers import RedisServer, binaries, single_server

Opener = Callable[[], Awaitable[RedisEventLog]]
FAILED = Refusal(RefusalReason.FAILED, 0)


@pytest.fixture(scope="module", params=["system", "wheel"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Before Redis 7, scripts tell of errors otherwise."""
    if request.param not in binaries():
        reason = f"there is no redis-server of the {request.param}"
        if request.param == "wheel":  # which is not made for every Python
            pytest.skip(reason)
        raise unavailable("redis", reason)
    with single_server(tmp_path_factory.mktemp("redis"), binary=binaries()[request.param]) as server:
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
        await log.sweep()
        assert (alice.refusal, alice.events) == (FAILED, ())
        assert (bob.first_offset, carol.first_offset, bob.refusal, carol.refusal) == (n, n, None, None)
    # Once the key is out of the way, what the producer could not send is a gap or goes on; nothing is stuck.
    server.call("DEL", f"{prefix}:{{alice}}:{key}")
    (again,) = await put(log, make(3, 4, gap=True))
    assert (again.refusal, again.through) == (None, 4)


RUBBISH = (
    b"rubbish",
    b"\xff\xfe 1 2 3 4 5 6 7",
    b"",
    b"aa bb 1 1 1 1 1 x",
    b"ab " + b"c" * 16 + b" 9999999999999999 1 1 1 1 x",
)


@pytest.mark.parametrize("rubbish", [*RUBBISH, None])
async def test_a_log_whose_m_is_rubbish_is_another_log_and_nobody_else_hears_of_it(
    opener: Opener, server: RedisServer, prefix: str, rubbish: bytes | None
) -> None:
    log, other = await opener(), await opener()
    _, before = await put(log, make(1, 2, user="bob"), make(1, 2))
    key = f"{prefix}:{{alice}}:m"
    if rubbish is None:
        wrong_type(server, key)
    else:
        server.client().set(key, rubbish)
    bob, alice = await log.changes.standings(["bob", "alice"])
    assert (bob.top, alice.epoch) == (2, "")
    assert (await log.read("alice", 0, 10)).position.epoch == ""
    assert await log.resolve_run("alice", "r") is None
    await log.sweep()
    bob_result, alice_result = await put(other, make(3, 3, user="bob"), make(3, 3))
    assert (bob_result.first_offset, alice_result.refusal) == (3, Refusal(RefusalReason.GAP, 0))
    (declared,) = await put(other, make(3, 3, gap=True))
    assert declared.epoch != before.epoch
    assert await ids(log, "alice") == ["alice-1", "alice-2", "gap", "alice-3"]
    check = await log.check_resume("alice", ResumePoint(before.epoch, 2, "alice-2"))
    assert check.reset is ResetReason.EPOCH_CHANGED
    (standing,) = await log.changes.standings(["alice"])
    assert (standing.epoch, standing.top) == (declared.epoch, 4)


async def test_rubbish_in_a_stream_is_its_users_error_alone(opener: Opener, server: RedisServer, prefix: str) -> None:
    log = await opener()
    await put(log, make(1, 2), make(1, 2, user="bob"))
    server.call("XADD", f"{prefix}:{{alice}}:s", "3-1", "strange", "field")
    with pytest.raises(StoreUnavailableError) as failed:
        await log.read("alice", 0, 10)
    assert failed.value.details["scope"] == "user"
    assert await ids(log, "bob") == ["bob-1", "bob-2"]
    await log.probe()


async def test_rubbish_on_a_users_channel_is_passed_over_and_news_goes_on(
    opener: Opener, server: RedisServer, prefix: str, eventually: Eventually
) -> None:
    one, two = await opener(), await opener()
    told: list[Change] = []
    missed: list[str] = []
    two.changes.follow(told.append, lambda users: missed.extend(users or ()))
    for user in ("alice", "bob"):
        two.changes.listen(user)
    await eventually(lambda: sorted(missed) == ["alice", "bob"])
    for rubbish in RUBBISH:
        server.client().publish(f"{prefix}:{{alice}}:c", rubbish)
    await put(one, make(1, 1), make(1, 1, user="bob"))
    await eventually(lambda: [(change.user, change.top) for change in told] == [("alice", 1), ("bob", 1)])
    assert len(missed) == 2  # the connection is the same one


@pytest.mark.parametrize("lost", [(1,), (4,), (4, 5, 7), (8,), (1, 2, 8)])
async def test_readers_pass_over_holes_are_told_and_do_not_read_in_a_loop(
    opener: Opener, server: RedisServer, prefix: str, eventually: Eventually, lost: tuple[int, ...]
) -> None:
    log = await opener()
    (result,) = await put(log, make(1, 8))
    key = f"{prefix}:{{alice}}:s"
    stream = [stream_id for stream_id, _ in server.client().xrange(key)]
    server.client().xdel(key, *(stream[offset - 1] for offset in lost))
    left = [f"alice-{n}" for n in range(1, 9) if n not in lost]
    assert (await log.position("alice")).oldest == min(n for n in range(1, 9) if n not in lost)

    start = ResumePoint(result.epoch, 0, "")
    hub = Hub(log)
    items = [item async for item in read_events(log, hub, ReadQuery("alice", start))]
    read = [entry.event_id for item in items if isinstance(item, Page) for entry in item.entries]
    resets = [item.reason for item in items if isinstance(item, Reset)]
    assert read == left
    assert set(resets) == {ResetReason.TRIMMED}

    link = hub.attach("g")
    before = server.client().info("commandstats")["cmdstat_evalsha"]["calls"]
    try:
        hub.subscribe(link, "alice", 1, start)
        seen: list[str] = []

        async def take() -> None:
            while items := await link.take(1 << 20):
                seen.extend(event.event_id for item in items if isinstance(item, Entries) for event in item.events)

        taking = asyncio.create_task(take())
        await eventually(lambda: seen == left and not hub.users_behind)
        new = make(9, 9)
        hub.committed([new], await put(log, new))
        await eventually(lambda: seen == [*left, "alice-9"])
    finally:
        await hub.detach(link)
    await taking
    calls = server.client().info("commandstats")["cmdstat_evalsha"]["calls"] - before
    assert calls < 12

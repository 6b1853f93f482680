"""What the Redis log promises beyond the common contract: several writers, lost tails, servers that misbehave."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from carrel.errors import QueueFullError, StartupError, StoreUnavailableError
from services.bridge.config_redis import RedisUrl
from services.bridge.models import (
    Append,
    AppendResult,
    Change,
    Refusal,
    RefusalReason,
    ResetReason,
    ResumePoint,
    Retention,
    StoredEvent,
)
from services.bridge.store_redis import RedisEventLog, RedisOptions
from services.bridge.store_redis_keys import Keys
from services.bridge.store_redis_nodes import slot_of
from tests.conftest import Eventually
from tests.support.needs import unavailable
from tests.support.redis_servers import (
    ClusterSetup,
    RedisServer,
    binaries,
    cluster_setup,
    free_port,
    self_signed,
    sentinel_setup,
    single_server,
    tls_binary,
)

Opener = Callable[..., Awaitable[RedisEventLog]]


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with single_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSetup]:
    with cluster_setup(tmp_path_factory.mktemp("cluster")) as setup:
        yield setup


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def prefix() -> str:
    return f"t-{uuid.uuid4().hex}"


@pytest.fixture
def opener(server: RedisServer, stack: AsyncExitStack, prefix: str) -> Opener:
    """`await opener(...)`: one more bridge's log over the same keys."""

    async def opened(
        url: str = "", retention: Retention | None = None, clock: Clock | None = None, **options: Any
    ) -> RedisEventLog:
        given = RedisOptions(RedisUrl.parse(url or server.url), prefix=prefix, **options)
        log = await RedisEventLog.open(given, retention=retention, clock=clock)
        stack.push_async_callback(log.close)
        return log

    return opened


def make(
    first: int, last: int, *, user: str = "alice", run: str = "r", producer: str = "p", fence: int = 1, **more: Any
) -> Append:
    events = tuple(StoredEvent(f"{producer}-{n}", f"blob of {producer} {n}".encode()) for n in range(first, last + 1))
    return Append(user, run, "t", producer, fence, first, events, **more)


async def put(log: RedisEventLog, *appends: Append) -> list[AppendResult]:
    return await log.append(appends)


async def ids(log: RedisEventLog, user: str = "alice", after: int = 0) -> list[str]:
    return [entry.event_id for entry in (await log.read(user, after, 1000)).entries]


class Saved:
    """A user's keys as they were: put back, they are a log that lost its tail."""

    def __init__(self, server: RedisServer, prefix: str) -> None:
        self._client = server.client()
        self._pattern = f"{prefix}:*"
        self._dumps = {key: self._client.dump(key) for key in self._keys()}

    def _keys(self) -> list[bytes]:
        return list(self._client.scan_iter(self._pattern))

    def restore(self) -> None:
        for key in self._keys():
            self._client.delete(key)
        for key, dump in self._dumps.items():
            self._client.restore(key, 3_600_000, dump)


# Several bridges.


async def test_what_one_bridge_appends_another_reads_continues_and_refuses(opener: Opener) -> None:
    one, two = await opener(), await opener()
    (first,) = await put(one, make(1, 2))
    (again, second) = await put(two, make(1, 2), make(3, 3, fence=2))
    assert (again.events, second.first_offset, second.epoch) == ((), 3, first.epoch)
    (stale,) = await put(one, make(4, 4))
    assert stale.refusal == Refusal(RefusalReason.STALE_FENCE, 3)
    assert await ids(one) == await ids(two) == ["p-1", "p-2", "p-3"]


async def test_results_and_reads_name_the_entry_before(opener: Opener) -> None:
    one, two = await opener(), await opener()
    results = [await put(log, make(n, n)) for n, log in ((1, one), (2, two), (3, one))]
    marks = [result[0].mark for result in results]
    assert [mark.partition(" ")[0] for mark in marks] == ["p-1", "p-2", "p-3"]
    assert [result[0].previous for result in results] == ["", *marks[:2]]
    assert [(await two.read("alice", after, 10)).anchor for after in range(5)] == ["", *marks, ""]
    assert [(await two.read("alice", 0, limit)).mark for limit in range(4)] == ["", *marks]
    position = await two.position("alice")
    assert (position.event_id, position.mark) == ("p-3", marks[2])
    assert (await two.check_resume("alice", ResumePoint(position.epoch, 2, "p-2"))).mark == marks[1]
    (standing,) = await two.changes.standings(["alice"])
    assert standing.mark == marks[2]


async def test_hints_reach_other_bridges_that_listen_and_not_the_one_that_appended(
    opener: Opener, eventually: Eventually
) -> None:
    one, two = await opener(), await opener()
    told: dict[str, list[Change]] = {"one": [], "two": []}
    missed: list[str] = []
    one.changes.follow(told["one"].append, lambda users: None)
    two.changes.follow(told["two"].append, lambda users: missed.extend(users or ()))
    strange = "o'{neil}%7B}"
    for user in ("alice", strange):
        one.changes.listen(user)
        two.changes.listen(user)
    await eventually(lambda: sorted(missed) == ["alice", strange])
    await put(one, make(1, 2), make(1, 1, user="bob"), make(1, 1, user=strange))
    await eventually(lambda: len(told["two"]) == 2)
    epoch = (await one.position("alice")).epoch
    assert told["two"][0] == Change("alice", epoch, 2, (await one.position("alice")).mark)
    assert told["two"][1][0] == strange
    two.changes.unlisten("alice")
    await put(one, make(3, 3), make(2, 2, user=strange))
    await eventually(lambda: len(told["two"]) == 3)
    assert told["two"][2][0] == strange
    assert told["one"] == []


async def test_standings_tell_where_logs_are_and_whether_a_run_is_open(opener: Opener) -> None:
    log = await opener()
    await put(log, make(1, 2), make(1, 1, user="bob", terminal=True))
    alice, nobody, bob = await log.changes.standings(["alice", "nobody", "bob"])
    assert (alice.top, alice.mark.partition(" ")[0], alice.active) == (2, "p-2", True)
    assert (nobody.epoch, nobody.active) == ("", False)
    assert (bob.top, bob.active) == (1, False)
    assert await log.changes.standings([]) == []


# Lost tails.


async def test_offsets_used_again_after_a_lost_tail_get_another_epoch_from_who_knew_the_tail(
    opener: Opener, server: RedisServer, prefix: str
) -> None:
    log = await opener()
    await put(log, make(1, 5))
    saved = Saved(server, prefix)
    (before,) = await put(log, make(6, 9))
    saved.restore()
    (after,) = await put(log, make(1, 1, run="r2", producer="q"))
    assert after.first_offset == 6
    assert after.previous is not None
    assert after.previous.startswith("p-5 ")
    assert after.epoch != before.epoch
    check = await log.check_resume("alice", ResumePoint(before.epoch, 9, "p-9"))
    assert check.reset is ResetReason.EPOCH_CHANGED


async def test_offsets_used_again_by_who_did_not_know_are_seen_by_their_ids(
    opener: Opener, server: RedisServer, prefix: str
) -> None:
    log, other = await opener(), await opener()
    await put(log, make(1, 5))
    saved = Saved(server, prefix)
    (before,) = await put(log, make(6, 9))
    saved.restore()
    (after,) = await put(other, make(1, 4, run="r2", producer="q"))
    assert (after.first_offset, after.epoch) == (6, before.epoch)
    for offset, event_id, expected in ((9, "p-9", ResetReason.EVENT_MISMATCH), (5, "p-5", None), (7, "q-2", None)):
        assert (await log.check_resume("alice", ResumePoint(before.epoch, offset, event_id))).reset is expected
    assert ((await other.read("alice", 9, 10)).anchor or "").startswith("q-4 ")
    (late,) = await put(log, make(5, 5, run="r2", producer="q"))
    # The log has grown to the very offset that was known, with another entry there.
    assert late.epoch != before.epoch


async def test_the_same_event_at_the_same_offset_again_has_another_mark(
    opener: Opener, server: RedisServer, prefix: str
) -> None:
    clock = Clock()
    log, other = await opener(clock=clock), await opener(clock=clock)
    await put(log, make(1, 1))
    saved = Saved(server, prefix)
    (before,) = await put(log, make(2, 2))
    saved.restore()
    clock.now += 0.001
    (again,) = await put(other, make(2, 2))
    assert (again.first_offset, again.epoch) == (before.first_offset, before.epoch)
    assert again.mark != before.mark
    (after,) = await put(log, make(3, 3))
    assert after.epoch != before.epoch


async def test_producer_behind_a_lost_tail_meets_a_gap_and_its_declaration_is_recorded(
    opener: Opener, server: RedisServer, prefix: str
) -> None:
    log = await opener()
    await put(log, make(1, 5))
    saved = Saved(server, prefix)
    await put(log, make(6, 9))
    saved.restore()
    (refused,) = await put(log, make(10, 11))
    assert refused.refusal == Refusal(RefusalReason.GAP, 5)
    (declared,) = await put(log, make(10, 11, gap=StoredEvent("gap", b"log_gap")))
    assert (declared.first_offset, len(declared.events), declared.epoch != refused.epoch) == (6, 3, True)
    assert (await ids(log))[4:] == ["p-5", "gap", "p-10", "p-11"]


async def test_everything_flushed_while_producers_go_on_is_a_gap_and_then_another_log(
    opener: Opener, server: RedisServer, prefix: str
) -> None:
    log = await opener()
    (before,) = await put(log, make(1, 5))
    for key in server.client().scan_iter(f"{prefix}:*"):
        server.call("DEL", key)
    assert (await log.read("alice", 5, 10)).position.epoch == ""
    (refused,) = await put(log, make(6, 6))
    assert refused.refusal == Refusal(RefusalReason.GAP, 0)
    (declared, begun) = await put(log, make(6, 6, gap=StoredEvent("gap", b"")), make(1, 1, run="r2", producer="q"))
    assert (declared.first_offset, begun.first_offset) == (1, 3)
    assert declared.epoch == begun.epoch != before.epoch


@pytest.mark.parametrize("lost", ["m", "s", "p:p", "r:r"])
async def test_no_part_of_a_users_keys_is_lost_silently(
    opener: Opener, server: RedisServer, prefix: str, lost: str
) -> None:
    log = await opener()
    (before,) = await put(log, make(1, 5))
    assert server.call("DEL", f"{prefix}:{{alice}}:{lost}") == 1
    (result,) = await put(log, make(6, 6, gap=StoredEvent("gap", b"")))
    position = await log.position("alice")
    if lost == "s":
        # What is gone is seen as trimmed; the numbering knows better than to begin again.
        assert (result.first_offset, position.oldest, position.epoch) == (6, 6, before.epoch)
        assert (await log.check_resume("alice", ResumePoint(before.epoch, 3, "p-3"))).reset is ResetReason.TRIMMED
    else:
        assert [event.event_id for event in result.events] == ["gap", "p-6"]
        assert position.epoch != before.epoch
        assert await ids(log) == ["p-1", "p-2", "p-3", "p-4", "p-5", "gap", "p-6"]


async def test_stream_ahead_of_its_metadata_is_taken_as_it_is_in_another_epoch(
    opener: Opener, server: RedisServer, prefix: str
) -> None:
    log, other = await opener(), await opener()
    await put(log, make(1, 3))
    saved = server.client().dump(f"{prefix}:{{alice}}:m")
    (before,) = await put(log, make(4, 6))
    server.client().restore(f"{prefix}:{{alice}}:m", 0, saved, replace=True)
    (result,) = await put(other, make(7, 7))
    assert (result.first_offset, (result.previous or "").partition(" ")[0]) == (7, "p-6")
    assert result.epoch != before.epoch


# Keys, retention.


def test_all_keys_of_a_user_lie_in_one_slot_and_no_two_users_share_one() -> None:
    users = ["alice", "bob", "{alice}", "a{b}c", "a%7Bb}c", "%7Balice%7D", "}{", "{}", "{", "ünï"]
    seen: set[str] = set()
    for user in users:
        keys = Keys("carrel", user)
        names = [keys.stream, keys.meta, keys.channel, keys.wait, keys.run("r{x}"), keys.producer("{p}:0:1")]
        for name in names:
            tag = name[name.index("{") + 1 : name.index("}")]
            assert tag
            assert slot_of(tag) == keys.slot
        assert seen.isdisjoint(names)
        seen.update(names)


async def test_slots_are_redis_own(cluster: ClusterSetup) -> None:
    for user in ("alice", "{alice}", "ünï", "a{b}c"):
        assert cluster.nodes[0].call("CLUSTER", "KEYSLOT", Keys("x", user).stream) == Keys("x", user).slot


async def test_every_key_expires_and_producers_soon_after_their_runs_end(
    opener: Opener, server: RedisServer, prefix: str
) -> None:
    log = await opener()
    await put(log, make(1, 1, producer="a"), make(1, 1, producer="b"), make(1, 1, user="bob"))
    client = server.client()

    def ttl(name: str) -> float:
        return float(client.pttl(f"{prefix}:{{alice}}:{name}")) / 1000

    assert 86_300 < ttl("s") <= 86_460
    assert 600_000 < ttl("p:a") <= 7 * 86_400
    await put(log, make(2, 2, producer="a", terminal=True))
    assert {name: 3500 < ttl(name) <= 3600 for name in ("p:a", "p:b")} == {"p:a": True, "p:b": True}
    assert 86_400 < ttl("r:r") <= 2 * 86_400 + 3600
    assert ttl("m") > 600_000
    await log.position("carol")
    keys = list(client.scan_iter(f"{prefix}:*"))
    assert len(keys) == 10
    assert all(client.pttl(key) > 0 for key in keys)


async def test_retention_goes_on_by_itself_with_appends(opener: Opener) -> None:
    clock = Clock()
    log = await opener(retention=Retention(max_entries=100, max_age_s=1000), clock=clock)
    for n in range(1, 401, 50):
        await put(log, make(n, n + 49))
        position = await log.position("alice")
        assert position.top - position.oldest + 1 <= 164
    clock.now += 600
    await put(log, make(401, 401))
    clock.now += 600
    (result,) = await put(log, make(402, 402))
    assert (await log.position("alice")).oldest == 401
    assert await ids(log) == ["p-401", "p-402"]
    assert result.previous == f"p-401 {int((clock.now - 600) * 1000)}"


async def test_redis_own_clock_counts_when_none_is_given(opener: Opener, server: RedisServer, prefix: str) -> None:
    log = await opener()
    await put(log, make(1, 1))
    seconds, _ = server.call("TIME")
    ((stream_id, _),) = server.client().xrange(f"{prefix}:{{alice}}:s")
    assert stream_id.startswith(b"1-")
    assert abs(int(stream_id[2:]) / 1000 - int(seconds)) < 10


# Servers that misbehave.


async def test_scripts_that_the_server_forgot_are_loaded_again_and_the_order_is_kept(
    opener: Opener, server: RedisServer
) -> None:
    log = await opener()
    await put(log, make(1, 1))
    server.call("SCRIPT", "FLUSH")
    pending = [log.append([make(n, n)]) for n in range(2, 50)]
    results = [await future for future in pending]
    assert [(result.first_offset, result.refusal) for (result,) in results] == [(n, None) for n in range(2, 50)]
    server.call("SCRIPT", "FLUSH")
    # Other commands behind them on the same connection must not keep them waiting.
    async with asyncio.timeout(5):
        read, _ = await asyncio.gather(log.read("alice", 0, 100), log.changes.standings(["alice", "bob"]))
    assert len(read.entries) == 49


@pytest.mark.parametrize("source", ["system", "wheel"])
async def test_full_redis_refuses_whole_appends_and_takes_them_once_there_is_room(
    opener: Opener, tmp_path: Path, source: str
) -> None:
    if source not in binaries():
        reason = f"there is no redis-server of the {source}"
        if source == "wheel":  # which is not made for every Python
            pytest.skip(reason)
        raise unavailable("redis", reason)
    with single_server(tmp_path, binary=binaries()[source]) as server:
        log = await opener(server.url)
        await put(log, make(1, 3))
        server.call("CONFIG", "SET", "maxmemory", "100kb")
        with pytest.raises(StoreUnavailableError, match="no memory"):
            await put(log, make(4, 60))
        with pytest.raises(StoreUnavailableError, match="no memory"):
            await log.probe()
        assert len(await ids(log)) == 3
        server.call("CONFIG", "SET", "maxmemory", "0")
        await log.probe()
        (result,) = await put(log, make(4, 60))
        assert (result.first_offset, len(await ids(log))) == (4, 60)


async def test_redis_that_stands_still_is_given_up_and_what_was_under_way_may_be_sent_again(
    opener: Opener, tmp_path: Path, eventually: Eventually
) -> None:
    with single_server(tmp_path) as server:
        log = await opener(server.url, timeout_s=0.8)
        await put(log, make(1, 3))
        server.pause()
        pending = [log.append([make(4, 5)]), log.append([make(6, 6)])]
        for future in pending:
            with pytest.raises(StoreUnavailableError):
                await future
        with pytest.raises(StoreUnavailableError):
            await log.append([make(7, 7)])
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            await log.probe()
        server.resume()
        await eventually(lambda: _works(log))
        results = await put(log, make(4, 5), make(6, 6), make(7, 7))
        # What was under way may have taken effect, after it was given up.
        assert [result.refusal for result in results] == [None, None, None]
        assert await ids(log) == [f"p-{n}" for n in range(1, 8)]


async def _works(log: RedisEventLog) -> bool:
    try:
        await log.probe()
    except StoreUnavailableError:
        return False
    return True


async def test_too_much_on_its_way_is_refused_at_once(opener: Opener, tmp_path: Path) -> None:
    with single_server(tmp_path) as server:
        log = await opener(server.url, max_queued_bytes=2000, timeout_s=20)
        server.pause()
        pending = log.append([make(1, 5)])
        with pytest.raises(QueueFullError):
            await log.append([make(6, 20)])
        server.resume()
        await pending


async def test_eviction_is_refused_in_production_and_warned_of_otherwise(
    opener: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with single_server(tmp_path, options=("--maxmemory-policy", "allkeys-lru")) as server:
        with pytest.raises(StartupError, match="allkeys-lru") as caught:
            await opener(server.url, production=True)
        assert "noeviction" in caught.value.advice
        await opener(server.url)
        assert "Redis may lose events" in caplog.text


async def test_password_is_asked_for_used_and_never_shown(opener: Opener, tmp_path: Path) -> None:
    with single_server(tmp_path, password="s3cret") as server:
        with pytest.raises(StoreUnavailableError, match="wants a password"):
            await opener(f"redis://{server.address}")
        with pytest.raises(StoreUnavailableError, match="password"):
            await opener(f"redis://{server.address}", password="wr0ng")
        for options in (
            RedisOptions(RedisUrl.parse(server.url)),
            RedisOptions(RedisUrl.parse(f"redis://{server.address}"), password="s3cret"),
        ):
            log = await RedisEventLog.open(options)
            await put(log, make(1, 1))
            await log.close()
            assert "s3cret" not in repr(options) + str(options.url) + repr(vars(log))


async def test_tls_checks_who_the_server_is(opener: Opener, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    port = free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    options += ["--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"]
    with single_server(tmp_path, binary=tls_binary(), options=options) as server:
        log = await opener(f"rediss://127.0.0.1:{port}", ca_file=certificate)
        await put(log, make(1, 2))
        await log.probe()
        assert await ids(log) == ["p-1", "p-2"]
        with pytest.raises(StoreUnavailableError, match="certificate that is not accepted") as caught:
            await opener(f"rediss://127.0.0.1:{port}")
        assert "CARREL_BRIDGE_LOG__CA_FILE" in caught.value.advice
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            await opener(f"rediss://{server.address}", ca_file=certificate, timeout_s=0.3)
        with pytest.raises(StartupError, match="holds no certificates"):
            await opener(f"rediss://127.0.0.1:{port}", ca_file=key)


async def test_urls_that_do_not_fit_the_server_say_what_to_write(
    opener: Opener, server: RedisServer, cluster: ClusterSetup
) -> None:
    with pytest.raises(StartupError, match="no node of a Redis Cluster") as caught:
        await opener(f"redis+cluster://{server.address}")
    with pytest.raises(StartupError, match="node of a Redis Cluster") as other:
        await opener(cluster.nodes[0].url)
    assert "redis://" in caught.value.advice
    assert "redis+cluster://" in other.value.advice
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        await opener("redis://127.0.0.1:1")


async def test_terminal_events_wait_for_replicas_where_that_is_asked(
    opener: Opener, tmp_path: Path, eventually: Eventually
) -> None:
    with sentinel_setup(tmp_path) as setup:
        with pytest.raises(StoreUnavailableError, match="is a replica"):
            await opener(setup.replica.url)
        log = await opener(setup.url, min_replicas=1, min_replicas_timeout_s=1)
        await put(log, make(1, 1), make(2, 2, terminal=True))
        setup.replica.pause()
        await put(log, make(1, 1, run="r2", producer="q"))
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
            await put(log, make(2, 2, run="r2", producer="q", terminal=True))
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
            await log.probe()
        setup.replica.resume()
        await eventually(lambda: _works(log))
        (again,) = await put(log, make(2, 2, run="r2", producer="q", terminal=True))
        assert (again.through, again.events, len(await ids(log))) == (2, (), 4)


async def test_cluster_spreads_users_and_tells_hints_by_shard(
    opener: Opener, cluster: ClusterSetup, eventually: Eventually
) -> None:
    one, two = await opener(cluster.url), await opener(cluster.url)
    users = [f"user{n}" for n in range(30)]
    told: list[str] = []
    missed: list[str] = []
    two.changes.follow(lambda change: told.append(change.user), lambda names: missed.extend(names or ()))
    for user in users:
        two.changes.listen(user)
    await eventually(lambda: sorted(missed) == sorted(users))
    results = await put(one, *(make(1, 2, user=user) for user in users))
    assert all(result.first_offset == 1 for result in results)
    await eventually(lambda: sorted(told) == sorted(users))
    assert {node.call("DBSIZE") > 0 for node in cluster.nodes} == {True}
    await one.probe()
    assert all(standing.top == 2 for standing in await two.changes.standings(users))


async def test_moved_slots_and_lost_nodes_of_a_cluster_are_found_again(
    opener: Opener, tmp_path: Path, eventually: Eventually
) -> None:
    with cluster_setup(tmp_path) as setup:
        log, other = await opener(setup.url), await opener(setup.url)
        missed: list[str] = []
        other.changes.follow(lambda change: None, lambda names: missed.extend(names or ()))
        other.changes.listen("alice")
        await eventually(lambda: missed == ["alice"])
        slot = log.keys.of("alice").slot
        owner = next(n for n, node in enumerate(setup.nodes) if _owns(node, log.keys.of("alice").stream))
        target = setup.nodes[(owner + 1) % 3]
        new = target.call("CLUSTER", "MYID").decode()
        for node in (target, setup.nodes[owner], setup.nodes[(owner + 2) % 3]):
            node.call("CLUSTER", "SETSLOT", slot, "NODE", new)
        with pytest.raises(StoreUnavailableError, match="has moved"):
            await put(log, make(1, 2))
        await log.probe()
        (result,) = await put(log, make(1, 2))
        assert (result.through, await ids(other)) == (2, ["p-1", "p-2"])
        await eventually(lambda: len(missed) > 1, within=10)  # hints come from the new node

        target.kill()
        with pytest.raises(StoreUnavailableError):
            await put(log, make(3, 3))
        assert not await _works(log)
        target.start()
        await eventually(lambda: _works(log), within=10)
        (result,) = await put(log, make(3, 3))
        assert result.refusal == Refusal(RefusalReason.GAP, 0)  # the node had no data to come back with


def _owns(node: RedisServer, key: str) -> bool:
    # Only the owner of a key answers; the others send on.
    try:
        node.call("TTL", key)
    except redis.ResponseError:
        return False
    return True

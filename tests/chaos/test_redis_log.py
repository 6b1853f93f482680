"""Redis is killed, emptied, filled, failed over; bridges share it. Acknowledged and lost is 0, or somebody is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from carrel.v1 import events_pb2
from services.bridge.config_redis import RedisUrl
from services.bridge.models import Append, StoredEvent
from services.bridge.store_redis import RedisEventLog, RedisOptions
from tests.chaos.redis_world import BridgeProcess, Reader, World, Writer
from tests.conftest import Eventually
from tests.support.redis_servers import RedisServer, sentinel_setup, single_server

pytestmark = [pytest.mark.chaos, pytest.mark.container, pytest.mark.timeout(120)]


async def begun(world: World, eventually: Eventually, *readers: Reader) -> Writer:
    """A writer at work, with readers that have begun to get its events."""
    await eventually(lambda: all(reader.position is not None for reader in readers), within=20)
    writer = world.writer(readers[0].user)
    writer.begin()
    await eventually(lambda: all(len(reader.of(writer)) > 100 for reader in readers), within=20)
    return writer


async def caught_up(eventually: Eventually, writer: Writer, *readers: Reader) -> None:
    await writer.end()
    for reader in readers:
        await eventually(
            lambda r=reader: r.of(writer)[-1:] == [writer.acknowledged],  # type: ignore[misc]  # bound now
            within=20,
            what=f"the last event, {writer.acknowledged}, to arrive; has {reader.of(writer)[-3:]}, {reader.notices}",
        )
        reader.judge(writer)


async def away(world: World, eventually: Eventually, writer: Writer) -> None:
    """The bridge says so, and the producer is held back instead of losing anything."""
    await eventually(lambda: _not_serving(world), within=20)
    made, acknowledged = writer.made, writer.acknowledged
    await eventually(lambda: writer.producer.emitted - writer.acknowledged >= 200, within=10, what="producers to wait")
    assert writer.acknowledged == acknowledged
    assert writer.made > made


async def _not_serving(world: World) -> bool:
    return not await world.bridges[0].serving()


async def test_redis_killed_and_restarted_with_its_data_loses_and_repeats_nothing(
    tmp_path: Path, eventually: Eventually
) -> None:
    with single_server(tmp_path, aof=True) as server:
        async with World(tmp_path, server.url) as world:
            reader = world.reader("alice")
            writer = await begun(world, eventually, reader)
            server.kill()
            await away(world, eventually, writer)
            server.start()
            await eventually(world.bridges[0].serving, within=20)
            server.kill()
            server.start()
            await asyncio.sleep(0.3)  # some more events, across the second restart
            await caught_up(eventually, writer, reader)
    assert reader.notices == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_bridge_is_back_with_redis_and_not_with_its_next_probe(
    tmp_path: Path, eventually: Eventually, how: str
) -> None:
    defaults = {
        "CARREL_BRIDGE_LOG__TIMEOUT_S": "3",
        "CARREL_BRIDGE_RECOVERY_BASE_DELAY_S": "1",
        "CARREL_BRIDGE_FAILED_PROBE_INTERVAL_S": "30",
    }
    with single_server(tmp_path) as server:
        bridge = BridgeProcess(tmp_path / "bridge", server.url, defaults)
        try:
            await bridge.start()
            if how == "killed":
                server.kill()
            else:
                server.pause()
            await eventually(lambda: "FAILED" in bridge.log(), within=60)
            await asyncio.sleep(1)  # well within the 30 s to the next probe
            if how == "killed":
                server.start()
            else:
                server.resume()
            await eventually(bridge.serving, within=15)  # much sooner than the next probe
        finally:
            bridge.kill()


async def test_redis_restarted_without_its_data_is_told_and_goes_on(tmp_path: Path, eventually: Eventually) -> None:
    with single_server(tmp_path) as server:
        async with World(tmp_path, server.url) as world:
            reader = world.reader("alice")
            writer = await begun(world, eventually, reader)
            server.kill()
            server.start()
            await eventually(lambda: "log_gap" in reader.notices, within=20)
            await caught_up(eventually, writer, reader)
            second = world.writer("alice", "run2")
            await second.emit(5)
            await caught_up(eventually, second, reader)
    assert "EPOCH_CHANGED" in reader.notices


async def test_everything_flushed_while_producers_go_on_is_told(tmp_path: Path, eventually: Eventually) -> None:
    with single_server(tmp_path) as server:
        async with World(tmp_path, server.url, bridges=2) as world:
            readers = world.reader("alice", 0), world.reader("alice", 1)
            writer = await begun(world, eventually, *readers)
            server.call("FLUSHALL")
            await eventually(lambda: all("log_gap" in reader.notices for reader in readers), within=20)
            await caught_up(eventually, writer, *readers)
            # Nobody writes: the readers are told all the same, by the checks of positions.
            told = [len(reader.notices) for reader in readers]
            server.call("FLUSHALL")
            await eventually(lambda: all(len(r.notices) > n for r, n in zip(readers, told, strict=True)), within=20)


async def test_failover_to_a_replica_that_lacks_the_tail_is_told(tmp_path: Path, eventually: Eventually) -> None:
    with sentinel_setup(tmp_path) as setup:
        async with World(tmp_path, setup.url, bridges=2) as world:
            readers = world.reader("alice", 0), world.reader("alice", 1)
            silent = world.reader("bob", 1)
            writer = await begun(world, eventually, *readers)
            bob = world.writer("bob")
            await bob.emit(3)
            await bob.end()
            await eventually(lambda: silent.of(bob) == [1, 2, 3])
            written = setup.written()  # and not all: the writer goes on meanwhile
            await eventually(lambda: setup.replica_has(written), within=10)
            setup.replica.call("REPLICAOF", "127.0.0.1", 1)  # it gets nothing any more
            had = writer.acknowledged
            await bob.emit(3)
            await bob.end()
            await eventually(lambda: silent.of(bob) == [1, 2, 3, 4, 5, 6] and writer.acknowledged > had + 50)
            await asyncio.to_thread(setup.fail_over)
            await eventually(lambda: all("log_gap" in reader.notices for reader in readers), within=30)
            await caught_up(eventually, writer, *readers)
            # Bob's run says nothing more; that his last events are gone is noticed by looking.
            await eventually(lambda: bool(silent.notices), within=20)
    assert set(silent.notices) <= {"BEYOND_TOP", "EPOCH_CHANGED"}


async def test_failover_to_a_replica_in_step_loses_nothing(tmp_path: Path, eventually: Eventually) -> None:
    with sentinel_setup(tmp_path) as setup:
        async with World(tmp_path, setup.url) as world:
            reader = world.reader("alice")
            writer = await begun(world, eventually, reader)
            await writer.end()
            await eventually(setup.in_step, within=10)
            await asyncio.to_thread(setup.fail_over)
            writer.begin()
            await eventually(lambda: writer.acknowledged > 300, within=30)
            await caught_up(eventually, writer, reader)
    assert reader.notices == []


async def test_full_redis_holds_producers_back_and_loses_nothing(tmp_path: Path, eventually: Eventually) -> None:
    with single_server(tmp_path) as server:
        async with World(tmp_path, server.url) as world:
            reader = world.reader("alice")
            writer = await begun(world, eventually, reader)
            server.call("CONFIG", "SET", "maxmemory", "100kb")
            await away(world, eventually, writer)
            server.call("CONFIG", "SET", "maxmemory", "0")
            await caught_up(eventually, writer, reader)
            assert "no memory" in world.bridges[0].log()
    assert reader.notices == []


async def test_lost_last_hint_costs_time_and_no_event(tmp_path: Path, eventually: Eventually) -> None:
    with single_server(tmp_path) as server:
        async with World(tmp_path, server.url) as world:
            reader = world.reader("alice")
            await eventually(lambda: reader.position is not None, within=20)
            log = await RedisEventLog.open(RedisOptions(RedisUrl.parse(server.url)))
            keys = log.keys.of("alice")
            for n in range(1, 6):
                keys.channel = "nobody listens here" if n == 5 else "carrel:{alice}:c"
                await log.append([_append(n)])
            await eventually(lambda: reader.offset == 5, within=5)
            # Not even a connection for hints: killed as often as it comes.
            killing = asyncio.create_task(_kill_hints(server))
            await log.append([_append(6)])
            await eventually(lambda: reader.offset == 6, within=10)
            killing.cancel()
            await asyncio.wait([killing])
            await log.close()
    assert reader.notices == []


def _append(n: int) -> Append:
    entry = events_pb2.LogEntry(event_id=f"e{n}", event_type="agent_started", data=b'{"description": "x 1"}')
    return Append("alice", "r", "t", "p", 1, n, (StoredEvent(f"e{n}", entry.SerializeToString()),))


async def _kill_hints(server: RedisServer) -> None:
    while True:
        server.call("CLIENT", "KILL", "TYPE", "pubsub")
        await asyncio.sleep(0.01)


async def test_two_bridges_on_one_redis_serve_each_others_users_and_survive_kills(
    tmp_path: Path, eventually: Eventually
) -> None:
    with single_server(tmp_path) as server:
        async with World(tmp_path, server.url, bridges=2) as world:
            readers = world.reader("alice", 0), world.reader("alice", 1)
            writer = await begun(world, eventually, *readers)
            for bridge in world.bridges:
                bridge.kill()
                await bridge.start()
                had = writer.acknowledged
                await eventually(lambda n=had: writer.acknowledged > n + 20, within=20)  # type: ignore[misc]  # bound now
            await caught_up(eventually, writer, *readers)
    assert [reader.notices for reader in readers] == [[], []]

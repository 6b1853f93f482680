"""A sealed event log: no event can be found in the store, each opens for its own user alone, keys may rotate."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from carrel.errors import InvalidConfigurationError, StoreUnavailableError
from servicekit.sealing import PLAIN, KeySeals, Seals
from servicekit.sealing_keys import SealingKeys, add_key
from services.bridge.config_redis import RedisUrl
from services.bridge.models import ONE_USER, Append, StoredEvent
from services.bridge.store import EventLog
from services.bridge.store_redis import RedisEventLog, RedisOptions
from services.bridge.store_sealed import SealedEventLog
from services.bridge.store_sealing_marks import _NOBODY, SealingMarks
from services.bridge.store_sqlite import SqliteEventLog
from tests.support.redis_servers import single_server

CANARY = b"canary-of-a-user"


def seals(path: Path, kid: str = "") -> KeySeals:
    if kid:
        add_key(path, kid)
    return KeySeals(SealingKeys(path))


async def put(log: EventLog, first: int, last: int, user: str = "alice") -> None:
    events = tuple(StoredEvent(f"evt-{user}-{n}", CANARY + b"%d" % n) for n in range(first, last + 1))
    (result,) = await log.append([Append(user, f"run-{user}", "t1", f"p-{user}", 1, first, events)])
    assert result.events == events, "those who are connected get what was given"


async def blobs(log: EventLog, user: str = "alice") -> list[bytes]:
    return [entry.blob for entry in (await log.read(user, 0, 100)).entries]


async def test_entries_cannot_be_found_in_the_file_and_old_ones_are_read(tmp_path: Path) -> None:
    path, keys = tmp_path / "log.db", tmp_path / "keys.json"
    log = SealedEventLog(await SqliteEventLog.open(path), seals(keys, "k1"))
    await put(log, 1, 3)
    assert await blobs(log) == [CANARY + b"%d" % n for n in (1, 2, 3)]
    assert CANARY not in b"".join(file.read_bytes() for file in tmp_path.glob("log.db*"))
    await log.close()
    plain = await SqliteEventLog.open(path)
    await put(plain, 4, 4)
    assert CANARY in b"".join(file.read_bytes() for file in tmp_path.glob("log.db*"))
    await plain.close()
    log = SealedEventLog(await SqliteEventLog.open(path), seals(keys, "k2"))
    await put(log, 5, 5)
    assert await blobs(log) == [CANARY + b"%d" % n for n in range(1, 6)]
    await log.close()


async def test_entries_cannot_be_found_in_redis(tmp_path: Path) -> None:
    with single_server(tmp_path / "redis") as server:
        below = await RedisEventLog.open(RedisOptions(RedisUrl.parse(server.url)))
        log = SealedEventLog(below, seals(tmp_path / "keys.json", "k1"))
        await put(log, 1, 3)
        assert await blobs(log) == [CANARY + b"%d" % n for n in (1, 2, 3)]
        assert all(CANARY not in blob for blob in await blobs(below))
        await log.close()


async def test_an_entry_that_does_not_open_is_its_own_users_trouble(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    below = await SqliteEventLog.open(path)
    await put(SealedEventLog(below, seals(tmp_path / "keys.json", "k1")), 1, 1)
    other = SealedEventLog(below, seals(tmp_path / "other.json", "k2"))
    await put(other, 1, 1, "bob")
    assert await blobs(other, "bob") == [CANARY + b"1"]
    for log in (other, SealedEventLog(below, PLAIN), SealedEventLog(below, seals(tmp_path / "same.json", "k1"))):
        with pytest.raises(StoreUnavailableError, match="'k1'") as caught:
            await blobs(log)
        assert caught.value.details["scope"] == ONE_USER
    await below.close()


class Clock:
    """A wall clock that a test sets."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "redis"])
async def below(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    if request.param == "sqlite":
        log: EventLog = await SqliteEventLog.open(tmp_path / "log.db")
        yield log
        await log.close()
        return
    with single_server(tmp_path / "redis") as server:
        log = await RedisEventLog.open(RedisOptions(RedisUrl.parse(server.url)))
        yield log
        await log.close()


async def test_a_key_that_entries_need_is_missed_at_the_start_until_they_are_trimmed(
    below: EventLog, tmp_path: Path
) -> None:
    clock, keys = Clock(), tmp_path / "keys.json"

    def start(sealed_with: Seals) -> SealingMarks:
        return SealingMarks(below, sealed_with, 86_400.0, clock=clock)

    await start(PLAIN).check()
    first = start(seals(keys, "k1"))
    await first.check()
    await first.mark()
    for lacking in (PLAIN, seals(tmp_path / "other.json", "k2")):
        with pytest.raises(InvalidConfigurationError, match="'k1', which is not here") as caught:
            await start(lacking).check()
        assert "2023-11-15 22:13:20 UTC" in caught.value.advice
    with pytest.raises(InvalidConfigurationError, match="is not the one that entries"):
        await start(seals(tmp_path / "same.json", "k1")).check()
    # With the next key in front the former one is needed for as long as its entries are kept.
    clock.now += 3600
    second = start(seals(keys, "k2"))
    await second.check()
    await second.mark()
    only = tmp_path / "only.json"
    only.touch(0o600)
    only.write_text(json.dumps({"keys": json.loads(keys.read_text())["keys"][:1]}))
    with pytest.raises(InvalidConfigurationError, match="'k1'"):
        await start(seals(only)).check()
    clock.now += 86_400 - 3600
    await start(seals(only)).check()
    with pytest.raises(InvalidConfigurationError, match="'k2'"):
        await start(PLAIN).check()
    # Marked again while it is in use, and not more often than it helps.
    before = (await below.position(_NOBODY)).top
    await second.mark()
    await second.mark()
    assert (await below.position(_NOBODY)).top == before + 1
    clock.now += 3600
    with pytest.raises(InvalidConfigurationError, match="'k2'"):
        await start(PLAIN).check()

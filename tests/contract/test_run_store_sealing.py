"""What users and agents wrote is sealed in the database: it cannot be read there, moved, or opened otherwise."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carrel.errors import CorruptStoreError, InvalidConfigurationError, StartupError, StoreUnavailableError
from servicekit.sealing_keys import SealingKeys, add_key
from services.execution.config import ExecutionSettings
from services.execution.models import JournalItem, RunRef, RunState, ThreadStrategy
from services.execution.models_steps import Again, Checkpoint, Finish, Kept, Question
from services.execution.store import RunStore
from services.execution.store_artifacts import LocalArtifactFolder
from services.execution.store_reencrypt import reencrypt
from services.execution.store_sealing import PLAIN, KeySeals, is_sealed, key_of, seals_of
from services.execution.store_sealing_rewrite import rewrite_database
from services.execution.store_sql import SqlRunStore
from services.execution.store_sql_damage import left_alone
from services.execution.store_sql_memory import bound_to
from services.execution.store_sql_open import open_sqlite_store
from services.execution.store_sql_postgres_open import connector
from services.execution.tables import METADATA, memories, runs
from tests.contract.run_backends import Backend, PostgresBackend, SqliteBackend
from tests.contract.run_support import ALICE, BOB, Clock, admission

CANARY = "canary-of-a-user"
JSON = json.dumps({"said": CANARY}).encode()
FAILURE = {"code": "X", "message": CANARY}


def keys_at(path: Path, *kids: str) -> KeySeals:
    for kid in kids:
        add_key(path, kid)
    return KeySeals(SealingKeys(path))


async def live(store: RunStore, run: str = "run-1") -> RunRef:
    """A run with a canary in every field that a user or an agent fills."""
    asked = admission(run, message=CANARY, params=JSON)
    identity = replace(asked.identity, agent_context={"note": CANARY}, audit_metadata={"who": CANARY})
    ref = (await store.admit(replace(asked, identity=identity))).run.ref
    checkpoint = Checkpoint(0, JSON, "data", params=JSON, memory=Kept("data", JSON, 1000))
    assert await store.checkpoint(ref, checkpoint)
    item = JournalItem(1, "c1", "tool", "load", "h", JSON, FAILURE)
    assert await store.save_journal(ref, 1, [item])
    question = Question("inp-1", CANARY, JSON, "h", "delete", JSON)
    assert await store.suspend(ref, question, 60)
    assert await store.provide_input(ALICE, run, "inp-1", JSON)
    return ref


async def kept_in(store: RunStore) -> list[bytes]:
    """What agents keep, also of runs that go on and are not read therefore."""
    assert isinstance(store, SqlRunStore)

    def work(connection: Any) -> list[bytes]:
        rows, seals = connection.execute(memories.select()).all(), seals_of(connection)
        bound = [bound_to(row.run_id, row.thread_id, row.agent_name) for row in rows]
        return [
            seals.open("memories.data", row.user_id, to, bytes(row.data)) for row, to in zip(rows, bound, strict=True)
        ]

    return await store.database.read(work)


async def check(store: RunStore, ref: RunRef) -> None:
    """Everything reads back."""
    assert JSON in await kept_in(store)
    run = await store.get_run(ALICE, ref.run_id)
    assert run is not None
    assert (run.message, run.params, run.stages[0].result) == (CANARY, JSON, JSON)
    assert run.identity.agent_context == {"note": CANARY}
    (answer,) = await store.answers(ALICE, ref.run_id, 1)
    assert (answer.prompt, answer.schema, answer.arguments, answer.value) == (CANARY, JSON, JSON, JSON)
    (call,) = await store.journal(ALICE, ref.run_id, 1)
    assert (call.result, call.error) == (JSON, FAILURE)
    thread = await store.messages(ALICE, f"thread-{ref.run_id}", 10, None)
    assert CANARY in {message.text for message in thread.items}
    assert any(CANARY in json.dumps(dict(event.data)) for event in await store.outbox(ALICE, ref.run_id))


async def dump(backend: Backend) -> bytes:
    """The whole database as it lies there."""
    if isinstance(backend, SqliteBackend):
        return b"".join(path.read_bytes() for path in sorted(backend.path.parent.glob("runs.sqlite3*")))
    assert isinstance(backend, PostgresBackend)
    found = b""
    connection = await connector(backend.address)()
    try:
        for table in METADATA.sorted_tables:
            for row in await connection.fetch(f"SELECT * FROM {table.name}"):
                found += b"\n".join(v if isinstance(v, bytes) else str(v).encode() for v in row.values())
    finally:
        await connection.close()
    return found


async def test_nothing_that_was_written_can_be_found_in_the_database(backend: Backend, tmp_path: Path) -> None:
    seals = keys_at(tmp_path / "keys.json", "k1")
    store = await backend.process("one", seals=seals)
    try:
        ref = await live(store)
        await check(store, ref)
        other = (await store.admit(admission("run-2", message=CANARY, params=JSON))).run.ref
        await store.begin_attempt(other, 0, Again.WORKER_LOST, lost=True)
        last = await store.get_run(ALICE, "run-2")
        assert last is not None
        await store.finish(last.ref, Finish(RunState.FAILED, JSON, FAILURE, reply=CANARY))
        assert CANARY.encode() not in await dump(backend)
        run = await store.get_run(ALICE, "run-2")
        assert run is not None
        assert (run.result, run.error) == (JSON, FAILURE)
        listed = await store.list_runs(ALICE, "", frozenset(), 10, None)
        assert {item.error and item.error["message"] for item in listed.items} == {None, CANARY}
    finally:
        await store.close()


async def test_without_keys_it_is_there_to_be_found(backend: Backend) -> None:
    # Else the test above would show nothing.
    store = await backend.process("one", seals=PLAIN)
    try:
        await live(store)
        assert (await dump(backend)).count(CANARY.encode()) >= 8
    finally:
        await store.close()


async def test_plain_values_of_before_are_read_and_rewritten(backend: Backend, tmp_path: Path) -> None:
    plain = await backend.process("one", seals=PLAIN)
    ref = await live(plain)
    await plain.close()
    seals = keys_at(tmp_path / "keys.json", "k1")
    store = await backend.process("one", seals=seals)
    try:
        await check(store, ref)
        told: dict[str, int] = {}
        done = await rewrite_database(store.database, seals, seals, "k1", told.__setitem__)
        assert done.changed == sum(told.values()) >= 10
        assert set(told) == {"runs", "stages", "messages", "inputs", "outbox", "journal", "memories", "artifact_bytes"}
        await check(store, ref)
        again = await rewrite_database(store.database, seals, seals, "k1", told.__setitem__)
        assert (again.values, again.changed) == (done.values, 0)
        back = await rewrite_database(store.database, seals, PLAIN, "", told.__setitem__)
        assert back.changed == done.values
    finally:
        await store.close()
    plain = await backend.process("one", seals=PLAIN)
    await check(plain, ref)
    await plain.close()


async def test_the_newest_key_seals_and_the_old_one_opens_until_all_is_rewritten(
    backend: Backend, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    first = await backend.process("one", seals=keys_at(path, "k1"))
    ref = await live(first)
    await first.close()
    old = path.read_text()
    seals = keys_at(path, "k2")
    store = await backend.process("one", seals=seals)
    try:
        await check(store, ref)
        await store.admit(admission("run-2"))
        path.write_text(old)
        alone = await backend.process("two", seals=KeySeals(SealingKeys(path)))
        try:
            with pytest.raises(StoreUnavailableError, match="'k2'"):
                await alone.get_run(ALICE, "run-2")
            await check(alone, ref)
        finally:
            await alone.close()
        await rewrite_database(store.database, seals, seals, "k2", lambda *_: None)
    finally:
        await store.close()


def test_a_sealed_value_that_is_cut_or_changed_anywhere_is_damage_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seals = keys_at(tmp_path / "keys.json", "k1")
    sealed = seals.seal("runs.params", "alice", "run-1", JSON)
    assert seals.open("runs.params", "alice", "run-1", sealed) == JSON
    for length in range(3, len(sealed)):
        with pytest.raises(CorruptStoreError):
            seals.open("runs.params", "alice", "run-1", sealed[:length])
    for at in range(8, len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(CorruptStoreError):
            seals.open("runs.params", "alice", "run-1", changed)
    assert caplog.text.count("a stored value does not open") == 1, "not for each"


def test_another_key_of_a_known_name_is_not_taken_while_the_file_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("servicekit.sealing_keys._LOOK_EVERY_S", 0.0)
    path = tmp_path / "keys.json"
    seals = keys_at(path, "k1")
    sealed = seals.seal("runs.params", "alice", "run-1", JSON)
    first = path.read_text()
    path.unlink()
    add_key(path, "k1")
    later = seals.seal("runs.params", "alice", "run-1", b"later")
    path.write_text(first)
    again = KeySeals(SealingKeys(path))
    assert again.open("runs.params", "alice", "run-1", sealed) == JSON
    assert again.open("runs.params", "alice", "run-1", later) == b"later"


async def _raw(store: SqlRunStore, change: Callable[[Any], Any]) -> Any:
    return await store.database.write(change)


async def test_a_value_that_was_moved_or_changed_or_has_another_key_is_never_handed_out(
    backend: Backend, tmp_path: Path
) -> None:
    store = await backend.process("one", seals=keys_at(tmp_path / "keys.json", "k1"))
    try:
        await store.admit(admission("run-1", message=CANARY, params=JSON))
        await store.admit(admission("run-2", BOB, message="bob's", params=b'{"bob":1}'))
        mine, bobs = runs.c.run_id == "run-1", runs.c.run_id == "run-2"

        def moved(connection: Any) -> None:
            row = connection.execute(runs.select().where(bobs)).one()
            connection.execute(runs.update().where(mine).values(params=row.params))

        def torn(connection: Any) -> None:
            row = connection.execute(runs.select().where(bobs)).one()
            connection.execute(runs.update().where(bobs).values(params=row.params[:-1] + bytes([row.params[-1] ^ 1])))

        await _raw(store, moved)
        with pytest.raises(CorruptStoreError, match="changed or moved"):
            await store.get_run(ALICE, "run-1")
        await _raw(store, torn)
        with pytest.raises(CorruptStoreError):
            await store.get_run(BOB, "run-2")
        wrong = await backend.process("two", seals=keys_at(tmp_path / "other.json", "k1"))
        none = await backend.process("three", seals=PLAIN)
        try:
            with pytest.raises(CorruptStoreError, match="'k1'"):
                await wrong.get_run(ALICE, "run-1")
            with pytest.raises(StoreUnavailableError, match="'k1'"):
                await none.get_run(ALICE, "run-1")
        finally:
            await wrong.close()
            await none.close()
    finally:
        await store.close()


async def test_what_an_agent_keeps_opens_in_no_other_thread_and_for_no_other_agent(
    backend: Backend, tmp_path: Path
) -> None:
    store = await backend.process("one", seals=keys_at(tmp_path / "keys.json", "k1"))
    try:
        for run, thread in (("run-1", "t1"), ("run-2", "t2")):
            ref = (await store.admit(admission(run, thread=thread))).run.ref
            for index, agent in enumerate(("data", "report")):
                kept = Kept(agent, f"{CANARY} of {run} {agent}".encode(), 1000)
                await store.checkpoint(ref, Checkpoint(index, JSON, agent, memory=kept))
            await store.finish(ref, Finish(RunState.SUCCEEDED, JSON))
        assert await store.memory(ALICE, "t1", "data") == f"{CANARY} of run-1 data".encode()
        here = (memories.c.run_id == "run-1") & (memories.c.agent_name == "data")
        # Each move is a row that fits in all but what it was sealed to.
        moves = (
            lambda c: c.execute(memories.update().where(here).values(data=_data(c, "run-1", "report"))),
            lambda c: c.execute(memories.update().where(here).values(data=_data(c, "run-2", "data"))),
            lambda c: (
                c.execute(memories.delete().where(memories.c.run_id == "run-1")),
                c.execute(memories.update().where(memories.c.run_id == "run-2").values(thread_id="t1")),
                c.execute(runs.update().where(runs.c.run_id == "run-2").values(thread_id="t1")),
            ),
        )
        for move in moves:
            await _raw(store, move)
            with pytest.raises(CorruptStoreError, match="changed or moved"):
                await store.memory(ALICE, "t1", "data")
    finally:
        await store.close()


def _data(connection: Any, run: str, agent: str) -> bytes:
    rows = memories.select().where(memories.c.run_id == run, memories.c.agent_name == agent)
    return bytes(connection.execute(rows).one().data)


@pytest.mark.parametrize("sealed", [True, False])
async def test_a_run_that_cannot_be_read_is_left_alone_and_all_others_go_on(
    backend: Backend,
    clock: Clock,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    sealed: bool,
) -> None:
    monkeypatch.setattr("services.execution.store_sql_damage._told", {})
    seals = keys_at(tmp_path / "keys.json", "k1") if sealed else PLAIN
    store = await backend.process("one", seals=seals)
    try:
        # Of each user a run that waits for its turn, and one whose question has lapsed.
        for user, name in ((ALICE, "a"), (BOB, "b")):
            first = (await store.admit(admission(f"{name}-first", user, f"thread-{name}"))).run.ref
            later = admission(f"{name}-queued", user, f"thread-{name}", strategy=ThreadStrategy.ENQUEUE)
            assert (await store.admit(later)).run.state is RunState.QUEUED
            asks = (await store.admit(admission(f"{name}-asks", user))).run.ref
            assert await store.suspend(asks, Question("inp-1", "?", JSON), 0)
            assert await store.finish(first, Finish(RunState.SUCCEEDED))
        damage = b"\0c1\2k1" + bytes(40) if sealed else b'{"permissions":'
        await _raw(store, lambda c: c.execute(runs.update().where(runs.c.user_id == ALICE).values(identity=damage)))
        clock.forward(1)
        assert [run.identity.run_id for run in await store.expired_inputs()] == ["b-asks"]
        assert [step.run.identity.run_id for step in await store.promote(1)] == ["b-queued"]
        await store.release_leases()
        other = await backend.process("two", seals=seals)
        try:
            taken = {run.identity.run_id for run in await other.take_over()}
            assert {"b-queued", "b-asks"} <= taken <= {"b-first", "b-queued", "b-asks"}
            assert await other.take_over() == ()
        finally:
            await other.close()
        told = caplog.text.count("can't be read and is left alone")
        assert told in {2, 3}, "once for each"
        assert left_alone() == told, "what carrel_runs_unreadable says"
    finally:
        await store.close()


async def test_a_missing_or_exchanged_key_is_found_at_the_opening(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    store = await backend.process("one", seals=keys_at(path, "k1"))
    await store.check_keys()
    await store.close()
    for seals, message in (
        (PLAIN, "'k1', which is not here"),
        (keys_at(tmp_path / "new.json", "k2"), "'k1', which is not here"),
        (keys_at(tmp_path / "same.json", "k1"), "'k1' in the key file is not the one"),
    ):
        store = await backend.process("one", seals=seals)
        with pytest.raises(InvalidConfigurationError, match=message):
            await store.check_keys()
        await store.close()
    store = await backend.process("one", seals=keys_at(path, "k2"))
    await store.check_keys()
    await store.forget_keys("k2")
    acts = [(entry.action, entry.target) for entry in (await store.list_audit(None, "", 10, None)).items]
    assert sorted(acts) == [
        ("encryption.key_added", "k1"),
        ("encryption.key_added", "k2"),
        ("encryption.key_retired", "k1"),
    ]
    await store.close()


async def test_reencrypting_a_state_folder_with_its_artifacts(tmp_path: Path) -> None:
    settings = ExecutionSettings.model_validate(
        {"state_dir": tmp_path, "encryption": {"key_file": tmp_path / "keys.json"}}
    )
    with pytest.raises(InvalidConfigurationError, match="carrel encryption-key"):
        await reencrypt(settings, lambda *_: None)
    seals = keys_at(tmp_path / "keys.json", "k1")
    plain = LocalArtifactFolder(settings.artifacts_path)
    # What looks sealed and is not.
    contents = [CANARY.encode() * 10, b"\0c1\2k1" + b"x" * 50, b""]
    digests = [await plain.put(ALICE, "run-1", content) for content in contents]
    store = await open_sqlite_store(settings.store_path, migrate=True, seals=seals)
    ref = await live(store)
    await store.close()
    done = await reencrypt(settings, lambda *_: None)
    assert done.changed == 3, "the store's own values were sealed from the start"
    keys_at(tmp_path / "keys.json", "k2")
    assert (await reencrypt(settings, lambda *_: None)).changed > 10
    files = [path for path in settings.artifacts_path.rglob("*") if path.is_file()]
    assert {key_of(path.read_bytes()) for path in files} == {"k2"}
    assert not any(CANARY.encode() in path.read_bytes() for path in files)
    only = json.loads((tmp_path / "keys.json").read_text())
    only["keys"] = only["keys"][:1]
    (tmp_path / "keys.json").write_text(json.dumps(only))
    seals = KeySeals(SealingKeys(tmp_path / "keys.json"))
    folder = LocalArtifactFolder(settings.artifacts_path, seals)
    assert [await folder.read(ALICE, "run-1", digest) for digest in digests] == contents
    with pytest.raises(CorruptStoreError):
        await LocalArtifactFolder(settings.artifacts_path, seals).read(BOB, "run-1", digests[0])
    store = await open_sqlite_store(settings.store_path, migrate=False, seals=seals)
    await check(store, ref)
    await store.close()
    with pytest.raises(StartupError, match="'k2'"):
        await open_sqlite_store(settings.store_path, migrate=False)
    await reencrypt(settings, lambda *_: None, plain=True)
    store = await open_sqlite_store(settings.store_path, migrate=False)
    await check(store, ref)
    await store.close()
    with closing(sqlite3.connect(settings.store_path)) as connection:
        values = connection.execute("SELECT message, params, identity FROM runs").fetchone()
    assert not any(is_sealed(value) for value in values)


def test_texts_that_look_sealed_are_texts(tmp_path: Path) -> None:
    seals = keys_at(tmp_path / "keys.json", "k1")
    for text in ("", "hello", "\1c1:AAAA", "\1p:x", "\1", "a\0b", "\ud800", "ünï"):
        wanted = text.replace("\0", "\ufffd")
        stored = seals.seal_text("f", "alice", "r", text)
        assert seals.open_text("f", "alice", "r", stored) == wanted
        plain = PLAIN.seal_text("f", "alice", "r", text)
        assert PLAIN.open_text("f", "alice", "r", plain) == text
        assert seals.open_text("f", "alice", "r", plain) == text
        with pytest.raises(CorruptStoreError):
            seals.open_text("f", "bob", "r", stored)


def test_key_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "k1")
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(InvalidConfigurationError, match="no other key's name"):
        add_key(path, "k1")
    good = json.loads(path.read_text())["keys"][0]
    for wrong, message in (
        ("{", "not JSON"),
        ("[]", "no JWK set"),
        ('{"keys":[]}', "holds no key"),
        (json.dumps({"keys": [good, good]}), "two keys called 'k1'"),
        (json.dumps({"keys": [good | {"k": "AAAA"}]}), "has not 32 bytes"),
        (json.dumps({"keys": [good | {"kid": "a b"}]}), "usable name"),
        (json.dumps({"keys": [good | {"kty": "RSA"}]}), "something else"),
    ):
        path.write_text(wrong)
        with pytest.raises(InvalidConfigurationError, match=message):
            SealingKeys(path)
    path.write_text(json.dumps({"keys": [good]}))
    path.chmod(0o604)
    with pytest.raises(InvalidConfigurationError, match="chmod 600"):
        SealingKeys(path)


def test_a_key_that_is_added_while_it_runs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("servicekit.private_files.time.monotonic", lambda: clock[0])
    path = tmp_path / "keys.json"
    seals = keys_at(path, "k1")
    other = keys_at(path, "k2")
    sealed = other.seal("f", "alice", "r", b"x")
    assert key_of(sealed) == "k2"
    with pytest.raises(StoreUnavailableError):
        seals.open("f", "alice", "r", sealed)
    clock[0] += 1
    assert seals.open("f", "alice", "r", sealed) == b"x"
    assert key_of(seals.seal("f", "alice", "r", b"x")) == "k2"

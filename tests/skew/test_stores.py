"""The last release on a store that this one has used: it starts where it can read everything, and refuses where not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from servicekit.sealing_keys import SealingKeys, add_key
from services.execution import migrations
from services.execution.store_sealing import KeySeals
from services.execution.store_sql_open import open_sqlite_store
from tests.contract.run_support import ALICE, admission
from tests.skew.versions import NEW
from tests.support.stack import clean_environment

_OPEN: Final = """
import asyncio, sys
from pathlib import Path
from services.execution.store_sql_open import open_sqlite_store
from services.execution.models import UserKey

async def main():
    store = await open_sqlite_store(Path(sys.argv[1]), migrate=True)
    run = await store.get_run(UserKey("alice"), "run-1")
    print(run.message)
    await store.close()

asyncio.run(main())
"""


def _open_with(tree: Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = clean_environment({"PYTHONPATH": str(tree)})
    command = [sys.executable, "-P", "-c", _OPEN, str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50, check=False)


async def test_the_last_release_reads_what_this_one_wrote_until_a_field_is_sealed_and_again_when_none_is(
    old: Path, tmp_path: Path
) -> None:
    path, keys = tmp_path / "runs.sqlite3", tmp_path / "keys.json"
    store = await open_sqlite_store(path, migrate=True)
    await store.admit(admission("run-1", message="a message"))
    await store.close()
    done = _open_with(old, path)
    assert (done.returncode, done.stdout.strip()) == (0, "a message"), done.stderr

    add_key(keys, "k1")
    store = await open_sqlite_store(path, migrate=False, seals=KeySeals(SealingKeys(keys)))
    run = await store.get_run(ALICE, "run-1")
    assert run is not None
    assert run.message == "a message"
    done = _open_with(old, path)
    assert done.returncode != 0
    assert "another execution process uses the run store" in done.stderr
    await store.close()
    done = _open_with(old, path)
    assert done.returncode != 0
    assert "was written by a newer version" in done.stderr

    store = await open_sqlite_store(path, migrate=False, seals=KeySeals(SealingKeys(keys)))
    await store.forget_keys("")
    await store.close()
    done = _open_with(old, path)
    assert (done.returncode, done.stdout.strip()) == (0, "a message"), done.stderr


async def test_the_next_release_expands_the_store_and_both_before_it_use_it(
    old: Path, following: Path, tmp_path: Path
) -> None:
    path = tmp_path / "runs.sqlite3"
    store = await open_sqlite_store(path, migrate=True)
    await store.admit(admission("run-1", message="a message"))
    await store.close()
    for tree in (following, old, NEW, following):
        done = _open_with(tree, path)
        assert (done.returncode, done.stdout.strip()) == (0, "a message"), done.stderr


def test_the_mark_is_where_the_first_release_looks(tmp_path: Path) -> None:
    assert migrations.READERS_FROM[migrations.HEAD] == "0004"

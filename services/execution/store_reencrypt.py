"""Opens the stores that the settings name and rewrites what is in them under the newest key: ``carrel reencrypt``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from carrel.errors import StartupError, StoreUnavailableError
from services.execution.config import ExecutionSettings
from services.execution.store_sealing import PLAIN, KeySeals, Seals
from services.execution.store_sealing_rewrite import Rewritten, rewrite_database, rewrite_folder
from services.execution.store_sql import SqlRunStore
from services.execution.store_sql_open import open_sqlite_store

__all__ = ["reencrypt"]


async def reencrypt(settings: ExecutionSettings, told: Callable[[str, int], None], *, plain: bool = False) -> Rewritten:
    """Rewrite every stored value that is not sealed with the newest key; then no other key is needed any more.

    Args:
        settings: Where the stores and the keys are.
        told: Is told each table's name and how many of its values were changed.
        plain: Store plain values instead, as before there was a key; execution must not run with keys meanwhile.

    Raises:
        StartupError: No keys are set, or a store cannot be used.
        StoreUnavailableError, CorruptStoreError: A value does not open. What was rewritten is.
    """
    opens = settings.encryption.seals()
    if not isinstance(opens, KeySeals):
        raise StartupError(
            "there are no encryption keys",
            advice="set CARREL_EXECUTION_ENCRYPTION__KEY_FILE; `carrel encryption-key FILE` makes one",
        )
    newest = "" if plain else opens.keys.newest()[0]
    seals: Seals = PLAIN if plain else opens
    store = await _open(settings, opens)
    try:
        done = await rewrite_database(store.database, opens, seals, newest, told)
        if settings.store_address() is None:
            files = await _folder(settings, opens, seals, newest)
            told("artifacts", files.changed)
            done = Rewritten(done.values + files.values, done.changed + files.changed)
        await store.forget_keys(newest)
    finally:
        await store.close()
    return done


async def _open(settings: ExecutionSettings, seals: Seals) -> SqlRunStore:
    address = settings.store_address()
    if address is None:
        return await open_sqlite_store(settings.store_path, migrate=settings.migrates, seals=seals)
    from services.execution.store_sql_postgres_open import open_postgres_store

    return await open_postgres_store(address, migrate=settings.migrates, seals=seals)


async def _folder(settings: ExecutionSettings, opens: Seals, seals: Seals, newest: str) -> Rewritten:
    try:
        return await asyncio.to_thread(rewrite_folder, settings.artifacts_path, opens, seals, newest)
    except OSError as error:
        raise StoreUnavailableError(
            f"the artifact folder cannot be rewritten: {error.strerror or error}", advice="make it writable"
        ) from error

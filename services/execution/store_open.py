"""Opens the stores that the settings name: a file and a folder for one process, or a database for several."""

from __future__ import annotations

from dataclasses import dataclass

from services.execution.config import ExecutionSettings
from services.execution.domain.ports import NoWakeups, Wakeups
from services.execution.store import ArtifactFolder, RunStore
from services.execution.store_artifacts import LocalArtifactFolder
from services.execution.store_sql_open import open_sqlite_store

__all__ = ["Stores", "open_stores"]


@dataclass(frozen=True, slots=True)
class Stores:
    """The run store, and where artifacts' bytes are; closing the store is enough."""

    store: RunStore
    folder: ArtifactFolder
    wakeups: Wakeups


async def open_stores(settings: ExecutionSettings) -> Stores:
    """Open what the settings name.

    Raises:
        StartupError: It can't be used, with what to do about it.
    """
    address, seals = settings.store_address(), settings.encryption.seals()
    if address is None:
        folder = LocalArtifactFolder(settings.artifacts_path, seals)
        await folder.probe()
        store = await open_sqlite_store(
            settings.store_path,
            migrate=settings.migrates,
            engine_timeout_s=settings.engine_timeout_seconds,
            lease_s=settings.lease_seconds,
            synchronous=settings.synchronous,
            seals=seals,
        )
        return Stores(store, folder, NoWakeups())
    # Loads the driver, which only those need who have such a database.
    from services.execution.store_artifacts_sql import SqlArtifactFolder
    from services.execution.store_sql_postgres_open import connector, open_postgres_store
    from services.execution.store_sql_wakeups import PostgresWakeups

    shared = await open_postgres_store(
        address,
        migrate=settings.migrates,
        engine_timeout_s=settings.engine_timeout_seconds,
        lease_s=settings.lease_seconds,
        seals=seals,
    )
    wakeups = PostgresWakeups(connector(address, name="carrel-execution-hints"), shared.owner)
    return Stores(shared, SqlArtifactFolder(shared.database, seals), wakeups)

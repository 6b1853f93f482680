"""``carrel migrate``: brings the stores to this version.

The embedded ones of a state folder while nothing runs on them; a PostgreSQL database also while execution processes of
the former version do, since migrations only add. A log in Redis has had one form so far, and nothing to migrate.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from carrel.cli.output import EXIT_OK, Printer
from carrel.cli.replicas import LOG_URL, STORE_URL
from carrel.cli.state import StateFolder
from carrel.errors import StartupError

if TYPE_CHECKING:
    from services.bridge.config import BridgeSettings
    from services.execution.config import ExecutionSettings

__all__ = ["migrate_stores"]


def migrate_stores(state_dir: Path, *, redis: str = "", postgres: str = "") -> int:
    """Migrate execution's store and the bridge's; the exit code.

    Args:
        state_dir: Where embedded stores are. It may be missing, or a stack run on it, where a database is migrated;
            then the embedded stores are left out.
        redis: URL of the Redis that keeps the events; else what the environment says.
        postgres: URL of the PostgreSQL that keeps the runs; else what the environment says.

    Raises:
        StartupError: There is no such folder, a stack runs on it, or a store can't be migrated.
    """
    from servicekit.settings import load_settings
    from services.bridge.config import BridgeSettings
    from services.execution.config import ExecutionSettings

    state = StateFolder(state_dir.resolve())
    given = {name: url for name, url in ((LOG_URL, redis), (STORE_URL, postgres)) if url}
    environment = {**os.environ, "CARREL_STATE_DIR": str(state.root), **given}
    execution = load_settings(ExecutionSettings, "execution", environment)
    bridge = load_settings(BridgeSettings, "bridge", environment)
    printer = Printer()
    shared = execution.store_address() is not None
    if shared:
        printer.line("execution", _migrate_database(execution))
    if bridge.log.url is not None:
        printer.line("bridge", f"the event log is in {bridge.log.url}: nothing to migrate")
    embedded: list[tuple[str, Callable[[], str]]] = []
    if not shared:
        embedded.append(("execution", lambda: _migrate_execution(execution)))
    if bridge.log.url is None:
        embedded.append(("bridge", lambda: _migrate_bridge(bridge)))
    if shared and embedded and (reason := _not_now(state)):
        printer.line("bridge", f"left as it is: {reason}")
    elif embedded:
        _migrate_embedded(state, state_dir, embedded, printer)
    return EXIT_OK


def _not_now(state: StateFolder) -> str:
    """Why embedded stores can't be migrated now; empty if they can."""
    if not state.root.is_dir():
        return f"there is no state folder {state.root}"
    return f"a stack runs in {state.root}" if state.running() is not None else ""


def _migrate_embedded(
    state: StateFolder, named: Path, stores: list[tuple[str, Callable[[], str]]], printer: Printer
) -> None:
    if not state.root.is_dir():
        raise StartupError(
            f"there is no state folder {named}",
            advice="name the folder of the stack with --state; `carrel up` makes the stores of a new one by itself",
        )
    with state.locked(advice="stop the stack (Ctrl-C where `carrel up` runs), migrate, and start it again"):
        for name, migrate in stores:
            printer.line(name, migrate())


def _migrate_database(settings: ExecutionSettings) -> str:
    from services.execution.store_sql_postgres_open import migrate_postgres

    address = settings.store_address()
    assert address is not None
    return f"{settings.store_name} is at version {asyncio.run(migrate_postgres(address))}"


def _migrate_execution(settings: ExecutionSettings) -> str:
    from services.execution.store_sql_open import migrate_sqlite

    path = settings.store_path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return f"{path} is at version {migrate_sqlite(path)}"


def _migrate_bridge(settings: BridgeSettings) -> str:
    # There has been one version of the log so far: opening it makes a new one, and refuses a foreign one.
    from services.bridge.tables import SCHEMA_VERSION, open_writer

    path = settings.log_path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with closing(open_writer(path, "NORMAL")):
            return f"{path} is at version {SCHEMA_VERSION}"
    except sqlite3.Error as error:
        raise StartupError(
            f"the event log {path} can't be opened: {error}", advice="move it away; a new one is made at the next start"
        ) from None

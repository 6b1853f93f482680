"""``carrel migrate``: brings the stores to this version.

The embedded ones of a state folder while nothing runs on them; a PostgreSQL database that the settings name also while
execution processes of the former version do, since migrations only add.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from carrel.cli.output import EXIT_OK, Printer
from carrel.cli.state import StateFolder
from carrel.errors import StartupError

__all__ = ["migrate_stores"]


def migrate_stores(state_dir: Path) -> int:
    """Migrate execution's store and the bridge's; the exit code.

    Where execution's store is a database there need be no folder: then that store is all that is migrated.

    Raises:
        StartupError: There is no such folder, a stack runs on it, or a store can't be migrated.
    """
    state = StateFolder(state_dir.resolve())
    printer = Printer()
    if not state.root.is_dir():
        if os.environ.get("CARREL_EXECUTION_STORE_URL", "").strip():
            store, version = _migrate_execution(state.root)
            printer.line("execution", f"{store} is at version {version}")
            return EXIT_OK
        raise StartupError(
            f"there is no state folder {state_dir}",
            advice="name the folder of the stack with --state; `carrel up` makes the stores of a new one by itself",
        )
    with state.locked(advice="stop the stack (Ctrl-C where `carrel up` runs), migrate, and start it again"):
        for name, migrate in (("execution", _migrate_execution), ("bridge", _migrate_bridge)):
            store, version = migrate(state.root)
            printer.line(name, f"{store} is at version {version}")
    return EXIT_OK


def _environment(state_dir: Path) -> dict[str, str]:
    return {**os.environ, "CARREL_STATE_DIR": str(state_dir)}


def _migrate_execution(state_dir: Path) -> tuple[str, str]:
    from servicekit.settings import load_settings
    from services.execution.config import ExecutionSettings
    from services.execution.store_sql_open import migrate_sqlite

    settings = load_settings(ExecutionSettings, "execution", _environment(state_dir))
    address = settings.store_address()
    if address is not None:
        from services.execution.store_sql_postgres_open import migrate_postgres

        return settings.store_name, asyncio.run(migrate_postgres(address))
    path = settings.store_path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return str(path), migrate_sqlite(path)


def _migrate_bridge(state_dir: Path) -> tuple[str, str]:
    # There has been one version of the log so far: opening it makes a new one, and refuses a foreign one.
    from servicekit.settings import load_settings
    from services.bridge.config import BridgeSettings
    from services.bridge.tables import SCHEMA_VERSION, open_writer

    path = load_settings(BridgeSettings, "bridge", _environment(state_dir)).log_path
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with closing(open_writer(path, "NORMAL")):
            return str(path), str(SCHEMA_VERSION)
    except sqlite3.Error as error:
        raise StartupError(
            f"the event log {path} can't be opened: {error}", advice="move it away; a new one is made at the next start"
        ) from None

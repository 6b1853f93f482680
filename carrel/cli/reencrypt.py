"""``carrel encryption-key`` makes a key; ``carrel reencrypt`` rewrites execution's stores under the newest one."""

from __future__ import annotations

import asyncio
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from carrel.cli.output import EXIT_OK, Printer
from carrel.cli.replicas import STORE_URL
from carrel.cli.state import StateFolder
from carrel.errors import StartupError

__all__ = ["make_key", "reencrypt_stores"]


def make_key(path: Path, kid: str) -> int:
    """Put a new key in front of those in the file; the exit code.

    Raises:
        InvalidConfigurationError: The file cannot be used.
    """
    from servicekit.sealing_keys import add_key

    made = add_key(path, kid)
    printer = Printer()
    printer.say(f"{path} has a new key, {made}: what is stored from now on is sealed with it.")
    printer.say("Keep the file where backups of the store are not: without it they cannot be read, nor can the store.")
    return EXIT_OK


def reencrypt_stores(state_dir: Path, *, postgres: str = "", plain: bool = False) -> int:
    """Rewrite execution's stores; the exit code.

    Args:
        state_dir: Where embedded stores are; nothing may run on them meanwhile.
        postgres: URL of the PostgreSQL that keeps the runs, which may be in use; else what the environment says.
        plain: Store plain values again.

    Raises:
        CarrelError: There is no such folder, a stack runs on it, a key is missing, or a store cannot be used.
    """
    from servicekit.settings import load_settings
    from services.execution.config import ExecutionSettings
    from services.execution.store_reencrypt import reencrypt

    state = StateFolder(state_dir.resolve())
    given = {STORE_URL: postgres} if postgres else {}
    environment = {**os.environ, "CARREL_STATE_DIR": str(state.root), **given}
    settings = load_settings(ExecutionSettings, "execution", environment)
    printer = Printer()
    alone: AbstractContextManager[Any] = nullcontext()
    if settings.store_address() is None:
        if not settings.store_path.exists():
            raise StartupError(
                f"there is no run store {settings.store_path}", advice="name the folder of the stack with --state"
            )
        alone = state.locked(advice="stop the stack (Ctrl-C where `carrel up` runs), reencrypt, and start it again")
    with alone:
        done = asyncio.run(
            reencrypt(settings, lambda table, changed: printer.line(table, f"{changed} values rewritten"), plain=plain)
        )
    what = "is plain again: the key file is no longer needed" if plain else "is sealed with the newest key alone"
    printer.say(f"{settings.store_name} {what} ({done.changed} of {done.values} values rewritten).")
    return EXIT_OK

"""Which gateway a command speaks to, and as whom: what was given, else the stack and the secret of the state folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carrel.cli.state import StateFolder
from carrel.cli.tokens import development_token
from carrel.errors import StartupError

__all__ = ["Target", "find_target"]

# As long as a stack may take on a busy machine.
_START_S: Final = 60.0
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway and a user there."""

    url: str
    token: str = field(repr=False)
    user: str
    state: Path


def find_target(url: str, token: str, user: str, state: Path, environ: Mapping[str, str] | None = None) -> Target:
    """The gateway and the token to use. A stack that is starting in the state folder is waited for.

    Raises:
        StartupError: No address was given and no stack runs in the state folder, it does not get ready, or there is no
            secret.
        PermissionDeniedError: A development token was asked for in production.
    """
    folder = StateFolder(state)
    environ = os.environ if environ is None else environ
    address = url or environ.get("CARREL_CLI_URL", "")
    if not address:
        running = _once_ready(folder)
        if running is None:
            raise StartupError(
                f"no stack runs in the state folder {state}",
                advice="start one with `carrel up`, or name a gateway with --url",
            )
        address = str(running["url"])
    if "://" not in address:
        address = f"http://{address}"
    return Target(address, token or development_token(folder.login_secret, user, environ=environ), user, state)


def _once_ready(folder: StateFolder) -> dict[str, Any] | None:
    """What the stack says of itself, when all of it is ready; None when there is none, or none any more."""
    facts = folder.read_stack()
    if facts is None or facts.get("ready_s") != 0 or folder.running() is None:
        return facts
    print(f"carrel: the stack in {folder.root} is starting; waiting for it", file=sys.stderr, flush=True)  # noqa: T201 -- for the person
    until = time.monotonic() + _START_S
    while facts is not None and facts.get("ready_s") == 0:
        if time.monotonic() > until:
            raise StartupError(
                f"the stack in {folder.root} is still starting",
                advice="see in the terminal of `carrel up` what it does",
            )
        time.sleep(_LOOK_S)
        facts = folder.running()
    return facts

"""Which gateway a command speaks to, and as whom: what was given, else the stack and the secret of the state folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from carrel.cli.state import StateFolder
from carrel.cli.tokens import development_token
from carrel.errors import StartupError

__all__ = ["Target", "find_target"]


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway and a user there."""

    url: str
    token: str = field(repr=False)
    user: str
    state: Path


def find_target(url: str, token: str, user: str, state: Path, environ: Mapping[str, str] | None = None) -> Target:
    """The gateway and the token to use.

    Raises:
        StartupError: No address was given and no stack runs in the state folder, or there is no secret.
        PermissionDeniedError: A development token was asked for in production.
    """
    folder = StateFolder(state)
    environ = os.environ if environ is None else environ
    address = url or environ.get("CARREL_CLI_URL", "")
    if not address:
        running = folder.read_stack()
        if running is None:
            raise StartupError(
                f"no stack runs in the state folder {state}",
                advice="start one with `carrel up`, or name a gateway with --url",
            )
        address = str(running["url"])
    if "://" not in address:
        address = f"http://{address}"
    return Target(address, token or development_token(folder.login_secret, user, environ=environ), user, state)

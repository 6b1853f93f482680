"""The state folder of a development stack: keys and secrets made on first use, one stack at a time, where it listens.

Not configuration: everything here can be deleted while nothing runs, and is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from carrel.errors import StartupError

__all__ = ["StateFolder", "address_in"]


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths inside the folder, and what makes them."""

    root: Path

    @property
    def keys(self) -> Path:
        """Folder of the keys, mode 0700."""
        return self.root / "keys"

    @property
    def jwks(self) -> Path:
        """Public keys of all who mint tickets."""
        return self.keys / "tickets.jwks.json"

    @property
    def gateway_key(self) -> Path:
        """The gateway's signing key."""
        return self.keys / "gateway.jwk.json"

    @property
    def execution_key(self) -> Path:
        """The execution service's signing key; it may sign run tickets only."""
        return self.keys / "execution.jwk.json"

    @property
    def login_secret(self) -> Path:
        """The shared secret of development login tokens."""
        return self.keys / "login.secret"

    @property
    def certificates(self) -> Path:
        """Folder of the authority and of each service's certificate, for a stack with TLS between its services."""
        return self.root / "tls"

    @property
    def stack_file(self) -> Path:
        """Where the running stack says its address and process ids."""
        return self.root / "stack.json"

    def prepare(self) -> None:
        """Make the folder and whatever is missing in it.

        Raises:
            StartupError: The folder can't be written.
        """
        from servicekit.identity.keys import generate_key, write_jwks, write_private
        from servicekit.identity.principals import Scope

        try:
            for folder in (self.root, self.keys):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (self.jwks.exists() and self.gateway_key.exists() and self.execution_key.exists()):
                gateway = generate_key(issuer="gateway")
                execution = generate_key(issuer="execution", scopes={Scope.RUN})
                gateway.save(self.gateway_key)
                execution.save(self.execution_key)
                write_jwks(self.jwks, [gateway, execution])
            if not self.login_secret.exists():
                write_private(self.login_secret, secrets.token_hex(32).encode())
        except OSError as error:
            raise self._cannot_write(error) from error

    @contextlib.contextmanager
    def locked(
        self, advice: str = "stop it (Ctrl-C in its terminal), or give this one another folder with --state and --port"
    ) -> Iterator[int]:
        """Hold the folder for one stack; gives the lock's descriptor.

        Processes that inherit the descriptor hold the folder too: a stack whose supervisor was killed keeps its
        successor out until the last of them has ended.

        Args:
            advice: What to do about a stack that runs here.

        Raises:
            StartupError: Another stack holds it, or it can't be written.
        """
        with self._open_lock() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise self._taken(advice) from None
            try:
                yield lock.fileno()
            finally:
                # A folder that can't be written any more keeps it; `running` knows a dead supervisor's.
                with contextlib.suppress(OSError):
                    self.stack_file.unlink(missing_ok=True)

    def _open_lock(self) -> TextIO:
        try:
            return (self.root / "stack.lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise self._cannot_write(error) from None

    def _cannot_write(self, error: OSError) -> StartupError:
        return StartupError(
            f"the state folder {self.root} can't be written: {error.strerror}",
            advice="free space or mend its permissions, or name another with --state",
        )

    def _taken(self, advice: str) -> StartupError:
        running = self.read_stack() or {}
        where = f" at {running['url']}" if running else ""
        if running and not _alive(running.get("supervisor")):
            return StartupError(
                f"the stack in {self.root} was killed, and its processes are still ending",
                advice="try again in some seconds; `carrel up` waits up to 15 s for each to finish what it does",
            )
        return StartupError(f"a stack runs already in {self.root}{where}", advice=advice)

    def write_stack(self, facts: dict[str, Any]) -> None:
        """Say where the stack is. Raises ``OSError`` when it can't; what was said before stays then."""
        temporary = self.stack_file.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
            temporary.replace(self.stack_file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def read_stack(self) -> dict[str, Any] | None:
        """What the stack said, or None when none runs here."""
        try:
            facts = json.loads(self.stack_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return facts if isinstance(facts, dict) and "url" in facts else None

    def running(self) -> dict[str, Any] | None:
        """The same, but None also when whoever wrote it is dead."""
        facts = self.read_stack()
        return facts if facts and _alive(facts.get("supervisor")) else None


def address_in(facts: Mapping[str, Any], service: str) -> str:
    """Where a service's first process of a running stack listens, by what ``StateFolder.read_stack`` gave."""
    name = next(iter(facts.get("copies", {}).get(service, ())), service)
    return str(facts["addresses"][name])


def _alive(pid: object) -> bool:
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

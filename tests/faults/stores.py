"""Where cells act: a stack on embedded stores, on a Redis and a PostgreSQL of its own, or in two copies of everything.

``PLANTS`` names them; each is a context manager that gives the stack, its network and its servers. Where no server can
be had, entering raises pytest's ``skip``, with the reason.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.chaos.recovery import AGENTS
from tests.faults.clocks import Clocks
from tests.faults.edges import Net, edged_stack
from tests.support.postgres import OwnServer, PostgresServer, postgres_server, run_apart
from tests.support.redis_servers import RedisServer, SentinelSetup, sentinel_setup, single_server
from tests.support.stack import SERVICES, RunningStack
from tests.support.tcp_proxy import Address

__all__ = ["PLANTS", "SETTINGS", "Plant", "Servers"]

_PROBES: Final = {
    # A store that failed is looked at again after 30 s; tests have no such patience.
    "CARREL_BRIDGE_PROBE_INTERVAL_S": "0.5",
    "CARREL_BRIDGE_FAILED_PROBE_INTERVAL_S": "0.5",
}
# A reader that hears nothing for 2.5 heartbeats comes back by itself; tests have no patience for the default's 75 s.
SETTINGS: Final = {
    "WEBSOCKET_HEARTBEAT_INTERVAL": "1",
    "CARREL_EXECUTION_RUNS_PER_MINUTE_PER_USER": "0",
    "CARREL_LOG_LEVEL": "info",
    "CARREL_DOWNSTREAM_WAIT_SECONDS": "30",
    **_PROBES,
}
_DISK_MIB: Final = 32
_COPIES: Final = dict.fromkeys(SERVICES, 2)


@dataclass
class Servers:
    """The servers that a stack stores in; None for what it keeps in files."""

    redis: RedisServer | None = None
    sentinel: SentinelSetup | None = None
    postgres: OwnServer | None = None
    clocks: Clocks | None = None


@dataclass
class Plant:
    """A stack with everything around it."""

    stack: RunningStack
    net: Net
    servers: Servers


@contextlib.contextmanager
def _sqlite(folder: Path) -> Iterator[Plant]:
    with edged_stack(folder, agents=[str(AGENTS)], environment=SETTINGS) as (stack, net):
        yield Plant(stack, net, Servers())


def _shared(folder: Path) -> AbstractContextManager[Plant]:
    """Single copies, and a proxy before each server."""
    return _on_servers(folder, SETTINGS)


def _default_probes(folder: Path) -> AbstractContextManager[Plant]:
    """As ``_shared``, with a bridge that looks at its log as often as it does by default."""
    return _on_servers(folder, {name: value for name, value in SETTINGS.items() if name not in _PROBES})


@contextlib.contextmanager
def _on_servers(folder: Path, settings: Mapping[str, str]) -> Iterator[Plant]:
    with single_server(folder, aof=True) as redis, _postgres() as (postgres, url):
        servers = Servers(redis, postgres=postgres)
        before: Mapping[str, Address] = {
            "bridge-redis": ("127.0.0.1", redis.port),
            "execution-postgres": (postgres.host, postgres.port),
        }
        with edged_stack(
            folder,
            agents=[str(AGENTS)],
            environment=settings,
            servers=before,
            redis=lambda net: f"redis://{net.address('bridge-redis')}/0",
            postgres=lambda net: _at(url, net.address("execution-postgres")),
        ) as (stack, net):
            yield Plant(stack, net, servers)


@contextlib.contextmanager
def _sentinel(folder: Path) -> Iterator[Plant]:
    with (
        sentinel_setup(folder) as setup,
        edged_stack(folder, agents=[str(AGENTS)], environment=SETTINGS, redis=lambda net: setup.url) as (stack, net),
    ):
        yield Plant(stack, net, Servers(sentinel=setup))


@contextlib.contextmanager
def _copies(folder: Path) -> Iterator[Plant]:
    """Two of each service; clients are spread over the gateways, and bridges reach Redis through a proxy."""
    with (
        single_server(folder, aof=True) as redis,
        _postgres() as (postgres, url),
        edged_stack(
            folder,
            agents=[str(AGENTS)],
            environment=SETTINGS,
            servers={"bridge-redis": ("127.0.0.1", redis.port)},
            redis=lambda net: f"redis://{net.address('bridge-redis')}/0",
            postgres=lambda net: url,
            replicas=_COPIES,
        ) as (stack, net),
    ):
        yield Plant(stack, net, Servers(redis, postgres=postgres))


@contextlib.contextmanager
def _clocks(folder: Path) -> Iterator[Plant]:
    clocks = Clocks(folder / "clocks")
    settings = {**SETTINGS, **clocks.environment}
    with edged_stack(folder, agents=[str(AGENTS)], environment=settings) as (stack, net):
        yield Plant(stack, net, Servers(clocks=clocks))


@contextlib.contextmanager
def _aging(folder: Path) -> Iterator[Plant]:
    """Connections between services are told to go away after a second."""
    settings = {**SETTINGS, "CARREL_MAX_CONNECTION_AGE_SECONDS": "1"}
    with edged_stack(folder, agents=[str(AGENTS)], environment=settings) as (stack, net):
        yield Plant(stack, net, Servers())


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Plant]:
    """The stores are on a disk of their own, which can be filled."""
    disk = folder / "state"
    disk.mkdir(parents=True)
    with _mounted(disk), edged_stack(folder, agents=[str(AGENTS)], environment=SETTINGS) as (stack, net):
        yield Plant(stack, net, Servers())


@contextlib.contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m,mode=0700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def _postgres() -> Iterator[tuple[OwnServer, str]]:
    with postgres_server() as server:
        if not isinstance(server, OwnServer):
            pytest.skip("needs a PostgreSQL that may be killed, and found one that is not ours")
        yield server, server.url(run_apart(_create(server)))


async def _create(server: PostgresServer) -> str:
    return await server.create()


def _at(url: str, address: str) -> str:
    """The URL with another host and port."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{address}"))


PLANTS: Final[Mapping[str, Callable[[Path], AbstractContextManager[Plant]]]] = {
    "sqlite": _sqlite,
    "shared": _shared,
    "default probes": _default_probes,
    "sentinel": _sentinel,
    "copies": _copies,
    "clocks": _clocks,
    "aging": _aging,
    "small disk": _small_disk,
}

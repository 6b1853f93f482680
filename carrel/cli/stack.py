"""The five processes on one machine with embedded stores: their commands, addresses and environments.

``carrel up`` and ``carrel demo`` run on it, and so do end-to-end tests and benchmarks. Not for several machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carrel.cli.settings import check_settings
from carrel.cli.state import StateFolder
from carrel.cli.status_file import StatusFile
from carrel.cli.supervisor import LogLine, ProcessSpec, Supervisor
from carrel.errors import StartupError

__all__ = ["DEFAULT_PORT", "PACKAGED", "Stack", "StackOptions", "open_stack", "stack_options"]

DEFAULT_PORT: Final = 8080
# What agent_instance calls the agents that installed packages bring along, ours among them.
PACKAGED: Final = "entry-points"
_LOG_FORMAT: Final = "CARREL_LOG_FORMAT"
_DATA_DIR: Final = "LLM_COSTS_DATA_DIR"
_FROM_HERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 -- compared, not listened on
_LOWEST_PORT: Final = 10_240
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES: Final = 50

# In the order in which they end: who asks before who answers.
_MODULES: Final[Mapping[str, str]] = {
    "gateway": "gateway",
    "execution": "services.execution",
    "agent_instance": "services.agent_instance",
    "emitter": "services.emitter",
    "bridge": "services.bridge",
}


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What a stack is started with. ``port`` 0 is any free one; ``environment`` is added to every process's.

    ``agents`` are all that are loaded; with none it is agent_instance's own setting that says. With ``yields`` a port
    that is taken is left to whoever has it, and any free one chosen instead.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    agents: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log_format: str = "console"
    yields: bool = False


def stack_options(
    state: Path,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    agents: Sequence[str] = (),
    packaged: bool = True,
    data: Path | None = None,
    yields: bool = False,
) -> StackOptions:
    """Options as commands give them; the log's form is the environment's if that names one.

    Args:
        agents: Agents to load.
        packaged: Whether to load the packaged ones beside them.
        data: Where traces are.
        state: See ``StackOptions``, as for the rest.

    Raises:
        StartupError: The data folder is none, or no agents are left.
    """
    environment: dict[str, str] = {}
    if data is not None:
        if not _is_folder(data):
            advice = "name the folder with your traces with --data or LLM_COSTS_DATA_DIR"
            raise StartupError(f"{data} is not a folder that can be read", advice=advice)
        environment[_DATA_DIR] = str(data.resolve())
    log_format = os.environ.get(_LOG_FORMAT, "").strip() or "console"
    return StackOptions(state, host, port, _agents(agents, packaged), environment, log_format, yields)


def _seen_by_workers(options: StackOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """Settings that let worker processes see where the traces are, and read them; what the caller's environment lets
    them see beside that stays."""
    folder = options.environment.get(_DATA_DIR)
    if not folder:
        return {}
    added = {"ENV_ALLOW": _DATA_DIR, "READ_PATHS": folder}
    settings = {f"CARREL_AGENT_INSTANCE_WORKERS__{name}": value for name, value in added.items()}
    return {
        name: json.dumps(list(dict.fromkeys([*_listed(environ.get(name, "")), value])))
        for name, value in settings.items()
    }


def _listed(text: str) -> list[str]:
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            return [str(item) for item in json.loads(text)]
    return [item.strip() for item in text.split(",") if item.strip()]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir() and os.access(path, os.R_OK | os.X_OK)
    except OSError:
        return False


def _agents(given: Sequence[str], packaged: bool) -> list[str]:
    if not packaged and not given:
        raise StartupError(
            "--no-packaged-agents leaves no agent to load", advice="name your own with --agents FILE.py or MODULE"
        )
    if not packaged and PACKAGED in given:
        raise StartupError(
            f"--agents {PACKAGED} and --no-packaged-agents contradict each other", advice="leave one of them out"
        )
    sources = [_agents_source(name) for name in given]
    # Whoever names one twice means it once. With none named, the setting of agent_instance may name some.
    return list(dict.fromkeys([PACKAGED, *sources] if packaged and sources else sources))


def _agents_source(name: str) -> str:
    """A file's absolute path. A module of the current folder counts as its file: the services do not look there, so
    that an author's folder called ``services`` hides none of ours."""
    if name == PACKAGED:
        return name
    path = Path(name if name.endswith(".py") else name.replace(".", "/") + ".py")
    return str(path.resolve()) if path.is_file() else name


@dataclass(slots=True)
class Stack:
    """A running stack."""

    options: StackOptions
    state: StateFolder
    addresses: Mapping[str, str]
    supervisor: Supervisor
    ready_s: float = 0.0

    @property
    def url(self) -> str:
        """Where clients on this machine connect."""
        host, _, port = self.addresses["gateway"].rpartition(":")
        return f"http://{_FROM_HERE.get(host, host)}:{port}"

    @property
    def moved(self) -> bool:
        """Whether the gateway listens on another port than was asked for, because that was taken."""
        return self.options.port not in {0, int(self.addresses["gateway"].rpartition(":")[2])}

    def facts(self) -> dict[str, Any]:
        """What the state folder tells other commands: where the stack is, and how its processes are."""
        return {
            "url": self.url,
            "supervisor": os.getpid(),
            "ready_s": self.ready_s,
            "settings": {
                name: {**_shared_settings(self.options, self.state), **own}
                for name, own in _own_environments(self.options, self.state, self.addresses).items()
            },
            "addresses": dict(self.addresses),
            "processes": {
                name: {"pid": child.pid, "ready": child.ready.is_set(), "restarts": child.restarts}
                for name, child in self.supervisor.children.items()
            },
        }

    def pids(self) -> dict[str, int]:
        """Process ids of the processes that run now."""
        return {name: child.pid for name, child in self.supervisor.children.items() if child.pid is not None}


@asynccontextmanager
async def open_stack(
    options: StackOptions, log_line: LogLine, *, hasten: asyncio.Event | None = None
) -> AsyncIterator[Stack]:
    """Start the five processes, and end them in order on leaving; ``hasten`` ends what is left at once.

    Raises:
        StartupError: The state folder is taken or can't be written, the port is in use, settings are wrong, or a
            process can't start.
    """
    state = StateFolder(options.state_dir.resolve())
    state.prepare()
    began = time.perf_counter()
    with state.locked() as lock:
        addresses = _choose_addresses(options)
        specs = _specs(options, state, addresses)
        check_settings({spec.name: spec.environment for spec in specs})
        supervisor = Supervisor(specs, log_line, held_fd=lock, hasten=hasten)
        stack = Stack(options, state, addresses, supervisor)
        status = StatusFile(state, stack.facts, log_line)
        supervisor.on_change = status.write
        try:
            await supervisor.start()
            stack.ready_s = time.perf_counter() - began
            status.write()
            yield stack
        finally:
            try:
                await supervisor.stop()
            finally:
                status.close()


def _choose_addresses(options: StackOptions) -> dict[str, str]:
    """One address each, free at this moment and kept across restarts of a process."""
    with contextlib.ExitStack() as held:
        try:
            port = _reserve(held, options.host, options.port)
        except StartupError as error:
            if not (options.yields and error.details.get("taken")):
                raise
            port = _reserve(held, options.host, 0)
        host = f"[{options.host}]" if ":" in options.host else options.host
        addresses = {"gateway": f"{host}:{port}"}
        for name in _MODULES:
            if name != "gateway":
                addresses[name] = f"127.0.0.1:{_reserve_internal(held)}"
    return addresses


def _reserve_internal(held: contextlib.ExitStack) -> int:
    """A free port below the range that the system gives to outgoing connections.

    Inside that range, a client that keeps dialling a process that has died can be given the very port it dials, be
    connected to itself, and keep the process's successor from listening.
    """
    lowest = _lowest_ephemeral_port()
    for _ in range(_TRIES):
        port = random.randrange(_LOWEST_PORT, lowest) if lowest > _LOWEST_PORT else 0  # noqa: S311 -- keeps no secret
        with contextlib.suppress(StartupError):
            return _reserve(held, "127.0.0.1", port)
    return _reserve(held, "127.0.0.1", 0)


def _lowest_ephemeral_port() -> int:
    try:
        return int(_EPHEMERAL.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _reserve(held: contextlib.ExitStack, host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        problem = f"{host}:{port} can't be listened on: {error.strerror}"
        if error.errno in {errno.EADDRINUSE, errno.EACCES}:
            advice = "stop what listens there, or choose another port with --port"
            raise StartupError(problem, advice=advice, taken=True) from None
        raise StartupError(problem, advice="name an address of this machine with --host") from None
    number: int = sock.getsockname()[1]
    return number


def _specs(options: StackOptions, state: StateFolder, addresses: Mapping[str, str]) -> list[ProcessSpec]:
    shared = {
        **_inherited(os.environ),
        **_shared_settings(options, state),
        "PYTHONUNBUFFERED": "1",
        # The loops are single threads; libraries that agents load must not each take both cores.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    own = _own_environments(options, state, addresses)
    return [
        ProcessSpec(name, [sys.executable, "-P", "-m", module], {**shared, **own[name], **options.environment})
        for name, module in _MODULES.items()
    ]


def _shared_settings(options: StackOptions, state: StateFolder) -> dict[str, str]:
    return {
        "CARREL_STATE_DIR": str(state.root),
        "CARREL_TICKET_JWKS": str(state.jwks),
        _LOG_FORMAT: options.log_format,
    }


def _own_environments(
    options: StackOptions, state: StateFolder, addresses: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    listen = {name: {f"CARREL_{name.upper()}_LISTEN": address} for name, address in addresses.items()}
    agents = {"CARREL_AGENT_INSTANCE_AGENTS": ",".join(options.agents)} if options.agents else {}
    return {
        "bridge": listen["bridge"],
        "emitter": {**listen["emitter"], "CARREL_EMITTER_BRIDGE": addresses["bridge"]},
        "agent_instance": {
            **listen["agent_instance"],
            "CARREL_AGENT_INSTANCE_EMITTER": addresses["emitter"],
            **agents,
            **_seen_by_workers(options, os.environ),
        },
        "execution": {
            **listen["execution"],
            "CARREL_EXECUTION_AGENT_INSTANCE": addresses["agent_instance"],
            "CARREL_EXECUTION_EMITTER": addresses["emitter"],
            "CARREL_EXECUTION_BRIDGE": addresses["bridge"],
            "CARREL_EXECUTION_TICKET_KEY": str(state.execution_key),
        },
        "gateway": {
            **listen["gateway"],
            "CARREL_GATEWAY_EXECUTION": addresses["execution"],
            "CARREL_GATEWAY_AGENT_INSTANCE": addresses["agent_instance"],
            "CARREL_GATEWAY_BRIDGE": addresses["bridge"],
            "CARREL_GATEWAY_TICKET_KEY": str(state.gateway_key),
            "CARREL_GATEWAY_LOGIN__SECRET_FILE": str(state.login_secret),
        },
    }


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment; its CARREL_* settings are read by the processes that they are for."""
    dropped: Iterable[str] = ("CARREL_READY_FD", "CARREL_READY_FILE")
    return {name: value for name, value in environ.items() if name not in dropped}

"""The services on one machine: their processes, commands, addresses and environments.

One process each with embedded stores, or several where the stores are shared (``replicas``). ``carrel up`` and
``carrel demo`` run on it, and so do end-to-end tests and benchmarks. Not for several machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from carrel.cli.ports import Ports
from carrel.cli.replicas import (
    LOG_URL,
    STORE_URL,
    check_shared_stores,
    parse_replicas,
    process_names,
    without_password,
)
from carrel.cli.settings import check_settings
from carrel.cli.stack_tls import prepare_certificates, tls_environment
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
_METRICS: Final = " metrics"
_TELEMETRY: Final = "CARREL_TELEMETRY__ENABLED"
_YES: Final = frozenset({"1", "true", "yes", "on", "t", "y"})
_METRICS_LISTEN: Final = "CARREL_TELEMETRY__METRICS_LISTEN"
_WAIT: Final = "CARREL_DOWNSTREAM_WAIT_SECONDS"
_START_S: Final = 60.0
_START_OF_COPY_S: Final = 8.0
_FROM_HERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 -- compared, not listened on

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

    ``replicas`` are copies by service, one where it names none. ``redis`` and ``postgres`` are URLs of what stands in
    for the embedded event log and run store, which a service needs to have copies. ``mtls``: TLS between the services.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    agents: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    log_format: str = "console"
    yields: bool = False
    replicas: Mapping[str, int] = field(default_factory=dict)
    redis: str = ""
    postgres: str = ""
    mtls: bool = False


def stack_options(
    state: Path,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    agents: Sequence[str] = (),
    packaged: bool = True,
    data: Path | None = None,
    yields: bool = False,
    replicas: str = "",
    redis: str = "",
    postgres: str = "",
    mtls: bool = False,
) -> StackOptions:
    """Options as commands give them; the log's form is the environment's if that names one.

    Args:
        agents: Agents to load.
        packaged: Whether to load the packaged ones beside them.
        data: Where traces are.
        replicas: Copies as ``execution=2,bridge=2``.
        state: See ``StackOptions``, as for the rest.

    Raises:
        StartupError: The data folder is none, no agents are left, or ``replicas`` is not of that form.
    """
    environment: dict[str, str] = {}
    if data is not None:
        if not _is_folder(data):
            advice = "name the folder with your traces with --data or LLM_COSTS_DATA_DIR"
            raise StartupError(f"{data} is not a folder that can be read", advice=advice)
        environment[_DATA_DIR] = str(data.resolve())
    log_format = os.environ.get(_LOG_FORMAT, "").strip() or "console"
    return StackOptions(
        state,
        host,
        port,
        _agents(agents, packaged),
        environment,
        log_format,
        yields,
        parse_replicas(replicas),
        redis.strip(),
        postgres.strip(),
        mtls,
    )


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
        """Where clients on this machine connect: the first gateway."""
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        """Every gateway."""
        return [_url(self.addresses[name]) for name in self.copies("gateway")]

    @property
    def moved(self) -> bool:
        """Whether the gateway listens on another port than was asked for, because that was taken."""
        return self.options.port not in {0, int(self.url.rpartition(":")[2])}

    def copies(self, service: str) -> list[str]:
        """The names of a service's processes."""
        return process_names(self.options.replicas)[service]

    def facts(self) -> dict[str, Any]:
        """What the state folder tells other commands: where the stack is, and how its processes are."""
        shared = _shared_settings(self.options, self.state)
        own = _own_environments(self.options, self.state, self.addresses)
        return {
            "url": self.url,
            "urls": self.urls,
            "supervisor": os.getpid(),
            "ready_s": self.ready_s,
            "copies": process_names(self.options.replicas),
            "settings": {
                name: {key: without_password(value) for key, value in {**shared, **settings}.items()}
                for name, settings in own.items()
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
    """Start the processes, and end them in order on leaving; ``hasten`` ends what is left at once.

    Raises:
        StartupError: There are copies of a service without a store that they can share, the state folder is taken or
            can't be written, the port is in use, settings are wrong, or a process can't start.
    """
    check_shared_stores(options.replicas, {**os.environ, **_stores(options), **options.environment})
    state = StateFolder(options.state_dir.resolve())
    state.prepare()
    if options.mtls:
        prepare_certificates(state)
    began = time.perf_counter()
    with state.locked() as lock:
        addresses = _choose_addresses(options)
        specs = _specs(options, state, addresses)
        check_settings([(service, spec.environment) for spec, service in specs])
        supervisor = Supervisor([spec for spec, _ in specs], log_line, held_fd=lock, hasten=hasten)
        stack = Stack(options, state, addresses, supervisor)
        status = StatusFile(state, stack.facts, log_line)
        supervisor.on_change = status.write
        status.write()  # commands wait for a stack that they find
        try:
            await supervisor.start(_START_S + _START_OF_COPY_S * (len(specs) - len(_MODULES)))
            stack.ready_s = time.perf_counter() - began
            status.write()
            yield stack
        finally:
            try:
                await supervisor.stop()
            finally:
                status.close()


def _choose_addresses(options: StackOptions) -> dict[str, str]:
    """One address for each process, free at this moment and kept across its restarts."""
    addresses: dict[str, str] = {}
    given = {**os.environ, **options.environment}
    # An address that is given is left: it says "off", or is meant for one process.
    metrics = given.get(_TELEMETRY, "").strip().lower() in _YES and not given.get(_METRICS_LISTEN, "").strip()
    with Ports() as ports:
        for service, names in process_names(options.replicas).items():
            if service == "gateway":
                chosen = ports.public(options.host, options.port, len(names), yields=options.yields)
            else:
                chosen = [ports.internal() for _ in names]
            addresses.update(zip(names, chosen, strict=True))
            if metrics:
                addresses.update({name + _METRICS: ports.internal() for name in names})
    return addresses


def _url(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"http://{_FROM_HERE.get(host, host)}:{port}"


def _specs(options: StackOptions, state: StateFolder, addresses: Mapping[str, str]) -> list[tuple[ProcessSpec, str]]:
    """Each process with its service."""
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
        (
            ProcessSpec(
                name, [sys.executable, "-P", "-m", _MODULES[service]], {**shared, **own[name], **options.environment}
            ),
            service,
        )
        for service, names in process_names(options.replicas).items()
        for name in names
    ]


def _stores(options: StackOptions) -> dict[str, str]:
    """Settings of the stores that stand in for the embedded ones."""
    return {name: url for name, url in ((LOG_URL, options.redis), (STORE_URL, options.postgres)) if url}


def _shared_settings(options: StackOptions, state: StateFolder) -> dict[str, str]:
    shared = {
        "CARREL_STATE_DIR": str(state.root),
        "CARREL_TICKET_JWKS": str(state.jwks),
        _LOG_FORMAT: options.log_format,
    }
    copies = sum(options.replicas.values()) - len(options.replicas)
    if not os.environ.get(_WAIT, "").strip():
        # All start at once, and the more there are the longer each takes; a busy machine's start is no failure.
        shared[_WAIT] = f"{_START_S + _START_OF_COPY_S * copies:g}"
    return shared


def _own_environments(
    options: StackOptions, state: StateFolder, addresses: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """What each process is told beside what all are. Who asks a service is given the addresses of all its copies."""
    copies = process_names(options.replicas)
    peers = {service: ",".join(addresses[name] for name in names) for service, names in copies.items()}
    stores = _stores(options)
    agents = {"CARREL_AGENT_INSTANCE_AGENTS": ",".join(options.agents)} if options.agents else {}
    own = {
        "bridge": {name: stores[name] for name in (LOG_URL,) if name in stores},
        "emitter": {"CARREL_EMITTER_BRIDGE": peers["bridge"]},
        "agent_instance": {
            "CARREL_AGENT_INSTANCE_EMITTER": peers["emitter"],
            **agents,
            **_seen_by_workers(options, os.environ),
        },
        "execution": {
            "CARREL_EXECUTION_AGENT_INSTANCE": peers["agent_instance"],
            "CARREL_EXECUTION_EMITTER": peers["emitter"],
            "CARREL_EXECUTION_BRIDGE": peers["bridge"],
            "CARREL_EXECUTION_TICKET_KEY": str(state.execution_key),
            **{name: stores[name] for name in (STORE_URL,) if name in stores},
        },
        "gateway": {
            "CARREL_GATEWAY_EXECUTION": peers["execution"],
            "CARREL_GATEWAY_AGENT_INSTANCE": peers["agent_instance"],
            "CARREL_GATEWAY_BRIDGE": peers["bridge"],
            "CARREL_GATEWAY_TICKET_KEY": str(state.gateway_key),
            **_login(state, os.environ),
        },
    }
    return {
        name: {
            f"CARREL_{service.upper()}_LISTEN": addresses[name],
            **(tls_environment(state, service) if options.mtls else {}),
            **own[service],
            **_metrics_of(name, addresses),
        }
        for service, names in copies.items()
        for name in names
    }


def _login(state: StateFolder, environ: Mapping[str, str]) -> dict[str, str]:
    """The secret that ``carrel token`` signs with, unless the caller names an issuer's keys."""
    settings = (f"CARREL_GATEWAY_LOGIN__{name}" for name in ("JWKS", "JWKS_URL", "DISCOVERY"))
    if any(environ.get(name, "").strip().lower() not in {"", "none", "false", "0", "no", "off"} for name in settings):
        return {}
    return {"CARREL_GATEWAY_LOGIN__SECRET_FILE": str(state.login_secret)}


def _metrics_of(process: str, addresses: Mapping[str, str]) -> dict[str, str]:
    address = addresses.get(process + _METRICS)
    return {_METRICS_LISTEN: address} if address else {}


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment; its CARREL_* settings are read by the processes that they are for."""
    dropped: Iterable[str] = ("CARREL_READY_FD", "CARREL_READY_FILE")
    return {name: value for name, value in environ.items() if name not in dropped}

"""A stack whose every edge between two processes, and that to its clients, leads through a proxy of ours.

Not the stack itself (``tests.support.stack``) nor the proxy (``tests.support.tcp_proxy``).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carrel.cli.state import StateFolder
from tests.faults.up import SETTINGS
from tests.support.stack import RunningStack, running_stack
from tests.support.tcp_proxy import Address, Mode, ProxyThread

__all__ = ["EDGES", "Edge", "Net", "edged_stack"]


@dataclass(frozen=True, slots=True)
class Edge:
    """From whom to whom, and the setting that says where; the clients' edge has none."""

    client: str
    server: str
    setting: str = ""

    @property
    def name(self) -> str:
        """``client-server``."""
        return f"{self.client}-{self.server}"


EDGES: Final = (
    Edge("client", "gateway"),
    Edge("gateway", "execution", "CARREL_GATEWAY_EXECUTION"),
    Edge("gateway", "bridge", "CARREL_GATEWAY_BRIDGE"),
    Edge("execution", "agent_instance", "CARREL_EXECUTION_AGENT_INSTANCE"),
    Edge("execution", "emitter", "CARREL_EXECUTION_EMITTER"),
    Edge("agent_instance", "emitter", "CARREL_AGENT_INSTANCE_EMITTER"),
    Edge("emitter", "bridge", "CARREL_EMITTER_BRIDGE"),
)


class Net:
    """The network between the processes, to be broken edge by edge."""

    def __init__(self, proxies: ProxyThread) -> None:
        self._proxies = proxies

    @property
    def gateway_url(self) -> str:
        """Where clients connect, through their edge."""
        return f"http://{self._proxies.address('client-gateway')}"

    def set(self, edge: str, mode: Mode) -> None:
        """Let an edge behave so."""
        self._proxies.set(edge, mode)

    def drop(self, edge: str) -> None:
        """Reset the connections of an edge that are open now."""
        self._proxies.drop(edge)

    @contextlib.contextmanager
    def during(self, edge: str, mode: Mode) -> Iterator[None]:
        """Let an edge behave so for the length of the block."""
        with self._proxies.during(edge, mode):
            yield

    def passed(self, edge: str) -> int:
        """Bytes that have gone over an edge, both ways."""
        return sum(self._proxies.proxies[edge].passed.values())

    def cuts(self, edge: str) -> int:
        """How often an edge was cut after so many bytes."""
        return self._proxies.proxies[edge].cuts

    def heal(self) -> None:
        """All edges are whole."""
        self._proxies.heal()


@contextlib.contextmanager
def edged_stack(
    folder: Path,
    *,
    agents: Sequence[str],
    environment: Mapping[str, str] | None = None,
    servers: Mapping[str, Address] | None = None,
    **options: Any,
) -> Iterator[tuple[RunningStack, Net]]:
    """A stack for the length of the block, and the network between its processes.

    Args:
        folder: The stack's.
        agents: As ``running_stack``.
        environment: More settings of every process.
        servers: Further proxies by name, to servers that are no process of the stack's.
        options: More of ``running_stack``'s.
    """
    state = StateFolder(folder / "state")

    def leads_to(service: str) -> Any:
        def address() -> Address | None:
            try:
                host, _, port = str((state.read_stack() or {})["addresses"][service]).rpartition(":")
            except (KeyError, OSError, ValueError):
                return None
            return host, int(port)

        return address

    targets = {edge.name: leads_to(edge.server) for edge in EDGES}
    targets |= {name: (lambda at=at: at) for name, at in (servers or {}).items()}
    with ProxyThread(targets) as proxies:
        through = {edge.setting: proxies.address(edge.name) for edge in EDGES if edge.setting}
        own = {SETTINGS: json.dumps(through), **(environment or {})}
        with running_stack(folder, agents=agents, environment=own, program="tests.faults.up", **options) as stack:
            net = Net(proxies)
            try:
                yield stack, net
            finally:
                # A stack that ends says its last words to whom it can reach.
                net.heal()

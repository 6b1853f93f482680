"""A stack whose every edge between two processes, and that to its clients, leads through a proxy of ours.

Not the stack itself (``tests.support.stack``) nor the proxy (``tests.support.tcp_proxy``).
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

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
    # Not used by runs themselves: the list of agents, and runs watched with their events.
    Edge("gateway", "agent_instance", "CARREL_GATEWAY_AGENT_INSTANCE"),
    Edge("execution", "bridge", "CARREL_EXECUTION_BRIDGE"),
)


# What gRPC's frame that says so gives as its reason.
_GO_AWAY: Final = b"max_age"


class Net:
    """The network between the processes, to be broken edge by edge."""

    def __init__(self, proxies: ProxyThread) -> None:
        self._proxies = proxies

    @property
    def gateway_url(self) -> str:
        """Where clients connect, through their edge."""
        return f"http://{self._proxies.address('client-gateway')}"

    def address(self, edge: str) -> str:
        """Where an edge's client dials."""
        return self._proxies.address(edge)

    @property
    def edges(self) -> list[str]:
        """The edges that have a proxy."""
        return list(self._proxies.proxies)

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

    def connections(self, edge: str) -> int:
        """How many connections an edge has seen so far."""
        return self._proxies.proxies[edge].accepted

    def told_to_go(self, edge: str) -> int:
        """How many connections of an edge have been told to go away because of their age."""
        return self._proxies.proxies[edge].seen[_GO_AWAY]

    def sieved(self, edge: str) -> int:
        """How many messages an edge in that mode has swallowed."""
        return self._proxies.proxies[edge].sieved

    def heal(self) -> None:
        """All edges are whole."""
        self._proxies.heal()


Url = Callable[[Net], str]


@contextlib.contextmanager
def edged_stack(
    folder: Path,
    *,
    agents: Sequence[str],
    environment: Mapping[str, str] | None = None,
    servers: Mapping[str, Address] | None = None,
    redis: Url | None = None,
    postgres: Url | None = None,
    replicas: Mapping[str, int] | None = None,
) -> Iterator[tuple[RunningStack, Net]]:
    """A stack for the length of the block, and the network between its processes.

    Args:
        folder: The stack's.
        agents: As ``running_stack``.
        environment: More settings of every process.
        servers: Further proxies by name, to servers that are no process of the stack's.
        redis: The URL of the Redis, given the network.
        postgres: The URL of the PostgreSQL, given the network.
        replicas: Copies by service. With any, only the clients' edge has a proxy: it spreads them over the gateways.
    """
    state = StateFolder(folder / "state")
    targets = {edge.name: _leads_to(state, edge.server) for edge in EDGES if not (replicas and edge.setting)}
    targets |= {name: partial(_always, at) for name, at in (servers or {}).items()}
    with ProxyThread(targets, marks=[_GO_AWAY]) as proxies:
        net = Net(proxies)
        through = {edge.setting: net.address(edge.name) for edge in EDGES if edge.setting and edge.name in targets}
        with running_stack(
            folder,
            agents=agents,
            environment={SETTINGS: json.dumps(through), **(environment or {})},
            program="tests.faults.up",
            redis=redis(net) if redis else "",
            postgres=postgres(net) if postgres else "",
            replicas=replicas,
        ) as stack:
            try:
                yield stack, net
            finally:
                # A stack that ends says its last words to whom it can reach.
                net.heal()


def _always(address: Address) -> Address | None:
    return address


def _leads_to(state: StateFolder, service: str) -> Callable[[], Address | None]:
    """Any copy of the service that runs now, as the supervisor's file tells it; none before there is that file."""

    def address() -> Address | None:
        try:
            facts = state.read_stack() or {}
            names = facts.get("copies", {}).get(service, [service])
            ready = [name for name in names if facts["processes"][name]["ready"]]
            host, _, port = str(facts["addresses"][random.choice(ready or names)]).rpartition(":")
        except (KeyError, OSError, ValueError):
            return None
        return host, int(port)

    return address

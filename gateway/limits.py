"""How many connections there may be: in all, from one address, of one user. Sockets are counted from before the upgrade
to the end, whatever else is a TCP connection from its accept on.

Not engines, runs or rates: those are execution's.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeAlias

from carrel.errors import ConnectionsLimitError, UnavailableError
from gateway.held import Taken

__all__ = ["AcceptLimits", "ConnectionLimits", "Network", "client_address"]

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_RESERVE: Final = 1_000


class ConnectionLimits:
    """The counts. Each is given back by what it returns, once, so that none outlives its connection."""

    def __init__(self, total: int, per_address: int, per_user: int) -> None:
        self._total = total
        self._per_address = per_address
        self._per_user = per_user
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self.connections = 0

    def connection(self, address: str) -> Taken[None]:
        """Count a connection from an address.

        Raises:
            UnavailableError: This gateway has as many as it may.
            ConnectionsLimitError: The address has.
        """
        _check_total(self.connections, self._total)
        _check(self._addresses[address], self._per_address, "max_connections_per_address", "this address")
        self.connections += 1
        self._addresses[address] += 1
        return Taken(None, self._gone, address)

    def user(self, user_id: str) -> Taken[None]:
        """Count a user's connection.

        Raises:
            ConnectionsLimitError: The user has as many as allowed.
        """
        _check(self._users[user_id], self._per_user, "max_connections_per_user", "this user")
        self._users[user_id] += 1
        return Taken(None, _take_one, self._users, user_id)

    def _gone(self, address: str) -> None:
        self.connections -= 1
        _take_one(self._addresses, address)

    def of_user(self, user_id: str) -> int:
        """How many connections the user has."""
        return self._users[user_id]


class AcceptLimits:
    """The counts of TCP connections, of those that never become sockets too.

    Args:
        total: In all; beyond it there is a reserve, so that a request over the limit of sockets gets its answer.
        per_address: From one address, besides its sockets.
        trusted: Networks of proxies; theirs are many peoples' connections, and count in all only.
    """

    def __init__(self, total: int, per_address: int, trusted: Sequence[Network] = ()) -> None:
        self._total = total + _RESERVE
        self._per_address = per_address
        self._trusted = trusted
        self._addresses: Counter[str] = Counter()
        self.connections = 0

    def accepted(self, peer: str) -> Taken[None]:
        """Count a TCP connection from a peer.

        Raises:
            UnavailableError: This gateway has as many as it may.
            ConnectionsLimitError: The address has.
        """
        _check_total(self.connections, self._total)
        address = "" if _within(peer, self._trusted) else _normal(peer)
        if address:
            _check(self._addresses[address], self._per_address, "max_connections_per_address", "this address")
            self._add(address, 1)
        self.connections += 1
        return Taken(None, self._gone, address)

    def upgraded(self, peer: str) -> Taken[None]:
        """An accepted connection is a socket from now on, and not counted here for its address."""
        address = "" if _within(peer, self._trusted) else _normal(peer)
        if address:
            self._add(address, -1)
        return Taken(None, self._add, address, 1)

    def _gone(self, address: str) -> None:
        self.connections -= 1
        self._add(address, -1)

    def _add(self, address: str, number: int) -> None:
        if not address:
            return
        # Below 0 for a moment when a connection is lost before its socket has ended.
        self._addresses[address] += number
        if not self._addresses[address]:
            del self._addresses[address]


def _check_total(use: int, bound: int) -> None:
    if use >= bound:
        raise UnavailableError(
            "this gateway has as many connections as it may",
            advice="connect again shortly",
            retry_after_s=5,
            limit="max_connections",
            limit_value=bound,
            use=use,
        )


def _check(use: int, bound: int, name: str, whose: str) -> None:
    if use >= bound:
        raise ConnectionsLimitError(
            f"{whose} has {use} connections; at most {bound} are allowed",
            advice="close one that is no longer needed",
            retry_after_s=5,
            limit=name,
            limit_value=bound,
            use=use,
        )


def client_address(peer: str | None, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address that a connection counts for: the nearest one that is not a trusted proxy's.

    Args:
        peer: The address of the TCP connection.
        forwarded_for: The values of X-Forwarded-For, as they came.
        trusted: Networks of proxies whose word is taken. Everybody else could write anything into the header.
    """
    address = peer or "unknown"
    hops = [hop.strip() for value in forwarded_for for hop in value.split(",")]
    while hops and _within(address, trusted):
        address = hops.pop()
    return _normal(address)


def _within(address: str, networks: Sequence[Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


def _normal(address: str) -> str:
    # One customer's IPv6 network is a /64: counting single addresses would bound nobody.
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)


def _take_one(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]

"""Addresses in settings: checked when they are read, so that a wrong one is told with all that is wrong beside it.

Another service's may stand for several copies: ``h1:p1,h2:p2``, or ``dns:///name:port``, whose name may have several
numbers. The form only: whether a name can be resolved and a port be had shows when it is used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator

from carrel.errors import UnavailableError

__all__ = [
    "ListenAddress",
    "PeerAddress",
    "TcpListenAddress",
    "addresses_of",
    "has_copies",
    "split_addresses",
    "tcp_listen",
]

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_NUMBERS: Final = re.compile(r"[0-9.]+")
_DNS: Final = "dns:///"
_UNIX: Final = "unix:"
_MAX_PORT: Final = 65_535
# What the kernel takes as a socket's path, with its final zero.
_MAX_UNIX_PATH: Final = 107
_MAX_COPIES: Final = 256


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        return _is_ip(host[1:-1], 6)
    if _NUMBERS.fullmatch(host):
        return _is_ip(host, 4)
    return len(host) <= 253 and _HOST.fullmatch(host) is not None


def _is_ip(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _is_tcp(address: str, least_port: int) -> bool:
    host, _, port = address.rpartition(":")
    # isdigit alone takes the digits of other scripts, and what reads the address later may not.
    return (
        _is_host(host) and port.isascii() and port.isdigit() and len(port) <= 5 and least_port <= int(port) <= _MAX_PORT
    )


def _is_unix(address: str) -> bool:
    path = address.removeprefix(_UNIX)
    if path.startswith("//"):
        path = path[2:]
        if not path.startswith("/"):
            return False
    return 0 < len(path.encode()) <= _MAX_UNIX_PATH and "\0" not in path


def tcp_listen(address: str) -> str:
    """The address, which is one to listen on; for validators.

    Raises:
        ValueError: It is not of the form host:port.
    """
    if not _is_tcp(address, 0):
        raise ValueError("write host:port or [IPv6 address]:port, the port from 0 (any free one) to 65535")
    return address


def _listen(address: str) -> str:
    if not (_is_unix(address) if address.startswith(_UNIX) else _is_tcp(address, 0)):
        raise ValueError(
            "write host:port or [IPv6 address]:port, the port from 0 (any free one) to 65535, or unix:path"
        )
    return address


def _peer(address: str) -> str:
    if "," in address and not address.startswith(_UNIX):
        return _copies(address)
    if not (_is_unix(address) if address.startswith(_UNIX) else _is_tcp(address.removeprefix(_DNS), 1)):
        raise ValueError(
            "write host:port or [IPv6 address]:port, the port from 1 to 65535, dns:///name:port, unix:path, or for"
            " several copies host:port,host:port"
        )
    return address


def _copies(text: str) -> str:
    addresses = [part.strip() for part in text.split(",")]
    for address in addresses:
        if not _is_tcp(address, 1):
            raise ValueError(
                f"write each of several copies as host:port or [IPv6 address]:port, the port from 1 to 65535;"
                f" {address or 'an empty one'} is not of that form"
            )
    if len(set(addresses)) < len(addresses):
        raise ValueError("one of the copies is named twice: leave it out")
    if len(addresses) > _MAX_COPIES:
        raise ValueError(f"write at most {_MAX_COPIES} copies, or dns:///name:port")
    return ",".join(addresses)


def split_addresses(target: str) -> list[str]:
    """The single addresses of a ``PeerAddress`` as they are written; one that is no list is its only one."""
    return [target] if target.startswith(_UNIX) else target.split(",")


def has_copies(target: str) -> bool:
    """Whether a ``PeerAddress`` may stand for several processes."""
    return target.startswith(_DNS) or len(split_addresses(target)) > 1


async def addresses_of(target: str) -> list[str]:
    """Every single address that can be dialled under a ``PeerAddress``, for those who choose one themselves.

    A list is given as it is written; the name of ``dns:///name:port`` is resolved each time, since that is how copies
    come and go.

    Raises:
        UnavailableError: The name cannot be resolved at this moment.
    """
    if not target.startswith(_DNS):
        return split_addresses(target)
    host, _, port = target.removeprefix(_DNS).rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host.removeprefix("[").removesuffix("]"), int(port), type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise UnavailableError(
            f"the name {host} can't be resolved: {error.strerror or error}", advice="is the name service there?"
        ) from None
    numbers = sorted({str(sockaddr[0]) for *_, sockaddr in found})
    return [f"[{number}]:{port}" if ":" in number else f"{number}:{port}" for number in numbers]


TcpListenAddress: TypeAlias = Annotated[str, AfterValidator(tcp_listen)]
"""Where a server listens that takes no unix socket."""

ListenAddress: TypeAlias = Annotated[str, AfterValidator(_listen)]
"""Where a gRPC server listens."""

PeerAddress: TypeAlias = Annotated[str, AfterValidator(_peer)]
"""Where another service is: one address, or those of several copies. ``servicekit.rpc.channel`` takes it."""

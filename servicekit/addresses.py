"""Addresses in settings: checked when they are read, so that a wrong one is told with all that is wrong beside it.

The form only: whether a name can be resolved and a port be had shows when it is used.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator

__all__ = ["ListenAddress", "PeerAddress", "TcpListenAddress"]

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_NUMBERS: Final = re.compile(r"[0-9.]+")
_DNS: Final = "dns:///"
_UNIX: Final = "unix:"
_MAX_PORT: Final = 65_535
# What the kernel takes as a socket's path, with its final zero.
_MAX_UNIX_PATH: Final = 107


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


def _tcp_listen(address: str) -> str:
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
    if not (_is_unix(address) if address.startswith(_UNIX) else _is_tcp(address.removeprefix(_DNS), 1)):
        raise ValueError(
            "write host:port or [IPv6 address]:port, the port from 1 to 65535, dns:///name:port or unix:path"
        )
    return address


TcpListenAddress: TypeAlias = Annotated[str, AfterValidator(_tcp_listen)]
"""Where a server listens that takes no unix socket."""

ListenAddress: TypeAlias = Annotated[str, AfterValidator(_listen)]
"""Where a gRPC server listens."""

PeerAddress: TypeAlias = Annotated[str, AfterValidator(_peer)]
"""Where another service is, as a gRPC channel takes it."""

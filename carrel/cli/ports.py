"""Ports for the processes of one machine: the gateways' as asked for, the others' free ones out of harm's way.

Found free, not held: whoever is quicker takes one, and its process then says so when it starts.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from pathlib import Path
from typing import Final

from carrel.errors import StartupError

__all__ = ["Ports"]

_LOWEST_PORT: Final = 10_240
_MAX_PORT: Final = 65_535
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES: Final = 50
_LOOPBACK: Final = "127.0.0.1"


class Ports:
    """Chooses addresses whose ports differ."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        # Two sockets that do not listen yet may be bound to one port.
        self._chosen: set[int] = set()

    def __enter__(self) -> Ports:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def public(self, host: str, port: int, copies: int, *, yields: bool) -> list[str]:
        """Addresses on ``host``, one for each copy: the first on ``port``, the others on the next ones that are free.

        Args:
            host: A host's name or number.
            port: 0 for any free ones.
            copies: How many.
            yields: Whether any free port will do when ``port`` is taken.

        Raises:
            StartupError: ``port`` is taken, or none is free after it, or the host is not this machine's.
        """
        chosen = [self._first(host, port, yields)]
        while len(chosen) < copies:
            chosen.append(self._next(host, chosen[-1] if port else 0))
        name = f"[{host}]" if ":" in host else host
        return [f"{name}:{number}" for number in chosen]

    def internal(self) -> str:
        """An address on the loopback, with a port below the range that the system gives to outgoing connections.

        Inside that range, a client that keeps dialling a process that has died can be given the very port it dials, be
        connected to itself, and keep the process's successor from listening.
        """
        lowest = _lowest_ephemeral_port()
        for _ in range(_TRIES):
            port = random.randrange(_LOWEST_PORT, lowest) if lowest > _LOWEST_PORT else 0  # noqa: S311 -- no secret
            with contextlib.suppress(StartupError):
                return f"{_LOOPBACK}:{self._reserve(_LOOPBACK, port)}"
        return f"{_LOOPBACK}:{self._reserve(_LOOPBACK, 0)}"

    def _first(self, host: str, port: int, yields: bool) -> int:
        try:
            return self._reserve(host, port)
        except StartupError as error:
            if not (yields and error.details.get("taken")):
                raise
            return self._reserve(host, 0)

    def _next(self, host: str, port: int) -> int:
        if port == 0:
            return self._reserve(host, 0)
        for number in range(port + 1, min(port + 1 + _TRIES, _MAX_PORT + 1)):
            with contextlib.suppress(StartupError):
                return self._reserve(host, number)
        advice = "name another first port with --port, or fewer copies of the gateway"
        raise StartupError(f"no port is free on {host} after {port}", advice=advice)

    def _reserve(self, host: str, port: int) -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            problem = f"{host}:{port} can't be listened on: {error.strerror}"
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                advice = "stop what listens there, or choose another port with --port"
                raise StartupError(problem, advice=advice, taken=True) from None
            raise StartupError(problem, advice="name an address of this machine with --host") from None
        number: int = self._held.enter_context(sock).getsockname()[1]
        if number in self._chosen:
            raise StartupError(f"{host}:{number} is another process's", advice="choose another port", taken=True)
        self._chosen.add(number)
        return number


def _lowest_ephemeral_port() -> int:
    try:
        return int(_EPHEMERAL.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 0

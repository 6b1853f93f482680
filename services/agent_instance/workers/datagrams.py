"""What the host and the zygote tell each other: small JSON objects over a packet socket, descriptors beside them.

Both are ours and trust each other; what comes from workers never passes here.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

__all__ = ["Setup", "WorkerLimits", "receive", "send"]

_MOST_BYTES: Final = 128 * 1024
_MOST_DESCRIPTORS: Final = 8


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one worker may use. Sizes are bytes, ``cpu_s`` seconds of processor time."""

    memory: int
    cpu_s: int
    open_files: int
    file_size: int


@dataclass(frozen=True, slots=True)
class Setup:
    """What a zygote is told at its start: what to load, and what its workers may do."""

    sources: tuple[str, ...]
    lazy: tuple[str, ...]
    preload: tuple[str, ...]
    read_paths: tuple[str, ...]
    hidden: tuple[str, ...]
    limits: WorkerLimits
    extra_path: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setup:
        """What ``to_dict`` gave."""
        values = {name: tuple(value) for name, value in data.items() if name != "limits"}
        return cls(**values, limits=WorkerLimits(**data["limits"]))


def send(sock: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one object; the descriptors stay the sender's own, too."""
    socket.send_fds(sock, [json.dumps(message).encode()], list(descriptors))


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next object and its descriptors, which nothing inherits; None at the end.

    Raises:
        BlockingIOError: The socket does not wait, and nothing is there.
    """
    data, descriptors, _, _ = socket.recv_fds(sock, _MOST_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    return json.loads(data), list(descriptors)

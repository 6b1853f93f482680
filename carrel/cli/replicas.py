"""How many copies of each service a stack runs, what they are called, and which of them may have copies at all.

    parse_replicas("execution=2,bridge=2")  ->  {"execution": 2, "bridge": 2}

A process is called after its service; copies are numbered from 1: ``bridge-1``, ``bridge-2``. Not where they listen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from carrel.errors import StartupError

__all__ = [
    "LOG_URL",
    "MOST_COPIES",
    "SERVICES",
    "STORE_URL",
    "check_shared_stores",
    "parse_replicas",
    "process_names",
    "without_password",
]

# In the order in which they end: who asks before who answers.
SERVICES: Final = ("gateway", "execution", "agent_instance", "emitter", "bridge")
MOST_COPIES: Final = 32
LOG_URL: Final = "CARREL_BRIDGE_LOG__URL"
STORE_URL: Final = "CARREL_EXECUTION_STORE_URL"
# What a service keeps in a file of one process: the setting that gives it a shared store, the option, what that is.
_OWN_STORES: Final[Mapping[str, tuple[str, str, str]]] = {
    "bridge": (LOG_URL, "--redis", "event log"),
    "execution": (STORE_URL, "--postgres", "run store"),
}
_PASSWORD_IN_URL: Final = re.compile(r"(?<=://)([^/@\s:]*):([^/@\s]+)(?=@)")
_PART: Final = re.compile(r"([a-z_]+)=([0-9]{1,4})")


def parse_replicas(text: str) -> dict[str, int]:
    """Copies by service, from ``name=count`` separated by commas; those not named have one.

    Raises:
        StartupError: A name or a count is wrong.
    """
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PART.fullmatch(part)
        if match is None:
            raise StartupError(
                f"--replicas {part}: not of the form name=count", advice="write for example execution=2,bridge=2"
            )
        name, count = match[1], int(match[2])
        if name not in SERVICES:
            advice = f"there are: {', '.join(SERVICES)}"
            raise StartupError(f"--replicas {part}: no service is called {name}", advice=advice)
        if name in found:
            raise StartupError(f"--replicas names {name} twice", advice="leave one of them out")
        if not 1 <= count <= MOST_COPIES:
            raise StartupError(f"--replicas {part}: {count} copies", advice=f"write 1 to {MOST_COPIES}")
        found[name] = count
    return found


def process_names(replicas: Mapping[str, int]) -> dict[str, list[str]]:
    """The processes' names by service, in the order in which they end."""
    return {
        service: [service] if (count := replicas.get(service, 1)) == 1 else [f"{service}-{i + 1}" for i in range(count)]
        for service in SERVICES
    }


def check_shared_stores(replicas: Mapping[str, int], environ: Mapping[str, str]) -> None:
    """Refuse copies of a service whose store is a file of one process.

    Args:
        replicas: Copies by service.
        environ: What the processes will see.

    Raises:
        StartupError: There are copies of a service without a store that they can share.
    """
    for service, (setting, option, what) in _OWN_STORES.items():
        count = replicas.get(service, 1)
        if count > 1 and not environ.get(setting, "").strip():
            raise StartupError(
                f"{count} copies of {service} can't share its {what}: an SQLite file is one process's",
                advice=f"name a shared one with {option} URL or {setting}, or run one copy of {service}",
                phase="CONFIGURATION",
            )


def without_password(text: str) -> str:
    """A URL as it may be shown: its password, if it has one, is masked. What is no URL stays as it is."""
    return _PASSWORD_IN_URL.sub(r"\1:********", text)

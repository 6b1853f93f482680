"""The options of commands, each written once. What they do to a command is the command's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = [
    "STATE",
    "STRATEGIES",
    "AgentsOption",
    "DataOption",
    "HostOption",
    "JsonOption",
    "PortOption",
    "PostgresOption",
    "RedisOption",
    "ReplicasOption",
    "StateOption",
    "TokenOption",
    "UrlOption",
    "UserOption",
]

StateOption = Annotated[
    Path,
    typer.Option("--state", envvar="CARREL_STATE_DIR", help="Folder for keys and embedded stores.", metavar="DIR"),
]
AgentsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--agents",
        help="Agents to load beside the packaged ones: FILE.py, module or module:attribute. May be repeated.",
    ),
]
PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="The gateway's port; 0 is any free one.")]
HostOption = Annotated[str, typer.Option("--host", help="The address that the gateway listens on.")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", envvar="LLM_COSTS_DATA_DIR", help="Folder that traces may be read from.", metavar="DIR"),
]
ReplicasOption = Annotated[
    str,
    typer.Option("--replicas", help="Copies of services, as execution=2,bridge=2; one of each by default."),
]
RedisOption = Annotated[
    str,
    typer.Option(
        "--redis",
        envvar="CARREL_UP_REDIS",
        help="Keep events in this Redis; copies of bridge need it.",
        metavar="URL",
    ),
]
PostgresOption = Annotated[
    str,
    typer.Option(
        "--postgres",
        envvar="CARREL_UP_POSTGRES",
        help="Keep runs in this PostgreSQL; copies of execution need it.",
        metavar="URL",
    ),
]
UrlOption = Annotated[str, typer.Option("--url", help="The gateway; by default that of the stack in the state folder.")]
TokenOption = Annotated[
    str, typer.Option("--token", envvar="CARREL_CLI_TOKEN", help="The user's token, in place of --user.")
]
UserOption = Annotated[str, typer.Option("--user", help="Whom a development token is made for.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line, for machines.")]
STATE: Final = Path(".carrel")
STRATEGIES: Final = ("reject", "enqueue", "interrupt", "rollback")

"""The options of commands, each written once. What they do to a command is the command's.

What is wrong with one is told in its own words and with its name, whatever setting it becomes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = [
    "STATE",
    "STRATEGIES",
    "AgentsOption",
    "DataOption",
    "ExecutionOption",
    "HostOption",
    "JsonOption",
    "MtlsOption",
    "OperatorUrlOption",
    "PortOption",
    "PostgresOption",
    "RedisOption",
    "ReplicasOption",
    "StateOption",
    "TokenFileOption",
    "TokenOption",
    "UrlOption",
    "UserOption",
]


def _checked_replicas(value: str) -> str:
    from carrel.cli.replicas import parse_replicas
    from carrel.errors import StartupError

    try:
        parse_replicas(value)
    except StartupError as error:
        raise typer.BadParameter(f"{error.message.removeprefix('--replicas ')}; {error.advice}") from None
    return value


def _checked_redis(value: str) -> str:
    url = value.strip()
    if url:
        from services.bridge.config_redis import RedisUrl

        try:
            RedisUrl.parse(url)
        except ValueError as error:  # which never repeats what may be the password
            raise typer.BadParameter(str(error)) from None
    return url


def _checked_postgres(value: str) -> str:
    url = value.strip()
    if url:
        from services.execution.config_store import check_store_url

        try:
            check_store_url(url)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return url


def _checked_execution(value: str) -> str:
    address = value.strip()
    if address:
        from carrel.cli.operator_settings import one_address

        try:
            _ = one_address(address)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return address


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
    typer.Option(
        "--replicas",
        help="Copies of services, as execution=2,bridge=2; one of each by default.",
        callback=_checked_replicas,
    ),
]
MtlsOption = Annotated[
    bool,
    typer.Option("--mtls", help="TLS between the services, with certificates made in the state folder."),
]
RedisOption = Annotated[
    str,
    typer.Option(
        "--redis",
        envvar="CARREL_UP_REDIS",
        help="Keep events in this Redis; copies of bridge need it.",
        metavar="URL",
        callback=_checked_redis,
    ),
]
PostgresOption = Annotated[
    str,
    typer.Option(
        "--postgres",
        envvar="CARREL_UP_POSTGRES",
        help="Keep runs in this PostgreSQL; copies of execution need it.",
        metavar="URL",
        callback=_checked_postgres,
    ),
]
UrlOption = Annotated[str, typer.Option("--url", help="The gateway; by default that of the stack in the state folder.")]
OperatorUrlOption = Annotated[
    str, typer.Option("--url", help="With --execution: the gateway, which gives a ticket [CARREL_OPERATOR_URL].")
]
TokenOption = Annotated[
    str, typer.Option("--token", envvar="CARREL_CLI_TOKEN", help="The user's token, in place of --user.")
]
UserOption = Annotated[str, typer.Option("--user", help="Whom a development token is made for.")]
ExecutionOption = Annotated[
    str,
    typer.Option(
        "--execution",
        help="A deployment's execution [CARREL_OPERATOR_EXECUTION]; the certificate is CARREL_TLS__CERT, …__KEY, …__CA."
        " By default that of the stack in the state folder.",
        metavar="HOST:PORT",
        callback=_checked_execution,
    ),
]
TokenFileOption = Annotated[
    str,
    typer.Option(
        "--token-file",
        help="With --execution: your own login token, - for standard input [CARREL_OPERATOR_TOKEN_FILE].",
        metavar="FILE",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line, for machines.")]
STATE: Final = Path(".carrel")
STRATEGIES: Final = ("reject", "enqueue", "interrupt", "rollback")

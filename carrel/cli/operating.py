"""Commands for those who run a deployment: putting users out, the audit trail, encryption of what is stored.

Added to ``app``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrel.cli.options import (
    STATE,
    ExecutionOption,
    JsonOption,
    OperatorUrlOption,
    PostgresOption,
    StateOption,
    TokenFileOption,
)

if TYPE_CHECKING:
    from carrel.cli.operators import Operator

__all__ = ["add_commands"]

audit = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


def add_commands(app: typer.Typer) -> None:
    """Add them."""
    app.command()(revoke)
    app.add_typer(audit, name="audit")
    app.command("encryption-key")(encryption_key)
    app.command()(reencrypt)


def revoke(
    user: Annotated[str, typer.Argument(help="Whose logins, tickets and sockets of until now are to end.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the runs' errors.")] = "",
    execution: ExecutionOption = "",
    url: OperatorUrlOption = "",
    token_file: TokenFileOption = "",
    state: StateOption = STATE,
) -> None:
    """End what a user has begun until now, everywhere.

    On this machine's stack for whoever may read the state folder's keys; on a deployment for whoever has the
    certificate `operator` and a login token with operator:revoke.
    """
    from carrel.cli.revoke import revoke_user

    _run(lambda: revoke_user(_operator(state, execution, url, token_file), user, reason))


@audit.callback()
def show(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", help="Only this user's acts.")] = "",
    run: Annotated[str, typer.Option("--run", help="Only this run's.")] = "",
    most: Annotated[int, typer.Option("--limit", min=1, help="How many records at most.")] = 100,
    execution: ExecutionOption = "",
    url: OperatorUrlOption = "",
    token_file: TokenFileOption = "",
    state: StateOption = STATE,
    as_json: JsonOption = False,
) -> None:
    """Show who did what, newest first.

    On this machine's stack for whoever may read the state folder's keys; on a deployment for whoever has the
    certificate `operator` and a login token with operator:read.
    """
    if context.invoked_subcommand is not None:
        return
    from carrel.cli.audit import show_audit

    _run(
        lambda: show_audit(
            _operator(state, execution, url, token_file), user_id=user, run_id=run, most=most, as_json=as_json
        )
    )


@audit.command()
def export(
    output: Annotated[Path, typer.Argument(help="The file; an export that it holds already goes on from its end.")],
    since: Annotated[str, typer.Option("--since", help="From this time on (ISO 8601; a day, or a moment).")] = "",
    until: Annotated[
        str, typer.Option("--until", help="Before this time, which is over; a quarter of an hour ago if not given.")
    ] = "",
    user: Annotated[str, typer.Option("--user", help="Only this user's acts.")] = "",
    form: Annotated[str, typer.Option("--format", help="jsonl is the only one.")] = "jsonl",
    execution: ExecutionOption = "",
    url: OperatorUrlOption = "",
    token_file: TokenFileOption = "",
    state: StateOption = STATE,
) -> None:
    """Write audit records into a file, oldest first, chained so that a line that is taken out is found."""
    if form != "jsonl":
        raise typer.BadParameter("jsonl is the only format", param_hint="--format")
    from carrel.cli.audit_export import export_audit, moment

    began, ended = moment(since), moment(until)
    _run(
        lambda: export_audit(
            _operator(state, execution, url, token_file), output, since=began, until=ended, user_id=user
        )
    )


@audit.command()
def verify(file: Annotated[Path, typer.Argument(help="A file that `carrel audit export` has written.")]) -> None:
    """See whether an exported file is as it was written."""
    from carrel.cli.audit_export import verify_file

    _do(lambda: verify_file(file))


def encryption_key(
    file: Annotated[Path, typer.Argument(help="The key file; made when there is none.")],
    kid: Annotated[str, typer.Option("--id", help="The key's name; the time and a random part if not given.")] = "",
) -> None:
    """Make a key that what execution stores is sealed with, in front of those that the file has."""
    from carrel.cli.reencrypt import make_key

    _do(lambda: make_key(file, kid))


def reencrypt(
    state: StateOption = STATE,
    postgres: PostgresOption = "",
    plain: Annotated[bool, typer.Option("--plain", help="Store plain values again, to do without keys.")] = False,
) -> None:
    """Rewrite what execution has stored under the newest key of CARREL_EXECUTION_ENCRYPTION__KEY_FILE.

    Nothing may run on an embedded store meanwhile; a PostgreSQL database may be in use. Afterwards no other key of
    the file is needed.
    """
    from carrel.cli.reencrypt import reencrypt_stores

    _do(lambda: reencrypt_stores(state, postgres=postgres, plain=plain))


def _operator(state: Path, execution: str, url: str, token_file: str) -> Operator:
    from carrel.cli.operators import OperatorOptions, find_operator

    return find_operator(OperatorOptions(state, execution, url, token_file))


def _run(command: Callable[[], Coroutine[Any, Any, int]]) -> None:
    _do(lambda: asyncio.run(command()))


def _do(command: Callable[[], int]) -> None:
    """Run a command and end with its exit code; errors of the tree are printed with what to do."""
    from carrel.cli.output import Printer, exit_code_of
    from carrel.errors import CarrelError

    try:
        code = command()
    except CarrelError as error:
        Printer(sys.stderr).error(error)
        code = exit_code_of(error)
    raise typer.Exit(code)

"""Commands for those who run a deployment: the audit trail, encryption of what is stored. Added to ``app``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from carrel.cli.options import STATE, JsonOption, PostgresOption, StateOption

__all__ = ["add_commands"]

audit = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


def add_commands(app: typer.Typer) -> None:
    """Add them."""
    app.add_typer(audit, name="audit")
    app.command("encryption-key")(encryption_key)
    app.command()(reencrypt)


@audit.callback()
def show(
    context: typer.Context,
    user: Annotated[str, typer.Option("--user", help="Only this user's acts.")] = "",
    run: Annotated[str, typer.Option("--run", help="Only this run's.")] = "",
    most: Annotated[int, typer.Option("--limit", min=1, help="How many records at most.")] = 100,
    state: StateOption = STATE,
    as_json: JsonOption = False,
) -> None:
    """Show who did what on the stack of the state folder, newest first. For whoever may read its keys."""
    if context.invoked_subcommand is not None:
        return
    from carrel.cli.audit import show_audit
    from carrel.cli.state import StateFolder

    _run(show_audit(StateFolder(state), user_id=user, run_id=run, most=most, as_json=as_json))


@audit.command()
def export(
    output: Annotated[Path, typer.Argument(help="The file; an export that it holds already goes on from its end.")],
    since: Annotated[str, typer.Option("--since", help="From this time on (ISO 8601; a day, or a moment).")] = "",
    until: Annotated[
        str, typer.Option("--until", help="Before this time; a quarter of an hour ago if not given.")
    ] = "",
    user: Annotated[str, typer.Option("--user", help="Only this user's acts.")] = "",
    form: Annotated[str, typer.Option("--format", help="jsonl is the only one.")] = "jsonl",
    state: StateOption = STATE,
) -> None:
    """Write audit records into a file, oldest first, chained so that a line that is taken out is found."""
    if form != "jsonl":
        raise typer.BadParameter("jsonl is the only format", param_hint="--format")
    from carrel.cli.audit_export import export_audit, moment
    from carrel.cli.state import StateFolder

    _run(export_audit(StateFolder(state), output, since=moment(since), until=moment(until), user_id=user))


@audit.command()
def verify(file: Annotated[Path, typer.Argument(help="A file that `carrel audit export` has written.")]) -> None:
    """See whether an exported file is as it was written."""
    from carrel.cli.audit_export import verify_file

    _do(lambda: verify_file(file))


def encryption_key(
    file: Annotated[Path, typer.Argument(help="The key file; made when there is none.")],
    kid: Annotated[str, typer.Option("--id", help="The key's name; the time of day if not given.")] = "",
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


def _run(command: Coroutine[Any, Any, int]) -> None:
    _do(lambda: asyncio.run(command))


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

"""The command line of ``carrel doctor``: its options, and what is wrong with them. The examination is ``doctor``'s."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from carrel.cli.options import STATE, StateOption, UrlOption
from carrel.cli.output import EXIT_INTERRUPTED

__all__ = ["add_doctor"]


def add_doctor(app: typer.Typer) -> None:
    """Add the command."""
    _ = app.command("doctor")(doctor)


def doctor(
    check: Annotated[
        list[str] | None, typer.Option("--check", help="Only this check; may be repeated.", metavar="NAME")
    ] = None,
    url: UrlOption = "",
    token_file: Annotated[
        list[Path] | None,
        typer.Option("--token-file", help="A test user's token; given twice, for two users.", metavar="FILE"),
    ] = None,
    state: StateOption = STATE,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=10, max=600, help="Seconds for all checks together [120].")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="What had to be skipped counts as failed.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the steps that passed, too.")] = False,
    contracts: Annotated[
        bool, typer.Option("--contracts", help="Show each layer's contract, and how the deployment keeps it.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: docs/doctor.md says what is in it.")
    ] = False,
) -> None:
    """Check a deployment that runs: is all there, is each user alone, is what was used given back.

    Safe in production: two test users of its own, a small load, and everything that it makes is removed.
    Ends with 0 when all is well, 1 when a check failed, 2 when it could not be examined.
    """
    from carrel.cli.doctor.command import CHECKS, Wishes
    from carrel.cli.doctor.command import doctor as examination
    from carrel.cli.doctor.contracts import show_contracts

    if unknown := [name for name in check or () if name not in CHECKS]:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(CHECKS)}", param_hint="--check")
    if len(token_file or ()) not in {0, 2}:
        raise typer.BadParameter("give it twice, for two users", param_hint="--token-file")
    wishes = Wishes(tuple(check or ()), url, tuple(token_file or ()), state, timeout, strict, as_json, verbose)
    try:
        code = asyncio.run(show_contracts(wishes) if contracts else examination(wishes))
    except (asyncio.CancelledError, KeyboardInterrupt):
        code = EXIT_INTERRUPTED
    raise typer.Exit(code)

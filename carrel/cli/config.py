"""``carrel config``: every setting as it takes effect, where it comes from, and what it is."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from carrel.cli.output import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Printer
from carrel.cli.reconnect import RECONNECTS_NAME, reconnects
from carrel.cli.replicas import without_password
from carrel.cli.settings import SETTINGS, settings_class
from carrel.cli.state import StateFolder
from carrel.errors import StartupError

__all__ = ["show_config"]

_CLI: Final = "cli"
_SECRET: Final = "********"


@dataclass(frozen=True, slots=True)
class _Row:
    """One setting."""

    name: str
    value: str
    source: str
    about: str
    shared: bool = False


def show_config(service: str, state: Path, *, as_json: bool, environ: Mapping[str, str] | None = None) -> int:
    """Print the settings of one service, of the command line, or of all; the exit code.

    Wrong ones are printed, and make it 1. What the stack that runs in the state folder chose goes before the
    environment, which the stack may have been started without.
    """
    environ = dict(os.environ if environ is None else environ)
    names = [*SETTINGS, _CLI]
    if service and service not in names:
        sys.stderr.write(f"error: no service is called {service}; there are: {', '.join(names)}\n")
        return EXIT_USAGE
    stack, code = StateFolder(state).running(), EXIT_OK
    found: dict[str, list[_Row]] = {}
    for name in [service] if service else names:
        try:
            found[name] = (
                _cli_rows(state, environ) if name == _CLI else _rows(name, _chosen(name, state, stack), environ)
            )
        except StartupError as error:
            Printer(sys.stderr).error(StartupError(f"{name}: {error.message}", advice=error.advice))
            code = EXIT_FAILED
    printer = Printer()
    if as_json:
        _print_json(printer, found)
    else:
        printer.say(_heading(state, stack) + "\n")
        _print_all(printer, found, together=not service)
    return code


def _heading(state: Path, stack: Mapping[str, Any] | None) -> str:
    if stack is None:
        return (
            f"No stack runs in {state}: these are the values of services that are started one by one from this shell.\n"
            "`carrel up` chooses free addresses for all but the gateway, and logs for a terminal."
        )
    return (
        f"A stack runs in {state} at {stack['url']}: what it chose is marked [stack].\n"
        "Everything else is this shell's environment or a default; the stack may have been started from another shell."
    )


def _chosen(service: str, state: Path, stack: Mapping[str, Any] | None) -> dict[str, tuple[str, str]]:
    """Values that go before the environment, each with where it comes from."""
    if stack is not None:
        # Copies differ in where they listen.
        process = next(iter(stack.get("copies", {}).get(service, ())), service)
        settings = stack.get("settings", {}).get(process, {})
        return {str(name): (str(value), "stack") for name, value in settings.items()}
    # As the option's default and the setting's are the same, only another value says anything.
    return {} if str(state) == ".carrel" else {"CARREL_STATE_DIR": (str(state), "--state")}


def _rows(service: str, chosen: Mapping[str, tuple[str, str]], environ: Mapping[str, str]) -> list[_Row]:
    from servicekit.settings import SharedSettings, load_settings
    from servicekit.settings_env import describe

    given = {name: value for name, value in environ.items() if value.strip()}
    effective = {**given, **{name: value for name, (value, _) in chosen.items()}}
    shared = {f"CARREL_{name.upper()}" for name in SharedSettings.model_fields}
    rows = []
    for row in describe(load_settings(settings_class(service), service, effective), service):
        name, _, alias = row.name.partition(" ")
        setter = next((n for n in (name, alias.strip("()")) if n in given), "")
        source = f"environment ({setter})" if setter else "default"
        if name in chosen and chosen[name][0] != given.get(name):
            source = chosen[name][1]
        rows.append(_Row(row.name, row.value, source, row.doc, name.partition("__")[0] in shared))
    return rows


def _cli_rows(state: Path, environ: Mapping[str, str]) -> list[_Row]:
    """What the commands themselves read.

    Raises:
        StartupError: One is wrong.
    """
    rows = (
        ("CARREL_STATE_DIR", str(state), "folder for keys and embedded stores, as --state"),
        (
            "CARREL_CLI_URL",
            environ.get("CARREL_CLI_URL", ""),
            "the gateway, as --url; else that of the stack in the folder",
        ),
        ("CARREL_CLI_TOKEN", _SECRET if environ.get("CARREL_CLI_TOKEN") else "", "the user's token, as --token"),
        ("CARREL_UP_REDIS", without_password(environ.get("CARREL_UP_REDIS", "")), "Redis of the events, as up --redis"),
        (
            "CARREL_UP_POSTGRES",
            without_password(environ.get("CARREL_UP_POSTGRES", "")),
            "PostgreSQL of the runs, as up --postgres",
        ),
        ("LLM_COSTS_DATA_DIR", environ.get("LLM_COSTS_DATA_DIR", ""), "folder that traces may be read from, as --data"),
        (RECONNECTS_NAME, str(reconnects(environ)), "attempts in a row to connect again, of run and watch"),
    )
    return [
        _Row(name, value, f"environment ({name})" if environ.get(name, "").strip() else "default", about)
        for name, value, about in rows
    ]


def _print_json(printer: Printer, found: Mapping[str, Sequence[_Row]]) -> None:
    for service, rows in found.items():
        for row in rows:
            body = {
                "service": service,
                "name": row.name,
                "value": row.value,
                "source": row.source,
                "about": row.about,
                "shared": row.shared,
            }
            printer.say(json.dumps(body, ensure_ascii=False))


def _print_all(printer: Printer, found: Mapping[str, Sequence[_Row]], *, together: bool) -> None:
    services = [rows for name, rows in found.items() if name != _CLI]
    apart = together and bool(services)
    for name, rows in found.items():
        _print(printer, name, [row for row in rows if not (apart and row.shared)])
    if apart:
        _print(printer, "shared by all", [row for row in services[0] if row.shared])


def _print(printer: Printer, title: str, rows: Sequence[_Row]) -> None:
    printer.say(printer.paint(title, "1"))
    for row in rows:
        value = row.value or "(not set)"
        marked = printer.paint(value, "33") if row.source != "default" else value
        origin = f"  [{row.source}]" if row.source != "default" else ""
        printer.say(f"  {row.name} = {marked}{origin}")
        if row.about:
            printer.say(printer.paint(f"      {row.about}", "2"))
    printer.say()

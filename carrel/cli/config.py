"""``carrel config``: every setting of the services as it takes effect here, where it comes from, and what it is."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from carrel.cli.output import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Printer
from carrel.errors import StartupError

if TYPE_CHECKING:
    from servicekit.settings import SharedSettings

__all__ = ["show_config"]

_CLASSES: Final = {
    "execution": "services.execution.config:ExecutionSettings",
    "agent_instance": "services.agent_instance.config:AgentInstanceSettings",
    "emitter": "services.emitter.config:EmitterSettings",
    "bridge": "services.bridge.config:BridgeSettings",
    "gateway": "gateway.config:GatewaySettings",
}


def show_config(service: str, *, as_json: bool, environ: Mapping[str, str] | None = None) -> int:
    """Print the settings of one service, or of all; the exit code. Wrong ones are printed, and make it 1."""
    environ = os.environ if environ is None else environ
    if service and service not in _CLASSES:
        sys.stderr.write(f"error: no service is called {service}; there are: {', '.join(_CLASSES)}\n")
        return EXIT_USAGE
    printer, code = Printer(), EXIT_OK
    found: dict[str, list[dict[str, str]]] = {}
    for name in [service] if service else list(_CLASSES):
        try:
            found[name] = _rows(name, environ)
        except StartupError as error:
            Printer(sys.stderr).error(StartupError(f"{name}: {error.message}", advice=error.advice))
            code = EXIT_FAILED
    if as_json:
        printer.say(json.dumps(found, ensure_ascii=False, indent=1))
        return code
    shared = bool(found) and not service
    for name, rows in found.items():
        _print(printer, name, [row for row in rows if not (shared and row["shared"])])
    if shared:
        _print(printer, "shared by all", [row for row in next(iter(found.values())) if row["shared"]])
    return code


def _rows(service: str, environ: Mapping[str, str]) -> list[dict[str, str]]:
    from servicekit.settings import SharedSettings, load_settings
    from servicekit.settings_env import describe

    cls = _class_of(service)
    settings = load_settings(cls, service, environ)
    shared = {f"CARREL_{name.upper()}" for name in SharedSettings.model_fields}
    rows = []
    for row in describe(settings, service):
        name, _, alias = row.name.partition(" ")
        given = next((n for n in (name, alias.strip("()")) if n and environ.get(n, "").strip()), "")
        rows.append(
            {
                "name": row.name,
                "value": row.value,
                "source": f"environment ({given})" if given else "default",
                "about": row.doc,
                "shared": "yes" if name in shared else "",
            }
        )
    return rows


def _class_of(service: str) -> type[SharedSettings]:
    module, _, name = _CLASSES[service].partition(":")
    cls: Any = getattr(importlib.import_module(module), name)
    found: type[SharedSettings] = cls
    return found


def _print(printer: Printer, title: str, rows: list[dict[str, str]]) -> None:
    printer.say(printer.paint(title, "1"))
    for row in rows:
        value = row["value"] or "(not set)"
        marked = printer.paint(value, "33") if row["source"] != "default" else value
        origin = f"  [{row['source']}]" if row["source"] != "default" else ""
        printer.say(f"  {row['name']} = {marked}{origin}")
        if row["about"]:
            printer.say(printer.paint(f"      {row['about']}", "2"))
    printer.say()

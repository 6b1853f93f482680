"""Writes docs/settings.md: every setting of every process, from the settings' own classes.

python -m tools.k8s_check.settings_page [--check]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from carrel.cli.doctor.settings import DoctorSettings
from carrel.cli.operator_settings import OperatorSettings
from servicekit.settings import SharedSettings, load_settings
from servicekit.settings_env import Variable, describe, variables
from tools.k8s_check.code import SETTINGS

__all__ = ["PAGE", "page", "undocumented"]

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
_COMMAND: Final = "python -m tools.k8s_check.settings_page"
_HEAD: Final = f"""# Settings

Every setting of every process, made from the code by `{_COMMAND}`; a test compares.
A process reads its settings from the environment, once, at its start. A name that begins with `CARREL_` and is no
setting of this or another service is refused, with all that is wrong. `carrel config` shows what takes effect.

An empty value counts as not set. Lists are written with commas, or as JSON; `none` unsets what may be unset. Paths
below `.carrel` follow `CARREL_STATE_DIR`. Durations are in seconds and sizes in bytes, where nothing else is said.
"""


def page() -> str:
    """The page's text."""
    parts = [_HEAD, "## All services\n", *_table(SharedSettings, "gateway", own=False)]
    for app, cls in SETTINGS.items():
        parts += [f"\n## {app.replace('-', '_')}\n", *_table(cls, app.replace("-", "_"), own=True)]
    parts += ["\n## carrel doctor\n", *_table(DoctorSettings, "doctor", own=True)]
    parts += ["\n## carrel revoke, carrel audit\n", *_table(OperatorSettings, "operator", own=True)]
    return "\n".join(parts) + "\n"


def undocumented() -> list[str]:
    """Settings of which the code does not say what they are."""
    named = [(cls, app.replace("-", "_")) for app, cls in SETTINGS.items()]
    named += [(DoctorSettings, "doctor"), (OperatorSettings, "operator")]
    return sorted({v.name for cls, service in named for v in variables(cls, service) if not v.field.description})


def _table(cls: type[SharedSettings], service: str, *, own: bool) -> Iterator[str]:
    # The defaults as they are where nothing is set.
    rows = {row.name: row.value for row in describe(load_settings(cls, service, {}), service)}
    yield "| setting | default | may be | |"
    yield "|---|---|---|---|"
    for variable in variables(cls, service):
        if own and variable.path[0] in SharedSettings.model_fields:
            continue
        name = f"{variable.name} ({variable.alias})" if variable.alias else variable.name
        alias = f"<br>`{variable.alias}`" if variable.alias else ""
        about = _cell(variable.field.description or "")
        yield f"| `{variable.name}`{alias} | {_default(rows[name])} | {_may_be(variable)} | {about} |"


def _default(value: str) -> str:
    if value == tempfile.gettempdir():
        return "the system's folder for temporary files"
    if not value:
        return ""
    return f"`{_cell(value)}`" if len(value) <= 80 else f"`{_cell(value[:77])}…`"


def _may_be(variable: Variable) -> str:
    kinds = [kind for kind in _alternatives(variable.field.annotation) if kind is not type(None)]
    texts = sorted({text for kind in kinds if (text := _kind(kind))})
    return _cell(", ".join(filter(None, [" or ".join(texts), _range(variable.field.metadata)])))


def _kind(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin is Annotated:
        return _kind(get_args(kind)[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if origin in (tuple, list, set, frozenset):
        return "list"
    names = {bool: "`true`, `false`", int: "whole number", float: "number", Path: "path", str: "text"}
    return names.get(origin, "secret" if variable_is_secret(origin) else "")


def variable_is_secret(kind: Any) -> bool:
    """Whether a type says of itself that it hides what it holds."""
    return getattr(kind, "holds_secrets", False) is True or getattr(kind, "__name__", "").startswith("Secret")


def _range(marks: list[Any]) -> str:
    words = []
    for mark in marks:
        match mark:
            case Ge(ge=least):
                words.append(f"≥ {least:g}")
            case Gt(gt=bound):
                words.append(f"> {bound:g}")
            case Le(le=most):
                words.append(f"≤ {most:g}")
            case Lt(lt=bound):
                words.append(f"< {bound:g}")
            case _:
                pass
    return ", ".join(words)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> int:
    """Write the page, or with ``--check`` say whether it is what would be written."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true", help="change nothing")
    if not arguments.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE.name} is not what the code says: run {_COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

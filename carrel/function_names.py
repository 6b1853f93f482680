"""Names of tools as a language model may call them: letters, digits, ``_`` and ``-``, at most 64.

Used on both sides: by the host, which describes tools to the model, and by the worker, which calls what it answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["function_names"]

_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_-]")
_MAX = 64


def function_names(tools: Iterable[str]) -> dict[str, str]:
    """The tool for each function name, in the tools' order; the same tools always get the same names.

    What a name may not hold becomes ``_``; where two would become one, the later gets ``_2``, ``_3`` …
    """
    names: dict[str, str] = {}
    for tool in tools:
        base = _NOT_ALLOWED.sub("_", tool)[:_MAX] or "_"
        name, count = base, 1
        while name in names:
            count += 1
            suffix = f"_{count}"
            name = base[: _MAX - len(suffix)] + suffix
        names[name] = tool
    return names

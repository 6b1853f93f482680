"""One of the desks by itself, without Carrel: ``python -m examples.adapters pydantic "Where is order 7?"``."""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import Final

_DESKS: Final = ("pydantic", "langgraph", "openai")


def main(arguments: list[str]) -> int:
    """Ask the desk that the first argument names; the rest is the question."""
    if len(arguments) < 2 or arguments[0] not in _DESKS:
        sys.stderr.write(f"usage: python -m examples.adapters {{{','.join(_DESKS)}}} QUESTION\n")
        return 2
    desk = importlib.import_module(f"examples.adapters.{arguments[0]}_desk")
    sys.stdout.write(f"{asyncio.run(desk.answer(' '.join(arguments[1:])))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

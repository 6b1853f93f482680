"""``carrel up``, with each process of a version of its own.

    SKEW_VERSIONS=folder python -m tests.skew.up up --state …

The folder has a file for each process (``execution``, ``bridge-2`` …) with the path of the tree that it is run from.
Everything else is ``carrel up`` of this checkout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from carrel.cli import main, stack
from carrel.cli.supervisor import ProcessSpec, Supervisor

VERSIONS: Final = "SKEW_VERSIONS"
_LAUNCH: Final = Path(__file__).with_name("launch.py")


class _Mixed(Supervisor):
    """Starts each process by way of ``launch.py``."""

    def __init__(self, specs: Sequence[ProcessSpec], *args: Any, **options: Any) -> None:
        folder = Path(os.environ[VERSIONS])
        mixed = [
            replace(spec, command=[sys.executable, "-P", str(_LAUNCH), str(folder / spec.name), spec.command[-1]])
            for spec in specs
        ]
        super().__init__(mixed, *args, **options)


if __name__ == "__main__":
    vars(stack)["Supervisor"] = _Mixed
    main()

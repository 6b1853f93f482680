"""``carrel up``, with settings of single processes replaced: how a stack's edges are led through proxies.

    FAULTS_SETTINGS='{"CARREL_EMITTER_BRIDGE": "127.0.0.1:4711"}' python -m tests.faults.up up --state …

What a stack tells its processes about one another comes after the caller's environment, and rightly so; a test that
wants to stand in between has to come later still. Everything else is ``carrel up``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from carrel.cli import main, stack
from carrel.cli.supervisor import ProcessSpec, Supervisor

SETTINGS: Final = "FAULTS_SETTINGS"


class _Rewired(Supervisor):
    """Starts each process with the replaced settings; those that it does not know are another's."""

    def __init__(self, specs: Sequence[ProcessSpec], *args: Any, **options: Any) -> None:
        settings = json.loads(os.environ[SETTINGS])
        rewired = [replace(spec, environment={**spec.environment, **settings}) for spec in specs]
        super().__init__(rewired, *args, **options)


if __name__ == "__main__":
    vars(stack)["Supervisor"] = _Rewired
    main()

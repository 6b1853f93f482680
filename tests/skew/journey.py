"""Runs ``traveller.py`` with a version's client library against a stack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from carrel.cli.tokens import DEFAULT_PERMISSIONS
from tests.support.stack import RunningStack, clean_environment

__all__ = ["USERS", "travel"]

USERS: Final = ("pipeline", "cancel", "ask", "resume", "internal")
_TRAVELLER: Final = Path(__file__).with_name("traveller.py")


def travel(stack: RunningStack, library: Path) -> dict[str, Any]:
    """All scenarios with the client library of the tree ``library``; what they told.

    Raises:
        AssertionError: One of them went wrong; with its traceback and the end of the stack's log.
    """
    tokens = {f"skew-{name}": stack.token(f"skew-{name}") for name in USERS}
    tokens["service"] = stack.token("billing", permissions=(*DEFAULT_PERMISSIONS, "act_as"))
    endpoints = {name: stack.address(name) for name in ("execution", "emitter", "bridge")}
    facts = json.dumps({"url": stack.url, "tokens": tokens, "endpoints": endpoints})
    done = subprocess.run(
        [sys.executable, "-P", str(_TRAVELLER), facts],
        env=clean_environment({"PYTHONPATH": str(library)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{stack.log()[-6000:]}"
    told: dict[str, Any] = json.loads(done.stdout)
    return told

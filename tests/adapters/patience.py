"""A host that has patience: how long libraries take to load on a busy machine is not what is tested here."""

from __future__ import annotations

from typing import Any

from carrel import Agent
from tests.unit.agent_instance.support import Bench

__all__ = ["bench"]


def bench(*agents: type[Agent], **options: Any) -> Bench:
    """The host."""
    return Bench(*agents, **{"idle_s": 40.0, "wall_s": 50.0, "periodic_s": 100.0, **options})

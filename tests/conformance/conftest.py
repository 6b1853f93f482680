"""A stack for the suite, and one for the proof that it bites: quick agents, a short heartbeat, a log soon trimmed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.stack import RunningStack, running_stack

# Short, so that every scenario can be played: a heartbeat is waited for, and a log's beginning trimmed.
_SETTINGS: Final = {"CARREL_GATEWAY_HEARTBEAT_INTERVAL": "1", "CARREL_BRIDGE_RETENTION__MAX_ENTRIES": "400"}


@pytest.fixture(scope="module")  # another module's runs would trim the log while a scenario reads it
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes."""
    agents = [str(Path(__file__).with_name("quick_agents.py"))]
    with running_stack(tmp_path_factory.mktemp("conformance"), agents=agents, environment=_SETTINGS) as running:
        yield running


@pytest.fixture(scope="session")
def execute() -> dict[str, Any]:
    """The request that fills a log."""
    return {"message": "x", "agent_name": "quick", "params": {"lines": 40}}

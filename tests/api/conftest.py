"""One stack for the tests of what is documented, with agents that take no longer than told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import RunningStack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes."""
    agents = [str(Path(__file__).with_name("api_agents.py"))]
    # A request may rightly wait behind a run of its thread that asks: not for minutes here.
    settings = {"CARREL_GATEWAY_EXECUTE_WAIT_SECONDS": "8"}
    with running_stack(tmp_path_factory.mktemp("api"), agents=agents, environment=settings) as running:
        yield running

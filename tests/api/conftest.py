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
    with running_stack(tmp_path_factory.mktemp("api"), agents=agents) as running:
        yield running

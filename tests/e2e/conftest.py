"""Whole stacks for end-to-end tests. ``stack`` is a test's own, to be broken; ``shared_stack`` is everybody's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import RunningStack, running_stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[RunningStack]:
    """Five processes for one test."""
    with running_stack(tmp_path) as running:
        yield running


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes for all tests that break nothing; each takes users of its own."""
    with running_stack(tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.fixture(scope="module")
def slow_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes for one module, with the slow agent beside the packaged ones."""
    agents = ["entry-points", str(Path(__file__).with_name("slow_agents.py"))]
    with running_stack(tmp_path_factory.mktemp("slow"), agents=agents) as running:
        yield running

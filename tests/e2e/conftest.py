"""Whole stacks for end-to-end tests. ``stack`` is a test's own, to be broken; ``shared_stack`` is everybody's.

Which files share one is in tests/support/order.py, so that they are run by one process of xdist.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.stack import RunningStack, running_stack

_PROBES: Final = Path(__file__).parents[1] / "security" / "probe_agents.py"


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


@pytest.fixture(scope="session")
def probe_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """As ``shared_stack``, with the probe agents beside the packaged ones."""
    agents = ["entry-points", str(_PROBES)]
    with running_stack(tmp_path_factory.mktemp("probes"), agents=agents) as running:
        yield running


@pytest.fixture(scope="session")
def slow_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes with the slow agent beside the packaged ones; who kills one waits until it is back."""
    agents = ["entry-points", str(Path(__file__).with_name("slow_agents.py"))]
    with running_stack(tmp_path_factory.mktemp("slow"), agents=agents) as running:
        yield running

"""One stack of five real processes for all tests here, with the probe agents, and what forges tickets for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.security.forge import Forge
from tests.support.stack import RunningStack, running_stack

PROBES = Path(__file__).with_name("probe_agents.py")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The stack. Tests use users of their own, so that none sees what another left behind, and break nothing."""
    with running_stack(tmp_path_factory.mktemp("stack"), agents=[str(PROBES)]) as running:
        yield running


@pytest.fixture(scope="session")
def forge(stack: RunningStack) -> Forge:
    """Forges tickets with the stack's keys at hand."""
    return Forge(stack.state)


@pytest.fixture
async def http(stack: RunningStack) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the gateway without a token."""
    async with aiohttp.ClientSession(stack.url, timeout=aiohttp.ClientTimeout(20)) as session:
        yield session

"""One stack and one browser for each file of browser tests, and pages that are watched."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.support.needs import chromium
from tests.support.stack import RunningStack, running_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes with the packaged agents, and those made for pages."""
    agents = ["entry-points", str(Path(__file__).with_name("page_agents.py"))]
    # A token that ends is to be seen to end, not to be waited for.
    settings = {"CARREL_GATEWAY_LOGIN__LEEWAY_SECONDS": "0"}
    with running_stack(tmp_path_factory.mktemp("browser"), agents=agents, environment=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """The system's Chromium."""
    # Chromium refuses its sandbox to root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        await browser.close()

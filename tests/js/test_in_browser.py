"""The JavaScript client in a browser: the same fault cases as in Node, in a page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio
from playwright.async_api import Page, async_playwright

from tests.js.scripted import scripted_gateways
from tests.support.needs import chromium
from tests.support.whole import WHOLE

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

_CUTS: Final = 0 if WHOLE else 10
# Plays all, several at once; what failed, by name, and how many were played.
_PLAY: Final = """async ({cuts, only}) => {
  const {scenarios} = await import("/files/tests/js/scenarios.js")
  const {play, sample} = await import("/files/tests/js/stage.js")
  const recorded = await (await fetch("/files/tests/js/recorded_run.json")).json()
  const left = sample(scenarios(recorded), cuts, 20262).filter(([name]) => !only || name === only)
  const played = left.length, failed = {}
  const worker = async () => {
    for (let next = left.shift(); next; next = left.shift()) {
      await play(location.origin, next[1]).catch((error) => { failed[next[0]] = String(error.stack ?? error) })
    }
  }
  await Promise.all(Array.from({length: 8}, worker))
  return {played, failed}
}"""


def arguments() -> list[str]:
    """What Chromium must be told: it refuses its sandbox to root."""
    return ["--no-sandbox"] if os.geteuid() == 0 else []


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def page() -> AsyncIterator[Page]:
    """A page of the scripted gateways' own origin."""
    async with async_playwright() as driver, scripted_gateways() as url:
        browser = await driver.chromium.launch(executable_path=chromium(), args=arguments())
        page = await browser.new_page()
        await page.goto(f"{url}/page")
        yield page
        await browser.close()


@pytest.mark.timeout(180)
async def test_faults(page: Page) -> None:
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    result: dict[str, Any] = await page.evaluate(_PLAY, {"cuts": _CUTS, "only": ""})
    assert result["failed"] == {}
    assert result["played"] > 80
    assert faults == []

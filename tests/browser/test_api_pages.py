"""The pages about the API in a browser: they show every document whole, under their policy, to everybody."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, Page, expect

from tests.support.stack import ROOT
from tests.support.whole import WHOLE
from tests.unit.gateway.harness import gateway

_FEW = """() => {
  for (const all of [document.querySelectorAll(".part"), document.querySelectorAll(".list li")])
    [...all].slice(5).forEach((one) => one.remove())
}"""

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: Any) -> AsyncIterator[Page]:
    """The pages; nothing may have been wrong with them, and nothing asked for elsewhere."""
    context = await browser.new_context(**options)
    faults: list[str] = []
    try:
        page = await context.new_page()
        page.set_default_timeout(20_000)
        page.on(
            "console", lambda message: faults.append(message.text) if message.type in {"error", "warning"} else None
        )
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(url) else faults.append(asked.url))
        await page.goto(f"{url}/docs")
        yield page
        assert faults == []
    finally:
        await context.close()


def _document(name: str) -> Any:
    return json.loads((ROOT / "docs" / name).read_text(encoding="utf-8"))


async def test_every_operation_frame_and_message_is_shown(browser: Browser, tmp_path: Path) -> None:
    rest, protos = _document("openapi.json"), _document("proto.json")
    async with gateway(tmp_path) as g, opened(browser, g.url) as page:
        shown = page.locator(".part h3 .path")
        await expect(shown).to_have_count(sum(len(item) for item in rest["paths"].values()))
        await expect(page.locator("[id='rest/execute']")).to_contain_text("INVALID_REQUEST")
        await page.get_by_label("Find in the contents").fill("cancel")
        found = page.get_by_role("navigation", name="Contents").get_by_role("link")
        await expect(found).to_have_count(2)
        await page.get_by_role("navigation", name="Documents").get_by_role("link", name="WebSocket").click()
        frames = _document("asyncapi.json")["components"]["messages"]
        await expect(page.locator(".part h3 .path")).to_have_count(len(frames))
        # An address names a place on a page, which is looked up when the page is opened, too.
        await page.goto(f"{g.url}/docs#/protos/LogEntry")
        await page.reload()
        parts = [one for file in protos["files"] for kind in ("services", "messages", "enums") for one in file[kind]]
        await expect(page.locator(".part")).to_have_count(len(parts))
        await expect(page.locator("[id='protos/LogEntry']")).to_be_in_viewport()
        # Whatever somebody has written into a link.
        for place in ("%", "toString/%25"):
            await page.goto("about:blank")
            await page.goto(f"{g.url}/docs#/{place}")
            await expect(page.get_by_role("link", name="REST", exact=True)).to_have_attribute("aria-current", "page")
            await expect(page.locator("[id='rest/execute']")).to_be_attached()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_pages_are_accessible(browser: Browser, tmp_path: Path, scheme: str) -> None:
    size = {"width": 1280, "height": 900} if scheme == "light" else {"width": 360, "height": 740}
    async with gateway(tmp_path) as g, opened(browser, g.url, color_scheme=scheme, viewport=size) as page:
        places = (("rest", "execute"), ("socket", "connect"), ("protos", "BridgeService"))
        for name, place in places if WHOLE or scheme == "light" else places[:1]:
            await page.goto(f"{g.url}/docs#/{name}/{place}")
            await expect(page.locator(f"[id='{name}/{place}']")).to_be_in_viewport()
            assert await page.evaluate("document.documentElement.scrollWidth") == size["width"]
            if not WHOLE:
                # All parts of a page are alike, and axe takes seconds for each hundred of them.
                await page.evaluate(_FEW)
            results = await Axe().run(page)
            await page.goto("about:blank")
            assert [
                f"{name}: {violation['id']}: {node['html'][:160]} {node['failureSummary'][:200]}"
                for violation in results.response["violations"]
                if violation["impact"] in {"serious", "critical"}
                for node in violation["nodes"][:3]
            ] == []


async def test_a_keyboard_reaches_the_content(browser: Browser, tmp_path: Path) -> None:
    async with gateway(tmp_path) as g, opened(browser, g.url) as page:
        await expect(page.locator("main h1")).to_be_visible()
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("To the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("main")).to_be_focused()

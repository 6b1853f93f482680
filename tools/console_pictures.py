"""Takes the pictures of docs/console.md: the console in Chromium over a real stack, as its users see it.

    python -m tools.console_pictures                  # all of them
    python -m tools.console_pictures chat operator    # these

Not run by tests or ``make docs``: to be run when the page has changed, and the pictures to be looked at. Needs Chromium
(``/usr/bin/chromium``, or the path in ``--chromium``) and nothing else of the network.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from carrel.cli.state import StateFolder
from carrel.cli.supervisor import tied_to_us
from carrel.cli.tokens import DEFAULT_PERMISSIONS, development_token
from carrel.client.http import GatewayHttp
from servicekit.identity.principals import OPERATOR_READ

__all__ = ["main"]

ROOT: Final = Path(__file__).resolve().parent.parent
IMAGES: Final = ROOT / "docs" / "images"
MOST_BYTES: Final = 250_000
# An agent that asks before it sends a mail; those of the package ask nothing without a model.
_AGENTS: Final = ROOT / "tests" / "browser" / "page_agents.py"
_START_S: Final = 120.0
_WAIT_MS: Final = 60_000
_GAP: Final = 20
_GAP_COLOUR: Final = (139, 145, 149)


@dataclass(frozen=True, slots=True)
class _Stack:
    """A stack that runs, and a browser."""

    url: str
    secret: Path
    browser: Browser

    def token(self, user: str, *permissions: str) -> str:
        """A login of an hour."""
        allowed = [*DEFAULT_PERMISSIONS, *permissions]
        return development_token(self.secret, user, permissions=allowed, lifetime_s=3600, limits=None, environ={})

    async def page(self, user: str, path: str = "", *permissions: str, **options: Any) -> Page:
        """A user's page, with its connection; in a browser of its own."""
        options = {"viewport": {"width": 1200, "height": 820}, "reduced_motion": "reduce", **options}
        context = await self.browser.new_context(**options)
        page = await context.new_page()
        page.set_default_timeout(_WAIT_MS)
        token = self.token(user, *permissions)
        await page.add_init_script(f"sessionStorage.setItem('carrel.token.main', '{token}')")
        await page.goto(f"{self.url}/#/{path}")
        await expect(page.locator(".top [data-connection=connected]")).to_be_visible(timeout=_WAIT_MS)
        return page


async def _report(page: Page) -> Locator:
    """The run behind "Write a report", once it is done and its charts are there."""
    await page.locator(".idea", has_text="Write a report").click()
    run = page.locator("[data-run]")
    await expect(run.locator("[data-state=SUCCEEDED]")).to_be_visible(timeout=_WAIT_MS)
    charts = run.locator(".report img")
    await expect(charts).to_have_count(3, timeout=_WAIT_MS)
    for chart in await charts.all():
        await expect(chart).to_have_js_property("complete", True)
    return run


async def _scrolled(page: Page, to: Locator, above: int) -> None:
    """The conversation as far down as leaves so many pixels above an element."""
    top = await to.evaluate(
        "(node, above) => { const box = node.closest('.scroll'); box.scrollTop += "
        "node.getBoundingClientRect().top - box.getBoundingClientRect().top - above; return box.scrollTop }",
        above,
    )
    await page.wait_for_function("(top) => Math.abs(document.querySelector('.scroll').scrollTop - top) < 2", arg=top)
    # Nothing is under the pointer, and nothing has the focus.
    await page.mouse.move(0, 0)
    await page.evaluate("document.activeElement?.blur()")


async def _chat(stack: _Stack) -> Image.Image:
    page = await stack.page("alice", viewport={"width": 1200, "height": 1060})
    run = await _report(page)
    await _scrolled(page, run, 16)
    return await _taken(page)


async def _charts(stack: _Stack) -> Image.Image:
    page = await stack.page("alice")
    run = await _report(page)
    await _scrolled(page, run.locator(".report h4", has_text="Cost").first, 8)
    return await _taken(page)


async def _approval(stack: _Stack) -> Image.Image:
    page = await stack.page("alice", viewport={"width": 1200, "height": 720})
    await page.locator(".chooser").select_option("mail")
    await page.locator("[data-message]").fill("Mail Bob the figures")
    await page.keyboard.press("Enter")
    await expect(page.locator(".question")).to_be_visible(timeout=_WAIT_MS)
    await _scrolled(page, page.locator("[data-run]"), 24)
    return await _taken(page)


async def _two(stack: _Stack) -> Image.Image:
    page = await stack.page("olga", "two", OPERATOR_READ, color_scheme="dark")
    for _ in range(2):
        await page.locator(".two-sign-in").first.get_by_role("button", name="Sign in", exact=True).click()
        await expect(page.locator(".two-side [data-connection=connected]").last).to_be_visible(timeout=_WAIT_MS)
    await expect(page.locator("[data-user]")).to_have_count(2)
    await page.get_by_role("button", name="Send from both at once").click()
    await expect(page.locator("[data-user] [data-state=SUCCEEDED]")).to_have_count(2, timeout=_WAIT_MS)
    await expect(page.locator(".two .report h3")).to_have_count(2, timeout=_WAIT_MS)
    await page.get_by_role("button", name="Try to read bob's latest run").click()
    await expect(page.get_by_text("UNKNOWN_RUN")).to_be_visible()
    for name in ("alice", "bob"):
        await page.locator(f"[data-user={name}] .answer").evaluate(
            "node => { const box = node.closest('.scroll'); "
            "box.scrollTop += node.getBoundingClientRect().top - box.getBoundingClientRect().top - 110 }"
        )
    await page.mouse.move(0, 0)
    return await _taken(page)


async def _operator(stack: _Stack) -> Image.Image:
    """While some users' agents work, so that there is something to see."""
    page = await stack.page("olga", "operator", OPERATOR_READ, viewport={"width": 1200, "height": 1000})
    users = [GatewayHttp(stack.url, stack.token(f"user-{number}")) for number in range(6)]
    beside = [await stack.page(f"user-{number}") for number in range(3)]
    try:
        for number, user in enumerate(users):
            asked = {"mark": "step", "steps": 400 + 60 * number, "pause": 0.05}
            await user.execute("count", pipeline=["count"], params=asked, wait_s=0)
            # They come one after the other, as people do.
            await page.wait_for_timeout(2_500)
        await page.wait_for_timeout(6_000)
        await page.mouse.move(0, 0)
        return await _taken(page)
    finally:
        for user in users:
            await user.aclose()
        for other in beside:
            await other.context.close()


async def _narrow(stack: _Stack) -> Image.Image:
    """Three looks at one conversation, as a telephone has it."""
    page = await stack.page("alice", viewport={"width": 360, "height": 700}, color_scheme="dark")
    run = await _report(page)
    looks = []
    for to, above in (
        (run, 18),
        (run.locator(".answer"), 110),
        (run.locator(".report h4", has_text="Cost").first, 14),
    ):
        await _scrolled(page, to, above)
        looks.append(await _taken(page))
    whole = Image.new("RGB", (sum(look.width for look in looks) + _GAP * (len(looks) - 1), 700), _GAP_COLOUR)
    for number, look in enumerate(looks):
        whole.paste(look, (number * (look.width + _GAP), 0))
    return whole


_TAKEN: Final[Mapping[str, Callable[[_Stack], Awaitable[Image.Image]]]] = {
    "chat": _chat,
    "report": _charts,
    "approval": _approval,
    "two-users": _two,
    "narrow": _narrow,
    "operator": _operator,
}


async def _taken(page: Page) -> Image.Image:
    data = await page.screenshot(animations="disabled", caret="hide")
    return Image.open(io.BytesIO(data)).convert("RGB")


def _keep(name: str, image: Image.Image) -> int:
    """Write a picture with as many colours as it needs to look the same.

    Raises:
        ValueError: It is too large for a page.
    """
    kept = io.BytesIO()
    image.quantize(colors=256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        kept, "PNG", optimize=True
    )
    size = len(kept.getvalue())
    if size > MOST_BYTES:
        raise ValueError(f"the picture {name} has {size} bytes, over {MOST_BYTES}: show less in it")
    (IMAGES / f"console-{name}.png").write_bytes(kept.getvalue())
    return size


@contextmanager
def _running(folder: Path) -> Iterator[StateFolder]:
    """``carrel up`` for the length of the block."""
    command = [sys.executable, "-P", "-m", "carrel.cli", "up", "--state", str(folder / "state"), "--port", "0"]
    command += ["--agents", "entry-points", "--agents", str(_AGENTS)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARREL_")}
    log = folder / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(tied_to_us(command), cwd=folder, env=environment, stdout=output, stderr=output)
    state = StateFolder(folder / "state")
    try:
        ends = time.monotonic() + _START_S
        while not (state.read_stack() or {}).get("ready_s"):
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"the stack did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        yield state
    finally:
        process.terminate()
        process.wait(60)


async def _take(names: list[str], state: StateFolder, chromium: Path) -> None:
    # Chromium refuses its sandbox to root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=str(chromium), args=arguments)
        try:
            stack = _Stack(str((state.read_stack() or {})["url"]), state.login_secret, browser)
            for name in names:
                size = _keep(name, await _TAKEN[name](stack))
                # The next one's figures are its own.
                for context in browser.contexts:
                    await context.close()
                print(f"console-{name}.png: {size:,} bytes", flush=True)
        finally:
            await browser.close()


def main() -> int:
    """Take them."""
    parser = argparse.ArgumentParser(description="Takes the pictures of docs/console.md.")
    parser.add_argument("names", nargs="*", help=f"which ones, of {', '.join(_TAKEN)}; all of them by default")
    parser.add_argument("--chromium", type=Path, default=Path("/usr/bin/chromium"))
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in _TAKEN]:
        parser.error(f"no such picture: {', '.join(unknown)}; there are {', '.join(_TAKEN)}")
    with tempfile.TemporaryDirectory(prefix="carrel-pictures-") as folder, _running(Path(folder)) as state:
        asyncio.run(_take(given.names or list(_TAKEN), state, given.chromium))
    return 0


if __name__ == "__main__":
    sys.exit(main())

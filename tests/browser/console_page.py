"""A user in front of the console, for tests: a browser context of their own, what they do, what they see."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, WebSocketRoute, expect

from carrel.cli.tokens import DEFAULT_PERMISSIONS
from tests.support.stack import RunningStack

__all__ = ["ConsoleUser", "Gate", "console_user"]

_WAIT_MS = 20_000


@dataclass
class ConsoleUser:
    """One user's page.

    ``faults`` are the browser's complaints: errors and warnings of its console, exceptions, refusals of the policy.
    ``frames`` is what came over the page's sockets.
    """

    name: str
    page: Page
    context: BrowserContext
    url: str
    faults: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)

    async def open(self, path: str = "") -> None:
        """Go to a view, and wait until the connection is there."""
        await self.page.goto(f"{self.url}/#/{path}")
        await self.connected()

    async def connected(self) -> None:
        """Wait until it says Live."""
        await expect(self.page.locator(".top [data-connection=connected]")).to_be_visible(timeout=_WAIT_MS)

    async def send(self, message: str, agent: str = "", params: dict[str, Any] | None = None) -> Locator:
        """Send a message; the newest run on the page, once it is there."""
        page = self.page
        count = await page.locator("[data-run]").count()
        if agent:
            await page.locator(".chooser").select_option(agent)
        if params is not None:
            if not await page.locator(".params").count():
                await page.get_by_role("button", name="Parameters").click()
            await page.locator(".params textarea").fill(json.dumps(params))
        await page.locator("[data-message]").fill(message)
        await page.keyboard.press("Enter")
        run = page.locator("[data-run]").nth(count)
        await expect(run).to_be_visible(timeout=_WAIT_MS)
        return run

    async def state(self, run: Locator, state: str) -> None:
        """Wait until a run is in a state."""
        await expect(run.locator(f"[data-state={state}]")).to_be_visible(timeout=_WAIT_MS)

    async def thoughts(self, run: Locator) -> list[str]:
        """All lines of thought of a run that the page has, oldest first."""
        earlier = run.locator(".earlier")
        while await earlier.count():
            await earlier.click()
        return await run.locator(".is-thought .step-name").all_inner_texts()

    def came(self) -> str:
        """Everything that came over sockets, compressed batches too, as text."""
        return "\n".join(self.frames)


class Gate:
    """Between a page and the gateway's socket: holds up what the gateway sends, and says so as a gateway does.

    ``ended`` is set once the end of a run has come this far.
    """

    def __init__(self) -> None:
        self.holds = self.ended = False
        self._held: list[str | bytes] = []
        self._page: WebSocketRoute | None = None
        self._epoch = ""
        self._sent = self._came = 0

    @property
    def behind(self) -> int:
        """How many events are held."""
        return self._came - self._sent

    def opened(self, page: WebSocketRoute) -> None:
        """A socket of the page's."""
        self._page, self._held = page, []
        gateway = page.connect_to_server()
        page.on_message(gateway.send)
        gateway.on_message(self._take)

    def ping(self) -> None:
        """What a gateway tells whose client takes nothing: how far the log is, and how far it got itself."""
        assert self._page is not None
        told = {"type": "ping", "epoch": self._epoch, "offset": self._sent, "top": self._came}
        self._page.send(json.dumps(told))

    def let(self) -> None:
        """All of it goes on."""
        assert self._page is not None
        self.holds, self._sent = False, self._came
        held, self._held = self._held, []
        for frame in held:
            self._page.send(frame)

    def _take(self, frame: str | bytes) -> None:
        assert self._page is not None
        text = _text(frame)
        if '"event_type"' in text:
            self.ended = self.ended or "run_completed" in text
            self._came = max(int(offset) for offset in re.findall(r'"offset": ?(\d+)', text))
        elif epoch := re.search(r'"epoch": ?"(\w+)"', text):
            self._epoch = epoch[1]
        if not self.holds:
            self._sent = self._came
            self._page.send(frame)
        elif '"ping"' not in text:
            self._held.append(frame)


@asynccontextmanager
async def console_user(
    browser: Browser,
    stack: RunningStack,
    name: str,
    *,
    signed_in: bool = True,
    permissions: Collection[str] = DEFAULT_PERMISSIONS,
    allowed: str = "",
    **context: Any,
) -> AsyncIterator[ConsoleUser]:
    """A user's page for the length of the block; at its end nothing may have gone wrong in it.

    Args:
        browser, stack: Where.
        name: The user.
        signed_in: Whether the tab has a token already.
        permissions: The token's.
        allowed: A pattern of complaints that the test brings about itself.
        context: Options of the browser's context.
    """
    opened = await browser.new_context(**context)
    try:
        page = await opened.new_page()
        page.set_default_timeout(_WAIT_MS)
        user = ConsoleUser(name, page, opened, stack.url)
        page.on("console", lambda message: _complaint(user, message))
        page.on("pageerror", lambda error: user.faults.append(f"exception: {error}"))
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: user.frames.append(_text(frame))))
        if signed_in:
            token = json.dumps(stack.token(name, permissions=permissions))
            # Once: a page that signs out and is loaded again stays signed out.
            await opened.add_init_script(
                f"if (!sessionStorage.getItem('seen')) {{ sessionStorage.setItem('carrel.token.main', {token});"
                " sessionStorage.setItem('seen', '1') }"
            )
        yield user
        faults = [fault for fault in user.faults if not (allowed and re.search(allowed, fault))]
        assert faults == []
    finally:
        await opened.close()


def _complaint(user: ConsoleUser, message: ConsoleMessage) -> None:
    if message.type in {"error", "warning"}:
        user.faults.append(f"{message.type}: {message.text}")


def _text(frame: str | bytes) -> str:
    import gzip

    text = frame if isinstance(frame, str) else frame.decode(errors="replace")
    body = json.loads(text)
    if body.get("events_compressed"):
        return gzip.decompress(bytes.fromhex(body["events_compressed"])).decode()
    return text

"""docs/javascript.md and the chat page are true: their snippets run against a whole stack, in Node and in a page."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web
from playwright.async_api import Page, async_playwright

from tests.js.test_in_browser import arguments
from tests.support.needs import chromium, node
from tests.support.stack import ROOT, RunningStack, running_stack

CLIENT: Final = ROOT / "clients" / "js"
DOCS: Final = (ROOT / "docs" / "javascript.md").read_text()
CHAT_PAGE: Final = (ROOT / "docs" / "howto" / "chat-page.md").read_text()
SNIPPETS: Final = re.findall(r"^## (.+?)$|^```js\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)

# What snippets print, by the heading that they stand under, one expression for each.
PRINTED: Final = {
    "A first run": [r"line 0\n\nline 1\n\nline 2\n\nSUCCEEDED"],
    "Tokens": [r"\d+\.\d+", r"conn-\S+"],
    "Reading": [r""],
    "Positions": [r"4"],
    "Resets and gaps": [r"start over epoch_changed"],
    "Questions and approvals": [
        r"SUCCEEDED \{ depth: 'quick', mail: \{ sent: 'bob@example.com' \} \}",
    ],
    "Cancelling, and signals": [r"CANCELLED|SUCCEEDED"],
    "REST": [r"SUCCEEDED \{ note: 'note.md' \}\nnote.md 9\nrun_accepted\n(?:\w+\n)+run_completed"],
    "Errors": [r"UNKNOWN_RUN .+"],
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes."""
    agents = [str(Path(__file__).with_name("docs_agents.py"))]
    # The chat page names no agent.
    settings = {"CARREL_EXECUTION_DEFAULT_AGENT": "plain"}
    with running_stack(tmp_path_factory.mktemp("docs"), agents=agents, environment=settings) as running:
        yield running


def snippets() -> dict[str, list[str]]:
    """The JavaScript of the page, by the heading that it stands under."""
    found: dict[str, list[str]] = {}
    heading = ""
    for title, code in SNIPPETS:
        if title:
            heading = title
        else:
            found.setdefault(heading, []).append(code)
    return found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that has the client as a package."""
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "carrel-client").symlink_to(CLIENT, target_is_directory=True)
    return tmp_path


async def run(file: Path, code: str, **values: str) -> str:
    """What a module prints that finds these values there."""
    head = "".join(f"const {name} = {json.dumps(value)}\n" for name, value in values.items())
    file.write_text(head + code, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        node(), file, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(40):
            output, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        output, _ = await process.communicate()
        raise AssertionError(f"it did not end\n{code}\n{output.decode()}") from None
    assert process.returncode == 0, f"{code}\n{output.decode()}"
    return output.decode().strip()


def test_each_snippet_says_what_it_prints() -> None:
    assert {heading: len(codes) for heading, codes in snippets().items()} == {
        heading: len(expected) for heading, expected in PRINTED.items()
    }


async def test_snippets_run(stack: RunningStack, project: Path) -> None:
    node()
    order = [(heading, index) for heading, expected in PRINTED.items() for index in range(len(expected))]
    room = asyncio.Semaphore(4)

    async def one(heading: str, index: int) -> None:
        async with room:
            # The log is a user's, so that each has its own; those that read what is kept find something.
            user = f"reader-{heading.split(maxsplit=1)[0].lower().strip(',')}-{index}"
            if heading in {"Positions", "Resets and gaps"}:
                async with stack.http(user) as http:
                    await http.execute("x", pipeline=["quick"])
            file = project / f"{user}.mjs"
            printed = await run(file, snippets()[heading][index], url=stack.url, token=stack.token(user))
        assert re.fullmatch(PRINTED[heading][index], printed), f"{heading}: {printed!r}"

    await asyncio.gather(*(one(heading, index) for heading, index in order))


_KILLED: Final = """
import { CarrelClient } from "carrel-client"
const client = await new CarrelClient({ url, token, backoff: { attempts: 100, longestMs: 500 } }).connect()
const { runId } = await client.execute("Say lines", { agentName: "quick", params: { lines: 2000 } })
const offsets = []
for await (const event of client.runEvents(runId)) {
  offsets.push(event.offset)
  if (offsets.length === 40) console.log("now")
  if (offsets.length > 40 && offsets.length < 400) await new Promise((resolve) => setTimeout(resolve, 2))
}
console.log(JSON.stringify([offsets[0], offsets.at(-1), offsets.length, client.reconnects > 0]))
client.close()
"""


@pytest.mark.timeout(90)
async def test_gateway_killed_in_the_middle_loses_and_repeats_nothing(stack: RunningStack, project: Path) -> None:
    file = project / "killed.mjs"
    file.write_text(f"const url = {stack.url!r}, token = {stack.token('carol')!r}\n{_KILLED}")
    process = await asyncio.create_subprocess_exec(node(), file, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"now\n"
            stack.kill("gateway")
            last = await process.stdout.readline()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    first, end, count, reconnected = json.loads(last)
    assert (first, count, reconnected) == (1, end, True)
    assert count > 2000


@asynccontextmanager
async def page_of(html: str) -> AsyncIterator[Page]:
    """A browser at a page of another origin, with the client below carrel/."""
    app = web.Application()

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=f"<!doctype html><title>…</title>{html}", content_type="text/html")

    app.router.add_get("/", page)
    app.router.add_static("/carrel", CLIENT / "src")
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with async_playwright() as driver:
            browser = await driver.chromium.launch(executable_path=chromium(), args=arguments())
            opened = await browser.new_page()
            await opened.goto(f"http://127.0.0.1:{runner.addresses[0][1]}/")
            yield opened
            await browser.close()
    finally:
        await runner.cleanup()


@pytest.mark.browser
async def test_page_of_another_origin_runs(stack: RunningStack) -> None:
    html = re.search(r"^```html\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    assert html is not None
    values = f"<script>const url = {stack.url!r}, token = {stack.token('dora')!r}</script>"
    async with page_of(values + html[1]) as opened:
        await opened.wait_for_function("document.title === 'SUCCEEDED'", timeout=30_000)
        assert await opened.locator("#answer").text_content() == "line 0\nline 1\nline 2\n"


@pytest.mark.browser
async def test_the_chat_page_shows_an_answer_whichever_way_it_comes_and_a_failure(stack: RunningStack) -> None:
    html = re.search(r"^```html\n(.*?)^```$", CHAT_PAGE, re.MULTILINE | re.DOTALL)
    assert html is not None
    values = f"<script>const freshToken = async () => {stack.token('erin')!r}, threadId = 'my-chat'</script>"
    # As somebody does who copies it: the gateway's own address, a form around it.
    code = html[1].replace("https://carrel.example", stack.url).replace("</script>", "window.send = send\n</script>")
    said = """async (text) => {
      const box = document.createElement("p")
      await send(text, box)
      return box.textContent
    }"""
    async with page_of(values + code) as opened:
        await opened.wait_for_function("window.send !== undefined", timeout=30_000)
        assert await opened.evaluate(said, "you") == "heard you"
        assert (await opened.evaluate(said, "fail")).startswith("agent plain failed")

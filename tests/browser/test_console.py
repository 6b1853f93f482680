"""The console in a browser over a real stack: what users see, alone and beside others, also when something fails."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, CDPSession, expect

from servicekit.identity.principals import OPERATOR_READ
from tests.browser.console_page import ConsoleUser, console_user
from tests.conftest import Eventually
from tests.support.stack import RunningStack

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

_NOT_FOUND: Final = r"status of 404"
_GATEWAY_AWAY: Final = r"WebSocket|ERR_CONNECTION|Failed to load resource"
# What a page may spend on a run of a thousand events, in milliseconds of its own work; the longest between two frames;
# how many rows it may draw. On a machine busy with other work it took 700 ms, 300 ms and 82 rows. Drawing each event
# apart took 1400 ms and stood still for 7.5 s; a list without an end has 500 rows.
_WORK_MS: Final = 2500.0
_LONGEST_MS: Final = 1500.0
_ROWS: Final = 120


async def test_two_users_at_once_see_only_their_own(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "amy") as amy, console_user(browser, stack, "ben") as ben:
        users = {"amy": amy, "ben": ben}
        await asyncio.gather(amy.open(), ben.open())
        params = {name: {"mark": f"secret-of-{name}", "steps": 40, "pause": 0.04} for name in users}
        runs = dict(
            zip(
                users, await asyncio.gather(*(users[n].send(f"go {n}", "count", params[n]) for n in users)), strict=True
            )
        )
        # Both are under way now.
        await asyncio.gather(*(users[name].state(runs[name], "RUNNING") for name in users))
        await asyncio.gather(*(users[name].state(runs[name], "SUCCEEDED") for name in users))
        for name, other in (("amy", "ben"), ("ben", "amy")):
            user = users[name]
            assert await user.thoughts(runs[name]) == [f"secret-of-{name} {n}" for n in range(1, 41)]
            shown = await user.page.locator("body").inner_text()
            assert f"secret-of-{name} counted to 40" in shown
            assert other not in shown
            assert f'"user_id":"{name}"' in user.came().replace(" ", "")
            assert other not in user.came()
        # Ben's page at the address of amy's conversation shows nothing of it.
        address = amy.page.url.partition("#/")[2]
        assert address.startswith("t/")
        ben.faults.clear()
        await ben.page.goto(f"{stack.url}/#/{address}")
        await expect(ben.page.get_by_text("There is no such conversation.")).to_be_visible()
        assert "amy" not in await ben.page.locator("body").inner_text()
        ben.faults[:] = [fault for fault in ben.faults if not re.search(_NOT_FOUND, fault)]


async def test_a_gateway_that_dies_in_the_middle_loses_and_repeats_nothing(
    browser: Browser, stack: RunningStack, eventually: Eventually
) -> None:
    async with console_user(browser, stack, "carl", allowed=_GATEWAY_AWAY) as carl:
        await carl.open()
        run = await carl.send("count", "count", {"mark": "line", "steps": 150, "pause": 0.03})
        await expect(run.get_by_text("line 20", exact=True)).to_be_visible(timeout=20_000)
        pid = stack.kill("gateway")
        away = carl.page.locator(".top .pill.bad, .top .pill.busy")
        await expect(away).to_be_visible()
        await eventually(lambda: stack.restarted("gateway", pid), within=20)
        await carl.connected()
        await carl.state(run, "SUCCEEDED")
        assert await carl.thoughts(run) == [f"line {number}" for number in range(1, 151)]
        assert await run.locator(".is-tool").count() == 15
        await expect(run.locator("[data-role=answer]")).to_have_text("line counted to 150")
        # Loaded anew, from the log, the page says the same.
        await carl.page.reload()
        again = carl.page.locator("[data-run]")
        await carl.state(again, "SUCCEEDED")
        await again.locator("[data-fold]").click()
        await expect(again.locator(".is-thought").last).to_be_visible()
        assert await carl.thoughts(again) == [f"line {number}" for number in range(1, 151)]


async def test_a_page_that_is_loaded_in_the_middle_has_the_whole_run(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "cora") as cora:
        await cora.open()
        run = await cora.send("count", "count", {"mark": "line", "steps": 70, "pause": 0.03})
        await expect(run.get_by_text("line 15", exact=True)).to_be_visible()
        await cora.page.reload()
        run = cora.page.locator("[data-run]")
        await cora.state(run, "SUCCEEDED")
        assert await cora.thoughts(run) == [f"line {number}" for number in range(1, 71)]
        await expect(run.locator("[data-role=user]")).to_have_text("count")


async def test_a_keyboard_is_enough_to_sign_in_send_and_stop(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "dora", signed_in=False, reduced_motion="reduce") as dora:
        page, keys = dora.page, dora.page.keyboard
        await page.goto(stack.url)
        await expect(page.get_by_label("Your name")).to_be_focused()
        await keys.type("dora")
        await keys.press("Enter")
        await dora.connected()
        await expect(page.get_by_label("Message", exact=True)).to_be_focused()
        # To the choice of the agent, by the order of the page.
        await keys.press("Tab")
        await expect(page.get_by_label("Agent", exact=True)).to_be_focused()
        await keys.type("count")
        await keys.press("Tab")
        await keys.press("Enter")
        await keys.press("Alt+Shift+M")
        for _ in range(8):
            await keys.press("Tab")
            if await page.get_by_label("Parameters, as").evaluate("field => field === document.activeElement"):
                break
        await keys.type('{"steps": 400, "pause": 0.05}')
        await keys.press("Alt+Shift+M")
        await keys.type("count")
        await keys.press("Enter")
        run = page.locator("[data-run]")
        await dora.state(run, "RUNNING")
        # Back into the field, and from there to Stop.
        await keys.press("Alt+Shift+M")
        for _ in range(4):
            await keys.press("Tab")
            if await page.get_by_role("button", name="Stop").evaluate("button => button === document.activeElement"):
                break
        await keys.press("Enter")
        await dora.state(run, "CANCELLED")
        # Another, by the shortcut.
        await keys.press("Alt+Shift+M")
        await keys.type("again")
        await keys.press("Enter")
        second = page.locator("[data-run]").nth(1)
        await dora.state(second, "RUNNING")
        await keys.press("Control+.")
        await dora.state(second, "CANCELLED")
        await keys.press("Control+/")
        await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        await keys.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_call_is_approved_and_a_question_answered_where_they_are_asked(
    browser: Browser, stack: RunningStack
) -> None:
    async with console_user(browser, stack, "eve") as eve:
        await eve.open()
        run = await eve.send("mail bob", "mail")
        await eve.state(run, "WAITING")
        question = run.locator(".question")
        await expect(question).to_contain_text("May the agent use send mail?")
        await expect(question.locator("pre")).to_contain_text("bob@example.com")
        await question.get_by_role("button", name="Allow once").click()
        await expect(run.get_by_text("Which colour was it?").last).to_be_visible(timeout=20_000)
        await run.get_by_role("button", name="green").click()
        await eve.state(run, "SUCCEEDED")
        await expect(run.locator("[data-role=answer]")).to_have_text("mailed bob@example.com in green")
        # A refusal, with its reason, ends the run as the agent has it.
        run = await eve.send("mail bob again")
        await eve.state(run, "WAITING")
        await run.get_by_label("Reason").fill("not today")
        await run.get_by_role("button", name="Refuse").click()
        await eve.state(run, "FAILED")
        await expect(run.locator(".problem").last).to_be_visible()


_WATCH: Final = """() => {
  window.seen = {tasks: [], frames: 0, longest: 0}
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.seen.tasks.push(entry.duration)
  }).observe({type: "longtask"})
  let last = performance.now()
  const frame = (now) => {
    window.seen.frames += 1
    window.seen.longest = Math.max(window.seen.longest, now - last)
    last = now
    requestAnimationFrame(frame)
  }
  requestAnimationFrame(frame)
}"""


async def _work_ms(session: CDPSession) -> float:
    metrics: dict[str, Any] = await session.send("Performance.getMetrics")
    return 1000 * next(float(row["value"]) for row in metrics["metrics"] if row["name"] == "TaskDuration")


async def test_a_thousand_events_leave_the_page_smooth(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "fay") as fay:
        page = fay.page
        await fay.open()
        await page.evaluate(_WATCH)
        session = await fay.context.new_cdp_session(page)
        # Time that its thread has worked, not time that went by: other work on the machine does not count.
        await session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = await _work_ms(session)
        run = await fay.send("flood", "flood")
        await fay.state(run, "SUCCEEDED")
        await expect(run.locator("[data-role=answer]")).to_contain_text("Word 500 of a long answer")
        work = await _work_ms(session) - before
        seen = await page.evaluate("window.seen")
        rows = await run.locator(".step").count()
        assert work < _WORK_MS, seen
        assert seen["longest"] < _LONGEST_MS, seen
        assert max(seen["tasks"], default=0) < _LONGEST_MS, seen
        assert seen["frames"] > 20
        assert rows <= _ROWS
        assert len(await fay.thoughts(run)) == 495


async def test_what_agents_write_is_text_whatever_it_is(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "gus") as gus:
        requests: list[str] = []
        gus.page.on("request", lambda request: requests.append(request.url))
        await gus.open()
        run = await gus.send("<b>hello</b>", "mischief")
        await gus.state(run, "SUCCEEDED")
        await expect(run.locator(".report")).to_contain_text("bold <b>not</b>")
        await run.get_by_role("button", name="Show picture.svg").or_(run.get_by_text("picture.svg")).first.wait_for()
        assert await gus.page.evaluate("window.pwned") is None
        assert await run.locator(".answer img, .answer b, .answer script, .report-body script, .said b").count() == 0
        assert await run.locator(".markdown a[href^=javascript], .markdown a[href^=data]").count() == 0
        await expect(run.locator(".answer").first).to_contain_text('<img src=x onerror="window.pwned = 1">')
        outside = [
            url
            for url in requests
            if not url.startswith((stack.url, "blob:", "data:", stack.url.replace("http", "ws")))
        ]
        assert outside == []


async def test_the_report_comes_with_its_charts(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "hal") as hal:
        await hal.open()
        await hal.page.get_by_role("button", name="Write a report").click()
        run = hal.page.locator("[data-run]")
        await hal.state(run, "SUCCEEDED")
        charts = run.locator(".report img")
        await expect(charts).to_have_count(3)
        for index in range(3):
            await expect(charts.nth(index)).to_have_js_property("complete", True)
            assert await charts.nth(index).evaluate("image => image.naturalWidth") > 100
            assert await charts.nth(index).get_attribute("alt")
        await expect(run.locator(".report h3")).to_contain_text("What serving these requests costs")
        names = await run.locator(".is-agent .step-name").all_inner_texts()
        assert [name.split()[0] for name in names] == ["supervisor", "data", "optimization", "report"]
        tool = run.locator(".is-tool").first
        await tool.get_by_role("button").click()
        await expect(tool.locator(".step-facts")).to_contain_text("synthetic_trace.csv")


async def test_two_users_side_by_side_and_what_one_may_not_see(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "ian", allowed=_NOT_FOUND) as ian:
        page = ian.page
        await ian.open("two")
        for _ in range(2):
            form = page.locator(".two-sign-in").first
            await form.get_by_role("button", name="Sign in", exact=True).click()
            await expect(page.locator(".two-side [data-connection=connected]").last).to_be_visible()
        await expect(page.locator("[data-user]")).to_have_count(2)
        await page.get_by_label("Message for both").fill("Profile the trace")
        await page.get_by_role("button", name="Send from both at once").click()
        for name in ("alice", "bob"):
            side = page.locator(f"[data-user={name}]")
            await expect(side.locator("[data-state=SUCCEEDED]")).to_be_visible(timeout=30_000)
            await expect(side.locator("[data-strangers]")).to_have_text("0 of anybody else")
        await page.get_by_role("button", name="Try to read bob's latest run").click()
        await expect(page.get_by_text("The gateway answers alice: UNKNOWN_RUN")).to_be_visible()


async def test_operators_see_figures_and_others_are_told_why_not(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "olga", permissions=[OPERATOR_READ]) as olga:
        await olga.open("operator")
        for name in ("Gateway", "Execution", "Agent instances", "Event log (bridge)"):
            service = olga.page.locator(".service", has_text=name)
            await expect(service.locator(".state.ok").first).to_be_visible()
        await expect(olga.page.get_by_text("active for")).to_be_visible()
    async with console_user(browser, stack, "joe", allowed=r"status of 403") as joe:
        await joe.open("operator")
        await expect(joe.page.locator(".problem")).to_contain_text("Only operators may read this")
        await expect(joe.page.locator(".problem")).to_contain_text("operator:read")
        await expect(joe.page.get_by_role("link", name="Operator")).to_have_count(0)


async def test_signing_out_ends_the_token_and_a_dead_token_says_so(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "kim", allowed=r"status of 401|WebSocket") as kim:
        await kim.open()
        token = await kim.page.evaluate("sessionStorage.getItem('carrel.token.main')")
        assert token
        assert await kim.page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
        await kim.page.get_by_role("button", name="kim").click()
        await kim.page.get_by_role("button", name="Sign out").click()
        await expect(kim.page.get_by_text("You are signed out.")).to_be_visible()
        assert await kim.page.evaluate("sessionStorage.getItem('carrel.token.main')") is None
        await kim.page.get_by_role("button", name="Paste a token instead").click()
        await kim.page.get_by_label("Token").fill(token)
        await kim.page.get_by_role("button", name="Sign in", exact=True).click()
        await expect(kim.page.locator(".problem")).to_contain_text(
            re.compile(r"This login was signed out\.\s*Log in again\.")
        )
        await kim.page.get_by_label("Token").fill(stack.token("kim", lifetime_s=3))
        await kim.page.get_by_role("button", name="Sign in", exact=True).click()
        await kim.connected()
        await expect(kim.page.get_by_role("status")).to_contain_text("expired", timeout=20_000)


async def test_a_thread_is_deleted_only_after_it_was_confirmed(browser: Browser, stack: RunningStack) -> None:
    async with console_user(browser, stack, "lea") as lea:
        page = lea.page
        await lea.open()
        run = await lea.send("short", "count", {"steps": 1})
        await lea.state(run, "SUCCEEDED")
        thread = page.locator(".thread")
        await expect(thread).to_have_count(1)
        await page.get_by_role("button", name="Delete this conversation").click()
        await page.get_by_role("button", name="Keep it").click()
        await expect(thread).to_have_count(1)
        await page.get_by_role("button", name="Delete this conversation").click()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await expect(thread).to_have_count(0)
        await expect(page.get_by_role("heading", name="What should the agents do?")).to_be_visible()


async def _axe(user: ConsoleUser, what: str) -> list[str]:
    results = await Axe().run(user.page)
    return [
        f"{what}: {violation['id']} ({violation['impact']}): {node['html'][:160]} {node['failureSummary'][:200]}"
        for violation in results.response["violations"]
        if violation["impact"] in {"serious", "critical"}
        for node in violation["nodes"][:3]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_view_is_accessible(browser: Browser, stack: RunningStack, scheme: str) -> None:
    options: dict[str, Any] = {"color_scheme": scheme, "reduced_motion": "reduce"}
    if scheme == "dark":
        options["viewport"] = {"width": 360, "height": 740}
    found: list[str] = []
    async with console_user(
        browser, stack, f"max-{scheme}", signed_in=False, allowed=r"status of 401", **options
    ) as user:
        page = user.page
        await page.goto(stack.url)
        await expect(page.get_by_label("Your name")).to_be_visible()
        found += await _axe(user, "sign-in")
        await page.get_by_label("Your name").fill(user.name)
        await page.get_by_label("Also show").check()
        await page.keyboard.press("Enter")
        await user.connected()
        await expect(page.locator(".idea").first).to_be_visible()
        found += await _axe(user, "beginning")
        run = await user.send("mail bob", "mail")
        await user.state(run, "WAITING")
        found += await _axe(user, "question")
        await run.get_by_role("button", name="Refuse").click()
        await user.state(run, "FAILED")
        found += await _axe(user, "failure")
        run = await user.send("a-word-that-has-no-end-" * 20, "mischief")
        await user.state(run, "SUCCEEDED")
        await expect(run.locator(".report table")).to_be_visible()
        found += await _axe(user, "report")
        # Nothing is wider than the page, whatever is said.
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.locator(".connection .pill").click()
        found += await _axe(user, "connection")
        await page.keyboard.press("Control+/")
        await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        found += await _axe(user, "shortcuts")
        await page.keyboard.press("Escape")
        await page.goto(f"{stack.url}/#/runs")
        await page.locator(".run-line").first.click()
        await expect(page.locator(".run-detail dl")).to_be_visible()
        found += await _axe(user, "runs")
        await page.goto(f"{stack.url}/#/two")
        await expect(page.locator(".two-sign-in")).to_have_count(2)
        found += await _axe(user, "two users")
        await page.goto(f"{stack.url}/#/operator")
        await expect(page.locator(".service").first).to_be_visible()
        if scheme == "dark":
            await page.get_by_role("button", name="Menu").click()
        await page.get_by_role("button", name=user.name).click()
        found += await _axe(user, "operator, with the account's menu")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert found == [], "\n".join(found)

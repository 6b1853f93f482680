"""MCP servers that are reached by streamable HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.errors import ToolFailedError, ToolUnavailableError
from tests.conftest import Eventually
from tests.integration.mcp_support import Caller, Http, cancelled_in, http_server, logged, opened


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Http]:
    with http_server(tmp_path) as server:
        yield server


async def test_each_run_has_a_session_of_its_own(web: Http, eventually: Eventually) -> None:
    await web.up(eventually)
    async with opened({"web": web.settings()}) as servers:
        one, other = Caller(servers, "web"), Caller(servers, "web")
        assert await one.value("web__remember", text="mine") == 1
        assert await one.value("web__remember", text="mine too") == 2
        assert await other.value("web__recall") == []
        assert await one.value("web__recall") == ["mine", "mine too"]
        await one.mine.aclose()
        await eventually(lambda: servers.sessions("web") == 1)
        await other.mine.aclose()
        await eventually(lambda: servers.sessions("web") == 0)


async def test_a_stateless_one_needs_no_session(web: Http, eventually: Eventually) -> None:
    await web.up(eventually)
    async with opened({"web": web.settings(stateless=True)}) as servers:
        for _ in range(2):
            call = Caller(servers, "web")
            assert (await call("web__add", a={"x": 1, "y": 2}, b={"x": 3, "y": 4}))["structured"] == {"x": 4, "y": 6}
            await call.mine.aclose()
        assert servers.sessions("web") == 1


async def test_a_killed_server_is_unavailable_until_it_is_back(web: Http, eventually: Eventually) -> None:
    await web.up(eventually)
    async with opened({"web": web.settings()}) as servers:
        call = Caller(servers, "web")
        task = asyncio.create_task(call("web__sleep", seconds=30))
        await logged(web.log, "sleep", eventually)
        web.kill()
        with pytest.raises(ToolUnavailableError):
            await task
        with pytest.raises(ToolUnavailableError) as raised:
            await call("web__recall")
        assert raised.value.retry_after_s
        web.start()
        await web.up(eventually)

        async def again() -> bool:
            try:
                return bool(await call.value("web__recall") == [])
            except ToolUnavailableError:
                return False

        await eventually(again, within=10)


async def test_a_server_that_starts_late_is_listed_then(tmp_path: Path, web: Http, eventually: Eventually) -> None:
    await web.up(eventually)
    web.kill()
    async with opened({"web": web.settings()}) as servers:
        call = Caller(servers, "web")
        assert call.mine.tools(call.entry) == {}
        assert isinstance(call.mine.missing(call.entry, "web__pid"), ToolUnavailableError)
        web.start()
        await eventually(lambda: "web__pid" in call.mine.tools(call.entry), within=20)
        assert await call.value("web__pid") > 0


async def test_a_session_that_the_server_forgot_is_opened_anew(web: Http, eventually: Eventually) -> None:
    await web.up(eventually)
    async with opened({"web": web.settings()}) as servers:
        call = Caller(servers, "web")
        await call.value("web__remember", text="forgotten")
        web.kill()
        web.start()
        await web.up(eventually)
        with pytest.raises(ToolUnavailableError):
            await call("web__recall")

        async def again() -> bool:
            try:
                return bool(await call.value("web__recall") == [])
            except ToolUnavailableError:
                return False

        await eventually(again, within=10)


@pytest.mark.parametrize("stateless", [False, True])
async def test_a_cancelled_call_is_free_at_once_and_the_server_is_told(
    web: Http, eventually: Eventually, *, stateless: bool
) -> None:
    await web.up(eventually)
    async with opened({"web": web.settings(stateless=stateless)}) as servers:
        call = Caller(servers, "web")
        task = asyncio.create_task(call("web__sleep", seconds=30))
        await logged(web.log, "sleep", eventually)
        assert await cancelled_in(task) < 0.1
        assert "slept" not in await logged(web.log, "cancelled", eventually)
        assert await call.value("web__pid") > 0


async def test_an_answer_over_the_bound_fails_its_call_alone(web: Http, eventually: Eventually) -> None:
    await web.up(eventually)
    async with opened({"web": web.settings(max_message_bytes=200_000)}) as servers:
        call = Caller(servers, "web")
        with pytest.raises(ToolFailedError):
            await call("web__big", size=1_000_000)
        assert await call.value("web__recall") == []


@pytest.mark.parametrize("path", ["/nowhere", "/"])
async def test_an_address_without_a_server_is_unavailable(web: Http, eventually: Eventually, path: str) -> None:
    await web.up(eventually)
    settings = web.settings() | {"url": f"http://127.0.0.1:{web.port}{path}"}
    async with opened({"web": settings}) as servers:
        assert servers._servers["web"].listed is None

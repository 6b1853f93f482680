"""Adapters and rollouts without a chain: who goes which way, what is told, when the old handler answers instead."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from carrel import FactoryAdapter, migrate_to_factory_pattern
from carrel.errors import InvalidConfigurationError, RateLimitError, UnavailableError
from carrel.migration import Attempt, FileRollout, RolloutTable, Served, Share, ask_chain
from carrel.migration_rollout import place_of
from tests.conftest import Eventually
from tests.unit.carrel.test_import import loaded_after

USERS = [f"user{number}" for number in range(1000)]
DEEP = "[" * 200_000


class Application:
    """Two handlers that can be told what to do, and an adapter over them."""

    def __init__(self, **options: Any) -> None:
        self.rollout = RolloutTable()
        self.served: list[Served] = []
        self.error: Exception | None = None
        self.begins = False
        self.asked = 0
        self.answer = "new"
        self.adapter: FactoryAdapter[str, str] = FactoryAdapter(
            "/quote", self._old, self._new, self.rollout, served=self.served.append, **options
        )

    async def _old(self, user_id: str, request: str) -> str:
        if request == "wrong":
            raise ValueError(request)
        return "old"

    async def _new(self, attempt: Attempt, request: str) -> str:
        self.asked += 1
        attempt.begun = self.begins
        if self.error is not None:
            raise self.error
        return self.answer

    def paths(self) -> list[tuple[str, str]]:
        return [(served.path, served.error) for served in self.served]


def test_a_share_of_users_is_the_same_for_every_route_and_grows() -> None:
    for percent in (0.0, 1.0, 25.0, 100.0):
        share = Share(percent)
        has = {user for user in USERS if share.has(user)}
        assert abs(len(has) / len(USERS) * 100 - percent) < 5
        assert has == {user for user in USERS if place_of(user) < percent * 100}
    assert Share(0, frozenset({"alice"})).has("alice")
    assert place_of("alice") == 9308, "other processes and later versions must agree"


@pytest.mark.parametrize("percent", [-1, 101, True, "5", None])
def test_a_share_is_a_number_from_0_to_100(percent: Any) -> None:
    with pytest.raises(ValueError, match="0 to 100"):
        Share(percent)


async def test_each_call_goes_the_way_that_the_rollout_says_at_that_moment() -> None:
    app = Application()
    assert await app.adapter("alice", "x") == "old"
    app.rollout.set("/quote", Share(100))
    assert await app.adapter("alice", "x") == "new"
    app.rollout.set("/quote", Share(0))
    assert await app.adapter("alice", "x") == "old"
    assert app.adapter.counts == Counter(old=2, new=1)
    assert app.paths() == [("old", ""), ("new", ""), ("old", "")]


async def test_errors_of_either_handler_are_the_callers_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    app = Application(idempotent=True)
    with pytest.raises(ValueError, match="wrong"):
        await app.adapter("alice", "wrong")
    app.rollout.set("/quote", Share(100))
    app.error = RateLimitError("too fast")
    with pytest.raises(RateLimitError):
        await app.adapter("alice", "x")
    assert app.paths() == [("old", "ValueError"), ("new", "RateLimitError")]
    assert "alice" not in str([vars(record) for record in caplog.records])


async def test_a_chain_that_is_away_is_answered_for_only_where_that_was_declared() -> None:
    app = Application()
    app.rollout.set("/quote", Share(100))
    app.error = UnavailableError("away")
    with pytest.raises(UnavailableError):
        await app.adapter("alice", "x")
    declared = Application(idempotent=True)
    declared.rollout.set("/quote", Share(100))
    declared.error = UnavailableError("away", retry_after_s=0.05)
    assert await declared.adapter("alice", "x") == "old"
    assert declared.paths() == [("new", "UnavailableError"), ("fallback", "")]


async def test_what_has_begun_is_not_done_again_by_the_old_handler() -> None:
    app = Application(idempotent=True)
    app.rollout.set("/quote", Share(100))
    app.error, app.begins = UnavailableError("away"), True
    with pytest.raises(UnavailableError):
        await app.adapter("alice", "x")
    assert app.paths() == [("new", "UnavailableError")]


async def test_a_chain_that_is_away_is_left_alone_for_a_while_and_then_asked_again(eventually: Eventually) -> None:
    app = Application(idempotent=True)
    app.rollout.set("/quote", Share(100))
    app.error = UnavailableError("away", retry_after_s=0.2)
    for _ in range(5):
        assert await app.adapter("alice", "x") == "old"
    assert app.asked == 1
    app.error = None

    async def back() -> bool:
        return await app.adapter("alice", "x") == "new"

    assert await eventually(back)


async def test_shadows_are_compared_and_change_nothing(
    eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    app = Application(idempotent=True)
    app.rollout.set("/quote", Share(0, shadow_percent=100))
    async with app.adapter as adapter:
        assert await adapter("alice", "x") == "old"
        await eventually(lambda: adapter.counts["shadow"] == 1)
        assert [one.same for one in app.served if one.path == "shadow"] == [False]
        assert "a shadow's answer differs" in caplog.text
        app.answer = "old"
        assert await adapter("alice", "x") == "old"
        await eventually(lambda: adapter.counts["shadow"] == 2)
        assert [one.same for one in app.served if one.path == "shadow"] == [False, True]
        app.error = UnavailableError("away")
        assert await adapter("alice", "x") == "old"
        await eventually(lambda: adapter.counts["shadow"] == 3)
        assert app.served[-1].error == "UnavailableError"


async def test_shadows_are_bounded_end_with_the_adapter_and_are_not_for_what_may_not_be_done_twice() -> None:
    started = 0

    async def old(user: str, request: str) -> str:
        return "old"

    async def new(attempt: Attempt, request: str) -> str:
        nonlocal started
        started += 1
        await asyncio.Event().wait()
        return "new"

    rollout = RolloutTable(default=Share(0, shadow_percent=100))
    async with FactoryAdapter("/quote", old, new, rollout, idempotent=True) as adapter:
        for _ in range(40):
            await adapter("alice", "x")
            await asyncio.sleep(0)
    assert started == 16
    async with FactoryAdapter("/order", old, new, rollout) as adapter:
        await adapter("alice", "x")
        await asyncio.sleep(0)
    assert started == 16


async def test_what_is_told_of_a_call_never_fails_it(caplog: pytest.LogCaptureFixture) -> None:
    async def old(user: str, request: str) -> str:
        return "old"

    def served(_: Served) -> None:
        raise RuntimeError("full")

    adapter: FactoryAdapter[str, str] = FactoryAdapter("/q", old, Application()._new, RolloutTable(), served=served)
    assert await adapter("alice", "x") == "old"
    assert "failed" in caplog.text


async def test_cancelling_a_call_cancels_its_handler() -> None:
    ended = asyncio.Event()

    async def new(attempt: Attempt, request: str) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    async def old(user: str, request: str) -> str:
        return "old"

    adapter = FactoryAdapter("/q", old, new, RolloutTable(default=Share(100)), idempotent=True)
    call = asyncio.ensure_future(adapter("alice", "x"))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()
    assert not adapter.counts


def test_a_file_is_read_again_when_it_changes_and_a_wrong_one_leaves_what_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rollout.json"
    path.write_text('{"default": 10, "/quote": {"percent": 5, "users": ["alice"], "shadow_percent": 1}}')
    rollout = FileRollout(path)
    assert rollout("/quote") == Share(5, frozenset({"alice"}), 1)
    assert rollout("/other") == Share(10)
    assert list(rollout.routes()) == ["/quote"]
    for wrong in ("{", "[]", '{"/quote": 200}', '{"/quote": {"share": 1}}', '{"/quote": {"users": "alice"}}', DEEP):
        path.write_text(wrong)
        assert rollout("/quote").percent == 5
    assert caplog.text.count("stays as it was") == 1, "not at every call"
    assert "/quote" in caplog.text or "JSON" in caplog.text, "a log without further fields says why, too"
    path.unlink()
    assert rollout("/quote").percent == 5
    other = tmp_path / "other.json"
    other.write_text('{"/quote": 0}')
    path.symlink_to(other)
    assert rollout("/quote") == Share(0)
    for wrong in ("{", "[]", '{"/quote": 200}', DEEP):
        other.write_text(wrong)
        with pytest.raises(InvalidConfigurationError):
            FileRollout(other)
    with pytest.raises(InvalidConfigurationError, match="can't be read"):
        FileRollout(tmp_path / "missing")


def test_routes_that_the_application_does_not_have_are_refused(tmp_path: Path) -> None:
    app = Application()
    old, new = {"/a": app._old, "/b": app._old}, {"/a": app._new}
    adapters = migrate_to_factory_pattern(old, new, RolloutTable(), idempotent={"/b"})
    assert list(adapters) == ["/a"]
    path = tmp_path / "rollout.json"
    path.write_text(json.dumps({"/c": 5}))
    for rollout, idempotent in ((FileRollout(path), ()), (RolloutTable(), ("/c",))):
        with pytest.raises(InvalidConfigurationError, match="no route /c"):
            migrate_to_factory_pattern(old, new, rollout, idempotent=idempotent)
    with pytest.raises(ValueError, match="name"):
        FactoryAdapter("", app._old, app._new, RolloutTable())


class _Gateway:
    """As much of ``GatewayHttp`` as ``ask_chain`` uses, of a run that never ends."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def execute(self, message: str, **options: Any) -> dict[str, Any]:
        return {"run_id": "run-1", "status": "RUNNING"}

    async def run_events(self, run_id: str) -> Any:
        await asyncio.Event().wait()
        yield

    async def cancel(self, run_id: str, reason: str = "") -> dict[str, Any]:
        self.cancelled.append(run_id)
        return {}


async def test_a_run_that_nobody_waits_for_any_more_is_cancelled() -> None:
    gateway, attempt = _Gateway(), Attempt("alice", "/quote")
    fake: Any = gateway
    with pytest.raises(TimeoutError):
        await ask_chain(fake, attempt, "x", timeout_s=0.01)
    assert gateway.cancelled == ["run-1"]
    assert attempt.begun
    asking = asyncio.ensure_future(ask_chain(fake, Attempt("alice", "/quote"), "x"))
    for _ in range(5):
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert gateway.cancelled == ["run-1", "run-1"]


def test_it_loads_no_grpc_and_no_http_client() -> None:
    loaded = loaded_after("from carrel import FactoryAdapter, migrate_to_factory_pattern")
    assert not loaded & {"grpc", "google.protobuf", "aiohttp", "pydantic", "openfeature"}


@pytest.fixture(autouse=True)
def _levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "carrel.migration")

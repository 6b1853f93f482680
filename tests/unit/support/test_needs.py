"""Tests that can't have their server: skipped, or failing where it must be there."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator

import pytest

from tests.support import postgres, redis_servers
from tests.support.needs import unavailable


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No server of any kind, and no driver."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(postgres, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    redis_servers.binaries.cache_clear()
    yield
    redis_servers.binaries.cache_clear()


@pytest.mark.usefixtures("nothing_here")
@pytest.mark.parametrize(
    ("named", "redis_fails", "postgres_fails"),
    [("", False, False), ("redis", True, False), ("redis postgres", True, True), ("postgres,mail", False, True)],
)
def test_missing_server_fails_only_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, named: str, redis_fails: bool, postgres_fails: bool
) -> None:
    monkeypatch.setenv("TESTS_NEED", named)
    fails, skips = pytest.fail.Exception, pytest.skip.Exception
    with pytest.raises(fails if redis_fails else skips, match="needs a redis-server"):
        redis_servers.any_binary()
    with (
        pytest.raises(fails if postgres_fails else skips, match="asyncpg is not installed"),
        postgres.postgres_server(),
    ):
        pass


def test_reason_says_who_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_NEED", "redis")
    with pytest.raises(pytest.fail.Exception, match="no redis-server; TESTS_NEED says that redis must be here"):
        raise unavailable("redis", "no redis-server")

"""Tests that can't have their server: skipped, or failing where it must be there."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import needs, postgres, redis_servers
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


@pytest.mark.usefixtures("nothing_here")
@pytest.mark.parametrize(("find", "named"), [(needs.chromium, "chromium"), (needs.node, "node"), (needs.npm, "node")])
def test_missing_program_fails_only_where_it_is_named(
    monkeypatch: pytest.MonkeyPatch, find: Callable[[], str], named: str
) -> None:
    monkeypatch.setenv("TESTS_NEED", "redis")
    with pytest.raises(pytest.skip.Exception):
        find()
    monkeypatch.setenv("TESTS_NEED", f"redis {named}")
    with pytest.raises(pytest.fail.Exception, match=f"{named} must be here"):
        find()


@pytest.mark.parametrize("said", ["v18.20.4", "", "nothing of the kind"])
def test_node_that_is_too_old_is_no_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str) -> None:
    _program(tmp_path / "node", said)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TESTS_NEED", raising=False)
    with pytest.raises(pytest.skip.Exception, match="20 or newer is needed"):
        needs.node()


def test_programs_are_found_by_any_of_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _program(tmp_path / "node", "v22.1.0")
    _program(tmp_path / "npm", "10.8.2")
    _program(tmp_path / "google-chrome", "Google Chrome 140")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = [needs.node(), needs.npm(), needs.chromium()]
    assert found == [str(tmp_path / name) for name in ("node", "npm", "google-chrome")]


@pytest.mark.parametrize(
    ("does", "said"), [("echo ENOTFOUND >&2; exit 1", "ENOTFOUND"), ("exec sleep 30", "within 0.5 s")]
)
def test_a_registry_that_is_not_reached_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, said: str
) -> None:
    _program(tmp_path / "node", "v22.1.0")
    _program(tmp_path / "npm", "", does)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("TESTS_NEED", "npm")
    with pytest.raises(pytest.fail.Exception, match=f"registry must be reached.*{said}.*npm must be here"):
        needs.npm_packages(tmp_path, "ci", within_s=0.5)


def _program(path: Path, says: str, then: str = "") -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\n{then}\n", encoding="utf-8")
    path.chmod(0o755)

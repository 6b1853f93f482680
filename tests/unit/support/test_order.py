"""What tests/support/order.py says of files: they are there, and what is grouped shares something."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.order import GROUPS, SECONDS, Scheduler, first_the_long_ones, scope_of

ROOT = Path(__file__).resolve().parents[3]


def test_every_file_that_is_named_is_there() -> None:
    named = {file for files in GROUPS.values() for file in files} | (SECONDS.keys() - GROUPS.keys())
    assert sorted(file for file in named if not (ROOT / file).is_file()) == []


def test_a_file_is_in_one_group_and_has_its_seconds_there() -> None:
    grouped = [file for files in GROUPS.values() for file in files]
    assert len(grouped) == len(set(grouped))
    assert not set(grouped) & SECONDS.keys()
    assert GROUPS.keys() <= SECONDS.keys()


def test_all_that_use_a_stack_of_the_whole_session_are_in_its_group() -> None:
    for fixture in ("shared_stack", "slow_stack", "probe_stack"):
        users = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "tests" / "e2e").glob("test_*.py")
            if fixture in path.read_text(encoding="utf-8")
        }
        assert users == set(GROUPS[fixture])


def test_a_file_of_no_group_is_on_its_own() -> None:
    assert scope_of("tests/unit/test_layout.py") == "tests/unit/test_layout.py"
    assert scope_of("tests/e2e/test_kill.py") == "slow_stack"


def test_long_files_come_first_and_each_keeps_its_own_order() -> None:
    quick, long, longest = "tests/unit/test_layout.py", "tests/e2e/test_kill.py", "tests/e2e/test_cli.py"
    assert SECONDS[scope_of(longest)] > SECONDS[scope_of(long)] > 0
    items: list[Any] = [
        SimpleNamespace(path=ROOT / file, name=name)
        for file, name in [(quick, "a"), (long, "b"), (quick, "c"), (longest, "d"), (long, "a")]
    ]
    first_the_long_ones(items)
    assert [item.name for item in items] == ["d", "b", "a", "a", "c"]


def test_the_processes_of_xdist_get_a_group_as_one_file() -> None:
    scheduler = Scheduler.__new__(Scheduler)
    assert scheduler._split_scope("tests/e2e/test_kill.py::test_x[a]") == "slow_stack"
    assert scheduler._split_scope("tests/unit/test_layout.py::test_x") == "tests/unit/test_layout.py"

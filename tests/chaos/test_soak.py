"""A short canary soak; ``make soak MINUTES=n SEED=s`` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.canaries import Canaries, scan_files, scan_log
from tests.chaos.recovery import AGENTS
from tests.chaos.soak import Plan, settings, soak
from tests.support.stack import running_stack

PLAN = Plan(seed=20261, seconds=20.0, users=20)


@pytest.mark.chaos
@pytest.mark.timeout(240)
async def test_nobody_sees_another_s_canary_and_every_run_ends(tmp_path: Path) -> None:
    temporary = tmp_path / "workers"
    temporary.mkdir()
    with running_stack(tmp_path, agents=[str(AGENTS)], environment=settings(temporary)) as stack:
        report = await soak(stack, PLAN, temporary)
        assert not report.problems, f"{report.text()}\n{stack.log()[-8000:]}"
    print(report.text())


def test_a_canary_before_the_wrong_user_is_found() -> None:
    canaries = Canaries(b"key")
    word = canaries.make("alice", "1")
    canaries.check(f"hello {word}".encode(), "alice", "frame")
    assert not canaries.foreign
    canaries.check(f"hello {word}".encode(), "bob", "frame")
    assert canaries.foreign == ["frame: alice's canary before bob"]


def test_a_canary_in_a_log_or_two_users_in_one_file_are_found(tmp_path: Path) -> None:
    canaries = Canaries(b"key")
    both = canaries.make("alice", "1") + " " + canaries.make("bob", "1")
    (tmp_path / "file").write_text(both, encoding="ascii")
    assert scan_files(canaries, tmp_path)[1] == ["file: canaries of ['alice', 'bob'] in one file"]
    assert len(scan_log(canaries, tmp_path / "file")) == 1

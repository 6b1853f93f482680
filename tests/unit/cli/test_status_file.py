"""The status file: a disk without room is told once, tried again, and never ends who writes it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from carrel.cli.state import StateFolder
from carrel.cli.status_file import StatusFile

Eventually = Callable[..., Awaitable[object]]
FACTS = {"url": "http://127.0.0.1:1", "supervisor": os.getpid()}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A disk that may be full; a full one takes the file's name and none of its content."""
    disk = {"full": False}
    write_text = Path.write_text

    def write(path: Path, text: str, encoding: str | None = None) -> int:
        if disk["full"]:
            path.touch()
            raise OSError(28, os.strerror(28))
        return write_text(path, text, encoding=encoding)

    monkeypatch.setattr(Path, "write_text", write)
    return disk


async def test_a_failed_write_is_told_once_and_made_good_later(
    tmp_path: Path, disk: dict[str, bool], eventually: Eventually
) -> None:
    lines: list[str] = []
    state = StateFolder(tmp_path)
    status = StatusFile(state, lambda: FACTS, lambda name, text: lines.append(text), again_s=0.01)
    disk["full"] = True
    for _ in range(3):
        status.write()
    assert len(lines) == 1
    assert "No space left" in lines[0]
    assert list(tmp_path.iterdir()) == []
    disk["full"] = False
    await eventually(lambda: state.read_stack() == FACTS)
    assert len(lines) == 2
    assert "written again" in lines[1]


async def test_what_was_said_before_stays_when_there_is_no_room_for_more(tmp_path: Path, disk: dict[str, bool]) -> None:
    state = StateFolder(tmp_path)
    facts = dict(FACTS)
    status = StatusFile(state, lambda: facts, lambda name, text: None)
    status.write()
    disk["full"], facts["url"] = True, "http://127.0.0.1:2"
    status.write()
    status.close()
    assert state.read_stack() == FACTS

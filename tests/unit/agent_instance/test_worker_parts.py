"""Parts of worker processes without a process: what is kept of the output, folders, rules of files."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from services.agent_instance.workers.folders import TemporaryRoot, remove_tree, tree_size
from services.agent_instance.workers.output import Output
from tests.conftest import Eventually


@pytest.fixture
def pipe() -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return reading, writing


async def test_short_output_is_kept_whole(pipe: tuple[int, int], eventually: Eventually) -> None:
    output = Output(pipe[0], 1000)
    os.write(pipe[1], b"one ")
    await asyncio.sleep(0)
    os.write(pipe[1], b"two")
    os.close(pipe[1])
    await eventually(lambda: output.text() == b"one two")
    output.close()
    output.close()
    assert output.text() == b"one two"


async def test_of_long_output_the_first_and_last_parts_are_kept_and_the_rest_is_counted(pipe: tuple[int, int]) -> None:
    output = Output(pipe[0], 20)
    for number in range(100):
        os.write(pipe[1], b"%09d\n" % number)
        output.text()
    os.close(pipe[1])
    output.close()
    first, note, last = output.text().decode().rsplit("\n", 3)[0], *output.text().decode().splitlines()[-2:]
    assert first.startswith("000000000")
    assert note == "… 980 bytes left out …"
    assert last == "000000099"


async def test_a_flood_leaves_the_loop_to_others(pipe: tuple[int, int], eventually: Eventually) -> None:
    output = Output(pipe[0], 1000)
    turns = 0

    async def flood() -> None:
        sent = 0
        while sent < 30 << 20:
            try:
                sent += os.write(pipe[1], b"x" * 65536)
            except BlockingIOError:
                await asyncio.sleep(0)
        os.close(pipe[1])

    flooding = asyncio.create_task(flood())
    while not flooding.done():
        turns += 1
        await asyncio.sleep(0)
    await eventually(lambda: output._descriptor < 0)
    assert turns > 100
    assert len(output.text()) < 1200


def test_folders_of_a_dead_process_are_removed_and_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    living, dead = TemporaryRoot(tmp_path), TemporaryRoot(tmp_path)
    (dead.path / "1").mkdir()
    os.close(dead._lock)  # as its end would
    third = TemporaryRoot(tmp_path)
    assert living.path.exists()
    assert not dead.path.exists()
    for root in (living, third, third):
        root.close()
    assert list(tmp_path.iterdir()) == []


def test_the_parent_of_folders_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.agent_instance.workers.folders.os.geteuid", lambda: 12345)
    with pytest.raises(PermissionError):
        TemporaryRoot(tmp_path)


def test_a_tree_is_measured_and_removed_without_following_links(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x" * 100_000)
    deep = folder / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 50_000)
    (folder / "link").symlink_to(outside)
    assert 50_000 < tree_size(folder) < 80_000
    (folder / "a").chmod(0)
    remove_tree(folder)
    remove_tree(folder)
    assert not folder.exists()
    assert (outside / "kept").exists()


def test_a_tree_deeper_than_any_path_counts_as_endless_and_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "first").write_bytes(b"x")
    monkeypatch.chdir(folder)
    for _ in range(1200):
        Path("file").write_bytes(b"x")
        Path("d" * 100).mkdir()
        os.chdir("d" * 100)
    Path("closed").mkdir(0)
    os.chdir(tmp_path)
    try:
        assert tree_size(folder) > 1 << 60
        remove_tree(folder)
        assert not folder.exists()
    finally:
        # pytest could not remove it either.
        subprocess.run(["rm", "-rf", str(folder)], check=True)

"""What a worker process cannot do to others, and cannot find: the sandbox over a real zygote."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.worker_support import AGENTS, Attempt, Plant, needs_landlock, plant

CANARY = "canary-5f2b1d"


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Plant]:
    monkeypatch.setenv("SOME_API_KEY", CANARY)
    keys = tmp_path / "state" / "keys"
    keys.mkdir(parents=True)
    (keys / "secret").write_text(CANARY)
    async with plant(tmp_path) as opened:
        yield opened


@pytest.fixture
async def sibling(here: Plant) -> AsyncIterator[Attempt]:
    attempt = await here.start("wait", environment={"OPENAI_API_KEY": CANARY})
    await attempt.step()
    yield attempt
    os.kill(int(attempt.thoughts[0]), 0)  # it lives
    await attempt.executor.kill()


async def test_it_starts_no_process_but_threads(here: Plant) -> None:
    told = await here.run("fork")
    assert told["forks"] == ["PermissionError"] * 100
    assert (told["subprocess"], told["spawn"], told["exec"]) == ("PermissionError",) * 3
    assert told["thread"] == "done"


async def test_it_signals_nobody_but_itself(here: Plant, sibling: Attempt) -> None:
    told = await here.run("kill", service=os.getpid(), sibling=int(sibling.thoughts[0]))
    assert told.pop("self") == "done"
    assert told.pop("pdeathsig") == -1, "it must end with the zygote whatever it does"
    assert told == dict.fromkeys(told, "PermissionError")
    assert (await here.run())["pid"], "the zygote lives, too"


@needs_landlock
async def test_it_finds_no_secret(here: Plant, sibling: Attempt, tmp_path: Path) -> None:
    files = [str(tmp_path / "state/keys/secret"), "/etc/shadow", str(tmp_path / "state")]
    told = await here.run("look", service=os.getpid(), sibling=int(sibling.thoughts[0]), files=files)
    assert told["found"] == []
    assert told["files"] == []
    assert CANARY not in str(told["environment"])
    assert told["descriptors"][:4] == [0, 1, 2, 3]
    assert len(told["descriptors"]) <= 8, "the loop's own, and the listing's"
    assert told["own"]


async def test_it_holds_nothing_of_the_service_in_its_memory(here: Plant, sibling: Attempt) -> None:
    # Put together where it is looked for: it must not be found because it was asked about.
    told = await here.run("look", service=1, sibling=1, half=CANARY[:6], rest=CANARY[6:])
    assert not told["canary"]
    told = await here.run("look", service=1, sibling=1, half="together", rest="-found", both="together-found")
    assert told["canary"], "what is there is found"


@needs_landlock
async def test_it_writes_into_its_own_folder_only(here: Plant, tmp_path: Path) -> None:
    told = await here.run("write", outside=str(tmp_path))
    assert told.pop("own") == "x"
    assert (told.pop("mount"), told.pop("unshare")) == (-1, -1)
    assert told == dict.fromkeys(told, "PermissionError")
    assert AGENTS.stat().st_size > 0


@needs_landlock
async def test_hidden_folders_inside_readable_ones_stay_closed(tmp_path: Path) -> None:
    """The state folder lies beside the agents, as it does by default."""
    agents = tmp_path / "agents.py"
    agents.write_text(AGENTS.read_text())
    (tmp_path / "state").mkdir()
    (tmp_path / "data").mkdir()
    names = ["state/key", "data/trace.csv", "data/private", "beside.txt"]
    for name in names:
        (tmp_path / name).write_text("x")
    workers = {"hide_paths": (str(tmp_path / "data" / "private"),)}
    async with plant(tmp_path, agents, workers=workers) as here:
        files = [str(tmp_path / name) for name in names]
        told = await here.run("look", service=1, sibling=1, files=files)
        assert told["files"] == [files[1], files[3]]

"""The tutorial as a newcomer does it: its files saved, its commands typed against one stack, its lines seen.

The last chapter has tests of its own to run, which ``tests/unit/docs/test_snippets.py`` does; what its project does,
``tests/testing/test_new.py``. ``make setup`` is where continuous integration begins.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.cli.output import EXIT_REFUSED
from tests.support.stack import RunningStack, clean_environment, run_carrel, running_stack
from tests.support.tutorial import CHAPTERS, commands, files

pytestmark = pytest.mark.slow

_AGENTS = ("hello.py", "words.py", "compare.py", "letters.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newcomer's folder, with everything saved."""
    made = tmp_path_factory.mktemp("my-agents")
    for name, text in files().items():
        (made / name).write_text(text, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[RunningStack]:
    """``carrel up`` with the agents of all chapters."""
    with running_stack(folder, agents=[str(folder / name) for name in _AGENTS]) as running:
        yield running


def _typed(words: list[str], stack: RunningStack) -> tuple[int, str]:
    """A command of ``carrel``; an answer is given as soon as it is waited for."""
    deadline = time.monotonic() + 20
    while True:
        done = run_carrel(*words, cwd=stack.folder, environment={"CARREL_STATE_DIR": str(stack.state.root)})
        # A person is not as fast as this: the attempt that asks has to begin first.
        if words[0] != "answer" or done.returncode != EXIT_REFUSED or time.monotonic() > deadline:
            return done.returncode, done.stdout + done.stderr


def _lines(output: str) -> list[str]:
    return [re.sub(r"^\s*\d+\.\d\d\s+", "", line).strip() for line in output.splitlines()]


@pytest.mark.parametrize("chapter", CHAPTERS[:4], ids=lambda path: path.stem)
def test_the_commands_of_a_chapter_show_what_it_says(chapter: Path, stack: RunningStack) -> None:
    run, tried = "", 0
    for command in commands(chapter):
        words = shlex.split(command.line.removesuffix("< /dev/null"), comments=True)
        if words[:2] == ["carrel", "up"]:
            assert [word for word in words if word.endswith(".py")] == list(_AGENTS[: CHAPTERS.index(chapter) + 1])
            continue
        assert words[0] == "carrel"
        code, output = _typed([run if word == "RUN" else word for word in words[1:]], stack)
        lines = _lines(output)
        assert code == (4 if "waits" in output or "answer with:" in output else 0), output
        missing = [seen for seen in command.seen if not any(line.startswith(seen) for line in lines)]
        assert missing == [], output
        if found := re.search(r"\brun (run-\w+) in thread", output):
            run = found[1]
        tried += 1
    assert tried


def test_the_last_chapters_commands_are_those_that_have_tests(folder: Path) -> None:
    lines = [command.line for command in commands(CHAPTERS[4])]
    assert lines == ["python -m pytest -q test_agents.py", "carrel new my-desk", "cd my-desk", "make test", "make run"]

    made = run_carrel(*shlex.split(lines[1])[1:], cwd=folder)
    assert made.returncode == 0, made.stderr
    assert "cd my-desk && make run" in made.stdout
    told = subprocess.run(
        ["make", "-n", "test", "run", f"PYTHON={sys.executable}"],
        cwd=folder / "my-desk",
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert told.stdout.splitlines() == [
        f"{sys.executable} -m pytest ",
        f"{sys.executable} -P -m carrel.cli up --agents my_desk:agents --no-packaged-agents ",
    ]

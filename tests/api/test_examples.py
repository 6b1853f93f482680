"""Every example of examples/api runs against a stack, in each language, and prints what it should."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from carrel.ids import new_id
from tests.support.needs import node
from tests.support.stack import ROOT, RunningStack
from tools.api_samples import OPERATIONS, pages

_EXAMPLES: Final = ROOT / "examples" / "api"
# What is printed, by topic; the curl ones print answers as they come.
_PRINTED: Final[Mapping[str, str]] = {
    "execute": r'SUCCEEDED .*lines\W+3|"status":"SUCCEEDED","result":\{"lines":3\}',
    "events": r"(?s)run_accepted.*line 0.*line 2.*run_completed.*SUCCEEDED",
    "resume": r"(?s)(offset 1\noffset 2\noffset 3|up to \w+:3:\S+)\noffset 4\noffset 5(\noffset \d+)*\Z",
    "cancel": r"CANCELLED",
    "answer": r"(?s)How deep shall I look\?\n.*depth\W+quick",
    "listing": r"(?s)run-\w+.*SUCCEEDED.*thread-\w+.*Say three lines",
    "artifacts": r"note\.md 9|/artifacts/note\.md\n# A note",
}


def _command(language: str, topic: str, folder: Path) -> list[str]:
    if language == "py":
        return [sys.executable, "-P", str(_EXAMPLES / f"{topic}.py")]
    if language == "sh":
        if shutil.which("curl") is None:
            pytest.skip("curl is not here")
        return ["sh", str(_EXAMPLES / f"{topic}.sh")]
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "carrel-client").symlink_to(ROOT / "clients" / "js", target_is_directory=True)
    copied = shutil.copy(_EXAMPLES / f"{topic}.mjs", folder)
    return [node(), str(copied)]


def test_every_topic_is_there_in_every_language() -> None:
    assert {path.name for path in _EXAMPLES.iterdir() if path.is_file()} == {
        "__init__.py",
        *(f"{topic}.{language}" for topic in _PRINTED for language in ("sh", "py", "mjs")),
    }


def test_documents_show_the_examples_as_they_are() -> None:
    assert set(OPERATIONS) == set(_PRINTED)
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m tools.api_samples"


@pytest.mark.slow
@pytest.mark.parametrize("language", ["sh", "py", "mjs"])
async def test_examples_print_what_they_should(stack: RunningStack, tmp_path: Path, language: str) -> None:
    room = asyncio.Semaphore(4)

    async def one(topic: str) -> None:
        # The log is a user's, so that each has its own.
        arguments = [stack.url, stack.token(new_id("reader"))]
        folder = tmp_path / topic
        folder.mkdir()
        async with room:
            process = await asyncio.create_subprocess_exec(
                *_command(language, topic, folder),
                *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            try:
                async with asyncio.timeout(40):
                    output, _ = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        printed = output.decode().strip()
        assert process.returncode == 0, f"{topic}.{language}\n{printed}"
        assert re.search(_PRINTED[topic], printed), f"{topic}.{language}\n{printed}"

    await asyncio.gather(*(one(topic) for topic in _PRINTED))

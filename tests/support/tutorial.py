"""The tutorial's files, commands and expected lines, as they stand on its pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.stack import ROOT

__all__ = ["CHAPTERS", "Command", "commands", "files"]

CHAPTERS: Final = tuple(sorted((ROOT / "docs" / "tutorial").glob("[0-9]-*.md")))
_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE: Final = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True, slots=True)
class Command:
    """A line to type, and the lines that the page says are seen then."""

    line: str
    seen: tuple[str, ...] = ()


def files() -> dict[str, str]:
    """What the tutorial asks to save, by name."""
    found: dict[str, str] = {}
    for chapter in CHAPTERS:
        for language, body in _BLOCK.findall(chapter.read_text(encoding="utf-8")):
            if language == "python" and (name := _FILE.match(body)):
                assert name[1] not in found, f"{name[1]} is saved twice"
                found[name[1]] = body
    return found


def commands(chapter: Path) -> Iterator[Command]:
    """The chapter's commands in order; what is seen belongs to the last one before it."""
    last: Command | None = None
    for language, body in _BLOCK.findall(chapter.read_text(encoding="utf-8")):
        if language == "sh":
            for line in body.splitlines():
                if last:
                    yield last
                last = Command(line.strip())
        elif language == "text" and last:
            yield Command(
                last.line, tuple(part.strip().removesuffix("  …") for part in body.splitlines() if part.strip())
            )
            last = None
    if last:
        yield last

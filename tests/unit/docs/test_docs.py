"""What the pages name is there: files and headings that they link to, commands and options, settings, make targets.

Not here: whether a command does what its page says; tests of the command do that, and ``test_backup`` runs scripts.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest
import typer.main

from carrel.cli.app import app
from carrel.error_base import error_codes
from tests.support.openapi import served
from tests.support.stack import ROOT
from tools.k8s_check.settings_page import page as settings_page

_FENCE: Final = re.compile(r"^( *)(`{3,})([\w-]*)[^\n]*\n(.*?)^ *\2 *$", re.DOTALL | re.MULTILINE)
_LINK: Final = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)?)\)")
_SETTING: Final = re.compile(r"\bCARREL_[A-Z0-9_]*[A-Z0-9]\b(?![<*…{])")
# Names that begin like settings and are read by tests, commands or examples.
_OTHERS: Final = frozenset({"CARREL_UP_REDIS", "CARREL_UP_POSTGRES", "CARREL_CLI_TOKEN", "CARREL_TEST_POSTGRES_URL"})


@cache
def pages() -> tuple[Path, ...]:
    told = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:  # a source archive
        found = [path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.parts)]
    else:
        found = [ROOT / line for line in told.stdout.splitlines()]
    return tuple(sorted(path for path in found if path.exists()))


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """The names that headings can be linked by, as the usual renderers make them."""
    found: set[str] = set()
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", _FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number, unique = 1, name
        while unique in found:
            unique, number = f"{name}-{number}", number + 1
        found.add(unique)
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


@pytest.mark.parametrize("path", pages(), ids=_named)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    problems = []
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / unquote(name)).resolve() if name else path
        if not file.exists():
            problems.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
            problems.append(f"{target}: no such heading")
    assert problems == []


def blocks(text: str) -> Iterator[str]:
    """Shell commands in code blocks, one logical line each, without comments."""
    for _, _, language, body in _FENCE.findall(text):
        if language in {"", "sh", "bash", "console"}:
            for line in re.sub(r"\\\n\s*", " ", body).splitlines():
                yield re.sub(r"(^|\s)#\s.*$", "", line).removeprefix("$ ").strip()


def spans(text: str) -> Iterator[str]:
    """Commands within sentences."""
    for span in re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)):
        yield span.strip()


def calls(path: Path, program: str) -> Iterator[list[str]]:
    """Every command of ``program`` on the page, as words."""
    text = path.read_text(encoding="utf-8")
    for line in [*blocks(text), *(span for span in spans(text) if re.match(rf"(\S*/)?{program}\b", span))]:
        for part in re.split(r"[|;&]+|\$\(|\)", line):
            try:
                words = shlex.split(part)
            except ValueError:
                words = part.split()
            while words and re.fullmatch(r"[A-Z_a-z]\w*=.*|docker|compose|run|--rm|cli|do|env", words[0]):
                words.pop(0)
            if words and words[0].rsplit("/", 1)[-1] == program:
                yield words[1:]


def _problem(words: list[str]) -> str | None:
    """What is wrong with a command line of carrel: a command or an option that is not there."""
    command: Any = typer.main.get_command(app)  # of click's classes, which typer has a copy of
    left, values = 0, iter(words)
    for word in values:
        if word in {"…", "...", "|"}:
            break
        if word.startswith("-") and word != "-":
            option, given = word.split("=", 1)[0], "=" in word
            named = {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}
            if option not in {*named, "-h", "--help"}:
                return f"{command.name} has no option {option}"
            if option in named and not given and not named[option].is_flag:
                next(values, None)
        elif word in getattr(command, "commands", ()):
            command = command.commands[word]
            left = _arguments(command)
        elif hasattr(command, "commands"):
            if not command.invoke_without_command and word[:1].islower():
                return f"{command.name} has no command {word}"
        elif re.match(r"[<>&#]|\d>", word):
            break  # the shell's
        elif left == 0:
            return f"{command.name} takes no {word!r} there"
        else:
            left -= 1
    return None


def _arguments(command: Any) -> int:
    """How many words a command takes beside options; -1 for any number."""
    counts = [parameter.nargs for parameter in command.params if parameter.param_type_name == "argument"]
    return -1 if -1 in counts else sum(counts)


@pytest.mark.parametrize("path", pages(), ids=_named)
def test_commands_and_options_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        return  # what once was
    assert [f"carrel {' '.join(words)}: {told}" for words in calls(path, "carrel") if (told := _problem(words))] == []


@pytest.mark.parametrize("path", pages(), ids=_named)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        word
        for words in calls(path, "make")
        for word in words[:1]
        if re.fullmatch(r"[a-z0-9-]+", word) and not word.startswith("-")
    }
    assert named - targets == set()


@pytest.mark.parametrize("path", pages(), ids=_named)
def test_modules_that_are_run_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"python3?(?: -P)? -m ([\w.]+)", text))
    ours = {
        name for name in named if name.split(".")[0] in {"services", "servicekit", "tools", "benchmarks", "gateway"}
    }
    assert {name for name in ours if importlib.util.find_spec(name) is None} == set()


_ROUTES: Final = [re.sub(r"\{\w+\}", r"[^/]+", name) for name in sorted(served())]


@pytest.mark.parametrize("path", pages(), ids=_named)
def test_routes_of_the_gateway_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        return
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:GET|POST|PUT|DELETE) /(?:api|ws|ag-ui|console|docs)\b[\w{}./-]*", text)
    assert {name for name in named if not any(re.fullmatch(route, name.rstrip(".")) for route in _ROUTES)} == set()


@cache
def settings() -> frozenset[str]:
    return frozenset(re.findall(r"`(CARREL_[A-Z0-9_]+)`", settings_page()))


@pytest.mark.parametrize("path", pages(), ids=_named)
def test_settings_exist(path: Path) -> None:
    if path.name == "CHANGELOG.md":
        return
    known = settings() | _OTHERS
    text = path.read_text(encoding="utf-8")
    named = set(_SETTING.findall(text)) - known
    # A name that is only the beginning of others stands for them: `CARREL_TLS__` and what follows.
    unknown = {name for name in named if not any(full.startswith(f"{name}_") for full in known)}
    assert unknown == set()


def test_error_codes_of_the_debug_page_exist() -> None:
    text = (ROOT / "docs" / "operations" / "debug.md").read_text(encoding="utf-8")
    table = text.split("## Refused requests", 1)[1].split("\n## ", 1)[0]
    named = {
        code for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for code in re.findall(r"[A-Z_]+", row)
    }
    assert named
    assert named - set(error_codes()) == set()


def test_log_lines_of_the_debug_page_are_written_somewhere() -> None:
    text = (ROOT / "docs" / "operations" / "debug.md").read_text(encoding="utf-8")
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("gateway", "services", "servicekit", "carrel")
        for path in (ROOT / folder).rglob("*.py")
    )
    quoted = set(re.findall(r'"([a-z][^"]+)"', re.sub(r"`[^`]*`", "", _FENCE.sub("", text))))
    assert len(quoted) > 10
    assert {line for line in quoted if line.split(" … ")[0] not in code} == set()

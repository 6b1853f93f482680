"""Snippets of the tutorial and the how-to pages: Python and JavaScript that compiles, names of ours that exist, JSON.

What the tutorial's commands do is held by ``tests/docs``; what docs/javascript.md's snippets do, by ``tests/js``.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

from tests.support.needs import node
from tests.support.stack import ROOT, clean_environment
from tests.support.tutorial import files

_PAGES: Final = sorted([*(ROOT / "docs" / "tutorial").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")])
_BLOCK: Final = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_FILE: Final = re.compile(r"# (\w+\.py)\n")


def _blocks(page: Path, language: str) -> list[str]:
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(body) for _, named, body in found if named == language]


_PYTHON: Final = [(page.stem, body) for page in _PAGES for body in _blocks(page, "python")]


@pytest.mark.parametrize(
    ("page", "body"), _PYTHON, ids=[f"{page}-{number}" for number, (page, _) in enumerate(_PYTHON)]
)
def test_python_compiles_and_imports_what_is_there(page: str, body: str) -> None:
    assert _FILE.match(body), f"{page}: a snippet begins with the name of its file"
    for part in ast.walk(ast.parse(body)):
        if isinstance(part, ast.ImportFrom) and (part.module or "").split(".")[0] == "carrel":
            module = importlib.import_module(str(part.module))
            for name in part.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{part.module}.{name.name}")


def _modules(page: Path) -> list[str]:
    """JavaScript of a page, within HTML too."""
    inner = [re.findall(r'<script type="module">\n(.*?)</script>', body, re.DOTALL) for body in _blocks(page, "html")]
    return [*_blocks(page, "js"), *(code for codes in inner for code in codes)]


_SCRIPTED: Final = [
    page
    for page in (*_PAGES, ROOT / "docs" / "ag-ui.md", ROOT / "clients" / "js" / "README.md")
    if re.search(r"^```js$|<script", page.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("page", _SCRIPTED, ids=lambda page: page.stem)
def test_javascript_compiles_and_imports_what_is_there(page: Path, tmp_path: Path) -> None:
    exported = (ROOT / "clients" / "js" / "src" / "index.js").read_text(encoding="utf-8")
    bodies = _modules(page)
    assert bodies
    for body in bodies:
        (tmp_path / "snippet.mjs").write_text(body, encoding="utf-8")
        done = subprocess.run(
            [node(), "--check", str(tmp_path / "snippet.mjs")], capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 0, done.stderr
        for names in re.findall(r'import \{ ([^}]+) \} from "(?:carrel-client|\./carrel/index\.js)"', body):
            assert [name for name in names.split(", ") if not re.search(rf"\b{name}\b", exported)] == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.stem)
def test_json_is_json(page: Path) -> None:
    for body in _blocks(page, "json"):
        json.loads(body)


def test_the_tests_that_pages_show_pass(tmp_path: Path) -> None:
    """In one process: the tutorial's last chapter and the page on tests."""
    saved = files()
    for page in ("model", "write-tests"):
        for body in _blocks(ROOT / "docs" / "howto" / f"{page}.md", "python"):
            name = _FILE.match(body)
            assert name is not None
            saved[name[1]] = body
    for file, text in saved.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_agents.py", "test_poet.py"],
        cwd=tmp_path,
        env=clean_environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),  # they need none
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout

"""JavaScript of the console and of the pages at /docs: no slips that a linter finds, formatted as the client is.

By hand, with prettier 3: ``npx prettier --config gateway/.prettierrc.json --write gateway/console gateway/docs`` (not
vendor). What is within ``html`` templates stays as it is written: htm takes no space from the end of a line, as HTML
does, so that a formatter for HTML would lose spaces between words.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.needs import node, npm, unavailable
from tests.support.stack import ROOT

_PACKAGES: Final = ("eslint@9.39.5", "@eslint/js@9.39.5", "prettier@3.10.1")
_FOLDERS: Final = ("console", "console/views", "docs")
_CONFIG: Final = Path(__file__).with_name("eslint.config.js")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages."""
    folder = tmp_path_factory.mktemp("lint")
    (folder / "package.json").write_text('{"type": "module"}')
    command = [npm(), "install", "--no-audit", "--no-fund", "--no-save", *_PACKAGES]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if installed.returncode:
        raise unavailable("npm", f"npm cannot reach its registry: {installed.stderr[-300:]}")
    # It finds its package beside itself.
    shutil.copy(_CONFIG, folder / _CONFIG.name)
    return folder


def _sources() -> list[str]:
    files = [path for name in _FOLDERS for path in sorted((ROOT / "gateway" / name).glob("*.js"))]
    assert len(files) > 30
    return [str(path.relative_to(ROOT)) for path in files]


def _run(tools: Path, script: str, *arguments: str) -> None:
    command = [node(), str(tools / "node_modules" / script), *arguments, *_sources()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_slips(tools: Path) -> None:
    _run(tools, "eslint/bin/eslint.js", "--max-warnings", "0", "--config", str(tools / _CONFIG.name))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_formatted(tools: Path) -> None:
    _run(tools, "prettier/bin/prettier.cjs", "--config", "gateway/.prettierrc.json", "--check")

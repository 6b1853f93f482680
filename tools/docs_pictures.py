"""Draws the mermaid pictures of the Markdown pages to SVG, once: ``docs/images/drawn/`` is what the site shows.

A code host draws the same sources itself. The site has no script of three megabytes for it, asks no other host, and
prints. Not run by ``make docs``: a picture is drawn when its source changes, and a test says when that is due::

    npm pack mermaid@11 && tar xzf mermaid-11.*.tgz        # anywhere
    python -m tools.docs_pictures package/dist/mermaid.min.js

Needs Chromium (``/usr/bin/chromium``, or the path in ``--chromium``). Files are named for their sources' hash.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["DRAWN", "SHADES", "drawn_name", "main", "picture_files", "pictures", "title_of"]

ROOT: Final = Path(__file__).resolve().parent.parent
DRAWN: Final = ROOT / "docs" / "images" / "drawn"
SHADES: Final = ("light", "dark")

_FENCE: Final = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_TITLE: Final = re.compile(r"^\s*accTitle:\s*(.+?)\s*$", re.MULTILINE)
# Fifteen digits of a pixel are three quarters of a file.
_SMALL: Final = re.compile(r"(?<![\w.])-?\d+\.\d{2,}(?![\w%.])")
_FONT: Final = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
# Text is drawn as text: what mermaid draws as HTML in an SVG is not shown where the SVG is an image.
_DRAW: Final = """async ([source, id, dark, font]) => {
  const colours = dark
    ? { darkMode: true, background: '#131416', primaryColor: '#24303f', primaryTextColor: '#e6e6e6',
        primaryBorderColor: '#7a93b5', lineColor: '#9aa4b1', textColor: '#e6e6e6', secondaryColor: '#2d2a3a',
        tertiaryColor: '#1c1f23', edgeLabelBackground: '#131416', noteBkgColor: '#33302a', noteTextColor: '#e6e6e6',
        actorLineColor: '#9aa4b1', labelBoxBkgColor: '#24303f' }
    : { background: '#ffffff', primaryColor: '#e8f0fb', primaryTextColor: '#1c1e21', primaryBorderColor: '#5b7db1',
        lineColor: '#5f6b7a', textColor: '#1c1e21', secondaryColor: '#f0ecf8', tertiaryColor: '#f6f7f9',
        edgeLabelBackground: '#ffffff', noteBkgColor: '#fdf6e3', noteTextColor: '#1c1e21' }
  mermaid.initialize({ startOnLoad: false, securityLevel: 'strict', theme: 'base', htmlLabels: false,
    deterministicIds: true, deterministicIDSeed: id, fontFamily: font,
    flowchart: { htmlLabels: false, useMaxWidth: false, nodeSpacing: 24, rankSpacing: 24, wrappingWidth: 130 },
    sequence: { useMaxWidth: false, actorMargin: 16, width: 140, height: 40, wrap: true },
    state: { useMaxWidth: false },
    themeVariables: { ...colours, fontFamily: font, fontSize: '15px' } })
  return (await mermaid.render(id, source)).svg
}"""


def pages() -> list[Path]:
    """The Markdown pages of the repository."""
    told = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:  # a source archive
        return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    return [ROOT / line for line in told.stdout.splitlines() if (ROOT / line).exists()]


def pictures() -> Iterator[tuple[Path, str]]:
    """Each page with a picture, and the picture's source."""
    for page in pages():
        for source in _FENCE.findall(page.read_text(encoding="utf-8")):
            yield page, source


def title_of(source: str) -> str:
    """What a picture shows, in words: its ``accTitle``.

    Raises:
        ValueError: It has none.
    """
    if found := _TITLE.search(source):
        return found.group(1)
    raise ValueError("a picture needs a line `accTitle: what it shows`, for who cannot see it")


def drawn_name(source: str, shade: str) -> str:
    """The file of a picture, light or dark."""
    return f"{hashlib.sha256(source.strip().encode()).hexdigest()[:12]}-{shade}.svg"


def picture_files() -> dict[str, str]:
    """The files that there must be, each with the source it is drawn from."""
    return {drawn_name(source, shade): source for _, source in pictures() for shade in SHADES}


def main() -> int:
    """Draw what is not drawn yet, and remove what no page shows any more."""
    parser = argparse.ArgumentParser(description="Draws the pages' mermaid pictures that have changed.")
    parser.add_argument("mermaid", type=Path, help="mermaid.min.js of mermaid 11")
    parser.add_argument("--chromium", type=Path, default=Path("/usr/bin/chromium"))
    parser.add_argument("--all", action="store_true", help="draw those too that are there")
    given = parser.parse_args()
    wanted = picture_files()
    DRAWN.mkdir(parents=True, exist_ok=True)
    for file in DRAWN.glob("*.svg"):
        if file.name not in wanted:
            file.unlink()
    missing = {name: source for name, source in wanted.items() if given.all or not (DRAWN / name).exists()}
    if missing:
        _draw(missing, given.mermaid, given.chromium)
    print(f"{len(missing)} drawn, {len(wanted)} in all")
    return 0


def _draw(missing: dict[str, str], mermaid: Path, chromium: Path) -> None:
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox to root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(chromium), args=arguments)
        try:
            for name, source in missing.items():
                page = browser.new_page()
                page.add_script_tag(path=str(mermaid))
                made = page.evaluate(_DRAW, [source, f"p{name[:12]}", name.endswith("-dark.svg"), _FONT])
                (DRAWN / name).write_text(_SMALL.sub(_rounded, made) + "\n", encoding="utf-8")
                page.close()
        finally:
            browser.close()


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number.group()):.1f}"


if __name__ == "__main__":
    sys.exit(main())

"""The pages at /docs: what REST, the socket and the protos are, from the documents that tests hold against the code.

Served as the console is, under the same policy (``gateway.pages``), and without a login: nothing in them is anybody's.
Not the renderer, which is JavaScript below ``gateway/docs``; nor the documents, which are in ``docs`` of a checkout.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from carrel.errors import InvalidConfigurationError
from gateway.pages import Page, Pages

__all__ = ["DOCUMENTS", "document_pages"]

DOCUMENTS: Final = ("openapi.json", "asyncapi.json", "proto.json")
# What the pages have in common with the console.
_SHARED: Final = (
    "dom.js",
    "theme.js",
    "mark.svg",
    "css/base.css",
    "vendor/htm.js",
    "vendor/preact.js",
    "vendor/preact-hooks.js",
)


def document_pages(folder: Path | None = None) -> Pages:
    """The pages, what they share with the console, and the documents.

    Raises:
        InvalidConfigurationError: The files are not there.
    """
    folder = folder or Path(__file__).parent / "docs"
    try:
        return Pages({name: Page.of(path) for name, path in _files(folder)})
    except OSError as error:
        raise InvalidConfigurationError(
            f"the pages of /docs at {folder} cannot be served: {error}",
            advice="install the package anew, or set CARREL_GATEWAY_DOCS=false",
        ) from error


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for name in ("index.html", "docs.css", *sorted(path.name for path in folder.glob("*.js"))):
        yield name, folder / name
    for name in _SHARED:
        yield name, folder.parent / "console" / name
    # The wheel has the documents beside the pages; a checkout has them where people read them.
    for name in DOCUMENTS:
        here = folder / name
        yield name, here if here.is_file() else folder.parent.parent / "docs" / name

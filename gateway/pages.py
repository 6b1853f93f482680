"""The console's files as HTTP answers: read once at the start, served from memory, under a strict policy.

No data of anybody's is in them: what a page shows it asks the API for, under its user's own token. Not the console
itself, which is JavaScript below ``gateway/console``; nor the sign-in for development (``gateway.development``).
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from carrel.errors import InvalidConfigurationError

__all__ = ["CONTENT_SECURITY_POLICY", "Page", "Pages", "console_pages", "wants_page"]

# Only what this gateway serves, no inline script or style, and no text ever becomes markup: an assignment to innerHTML
# throws. Sockets of the page's own origin are part of 'self'.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Kept, and asked about each time: after an upgrade no page runs with half of its modules from before.
    hdrs.CACHE_CONTROL: "no-cache",
    hdrs.VARY: "Accept, Accept-Encoding",
}
_TYPES: Final[Mapping[str, str]] = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_INDEX: Final = "index.html"
_CLIENT: Final = "client"


@dataclass(frozen=True, slots=True)
class Page:
    """One file: its type, its bytes as they are and compressed, and the name of this version of it."""

    content_type: str
    body: bytes
    zipped: bytes
    etag: str

    @classmethod
    def of(cls, path: Path) -> Page:
        """A file as it is now.

        Raises:
            OSError: It cannot be read.
        """
        body = path.read_bytes()
        return cls(
            _TYPES[path.suffix],
            body,
            gzip.compress(body, compresslevel=9, mtime=0),
            hashlib.sha256(body).hexdigest()[:32],
        )

    def response(self, request: web.BaseRequest) -> web.Response:
        """The answer to a request for it: the file, or that the browser has it already."""
        if any(etag.value in {self.etag, "*"} for etag in request.if_none_match or ()):
            return web.Response(status=304, headers={**_HEADERS, hdrs.ETAG: f'W/"{self.etag}"'})
        headers = {**_HEADERS, hdrs.ETAG: f'W/"{self.etag}"'}
        body = self.body
        if _takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
            headers[hdrs.CONTENT_ENCODING] = "gzip"
            body = self.zipped
        return web.Response(body=body, content_type=self.content_type, charset="utf-8", headers=headers)


class Pages:
    """The files by their address below ``/console/``."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = dict(pages)

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def index(self) -> Page:
        """What is served at ``/``."""
        return self._pages[_INDEX]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """``GET /console/{path}``"""
        found = self._pages.get(request.match_info["path"])
        if found is None:
            raise web.HTTPNotFound
        return found.response(request)


def console_pages(folder: Path | None = None) -> Pages:
    """The console and the JavaScript client that it stands on.

    Raises:
        InvalidConfigurationError: The files are not there.
    """
    folder = folder or Path(__file__).parent / "console"
    # The wheel has the client among the console's files; a checkout has it in a folder of its own.
    client = folder / _CLIENT
    if not client.is_dir():
        client = folder.parent.parent / "clients" / "js" / "src"
    try:
        pages = {name: Page.of(path) for name, path in _files(folder)}
        pages |= {f"{_CLIENT}/{name}": Page.of(path) for name, path in _files(client)}
    except OSError as error:
        raise _missing(folder, str(error)) from error
    if _INDEX not in pages or f"{_CLIENT}/{_INDEX.replace('html', 'js')}" not in pages:
        raise _missing(folder, f"{_INDEX}, or the JavaScript client, is not there")
    return Pages(pages)


def wants_page(request: web.BaseRequest) -> bool:
    """Whether a person's browser asks, and no script: ``curl`` takes anything, and gets JSON."""
    return "text/html" in request.headers.get(hdrs.ACCEPT, "").lower()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TYPES and path.is_file() and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix(), path


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        name, _, parameters = part.partition(";")
        if name.strip() == "gzip":
            return parameters.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _missing(folder: Path, problem: str) -> InvalidConfigurationError:
    return InvalidConfigurationError(
        f"the console's files at {folder} cannot be served: {problem}",
        advice="install the package anew, or set CARREL_GATEWAY_CONSOLE=false",
    )

"""What becomes of a test whose server or program can't be had: it is skipped, or fails where that must be there.

``TESTS_NEED="redis postgres docker kubectl chromium node npm"`` names those that must be: continuous integration sets
it, so that nothing of what it is to show goes by as skipped. The name is not one of ours, whose leftovers tests are
kept from. Programs that tests start as they are (a browser, Node) are found here; servers are beside what starts them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final, Literal

import pytest

__all__ = ["NODE_LEAST", "chromium", "node", "npm", "npm_packages", "unavailable"]

Server = Literal["redis", "postgres", "docker", "kubectl", "chromium", "node", "npm"]
_ENV: Final = "TESTS_NEED"
# Debian's and Fedora's names first: the system's browser is what CI installs, and what is mended with the system.
_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The oldest that the JavaScript client is written for.
NODE_LEAST: Final = 20


def unavailable(server: Server, reason: str) -> BaseException:
    """What a test is to raise that can't have a server of this kind, for this reason."""
    if server in os.environ.get(_ENV, "").replace(",", " ").split():
        return pytest.fail.Exception(f"{reason}; {_ENV} says that {server} must be here", pytrace=False)
    return pytest.skip.Exception(reason)


def chromium() -> str:
    """The path of a Chromium that Playwright can drive (``executable_path``); without one the test ends here."""
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise unavailable("chromium", "no Chromium is here (Debian: apt-get install chromium)")
    return found


def node() -> str:
    """The path of a Node that is new enough; without one the test ends here."""
    found = shutil.which("node")
    if found is None:
        raise unavailable("node", f"node is not here, and {NODE_LEAST} or newer is needed")
    version = _node_version(found)
    if version < NODE_LEAST:
        raise unavailable("node", f"{found} is version {version}, and {NODE_LEAST} or newer is needed")
    return found


def npm() -> str:
    """The path of npm, for tests of packages that its registry has; without it or a new enough Node the test ends."""
    node()
    found = shutil.which("npm")
    if found is None:
        raise unavailable("npm", "npm is not here (Debian: apt-get install npm)")
    return found


def npm_packages(folder: Path, *asked: str, within_s: float = 110) -> None:
    """What npm is asked for (``ci``, ``install …``) in this folder; where its registry is not reached the test ends."""
    command = [npm(), *asked, "--no-audit", "--no-fund", "--ignore-scripts"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=within_s, check=False)
    except subprocess.TimeoutExpired:
        said = f"nothing within {within_s:g} s"
    else:
        if done.returncode == 0:
            return
        said = done.stderr.strip()[-300:]
    reason = "npm cannot install packages: its registry must be reached from here, which `npm ping` tries"
    raise unavailable("npm", f"{reason}. `npm {' '.join(asked)}` said: {said}")


@cache
def _node_version(path: str) -> int:
    """Its major version; 0 where it does not say."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.match(r"v(\d+)\.", said)
    return int(match[1]) if match else 0

"""What becomes of a test whose server can't be had: it is skipped, or fails where the server must be there.

``TESTS_NEED="redis postgres docker"`` names the servers that must be: continuous integration sets it, so that nothing
of what it is to show goes by as skipped. The name is not one of ours, whose leftovers tests are kept from.
"""

from __future__ import annotations

import os
from typing import Final, Literal

import pytest

__all__ = ["unavailable"]

Server = Literal["redis", "postgres", "docker"]
_ENV: Final = "TESTS_NEED"


def unavailable(server: Server, reason: str) -> BaseException:
    """What a test is to raise that can't have a server of this kind, for this reason."""
    if server in os.environ.get(_ENV, "").replace(",", " ").split():
        return pytest.fail.Exception(f"{reason}; {_ENV} says that {server} must be here", pytrace=False)
    return pytest.skip.Exception(reason)

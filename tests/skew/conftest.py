"""The releases that tests put beside this checkout, unpacked once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.skew.versions import last_wheel, next_release, unpack


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release before this checkout."""
    return unpack(last_wheel(), tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="session")
def following(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One after it, which expands the run store."""
    return next_release(tmp_path_factory.mktemp("next") / "tree")

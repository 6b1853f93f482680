"""One stack for all tests of ``carrel doctor`` that break none of its processes, and ways to examine it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final, Protocol

import pytest

from carrel.cli.doctor.access import Access, find_access
from carrel.cli.doctor.command import Wishes, examine
from carrel.cli.doctor.report import Report
from carrel.cli.doctor.settings import DoctorSettings
from servicekit.settings import load_settings
from tests.support.stack import RunningStack, running_stack

LONGEST_S: Final = 50.0


class Examine(Protocol):
    """The type of the fixture ``examined``."""

    async def __call__(self, name: str, *, checks: tuple[str, ...] = ..., **changes: Any) -> Report: ...


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Five processes."""
    with running_stack(tmp_path_factory.mktemp("doctor")) as running:
        yield running


@pytest.fixture
def access(stack: RunningStack) -> Access:
    """The way in that the state folder gives."""
    return find_access(load_settings(DoctorSettings, "doctor", {}), "", (), stack.state.root)


@pytest.fixture
def examined(access: Access) -> Examine:
    """``await examined("name")``: an examination with users of its own; ``changes`` are those of its access."""

    async def examination(name: str, *, checks: tuple[str, ...] = (), **changes: Any) -> Report:
        pair = (f"carrel-doctor-{name}-a", f"carrel-doctor-{name}-b")
        return await examine(dataclasses.replace(access, ids=[pair], **changes), Wishes(checks), LONGEST_S)

    return examination

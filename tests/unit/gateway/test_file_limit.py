"""The limit of open files is raised as far as it may be, and a low one is said."""

from __future__ import annotations

import resource
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import file_limit


@pytest.mark.parametrize(("hard", "warned"), [(5_000, True), (50_000, False), (resource.RLIM_INFINITY, False)])
def test_it_is_raised_to_what_the_system_permits(monkeypatch: pytest.MonkeyPatch, hard: int, warned: bool) -> None:
    was, said = list[tuple[int, int]](), list[Any]()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: was.append(limits))
    monkeypatch.setattr(file_limit, "_log", SimpleNamespace(warning=lambda message, **fields: said.append(fields)))
    assert file_limit.raise_file_limit(21_000) == hard
    assert was == [(hard, hard)]
    assert bool(said) is warned

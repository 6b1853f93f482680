"""docs/testing.md: each of its Python blocks is a module of tests, which are run as they stand."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from carrel import testing
from tests.support.stack import ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
async def test_the_block_passes_as_it_stands(number: int) -> None:
    place = PAGE[: PAGE.index(BLOCKS[number])].count("\n")
    module: dict[str, Any] = {"__name__": f"testing_page_{number}"}
    exec(compile("\n" * place + BLOCKS[number], "docs/testing.md", "exec", dont_inherit=True), module)
    tests = [value for name, value in module.items() if name.startswith("test_")]

    assert tests
    for test in tests:
        assert inspect.iscoroutinefunction(test)
        await test()


def test_the_page_names_what_there_is() -> None:
    for name in ("assert_order", "assert_kinds", "assert_none", "assert_no_secret", "of", "one", "text", "kinds"):
        assert hasattr(testing.Events, name)
        assert f"`{name}" in PAGE
    for name in ("result", "state", "error", "stages", "events", "artifacts", "artifact", "audit", "told", "question"):
        assert name == "events" or hasattr(testing.ChainRun, name)
        assert re.search(rf"`[^`]*\b{name}\b[^`]*`", PAGE), name

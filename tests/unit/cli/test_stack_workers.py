"""What ``carrel up`` lets worker processes see: the folder of traces, beside what the operator has allowed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carrel.cli.stack import _seen_by_workers, stack_options

_ENV = "CARREL_AGENT_INSTANCE_WORKERS__ENV_ALLOW"
_PATHS = "CARREL_AGENT_INSTANCE_WORKERS__READ_PATHS"


def test_without_traces_nothing_is_said(tmp_path: Path) -> None:
    assert _seen_by_workers(stack_options(tmp_path), {}) == {}


@pytest.mark.parametrize("given", ["MINE, LLM_COSTS_DATA_DIR", '["MINE", "LLM_COSTS_DATA_DIR"]'])
def test_the_folder_of_traces_is_added_to_what_is_allowed(tmp_path: Path, given: str) -> None:
    options = stack_options(tmp_path / "state", data=tmp_path)
    seen = _seen_by_workers(options, {_ENV: given})
    assert json.loads(seen[_ENV]) == ["MINE", "LLM_COSTS_DATA_DIR"]
    assert json.loads(seen[_PATHS]) == [str(tmp_path.resolve())]

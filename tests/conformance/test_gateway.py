"""The gateway of this repository, on a whole stack, does what the conformance suite says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conformance.server.suite import ALL
from tests.support.stack import ROOT, RunningStack

# It takes 15 s, and is played with --slow.
LEFT_OUT = {"connect-timeout"}


def played(stack: RunningStack, execute: dict[str, Any], file: Path, *arguments: str) -> tuple[int, list[Any]]:
    """The suite as a user runs it: the exit code, and the results from its JSON."""
    tokens = ["--token-a", stack.token("alice"), "--token-b", stack.token("bob")]
    command = [sys.executable, "-P", "-m", "conformance", "server", "--url", stack.url, *tokens]
    command += ["--execute", json.dumps(execute), "--json", str(file), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.returncode, json.loads(file.read_text())["results"]


@pytest.mark.timeout(150)
def test_gateway_conforms(stack: RunningStack, execute: dict[str, Any], tmp_path: Path) -> None:
    drain = f"kill -TERM {stack.pid('gateway')}"
    code, results = played(stack, execute, tmp_path / "results.json", "--drain", drain)
    failed = {row["name"]: row["why"] for row in results if row["outcome"] == "failed"}
    assert failed == {}
    assert code == 0
    assert {row["name"]: row["why"] for row in results if row["outcome"] == "skipped"}.keys() <= LEFT_OUT
    assert [row["name"] for row in results] == [scenario.name for scenario in ALL]


def test_each_scenario_names_a_section_of_the_protocol() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    headings = set(re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    assert {scenario.section for scenario in ALL} <= headings
    names = [scenario.name for scenario in ALL]
    assert len(names) == len(set(names))


def test_usage_is_told_and_nobody_at_the_address_is_no_result() -> None:
    command = [sys.executable, "-P", "-m", "conformance", "server", "--url", "http://127.0.0.1:1"]
    command += shlex.split("--token-a a --token-b b")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "the suite cannot begin" in done.stderr

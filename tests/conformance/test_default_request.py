"""Without ``--execute`` the suite works on a stack as `carrel up` starts it; runs that fail are told."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stack import ROOT, running_stack


def conformance(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "conformance", "server", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.timeout(150)
def test_a_stock_stack_needs_no_request_of_its_own(tmp_path: Path) -> None:
    with running_stack(tmp_path) as stack:
        options = ["--url", stack.url, "--token-a", stack.token("alice"), "--token-b", stack.token("bob")]
        done = conformance(*options, "--json", str(tmp_path / "results.json"), "event-run", "batch")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        results = json.loads((tmp_path / "results.json").read_text())["results"]
        assert [row["name"] for row in results] == ["event-run", "batch", "batch-not-asked", "batch-compressed"]
        assert {row["outcome"] for row in results} == {"passed"}
        failing = conformance(*options, "--execute", '{"message": "hello"}', "event-run")
        assert failing.returncode == 0, "a run that fails has its events, too"
        assert (
            "note: of 1 runs that the suite waited for 1 did not succeed (1 FAILED INVALID_REQUEST)" in failing.stderr
        )
        assert "--execute" in failing.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--token a", "the suite plays two users: give --token-a and --token-b"),
        ("--token=a --token-b b", "the suite plays two users: give --token-a and --token-b"),
        ("--token-a a --token-b b --execute hello", "it is not JSON"),
        ("--token-a a --token-b b --execute '[]'", "it must be an object with a message"),
    ],
)
def test_wrong_options_are_told_with_what_is_right(arguments: str, said: str) -> None:
    done = conformance("--url", "http://127.0.0.1:1", *shlex.split(arguments))
    assert done.returncode == 2
    assert said in done.stderr

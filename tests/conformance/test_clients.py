"""Our client passes the suite for clients, and the suite tells a good client from a careless one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.client.suite import ALL, play
from tests.support.stack import ROOT

OURS = (sys.executable, "-P", "-m", "conformance.adapters.python_client")
NAIVE = (sys.executable, "-P", str(Path(__file__).with_name("naive_client.py")))


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_our_client_conforms(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    command = [sys.executable, "-P", "-m", "conformance", "client", "--json", str(file), "--", *OURS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=140, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())["results"]
    assert [row["name"] for row in results] == [scenario.name for scenario in ALL]
    assert {row["outcome"] for row in results} == {"passed"}


async def test_careless_client_is_found_out() -> None:
    bad = {
        "repeats": "more than once",
        "gap-lasting": "nothing was told",
        "gap-announced": "it told",
        "reset-mismatch": "reset notices",
        "codes-stay-away": "attempts with",
    }
    results = {result.name: result for result in await play(NAIVE, ["plain", "batch", "ack", "compress", *bad])}
    passed = {name for name, result in results.items() if result.outcome == "passed"}
    assert passed == {"plain", "batch", "ack-not-granted"}
    assert results["ack"].why == "the client has no ack"
    assert {name: bad[name] in results[name].why for name in bad} == dict.fromkeys(bad, True), results


async def test_what_is_no_client_fails_and_says_why() -> None:
    for command, why in (
        ((sys.executable, "-c", "print('hello')"), "what the client is"),
        ((sys.executable, "-c", "raise SystemExit(1)"), "what the client is"),
        (("/no/such/command",), "FileNotFoundError"),
    ):
        (result,) = await play(command, ["plain"])
        assert result.outcome == "failed"
        assert why in result.why


def test_each_scenario_names_a_section_of_the_protocol() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    headings = set(re.findall(r"^#+ (.+)$", text, re.MULTILINE))
    assert {scenario.section for scenario in ALL} <= headings
    names = [scenario.name for scenario in ALL]
    assert len(names) == len(set(names))

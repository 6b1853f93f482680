"""The JavaScript client in Node: its unit tests, the fault cases, the protocol's suite for clients, its types."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from conformance.client.suite import ALL
from tests.js.scripted import scripted_gateways
from tests.support.needs import node, npm_packages
from tests.support.stack import ROOT
from tests.support.whole import WHOLE

HERE: Final = Path(__file__).parent
CLIENT: Final = ROOT / "clients" / "js"
# Cuts of the recorded run in a sample; 0 for all of them.
_CUTS: Final = "0" if WHOLE else "10"


async def run_tests(*files: str, **environment: str) -> tuple[int, str]:
    """``node --test`` of these files: the exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(node(), "--test", "--test-reporter=tap", *files),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=HERE,
        env=os.environ | environment,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


def failures(output: str) -> str:
    """What of a report is about failures."""
    blocks = re.findall(r"^ *not ok .*\n(?:(?! *(?:not )?ok ).*\n)*", output, re.MULTILINE)
    return "\n".join(block[:900] for block in blocks) or output[-2000:]


async def test_units() -> None:
    files = sorted(str(path) for path in (HERE / "unit").glob("*.test.js"))
    code, output = await run_tests(*files)
    assert code == 0, failures(output)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_faults() -> None:
    async with scripted_gateways() as url:
        code, output = await run_tests("faults.test.js", FAULTS_URL=url, FAULTS_CUTS=_CUTS)
    assert code == 0, failures(output)
    passed = re.search(r"^# pass (\d+)$", output, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) > 80


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_client_conforms(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    adapter = str(CLIENT / "conformance" / "adapter.js")
    command = [sys.executable, "-P", "-m", "conformance", "client", "--at-once", "8", "--json", str(file), "--"]
    done = subprocess.run(
        [*command, node(), adapter], cwd=ROOT, capture_output=True, text=True, timeout=140, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(file.read_text())["results"]
    assert [row["name"] for row in results] == [scenario.name for scenario in ALL]
    assert {row["outcome"] for row in results} == {"passed"}


# The compiler's settings: the strictest, for what applications write and for the client's own sources.
_OPTIONS: Final = {
    "strict": True,
    "noEmit": True,
    "allowJs": True,
    "checkJs": True,
    "target": "es2024",
    "module": "nodenext",
    "lib": ["es2024", "dom", "dom.iterable", "dom.asynciterable"],
    "types": ["node"],
}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_types(tmp_path: Path) -> None:
    """The declarations fit what applications write, and the sources fit their own JSDoc."""
    (tmp_path / "package.json").write_text('{"type": "module"}')
    npm_packages(tmp_path, "install", "--no-save", "typescript@5.9.3", "@types/node@20.19.25")
    (tmp_path / "node_modules" / "carrel-client").symlink_to(CLIENT, target_is_directory=True)
    (tmp_path / "usage.ts").write_text((HERE / "usage.ts").read_text())
    sources = ["usage.ts", *(str(CLIENT / "src" / f"{name}.js") for name in ("index", "node_websocket"))]
    options = _OPTIONS | {"typeRoots": [str(tmp_path / "node_modules" / "@types")]}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": sources}))
    compiler = str(tmp_path / "node_modules" / "typescript" / "bin" / "tsc")
    done = subprocess.run([node(), compiler], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout

"""The real ``@ag-ui/client`` from npm in Node against a whole stack; skipped by name where npm reaches no registry.

Its version is pinned by package-lock.json. It is installed once, into the user's cache folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.support.needs import node, npm_packages
from tests.support.stack import ROOT, running_stack

HERE: Final = Path(__file__).parent
AGENTS: Final = ["entry-points", str(ROOT / "tests" / "e2e" / "asking_agents.py")]


def packages() -> Path:
    """The folder ``node_modules`` with the packages that are locked."""
    lock = (HERE / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "carrel-tests"
    folder = cache / f"ag-ui-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not folder.exists():
        fresh = cache / f"{folder.name}.{os.getpid()}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, fresh)
        try:
            npm_packages(fresh, "ci")
            fresh.rename(folder)
        except OSError:
            # Another process was quicker.
            pass
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder / "node_modules"


@pytest.mark.slow
@pytest.mark.timeout(170)
async def test_the_real_client(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "clients" / "js" / "ag-ui", project / "carrel-ag-ui")
    shutil.copy(HERE / "http_agent.test.js", project)
    shutil.copy(HERE / "package.json", project)
    (project / "node_modules").symlink_to(packages(), target_is_directory=True)
    with running_stack(tmp_path, agents=AGENTS) as stack:
        names = {"URL_": stack.url, "ALICE": stack.token("alice"), "BOB": stack.token("bob")}
        process = await asyncio.create_subprocess_exec(
            *(node(), "--test-reporter=tap", "http_agent.test.js"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=project,
            env=os.environ | names | {"GATEWAY_PID": str(stack.pid("gateway"))},
        )
        try:
            output = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    failed = re.findall(r"^ *not ok .*\n(?:(?! *(?:not )?ok ).*\n)*", output, re.MULTILINE)
    assert process.returncode == 0, "\n".join(block[:1500] for block in failed) or output[-2000:]
    passed = re.search(r"^# pass (\d+)$", output, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= 12

"""``python -P -m examples.migration``: ``carrel up`` with the agents, and the application after it, until Ctrl-C.

Options: ``--state FOLDER`` (of the stack; ``.carrel`` by default), ``--port PORT`` (of the application; 8090),
``--rollout FILE`` (``rollout.json`` in that folder by default).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

from aiohttp import web

from examples.migration.after import application

_AGENTS = "examples.migration.agents"
_START_S = 120.0


async def _main(state: Path, port: int, rollout: Path) -> int:
    stack = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "carrel.cli", "up", "--state", str(state), "--port", "0", "--agents", _AGENTS
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ended = asyncio.create_task(stack.wait(), name="the stack ends")
    try:
        async with asyncio.timeout(_START_S):
            url = await _url(state, stack.pid, ended)
        secret = (state / "keys" / "login.secret").read_bytes().strip()
        runner = web.AppRunner(application(secret, url, rollout))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            token = subprocess.run(  # noqa: ASYNC221 -- nobody is served yet
                [sys.executable, "-P", "-m", "carrel.cli", "token", "--user", "alice", "--state", str(state)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            at = runner.addresses[0][1]
            sys.stdout.write(f"the application is at http://127.0.0.1:{at}; who goes where: {rollout}\n")
            sys.stdout.write(f"TOKEN={token}\n")
            sys.stdout.flush()
            waiting = asyncio.create_task(stop.wait(), name="wait for a signal")
            await asyncio.wait([waiting, ended], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        finally:
            await runner.cleanup()
    finally:
        with contextlib.suppress(ProcessLookupError):
            stack.terminate()
        code = await ended
    return 0 if stop.is_set() else code or 1


async def _url(state: Path, supervisor: int, ended: asyncio.Task[int]) -> str:
    """Where the gateway is, once the stack is up."""
    while not ended.done():
        with contextlib.suppress(OSError, ValueError, KeyError):
            facts = json.loads((state / "stack.json").read_bytes())
            if facts["supervisor"] == supervisor and facts["ready_s"]:
                return str(facts["url"])
        await asyncio.sleep(0.1)
    raise SystemExit(ended.result() or 1)


def main() -> int:
    """Read the options and go."""
    parser = argparse.ArgumentParser(prog="python -P -m examples.migration", description=__doc__)
    parser.add_argument("--state", type=Path, default=Path(".carrel"))
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--rollout", type=Path)
    options = parser.parse_args()
    rollout: Path = options.rollout or options.state / "rollout.json"
    if not rollout.exists():
        rollout.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        rollout.write_text("{}\n", encoding="utf-8")
    return asyncio.run(_main(options.state, options.port, rollout))


if __name__ == "__main__":
    sys.exit(main())

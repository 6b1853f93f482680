"""`kill -9` of a process that appends to the SQLite log: whatever it had acknowledged is there, contiguous, once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.bridge.models import Append, StoredEvent
from services.bridge.store_sqlite import SqliteEventLog, SqliteOptions

USERS = 5

WRITER = """
import asyncio, os, sys
from pathlib import Path
from services.bridge.models import Append, StoredEvent
from services.bridge.store_sqlite import SqliteEventLog

async def main():
    log = await SqliteEventLog.open(Path(sys.argv[1]))
    loop = asyncio.get_running_loop()

    async def user(name, width):
        number = 1
        position = await log.position(name)
        number = position.top + 1
        while True:
            events = tuple(StoredEvent(f"{name}-{n}", b"x" * 300) for n in range(number, number + width))
            (result,) = await log.append([Append(name, "run-" + name, "t", "p-" + name, 1, number, events)])
            number += width
            os.write(1, f"{name} {result.through}\\n".encode())

    await asyncio.gather(*(user(f"u{i}", 1 + 3 * i) for i in range(int(sys.argv[2]))))

asyncio.run(main())
"""


def kill_after(path: Path, seconds: float) -> dict[str, int]:
    """Run the writer, kill it ``seconds`` after its first acknowledgement; the last number acknowledged per user."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(USERS)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as out:
        received = os.read(out.fileno(), 1 << 16)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            os.set_blocking(out.fileno(), False)
            received += out.read(1 << 16) or b""
            time.sleep(min(left, 0.001))
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        os.set_blocking(out.fileno(), True)
        received += out.read()
    acknowledged: dict[str, int] = {}
    for line in received.decode().splitlines():
        name, through = line.split()
        acknowledged[name] = int(through)
    return acknowledged


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_everything_acknowledged_before_kill_9_is_there_contiguous_and_once(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    acknowledged: dict[str, int] = {}
    epochs: dict[str, str] = {}
    moments = random.Random(20)
    for _ in range(10):
        acknowledged |= kill_after(path, moments.uniform(0, 0.4))
        log = await SqliteEventLog.open(path, options=SqliteOptions(sweep_interval_s=3600))
        for name, through in acknowledged.items():
            position = await log.position(name)
            assert epochs.setdefault(name, position.epoch) == position.epoch
            assert position.top >= through
            entries = (await log.read(name, 0, 1 << 20, max_bytes=1 << 40)).entries
            assert [(e.offset, e.event_id) for e in entries] == [(n, f"{name}-{n}") for n in range(1, position.top + 1)]
            resent = Append(name, f"run-{name}", "t", f"p-{name}", 1, through, (StoredEvent("again", b""),))
            assert (await log.append([resent]))[0].events == ()
        await log.close()
    assert len(acknowledged) == USERS
    assert min(acknowledged.values()) > 10

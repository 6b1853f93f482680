"""What the bridge's process tells in its log of the state it is in."""

from __future__ import annotations

from typing import Any

import pytest

from carrel.errors import StoreUnavailableError
from services.bridge.app import serve_bridge
from services.bridge.config import BridgeSettings
from services.bridge.store_memory import MemoryEventLog
from tests.conftest import Eventually
from tests.support.identity import identity


class FailingLog(MemoryEventLog):
    """A log that works, or does not."""

    works = True

    async def probe(self) -> None:
        if not self.works:
            raise StoreUnavailableError("the disk is gone")


def states(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    found = (record for record in caplog.records if record.getMessage() == "integration state")
    return [(record.levelname, vars(record)["fields"]) for record in found]


async def test_state_that_is_not_well_is_told_with_its_cause(
    caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    caplog.set_level("INFO")
    log = FailingLog()
    settings = BridgeSettings(
        listen="127.0.0.1:0", probe_interval_s=0.01, recovery_base_delay_s=0.01, failed_probe_interval_s=0.01
    )
    async with serve_bridge(settings, log, identity().verifier()):
        log.works = False
        await eventually(lambda: [fields["state"] for _, fields in states(caplog)][-1] == "FAILED")
        log.works = True
        await eventually(lambda: [fields["state"] for _, fields in states(caplog)][-1] == "ACTIVE")
    assert states(caplog) == [
        ("INFO", {"state": "INITIALIZING"}),
        ("INFO", {"state": "ACTIVE"}),
        ("WARNING", {"state": "DEGRADED", "reason": "the disk is gone"}),
        ("WARNING", {"state": "FAILED", "reason": "the disk is gone"}),
        ("INFO", {"state": "ACTIVE"}),
    ]

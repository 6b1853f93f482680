"""Which files of tests go to one process of xdist together, and which start first: for ``make test``.

Files that share a session's fixture go together, so that it is made once; those that take long come first, so that no
process is left with one while the others have nothing to do. Without xdist the order is pytest's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

__all__ = ["GROUPS", "SECONDS", "Scheduler", "first_the_long_ones", "scope_of"]

_ROOT: Final = Path(__file__).resolve().parents[2]

# By the fixture that is shared.
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "shared_stack": (
        "tests/e2e/test_cli.py",
        "tests/e2e/test_connections_protocol.py",
        "tests/e2e/test_internal_client.py",
        "tests/e2e/test_revoke.py",
    ),
    "slow_stack": (
        "tests/e2e/test_kill.py",
        "tests/e2e/test_one_cursor.py",
        "tests/e2e/test_pipeline.py",
        "tests/e2e/test_timing.py",
    ),
    "probe_stack": (
        "tests/e2e/test_bad_frames.py",
        "tests/e2e/test_bad_input.py",
        "tests/e2e/test_isolation.py",
        "tests/e2e/test_limits.py",
    ),
    "security": (
        "tests/security/test_cross_user.py",
        "tests/security/test_cross_user_rpc.py",
        "tests/security/test_every_route.py",
        "tests/security/test_every_rpc.py",
        "tests/security/test_every_stream.py",
        "tests/security/test_fuzz_frames.py",
        "tests/security/test_fuzz_rpcs.py",
        "tests/security/test_gateway_doors.py",
        "tests/security/test_hostile_json.py",
        "tests/security/test_retired_keys.py",
        "tests/security/test_secrets.py",
    ),
}

# Roughly how long a group or a file takes, where that is more than some seconds. What is not here comes last.
SECONDS: Final[Mapping[str, int]] = {
    "shared_stack": 100,
    "security": 90,
    "slow_stack": 80,
    "probe_stack": 60,
    "tests/chaos/test_rolling.py": 70,
    "tests/browser/test_console.py": 60,
    "tests/ag_ui/test_http_agent.py": 20,
    "tests/api/test_generated.py": 20,
    "tests/js/test_docs.py": 20,
    "tests/docs/test_tutorial.py": 20,
    "tests/testing/test_new.py": 20,
    "tests/adapters/test_stack.py": 60,
    "tests/chaos/test_recovery_matrix.py": 60,
    "tests/chaos/test_soak.py": 40,
    "tests/faults/test_sample.py": 60,
    "tests/integration/test_backup.py": 50,
    "tests/doctor/test_faults.py": 50,
    "tests/doctor/test_healthy.py": 40,
    "tests/skew/test_mixed.py": 40,
    "tests/skew/test_upgrade.py": 40,
    "tests/integration/test_mcp_stdio.py": 40,
    "tests/chaos/test_redis_log.py": 30,
    "tests/unit/tools/test_release.py": 30,
    "tests/e2e/test_bad_start.py": 40,
    "tests/e2e/test_answers.py": 25,
    "tests/e2e/test_bad_data.py": 20,
    "tests/e2e/test_bound.py": 15,
    "tests/integration/test_mcp_agents.py": 25,
    "tests/integration/test_mcp_http.py": 15,
    "tests/integration/test_worker_processes.py": 15,
    "tests/integration/test_gateway_process.py": 15,
    "tests/integration/test_execution_replicas.py": 15,
    "tests/integration/test_execution_restart.py": 15,
    "tests/integration/test_bridge_process.py": 15,
    "tests/contract/test_run_store_queue.py": 20,
    "tests/contract/test_run_store_waiting.py": 15,
    "tests/contract/test_run_machine.py": 15,
    "tests/security/test_isolation_suite.py": 20,
    "tests/conformance/test_gateway.py": 20,
    "tests/chaos/test_redis_stack.py": 15,
    "tests/chaos/test_cursor_over_copies.py": 15,
    "tests/ops/test_real_stack.py": 20,
}

_GROUP_OF: Final = {file: group for group, files in GROUPS.items() for file in files}


def scope_of(file: str) -> str:
    """What is run by one process: the file's group, or the file."""
    return _GROUP_OF.get(file, file)


def first_the_long_ones(items: list[pytest.Item]) -> None:
    """Bring collected tests into the order in which their files are to start; each file's own order stays."""

    def seconds(item: pytest.Item) -> int:
        return SECONDS.get(scope_of(item.path.relative_to(_ROOT).as_posix()), 0)

    items.sort(key=seconds, reverse=True)


class Scheduler(LoadFileScheduling):  # type: ignore[misc]
    """xdist's, by file, for which a group is one file."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        # Its own order, by the number of tests, starts a file last whose one test takes a minute.
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return scope_of(file)

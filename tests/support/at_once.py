"""Failures told while the other tests still run. Their whole stories come at the end, as pytest tells them."""

from __future__ import annotations

from typing import Final

import pytest

__all__ = ["FailuresAtOnce"]

_END: Final = 1_000


class FailuresAtOnce:
    """A plugin that names each failure, with the end of what it says."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self._reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._reporter.write_line(f"\n{report.when} failed: {report.nodeid}\n{report.longreprtext[-_END:]}")

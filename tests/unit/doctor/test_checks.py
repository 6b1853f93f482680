"""The checks that there are: none can be lost unseen."""

from carrel.cli.doctor.command import CHECKS
from tests.support.stack import ROOT


def test_the_six_checks_of_the_design_documents_are_made_and_told_of() -> None:
    six = (
        *("factories_configured", "user_isolation", "concurrent_execution"),
        *("websocket_isolation", "resource_cleanup", "backward_compatibility"),
    )
    assert tuple(CHECKS) == six
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in six)

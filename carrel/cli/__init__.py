"""The command line: ``carrel``. On top of everything; nothing imports it. ``main`` is its entry point."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process with its exit code."""
    from carrel.cli.app import run

    run()

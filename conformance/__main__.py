"""``python -m conformance server …`` and ``python -m conformance client -- COMMAND …``."""

from __future__ import annotations

import argparse
import sys

from conformance.client import suite as client_suite
from conformance.server import suite as server_suite


def main() -> int:
    """Parse the command line and play a suite; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    suites = parser.add_subparsers(dest="suite", required=True)
    server_suite.add_arguments(suites.add_parser("server", help="plays clients to a gateway"))
    client_suite.add_arguments(suites.add_parser("client", help="plays a gateway to clients"))
    given = parser.parse_args()
    return server_suite.main(given) if given.suite == "server" else client_suite.main(given)


if __name__ == "__main__":
    sys.exit(main())

"""The gateway as a process: ``python -P -m gateway``."""

import sys

from gateway.app import app
from gateway.config import GatewaySettings
from servicekit.lifecycle import run_service

if __name__ == "__main__":
    sys.exit(run_service("gateway", GatewaySettings, app))

"""The bridge as a process: ``python -P -m services.bridge``."""

import sys

from servicekit.lifecycle import run_service
from services.bridge.app import app
from services.bridge.config import BridgeSettings

if __name__ == "__main__":
    sys.exit(run_service("bridge", BridgeSettings, app))

"""The emitter as a process: ``python -P -m services.emitter``."""

import sys

from servicekit.lifecycle import run_service
from services.emitter.app import app
from services.emitter.config import EmitterSettings

if __name__ == "__main__":
    sys.exit(run_service("emitter", EmitterSettings, app))

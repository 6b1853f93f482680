"""`python -m services.execution`: starts the service and nothing else."""

import sys

from servicekit.lifecycle import run_service
from services.execution.app import app
from services.execution.config import ExecutionSettings

if __name__ == "__main__":
    sys.exit(run_service("execution", ExecutionSettings, app))

"""Starts agent_instance: ``python -P -m services.agent_instance``."""

import sys

from servicekit.lifecycle import run_service
from services.agent_instance.app import app
from services.agent_instance.config import AgentInstanceSettings

if __name__ == "__main__":
    sys.exit(run_service("agent_instance", AgentInstanceSettings, app))

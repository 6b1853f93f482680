"""Attributes of our own spans, named once. Users by pseudonym, runs by id, and nothing of what users or agents say."""

from __future__ import annotations

from typing import Final

from carrel.pseudonyms import hash_user
from servicekit.telemetry.tracing import Attribute

__all__ = ["AGENT", "ATTEMPT", "CODE", "EVENTS", "FENCE", "OUTCOME", "QUEUED_S", "STAGE", "of_run"]

AGENT: Final = "carrel.agent"
ATTEMPT: Final = "carrel.attempt"
CODE: Final = "carrel.code"
EVENTS: Final = "carrel.events"
FENCE: Final = "carrel.fence"
OUTCOME: Final = "carrel.outcome"
QUEUED_S: Final = "carrel.queued_s"
STAGE: Final = "carrel.stage"


def of_run(user_id: str, run_id: str) -> dict[str, Attribute]:
    """What the spans of one run's own work have; a span of none (``run_id`` is "") has its user."""
    user: dict[str, Attribute] = {"carrel.user": hash_user(user_id)}
    return {"carrel.run_id": run_id, **user} if run_id else user

"""What a chain can be told: the limits that tests of agents run into. Values as the services' settings have them."""

from __future__ import annotations

from dataclasses import dataclass

from services.emitter.domain.sanitize import DEFAULT_WITHHELD

__all__ = ["ChainOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainOptions:
    """Limits of a chain. Durations are seconds; the defaults are those of the services' settings, times apart.

    Args:
        max_engines_per_user: Runs of one user that are under way at once.
        max_unended_runs_per_user: Runs of one user that have not ended.
        engine_timeout_s: How long a run may take while it is under way.
        idle_timeout_s: How long an agent may be silent that does not say so itself (30 in the service; a test should
            not wait for that).
        input_timeout_s: How long a run waits for a person's answer.
        grace_s: How long a cancelled agent may take to end.
        max_attempts: Tries of a stage whose worker is lost.
        model_tokens: Tokens of models that a user may use.
        models: Models that may be asked beside the scripted model's own name; ``("*",)`` for any.
        database: Whether agents with ``dependencies = ("database",)`` may start.
        withheld_fields: Names of fields whose values users never see.
    """

    max_engines_per_user: int = 2
    max_unended_runs_per_user: int = 5
    engine_timeout_s: float = 60.0
    idle_timeout_s: float = 10.0
    input_timeout_s: float = 3600.0
    grace_s: float = 0.2
    max_attempts: int = 3
    model_tokens: int = 2_000_000
    models: tuple[str, ...] = ()
    database: bool = False
    withheld_fields: tuple[str, ...] = DEFAULT_WITHHELD

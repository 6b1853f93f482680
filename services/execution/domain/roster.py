"""The engines and the users that this process knows of. Counts and histories; what runs is in ``holding``."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from services.execution.domain.engine import EngineOwner, RunSummary, UserExecutionEngine, UserRuns
from services.execution.domain.metrics import FactoryMetrics
from services.execution.models import EngineRecord, RunRecord, RunState, UserKey

__all__ = ["Roster"]

_MAX_USERS: Final = 10_000


class Roster:
    """Engines by (user, id), and of each user what runs and has run here; bounded by forgetting idle users."""

    def __init__(self, owner: EngineOwner, metrics: FactoryMetrics) -> None:
        self._owner = owner
        self._metrics = metrics
        self._engines: dict[tuple[UserKey, str], UserExecutionEngine] = {}
        self._users: OrderedDict[UserKey, UserRuns] = OrderedDict()

    @property
    def engines(self) -> int:
        """Engines that are active."""
        return len(self._engines)

    @property
    def users(self) -> int:
        """Users with an active engine."""
        return len({user for user, _ in self._engines})

    def add_engine(self, record: EngineRecord) -> UserExecutionEngine:
        """An engine was made."""
        engine = UserExecutionEngine(self._owner, self.runs(record.user), record)
        self._engines[record.user, record.engine_id] = engine
        self._metrics.engine_made(len(self._engines))
        return engine

    def begin(self, run: RunRecord) -> None:
        """A run has taken its engine."""
        user, engine_id = run.identity.user, run.engine_id
        engine = self._engines.get((user, engine_id)) or self.add_engine(
            EngineRecord(engine_id, user, run.identity.run_id, run.started_at or run.created_at, run.deadline_at)
        )
        engine.begin(run)

    def drop_engine(self, user: UserKey, engine_id: str) -> None:
        """Forget an engine that the store has let go of."""
        engine = self._engines.pop((user, engine_id), None)
        if engine is not None:
            engine.retire()
            self._metrics.engines_cleaned += 1

    def runs(self, user: UserKey) -> UserRuns:
        """The user's runs."""
        runs = self._users.get(user)
        if runs is None:
            runs = self._users[user] = UserRuns()
            self._forget_idle_user()
        else:
            self._users.move_to_end(user)
        return runs

    def known(self, user: UserKey) -> UserRuns | None:
        """The user's runs, if there were any lately."""
        return self._users.get(user)

    def remember(self, run: RunRecord, outcome: RunState, seconds: float) -> None:
        """A run's outcome is decided."""
        self.runs(run.identity.user).history.append(RunSummary(run.identity.run_id, run.agent_name, outcome, seconds))

    def _forget_idle_user(self) -> None:
        if len(self._users) <= _MAX_USERS:
            return
        idle = next((user for user, runs in self._users.items() if not runs.active), None)
        if idle is not None:
            del self._users[idle]

"""What the run store should do, in plain Python: no SQL, no transactions, one thing after the other.

The state machine in `test_run_machine` does everything twice, here and in the store, and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from services.execution.models import RunState, StageState, ThreadStrategy

Q, R, W, F = RunState.QUEUED, RunState.RUNNING, RunState.WAITING, RunState.FINISHING
LIVE = frozenset({Q, R, W})
UNENDED = LIVE | {F}
SECOND = 1_000_000
LIFETIME = 300 * SECOND
DAY = 24 * 3600 * SECOND

Key = tuple[str, str]


@dataclass
class Limits:
    """The limits of every admission."""

    engines: int = 2
    unended: int = 4
    total_active: int = 3
    total_unended: int = 6
    per_minute: int = 60
    burst: int = 9


@dataclass
class ModelStage:
    """A stage of a run."""

    state: StageState = StageState.PENDING
    attempt: int = 0
    lost: int = 0
    journal: set[int] = field(default_factory=set)


@dataclass
class ModelRun:
    """A run."""

    user: str
    run_id: str
    thread: str
    created: int
    place: int
    holder: str
    client_ref: str
    state: RunState = Q
    outcome: RunState | None = None
    fence: int = 1
    started: int | None = None
    deadline: int = 0
    left: int = 0
    queued_at: int = 0
    engine: bool = False
    question: str = ""
    expires: int = 0
    answers: dict[str, bytes] = field(default_factory=dict)
    stages: list[ModelStage] = field(default_factory=lambda: [ModelStage(), ModelStage()])
    events: list[str] = field(default_factory=list)

    @property
    def running(self) -> ModelStage | None:
        """The stage that runs or waits."""
        return next((s for s in self.stages if s.state in (StageState.RUNNING, StageState.WAITING)), None)


class Model:
    """Users, threads, runs, engines, leases. Methods that refuse return the error's code and have changed nothing."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.limits = Limits()
        self.runs: dict[Key, ModelRun] = {}
        self.threads: dict[Key, list[tuple[str, str]]] = {}
        self.reserved: dict[Key, int] = {}
        self.refs: dict[Key, tuple[str, str, int]] = {}
        self.buckets: dict[str, tuple[Fraction, int]] = {}
        self.served: dict[str, int] = {}
        # Processes whose lease is over.
        self.over: set[str] = set()

    # What is so

    def live(self, user: str, thread: str) -> list[ModelRun]:
        """The thread's runs that QUEUED, RUNNING or WAITING, in their order."""
        found = [r for r in self.runs.values() if (r.user, r.thread) == (user, thread) and r.state in LIVE]
        return sorted(found, key=lambda run: run.place)

    def engines(self, user: str | None = None) -> int:
        """Engines in use, reserved ones among them."""
        held = sum(run.engine for run in self.runs.values() if user in (None, run.user))
        return held + sum(1 for (owner, _), end in self.reserved.items() if user in (None, owner) and end > self.now)

    def unended(self, user: str | None = None) -> int:
        """Runs that have not ended."""
        return sum(run.state in UNENDED for run in self.runs.values() if user in (None, run.user))

    # What happens

    def admit(  # noqa: C901, PLR0912 -- the contract's list of rules, in its order
        self, key: Key, thread: str, strategy: ThreadStrategy, *, ref: str, content: str, engine: str, holder: str
    ) -> str | ModelRun:
        """Admit a run; the run there was, the new one, or why not."""
        user, run_id = key
        known = self.refs.get((user, ref)) if ref else None
        if known is not None and known[2] > self.now - DAY and (user, known[0]) in self.runs:
            return self.runs[user, known[0]] if known[1] == content else "IDEMPOTENCY_CONFLICT"
        others = self.live(user, thread)
        ends = strategy in (ThreadStrategy.INTERRUPT, ThreadStrategy.ROLLBACK)
        if others and strategy is ThreadStrategy.REJECT:
            return "THREAD_BUSY"
        gone = others if ends else []
        freed = sum(run.engine for run in gone)
        if self.unended(user) - len(gone) >= self.limits.unended:
            return "UNENDED_RUNS"
        if self.unended() - len(gone) >= self.limits.total_unended:
            return "ACTIVE_RUNS"
        level = self.bucket(user)
        if level < 1:
            return "RATE_LIMIT"
        behind = bool(others) and not ends
        waits = behind
        if engine:
            if self.reserved.get((user, engine), 0) <= self.now:
                return "UNKNOWN_ENGINE"
        elif not behind:
            full = self.engines(user) - freed >= self.limits.engines
            if full or self.engines() - freed >= self.limits.total_active:
                if strategy is not ThreadStrategy.ENQUEUE:
                    return "ENGINES_LIMIT" if full else "ACTIVE_RUNS"
                waits = True
        for run in gone:
            self.finish(run, RunState.CANCELLED)
        if strategy is ThreadStrategy.ROLLBACK and gone:
            names = {run.run_id for run in gone}
            self.threads[user, thread] = [m for m in self.threads[user, thread] if m[1] not in names]
        self.buckets[user] = (level - 1, self.now)
        self.reserved.pop((user, engine), None)
        place = others[-1].place + 1 if behind else 0
        run = self.runs[key] = ModelRun(user, run_id, thread, self.now, place, holder, ref, events=["run_accepted"])
        self.threads.setdefault((user, thread), [])
        if ref:
            self.refs[user, ref] = (run_id, content, self.now)
        run.queued_at = self.now
        if not waits:
            self._begin(run, LIFETIME)
        return run

    def bucket(self, user: str) -> Fraction:
        """Runs that the user may begin at once now."""
        level, at = self.buckets.get(user, (Fraction(self.limits.burst), self.now))
        grown = level + Fraction(max(0, self.now - at) * self.limits.per_minute, 60 * SECOND)
        return min(Fraction(self.limits.burst), grown)

    def promote(self, holder: str, limit: int) -> list[ModelRun]:
        """Begin what may, user by user."""
        begun: list[ModelRun] = []
        queues: dict[str, list[ModelRun]] = {}
        for run in sorted(self.runs.values(), key=lambda r: (r.created, r.place, r.run_id)):
            if run.state is Q and run.holder == holder and self.live(run.user, run.thread)[0] is run:
                queues.setdefault(run.user, []).append(run)
        before = dict(self.served)
        turn = 0
        while any(queues.values()):
            heads = [queue[turn] for queue in queues.values() if len(queue) > turn]
            if not heads:
                break
            last = before if turn == 0 else {}
            for run in sorted(heads, key=lambda r: (max(r.queued_at, last.get(r.user, 0)), r.user)):
                room = self.engines(run.user) < self.limits.engines and self.engines() < self.limits.total_active
                if room and len(begun) < limit:
                    self.served[run.user] = self.now
                    run.fence += 1
                    self._begin(run, LIFETIME if run.started is None else max(run.left, 60 * SECOND))
                    begun.append(run)
            turn += 1
        return begun

    def _begin(self, run: ModelRun, time: int) -> None:
        run.state, run.engine, run.deadline = R, True, self.now + time
        stage = run.running
        if stage is None:
            run.started = self.now
            run.stages[0] = ModelStage(StageState.RUNNING, 1)
            self.threads[run.user, run.thread].append(("user", run.run_id))
        else:
            stage.state = StageState.RUNNING
            stage.attempt += 1
            run.events.append("run_attempt")

    def checkpoint(self, run: ModelRun) -> None:
        """The first stage is done and the second begins."""
        run.stages[0].state = StageState.SUCCEEDED
        run.stages[0].journal = set()
        run.stages[1] = ModelStage(StageState.RUNNING, 1, journal=run.stages[1].journal)

    def attempt(self, run: ModelRun, *, lost: bool) -> None:
        """The stage is tried again."""
        assert run.running is not None
        run.running.attempt += 1
        run.running.lost += lost
        run.fence += 1
        run.events.append("run_attempt")

    def suspend(self, run: ModelRun, question: str, timeout: int) -> None:
        """The run waits for an answer."""
        assert run.running is not None
        run.state, run.engine, run.left, run.deadline = W, False, max(0, run.deadline - self.now), 0
        run.running.state = StageState.WAITING
        run.question, run.expires = question, self.now + timeout
        run.events.append("input_required")

    def answer(self, run: ModelRun, question: str, value: bytes) -> bool:
        """Whether the answer counts, or is the one there was."""
        if run.state is W and run.question == question and run.expires > self.now:
            run.state, run.queued_at, run.question = Q, self.now, ""
            run.answers[question] = value
            return True
        return run.question != question and run.answers.get(question) == value

    def finish(self, run: ModelRun, outcome: RunState) -> None:
        """The run's outcome is decided."""
        stage = run.running
        if outcome is RunState.SUCCEEDED:
            assert stage is run.stages[-1], "a run succeeds with its last stage"
            stage.state = StageState.SUCCEEDED
            self.threads[run.user, run.thread].append(("assistant", run.run_id))
        elif stage is not None:
            stage.state = StageState.FAILED
            run.events.append("agent_error")
        for other in run.stages:
            other.state = StageState.SKIPPED if other.state is StageState.PENDING else other.state
        run.state, run.outcome, run.engine, run.question = F, outcome, False, ""
        run.events.append("run_completed")

    def close(self, run: ModelRun) -> None:
        """The log has the run's end."""
        assert run.outcome is not None
        run.state = run.outcome
        run.events, run.answers = [], {}
        for stage in run.stages:
            stage.journal = set()

    def take_over(self, holder: str, *, restarted: bool) -> list[ModelRun]:
        """The process gets what nobody holds, and, after a restart, what it held before."""
        taken = []
        if restarted:
            self.over.discard(holder)
        for run in self.runs.values():
            mine = run.holder == holder
            if run.state in UNENDED and (restarted if mine else run.holder in self.over):
                run.holder = holder
                run.fence += 1
                taken.append(run)
        return taken

    def delete_thread(self, user: str, thread: str) -> set[str] | str | None:
        """The ids of its runs; None when there is no such thread; or why not."""
        if (user, thread) not in self.threads:
            return None
        runs = {run.run_id: run for run in self.runs.values() if (run.user, run.thread) == (user, thread)}
        if any(run.state in UNENDED for run in runs.values()):
            return "RUN_NOT_ENDED"
        del self.threads[user, thread]
        self.runs = {key: run for key, run in self.runs.items() if key[0] != user or key[1] not in runs}
        self.refs = {key: ref for key, ref in self.refs.items() if key[0] != user or ref[0] not in runs}
        return set(runs)

    def sweep(self) -> set[Key]:
        """Reservations whose time is over go; which."""
        lapsed = {key for key, end in self.reserved.items() if end <= self.now}
        for key in lapsed:
            del self.reserved[key]
        return lapsed

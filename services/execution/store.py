"""The run store's contract: what every implementation promises. No implementation is in here.

Everything is keyed by the verified user: an id of another user names nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.execution.models import (
    ArtifactRecord,
    AuditEntry,
    EngineRecord,
    InputRecord,
    JournalItem,
    MessageRecord,
    Micros,
    OutboxEvent,
    Page,
    RunRecord,
    RunRef,
    RunState,
    ThreadRecord,
    UserKey,
)
from services.execution.models_steps import (
    ALWAYS,
    Admission,
    Admitted,
    Again,
    Budget,
    Checkpoint,
    Finish,
    Finished,
    Question,
    Revocations,
    SignedOut,
    Span,
    Step,
    Sweep,
    Unended,
)

__all__ = ["ArtifactFolder", "PageKey", "RunStore"]

PageKey = tuple[int | str, ...]


class RunStore(Protocol):
    """Runs, engines, threads, the outbox, the journal and the audit trail.

    What holds after a crash: when a write's result has arrived, all of it is there, and it was there for every read
    that began later; one whose result has not arrived is there wholly or not at all. ``kill -9`` of the process never
    takes anything back; the machine's death does not either when the database syncs every commit.

    Writes that arrive together share a transaction, each within a savepoint: one that is refused undoes nothing of
    the others. A user's admissions happen one after the other, whatever the number of processes. Every write that
    names a ``RunRef`` is a compare-and-set: it returns None or False, and changes nothing, when the run's fence or
    state is no longer what the caller believes.

    ``shared`` says whether other processes may be on the same database at the same time.

    Every method raises ``StoreUnavailableError`` when the database cannot be used (locked, full, read-only); then
    nothing of the call is in effect, and calls work again once the cause is gone, without a restart.
    """

    shared: bool

    def now(self) -> Micros:
        """Now, on the clock that all processes on this store share."""
        ...

    # Admission and engines

    async def admit(self, admission: Admission) -> Admitted:
        """Admit a run, with its engine, stages, user message and ``run_accepted`` in the outbox, in one transaction.

        The first of these that applies:

        1. ``client_ref`` was used within 24 h: the run of that time, ``existing``, or ``IdempotencyConflictError``
           when its content was another.
        2. The run is there: ``existing`` when content and ``client_ref`` are the same, else ``AlreadyExistsError``.
        3. The thread has runs that are QUEUED, RUNNING or WAITING. ``reject``: ``ThreadBusyError``. ``enqueue``: the
           run is admitted QUEUED. ``interrupt`` and ``rollback``: those runs are ended here (``Admitted.ended``,
           CANCELLED), and what they held counts as free below; ``rollback`` also removes their messages.
        4. ``max_unended`` runs of the user have not ended: ``UnendedRunsError``; of all: ``ActiveRunsError``.
        5. More than the user's rate: ``RateLimitError``.
        6. ``engine_id`` names no free reservation of the user's: ``UnknownEngineError``.
        7. ``max_engines`` are active: ``EnginesLimitError``; of all users ``max_active_total``: ``ActiveRunsError``;
           with ``enqueue`` the run is admitted QUEUED instead. A reservation counts and is consumed.

        A refusal changes nothing: no run is ended, no rate used. Each names its limit, its value, the use, and when to
        try again. A QUEUED run has no engine (a reservation that it named is given back), no deadline (``deadline_at``
        0), its stages pend, and its user message comes into the thread when it begins.

        The limits of one user hold exactly. So do those of all users, unless more than 64 admissions are under way at
        once in all processes together: those are counted under a lock only near the limit.
        """
        ...

    async def promote(self, limit: int) -> tuple[Step, ...]:
        """Begin QUEUED runs of this process's that may: QUEUED becomes RUNNING, with an engine and the next fence.

        A run may begin when it is the oldest QUEUED, RUNNING or WAITING one of its thread, its user has fewer than
        ``max_engines`` and all users fewer than ``max_active_total``, the limits that each was admitted under. Users
        take turns: the user first who has waited longest since a run of theirs was queued or last had its turn, of
        each user the oldest run first. A run that begins gets its whole engine time, and its user message joins the
        thread; one that goes on after an answer gets what was left of its time (at least 60 s, or the whole when that
        is less), the next attempt of its stage and ``run_attempt`` (``input_provided``) in the outbox.

        It may be called at any time, and is to be when an engine, a thread or a question has become free: after
        ``Finished.queued``, ``suspend``, ``release_engine``, ``provide_input``, and now and then for what others did.
        """
        ...

    async def reserve_engine(self, user: UserKey, engine_id: str, max_engines: int) -> EngineRecord:
        """Reserve an engine. Raises ``EnginesLimitError``."""
        ...

    async def release_engine(self, user: UserKey, engine_id: str) -> bool:
        """Give back a reservation; False when there is no such one (an engine with a run is freed by ``finish``)."""
        ...

    async def get_engine(self, user: UserKey, engine_id: str) -> EngineRecord | None:
        """An active engine of the user's."""
        ...

    async def list_engines(self, user: UserKey | None, limit: int, after: PageKey | None) -> Page[EngineRecord]:
        """Active engines, the user's or (None) everybody's."""
        ...

    # A run's way

    async def checkpoint(self, ref: RunRef, step: Checkpoint) -> RunRecord | None:
        """Record a stage's result, add planned stages, begin the next stage: the run as it then is. Its journal goes.

        Raises ``QuotaError`` when the user's agents would keep too much in all; so does ``finish``.
        """
        ...

    async def begin_attempt(self, ref: RunRef, stage: int, why: Again, *, lost: bool) -> Step | None:
        """The next attempt of the stage that runs: attempt and fence go up by one, ``run_attempt`` is in the outbox.

        From here on the former attempt, wherever it still is, can write neither here nor into the log.

        ``lost``: whether the former attempt counts against ``max_attempts`` (``StageRecord.lost`` goes up).
        """
        ...

    async def suspend(self, ref: RunRef, question: Question, timeout_s: float) -> Step | None:
        """RUNNING becomes WAITING: the stage waits, the engine is freed, ``input_required`` is in the outbox.

        What is left of the run's time is kept. The process keeps the lease: it goes on relaying the outbox.
        """
        ...

    async def provide_input(self, user: UserKey, run_id: str, input_id: str, value: bytes) -> RunRecord | None:
        """Answer the question: WAITING becomes QUEUED, and the holder's next ``promote`` lets it go on.

        None when the user has no such run. The same answer again changes nothing.

        Raises ``NotWaitingError`` when the run does not wait for this question, it was answered otherwise, or its time
        is over (so that no answer comes between ``expired_inputs`` and the run's end).
        """
        ...

    async def answers(self, user: UserKey, run_id: str, stage: int) -> tuple[InputRecord, ...]:
        """The answered questions of a stage, in the order they were asked."""
        ...

    async def expired_inputs(self) -> tuple[RunRecord, ...]:
        """WAITING runs of this process's whose question nobody has answered in time, up to 500; nothing is changed."""
        ...

    async def decided(self, runs: Sequence[tuple[UserKey, str]]) -> frozenset[tuple[UserKey, str]]:
        """Those of the runs that are no longer this process's to go on with: ended, or taken over, by another; gone."""
        ...

    # Model budgets

    async def budget(self, user: UserKey, tokens: int, concurrency: int, period_s: float) -> Budget:
        """What is left of ``tokens`` in the present period (whole periods since the epoch, on the database's clock)."""
        ...

    async def use_budget(self, ref: RunRef, used: int, tokens: int, concurrency: int, period_s: float) -> Budget:
        """Count tokens that were used, whatever the run's fence or state is by now, and return what is left."""
        ...

    async def finish(self, ref: RunRef, finish: Finish) -> Finished | None:
        """The one compare-and-set from an unended state (not FINISHING) to FINISHING(outcome).

        In the same transaction: the stage that runs and those that pend are ended, the engine is freed, the last
        events are in the outbox, the reply is in the thread; what stages have kept counts if it succeeds, else it goes.
        Of racing callers exactly one gets the events.
        """
        ...

    async def close_run(self, ref: RunRef) -> bool:
        """FINISHING becomes its outcome, once the log has its last event; outbox, journal, questions and answers go."""
        ...

    async def outbox(self, user: UserKey, run_id: str) -> tuple[OutboxEvent, ...]:
        """The run's own events, from number 1; empty once the run is terminal."""
        ...

    async def save_journal(self, ref: RunRef, stage: int, entries: Sequence[JournalItem]) -> bool:
        """Keep completed calls of a stage; repeating a number changes nothing."""
        ...

    async def journal(self, user: UserKey, run_id: str, stage: int) -> tuple[JournalItem, ...]:
        """The stage's completed calls, by number."""
        ...

    async def memory(self, user: UserKey, thread_id: str, agent_name: str) -> bytes:
        """What the agent has kept in the thread, in the last run that succeeded and where it did; or empty."""
        ...

    # Leases

    async def take_over(self) -> tuple[RunRecord, ...]:
        """Make this process the holder of every unended run that it held in a former life, or whose holder is gone.

        Each gets the next fencing number. A process has one lease for all its runs, on the database's clock; the first
        admission or take-over begins it. QUEUED and WAITING runs have holders too: they relay their outbox and begin
        them.
        """
        ...

    async def renew_leases(self) -> None:
        """Prolong this process's lease."""
        ...

    async def release_leases(self) -> None:
        """Let this process's lease expire now, so that another may take its runs over at once."""
        ...

    async def place_attempt(self, ref: RunRef, address: str) -> bool:
        """Keep where the agent_instance is that runs the present attempt; False when the run is no longer this one."""
        ...

    # Among all replicas

    async def claim_once(self, name: str, ttl_s: float) -> bool:
        """Whether this call is the first to ask for the name, which is kept for ``ttl_s``."""
        ...

    async def revoke_user(self, user: UserKey, reason: str) -> Micros:
        """Record that the user's logins and tickets of before now are worth nothing; that moment."""
        ...

    async def revocations(self, after: Micros) -> Revocations:
        """The latest revocation of each user recorded after a time (the ``as_of`` of before, or 0 for all)."""
        ...

    async def sign_out(self, user: UserKey, login: str, expires_at: Micros) -> None:
        """Record that a login is worth nothing any more; forgotten when it would have ended by itself.

        Raises ``LimitExceededError`` when a thousand of the user's are recorded and have not ended.
        """
        ...

    async def signed_out(self, after: Micros, limit: int, page: PageKey | None) -> Page[SignedOut]:
        """Logins that were signed out after a time (``as_of`` of ``revocations``, or 0 for all), in that order."""
        ...

    # Runs bound to their caller

    async def keep(self, user: UserKey, run_id: str) -> bool:
        """Note that this process has a caller who keeps the run alive; False when it is not bound, or has ended."""
        ...

    async def let_go(self, user: UserKey, run_id: str) -> bool:
        """Take the note back; whether it was the last one of a run that goes on."""
        ...

    async def is_kept(self, user: UserKey, run_id: str) -> bool:
        """Whether any process whose lease is not over has such a note."""
        ...

    # Reading

    async def get_run(self, user: UserKey, run_id: str) -> RunRecord | None:
        """The run with its stages and artifacts."""
        ...

    async def list_runs(
        self, user: UserKey, thread_id: str, states: frozenset[RunState], limit: int, after: PageKey | None
    ) -> Page[RunRecord]:
        """The user's runs, newest first, without messages, params and results; empty filters take all.

        Here and in ``messages`` a page is shorter than ``limit`` when it would not fit into a message of gRPC's.
        """
        ...

    async def history(self, user: UserKey, thread_id: str, before_run: str, limit: int) -> tuple[MessageRecord, ...]:
        """The last ``limit`` messages of a thread that are not of ``before_run``, oldest first."""
        ...

    async def list_threads(self, user: UserKey, limit: int, after: PageKey | None) -> Page[ThreadRecord]:
        """The user's threads, latest activity first."""
        ...

    async def get_thread(self, user: UserKey, thread_id: str) -> ThreadRecord | None:
        """One thread."""
        ...

    async def messages(self, user: UserKey, thread_id: str, limit: int, after: PageKey | None) -> Page[MessageRecord]:
        """A thread's messages, oldest first."""
        ...

    async def delete_thread(self, user: UserKey, thread_id: str) -> tuple[str, ...] | None:
        """Delete a thread with messages, runs, artifacts; the ids of its runs, or None when there is none.

        Raises ``RunNotEndedError`` while a run of it has not ended.
        """
        ...

    # Artifacts and audit

    async def save_artifact(self, ref: RunRef, artifact: ArtifactRecord, quota: int, per_run: int) -> bool:
        """Record stored bytes, in place of those of the same name; False when the run is no longer the caller's.

        Raises ``QuotaError`` when the user's artifacts would exceed ``quota`` bytes, or the run's ``per_run`` of them.
        """
        ...

    async def get_artifact(self, user: UserKey, run_id: str, name: str) -> ArtifactRecord | None:
        """One artifact's record."""
        ...

    async def save_audit(self, entries: Sequence[AuditEntry]) -> None:
        """Keep audit records; repeating an id changes nothing."""
        ...

    async def list_audit(
        self, user: UserKey | None, run_id: str, limit: int, after: PageKey | None, span: Span = ALWAYS
    ) -> Page[AuditEntry]:
        """Audit records of the user or (None) of everybody, begun within a span of time; the newest first, if not asked
        otherwise. With the oldest first every page that has a record tells the place after its last one: later ones
        may come.
        """
        ...

    async def expire_audit(self, before: Micros) -> int:
        """Forget some of the audit records of acts begun before then, the oldest first; how many."""
        ...

    # Care

    async def expire_artifacts(self, before: Micros) -> tuple[tuple[UserKey, ArtifactRecord], ...]:
        """Forget some of the artifacts stored before then, oldest first, and return them; empty when none is left."""
        ...

    async def expire_memories(self, before: Micros, after: PageKey | None) -> PageKey | None:
        """Of a thousand memories forget those of before then, or whose run is gone or failed; where to go on."""
        ...

    async def sweep(self) -> Sweep:
        """Remove lapsed reservations, engines without live runs, old ``client_ref`` and budgets; tell overdue ones."""
        ...

    async def backlog(self) -> Mapping[RunState, Unended]:
        """How many runs of all processes are in each state that has not ended, and for how long."""
        ...

    async def probe(self) -> None:
        """Write and read back something of no meaning; returns when the store really works, else raises."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then release everything. Calling it again does nothing."""
        ...


class ArtifactFolder(Protocol):
    """The bytes of artifacts. The run store says which of them count; a file without a row is nobody's."""

    async def put(self, user: UserKey, run_id: str, data: bytes) -> str:
        """Store bytes and return their SHA-256 in hex; when this returns, the bytes survive the process's death.

        Raises ``StoreUnavailableError`` when they cannot be written; nothing is left behind then.
        """
        ...

    async def read(self, user: UserKey, run_id: str, sha256: str) -> bytes:
        """The bytes. Raises ``CorruptStoreError`` when they are gone or changed."""
        ...

    async def remove(self, user: UserKey, run_id: str, sha256: str) -> None:
        """Remove one file; removing one that is gone does nothing."""
        ...

    async def remove_run(self, user: UserKey, run_id: str) -> None:
        """Remove every file of a run."""
        ...

    async def probe(self) -> None:
        """Raises ``StoreUnavailableError`` unless the folder can be written now."""
        ...

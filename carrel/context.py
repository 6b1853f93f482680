"""``UserExecutionContext``: who a piece of work is for. Frozen, checked when made, and sharing nothing with any other.

Not the proof of it: permissions live in the signed ticket, which servicekit verifies. Nor the wire form, which is
``carrel.wire``'s.
The rules are REQUIREMENTS §2's, as narrowed by the architecture's section on identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from carrel.errors import ContextIsolationError, InvalidContextError, InvalidRequestError
from carrel.frozen import MAX_EXACT_INT, FrozenDict, freeze_map, is_frozen, json_size, thaw
from carrel.ids import MAX_REQUEST_ID_LENGTH, check_id, check_minted_id, check_operation_name, new_id

__all__ = ["MAX_DEPTH", "MAX_METADATA_BYTES", "Scope", "UserContextFactory", "UserExecutionContext"]

MAX_DEPTH: Final = 16
MAX_METADATA_BYTES: Final = 16 * 1024

Scope = Literal["run", "session", "service"]


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserExecutionContext:
    """Whose work this is, in which thread, run and request.

    Which ids are set depends on the scope: ``run`` (user, thread, run, request), ``session`` (user), ``service``
    (none). Ids that are not set are ``""``; ``websocket_client_id`` and ``parent_request_id`` None.

    ``agent_context`` and ``audit_metadata`` are copied in and read-only all the way down; together at most 16 KiB of
    JSON. A database session and a WebSocket connection can be bound to a copy; they never leave the process: not in
    ``to_dict``, not on the wire, not pickled, not compared, not inherited by children.

    Raises:
        InvalidContextError: A field breaks a rule; ``fields`` of the error names it.
    """

    user_id: str = ""
    thread_id: str = ""
    run_id: str = ""
    request_id: str
    websocket_client_id: str | None = None
    created_at: datetime = field(default_factory=_now)
    agent_context: Mapping[str, Any] = field(default_factory=FrozenDict)
    audit_metadata: Mapping[str, Any] = field(default_factory=FrozenDict)
    operation_depth: int = 0
    parent_request_id: str | None = None
    ticket: str = field(default="", repr=False)
    _db_session: Any = field(default=None, init=False, repr=False, compare=False)
    _websocket: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_ids()
        self._check_lineage()
        created: object = self.created_at
        if not isinstance(created, datetime) or created.tzinfo is None:
            raise _invalid("created_at", "must be a datetime with a time zone")
        ticket: object = self.ticket
        if not isinstance(ticket, str):
            raise _invalid("ticket", "must be a string")
        put = object.__setattr__
        if created.tzinfo is not UTC:
            try:
                put(self, "created_at", created.astimezone(UTC))
            except OverflowError:
                raise _invalid("created_at", "is beyond the years 1 to 9999 in UTC") from None
        agent_context, audit_metadata = _freeze_metadata(self.agent_context, self.audit_metadata)
        put(self, "agent_context", agent_context)
        put(self, "audit_metadata", audit_metadata)

    def _check_ids(self) -> None:
        # Outside a run there may be no request's id, and under a ticket there must be none.
        if self.request_id != "" or self.run_id or self.thread_id:
            check_minted_id(self.request_id, "request_id", MAX_REQUEST_ID_LENGTH)
        if self.run_id or self.thread_id:
            check_id(self.user_id, "user_id")
            check_minted_id(self.thread_id, "thread_id")
            check_minted_id(self.run_id, "run_id")
        elif self.user_id:
            check_id(self.user_id, "user_id")
        if any(type(value) is not str for value in (self.user_id, self.thread_id, self.run_id)):
            raise _invalid("user_id, thread_id and run_id", "are empty strings when they are not set")
        if self.websocket_client_id is not None:
            check_minted_id(self.websocket_client_id, "websocket_client_id")

    def _check_lineage(self) -> None:
        depth, parent = self.operation_depth, self.parent_request_id
        if type(depth) is not int or depth < 0:
            raise _invalid("operation_depth", "must be an integer from 0")
        if depth > MAX_DEPTH:
            raise _invalid("operation_depth", f"is {depth}; children may nest at most {MAX_DEPTH} deep")
        if (parent is None) != (depth == 0):
            raise _invalid("parent_request_id", "must be set exactly when operation_depth is above 0")
        if parent is not None:
            check_id(parent, "parent_request_id", MAX_REQUEST_ID_LENGTH)
            if not self.request_id.startswith(parent + "_") or len(self.request_id) == len(parent) + 1:
                raise _invalid("request_id", "must be <parent_request_id>_<operation_name>")

    def __hash__(self) -> int:
        return hash((self.user_id, self.run_id, self.request_id))

    def __repr__(self) -> str:
        who = self.user_id or "(service)"
        ticket = "****" if self.ticket else ""
        return (
            f"UserExecutionContext(scope={self.scope!r}, user_id={who!r}, thread_id={self.thread_id!r}, "
            f"run_id={self.run_id!r}, request_id={self.request_id!r}, depth={self.operation_depth}, ticket={ticket!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt through the checks, and without what is bound to this process.
        return UserExecutionContext.from_dict, (self.to_dict(with_ticket=True),)

    @classmethod
    def for_session(
        cls, user_id: str, *, websocket_client_id: str | None = None, ticket: str = ""
    ) -> UserExecutionContext:
        """A context of *session* scope: a user outside any run, as connections and questions need it."""
        check_id(user_id, "user_id")
        return cls(user_id=user_id, request_id="", websocket_client_id=websocket_client_id, ticket=ticket)

    @classmethod
    def for_service(cls, service: str, *, ticket: str = "") -> UserExecutionContext:
        """A context of *service* scope: no user; ``service`` says who calls and is kept in the audit metadata."""
        check_id(service, "service")
        return cls(request_id="", audit_metadata={"service": service}, ticket=ticket)

    @property
    def scope(self) -> Scope:
        """``run``, ``session`` or ``service``, by the ids that are set."""
        if self.run_id:
            return "run"
        return "session" if self.user_id else "service"

    @property
    def db_session(self) -> Any:
        """The database session bound to this copy, or None."""
        return self._db_session

    @property
    def websocket_connection(self) -> Any:
        """The WebSocket connection bound to this copy, or None."""
        return self._websocket

    def with_db_session(self, session: object) -> UserExecutionContext:
        """An equal context with a database session bound to it, in this process only."""
        return _bind(replace(self), session, self._websocket)

    def with_websocket_connection(self, connection: object) -> UserExecutionContext:
        """An equal context with a WebSocket connection bound to it, in this process only."""
        return _bind(replace(self), self._db_session, connection)

    def with_ticket(self, ticket: str) -> UserExecutionContext:
        """The same context with another (fresher) ticket; what is bound stays bound."""
        return _bind(replace(self, ticket=ticket), self._db_session, self._websocket)

    def create_child_context(self, operation_name: str, **metadata: Any) -> UserExecutionContext:
        """The context of an operation inside this one: same user, thread and run, ``<request_id>_<operation_name>``.

        ``metadata`` is added to the inherited ``agent_context``; the operation's name to both maps. Two children of one
        name have the same ``request_id``: who opens many takes the names from ``carrel.ids.ChildIds``.

        Raises:
            InvalidContextError: The name is malformed, the depth is ``MAX_DEPTH``, the id grows too long, or this is a
                session's or service's context, which is no request that could have parts.
        """
        check_operation_name(operation_name)
        if not self.request_id:
            raise _invalid("request_id", f"is required of who opens children; a {self.scope} context has none")
        if self.operation_depth >= MAX_DEPTH:
            raise _invalid(
                "operation_depth", f"is at its bound: child contexts may nest at most {MAX_DEPTH} levels deep"
            )
        audit = {
            "operation_name": operation_name,
            "parent_operation": self.audit_metadata.get("operation_name", "root"),
        }
        return UserExecutionContext(
            user_id=self.user_id,
            thread_id=self.thread_id,
            run_id=self.run_id,
            request_id=f"{self.request_id}_{operation_name}",
            websocket_client_id=self.websocket_client_id,
            agent_context={**self.agent_context, **metadata, "operation_name": operation_name},
            audit_metadata={**self.audit_metadata, **audit},
            operation_depth=self.operation_depth + 1,
            parent_request_id=self.request_id,
            ticket=self.ticket,
        )

    def verify_isolation(self, *others: UserExecutionContext) -> bool:
        """True when nothing mutable is reachable from this context, nor shared with any of the ``others``.

        What is bound locally may be shared with other copies of the same request, and with nobody else.

        Raises:
            ContextIsolationError: It is not so.
        """
        for name in ("agent_context", "audit_metadata"):
            value = getattr(self, name)
            if type(value) is not FrozenDict or not is_frozen(value):
                raise ContextIsolationError(f"{name} holds an object that can be changed", field=name)
        for other in others:
            if self._is_copy(other):
                continue
            for name, mine, theirs in (
                ("database session", self.db_session, other.db_session),
                ("WebSocket connection", self.websocket_connection, other.websocket_connection),
            ):
                if mine is not None and mine is theirs:
                    raise ContextIsolationError(f"two contexts share one {name}", field=name)
        return True

    def _is_copy(self, other: UserExecutionContext) -> bool:
        # Without a request's id, two calls of one user differ in their time only.
        mine, theirs = ((c.user_id, c.run_id, c.request_id or c.created_at) for c in (self, other))
        return mine == theirs

    def get_correlation_id(self) -> str:
        """One line that ties logs together: a hash of the user, then thread, run, request; ``-`` for what is unset.

        Outside a run the connection stands for the request, and a service for the user.
        """
        user = hashlib.sha256(self.user_id.encode()).hexdigest()[:8] if self.user_id else ""
        who, request = user or self.audit_metadata.get("service"), self.request_id or self.websocket_client_id
        return ":".join(str(part or "-") for part in (who, self.thread_id, self.run_id, request))

    def get_audit_trail(self) -> dict[str, Any]:
        """What an audit record says of this context: ids, lineage, age in seconds, what is bound, audit metadata."""
        return {
            "correlation_id": self.get_correlation_id(),
            "scope": self.scope,
            "user_id": self.user_id,
            "thread_id": self.thread_id,
            "run_id": self.run_id,
            "request_id": self.request_id,
            "parent_request_id": self.parent_request_id,
            "operation_depth": self.operation_depth,
            "operation_name": self.audit_metadata.get("operation_name", "root"),
            "websocket_client_id": self.websocket_client_id,
            "created_at": _iso(self.created_at),
            "context_age_s": round((_now() - self.created_at) / timedelta(seconds=1), 6),
            "has_db_session": self._db_session is not None,
            "has_websocket_connection": self._websocket is not None,
            "audit_metadata": thaw(self.audit_metadata),
        }

    def to_dict(self, *, with_ticket: bool = False) -> dict[str, Any]:
        """Every field as mutable JSON values. The ticket is a secret: only with ``with_ticket``."""
        data: dict[str, Any] = {
            "user_id": self.user_id,
            "thread_id": self.thread_id,
            "run_id": self.run_id,
            "request_id": self.request_id,
            "websocket_client_id": self.websocket_client_id,
            "created_at": _iso(self.created_at),
            "agent_context": thaw(self.agent_context),
            "audit_metadata": thaw(self.audit_metadata),
            "operation_depth": self.operation_depth,
            "parent_request_id": self.parent_request_id,
        }
        if with_ticket:
            data["ticket"] = self.ticket
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> UserExecutionContext:
        """What ``to_dict`` gave, checked again.

        Raises:
            InvalidContextError: A field is missing, unknown or wrong.
        """
        unknown = sorted(str(name) for name in set(data) - _FIELDS)
        if unknown:
            raise _invalid(unknown[0], "is no field of a context")
        if "request_id" not in data:
            raise _invalid("request_id", "is required")
        values = dict(data)
        if "created_at" in values:
            try:
                values["created_at"] = datetime.fromisoformat(values["created_at"])
            except (TypeError, ValueError):
                raise _invalid("created_at", "must be an ISO 8601 time") from None
        return cls(**values)


_FIELDS: Final = frozenset(name for name in UserExecutionContext.__dataclass_fields__ if not name.startswith("_"))


def _bind(copy: UserExecutionContext, session: object, connection: object) -> UserExecutionContext:
    object.__setattr__(copy, "_db_session", session)
    object.__setattr__(copy, "_websocket", connection)
    return copy


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _invalid(name: str, problem: str) -> InvalidContextError:
    return InvalidContextError(f"{name} {problem}", fields={name: problem}, field=name)


def _freeze_metadata(agent_context: object, audit_metadata: object) -> tuple[FrozenDict, FrozenDict]:
    try:
        agent = freeze_map(agent_context, "agent_context", MAX_EXACT_INT)
        audit = freeze_map(audit_metadata, "audit_metadata", MAX_EXACT_INT)
    except InvalidRequestError as error:
        raise InvalidContextError(error.message, fields=dict(error.fields)) from None
    size = (json_size(agent) if agent else 0) + (json_size(audit) if audit else 0)
    if size > MAX_METADATA_BYTES:
        raise _invalid(
            "agent_context and audit_metadata", f"are {size} bytes of JSON; at most {MAX_METADATA_BYTES} are allowed"
        )
    return agent, audit


class UserContextFactory:
    """Makes contexts from what a front end knows of a request: ids checked or minted, audit trail set up.

    It knows no web framework: the caller passes the authenticated user and the facts it wants audited.
    """

    @staticmethod
    def from_request(
        user_id: str,
        *,
        thread_id: str | None = None,
        run_id: str | None = None,
        request_id: str | None = None,
        websocket_client_id: str | None = None,
        agent_context: Mapping[str, Any] | None = None,
        audit: Mapping[str, Any] | None = None,
    ) -> UserExecutionContext:
        """A root context of *run* scope; ids that are None are minted.

        ``audit`` is what to remember of the request (route, address, client…): never a payload or a token.

        Raises:
            InvalidContextError: A given id or map breaks a rule.
        """
        check_id(user_id, "user_id")
        if request_id is not None and "_" in request_id:
            raise _invalid("request_id", "of a root request may not hold '_', which sets off the names of children")
        now = _now()
        trail = {"source": "request", "received_at": _iso(now), **(audit or {})}
        return UserExecutionContext(
            user_id=user_id,
            thread_id=new_id("thread") if thread_id is None else thread_id,
            run_id=new_id("run") if run_id is None else run_id,
            request_id=new_id("req") if request_id is None else request_id,
            websocket_client_id=websocket_client_id,
            created_at=now,
            agent_context=agent_context or {},
            audit_metadata=trail,
        )

    @classmethod
    def from_request_supervisor(
        cls, user_id: str, metadata: Mapping[str, Any], **ids: str | None
    ) -> UserExecutionContext:
        """``from_request`` for a caller with one flat map of metadata, as the supervisor's callers have.

        Keys that begin with ``audit_`` go to the audit trail, without that prefix; all others to ``agent_context``,
        where ``agent_name`` defaults to ``supervisor``.
        """
        audit = {name.removeprefix("audit_"): v for name, v in metadata.items() if name.startswith("audit_")}
        agent = {name: v for name, v in metadata.items() if not name.startswith("audit_")}
        unknown = set(ids) - {"thread_id", "run_id", "request_id", "websocket_client_id"}
        if unknown:
            raise TypeError(f"unknown ids: {', '.join(sorted(unknown))}")
        context = {"agent_name": "supervisor", **agent}
        return cls.from_request(user_id, agent_context=context, audit={"source": "supervisor", **audit}, **ids)

    @staticmethod
    def create_child(parent: UserExecutionContext, operation_name: str, **metadata: Any) -> UserExecutionContext:
        """``parent.create_child_context``, under the name the documents give it here."""
        return parent.create_child_context(operation_name, **metadata)

    @staticmethod
    def validate(context: UserExecutionContext) -> UserExecutionContext:
        """Check a context anew, isolation included, and return it.

        Raises:
            InvalidContextError: A field breaks a rule.
            ContextIsolationError: Something mutable is reachable from it.
        """
        context.verify_isolation()
        UserExecutionContext.from_dict(context.to_dict(with_ticket=True))
        return context

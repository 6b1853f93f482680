"""Spans as the code sees them: begin one, carry its context on, say how it ended. Nothing here needs OpenTelemetry.

The default does nothing. A trace is carried as W3C text (``traceparent``): in gRPC metadata, in a run's row, in events.
Whether it is kept is decided once, where it begins; everybody else looks at the text's last digit before any work.
An attribute is never a payload, a name of a user or the text of an error.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final, Protocol, Self, TypeAlias

__all__ = [
    "METADATA_KEY",
    "NO_SPAN",
    "NO_TRACING",
    "Attribute",
    "Kind",
    "Span",
    "Tracing",
    "as_traceparent",
    "carried",
    "current_span",
    "is_sampled",
    "leave_span",
]

METADATA_KEY: Final = "traceparent"
_LENGTH: Final = 55
_ODD: Final = "13579bdf"
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Attribute: TypeAlias = str | bool | int | float
_NOTHING: Final[Mapping[str, Attribute]] = {}


class Kind(enum.Enum):
    """Which side of a call a span is."""

    INTERNAL = 0
    SERVER = 1
    CLIENT = 2
    PRODUCER = 3
    CONSUMER = 4


def is_sampled(traceparent: str) -> bool:
    """Whether the trace of a text that we have made ourselves is kept."""
    return len(traceparent) == _LENGTH and traceparent[-1] in _ODD


def as_traceparent(text: str) -> str:
    """The text where it is a trace context of W3C's version 00; else "". For what comes from outside."""
    return text if len(text) == _LENGTH and _TRACEPARENT.fullmatch(text) else ""


class Span:
    """A piece of work in a trace. This one records nothing; it may carry a trace that is not kept.

    In a ``with`` statement it is the current span, an exception that leaves it is its failure, and it ends with it.
    """

    __slots__ = ("_token", "traceparent")

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent
        self._token: Token[Span] | None = None

    @property
    def recording(self) -> bool:
        """Whether anything that it is told is kept."""
        return False

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, or "" outside a trace."""
        return self.traceparent[3:35]

    @property
    def span_id(self) -> str:
        """16 hexadecimal digits, or "" outside a trace."""
        return self.traceparent[36:52]

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Add attributes."""

    def note(self, name: str, attributes: Mapping[str, Attribute] = _NOTHING) -> None:
        """Something that happened in it at this moment."""

    def fail(self, reason: str) -> None:
        """It did not succeed; ``reason`` is an error's code or class, never its text."""

    def end(self) -> None:
        """The work is done. Idempotent."""

    def __enter__(self) -> Self:
        # One that carries nothing leaves the current one as it is.
        if self.traceparent:
            self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        if token is not None:
            # A generator that nobody closed is closed by the loop, in a context where nothing is to be undone.
            with contextlib.suppress(ValueError):
                _current.reset(token)
        if error is not None:
            self._left_by(error)
        self.end()

    def _left_by(self, error: BaseException) -> None:
        """An exception has left the block."""


NO_SPAN: Final = Span()
_current: ContextVar[Span] = ContextVar("servicekit_span", default=NO_SPAN)


def current_span() -> Span:
    """The span that this task is in; ``NO_SPAN`` outside of any."""
    return _current.get()


def leave_span() -> None:
    """Be in no span any more, for work that goes on after it (``TaskOwner`` does this for its tasks)."""
    _current.set(NO_SPAN)


def carried(traceparent: str) -> Span:
    """The trace that a text names, to go on in it in a ``with`` statement without a span of one's own."""
    return Span(traceparent) if traceparent else NO_SPAN


class Tracing(Protocol):
    """Makes spans. Never raises, never waits."""

    def begin(
        self, name: str, attributes: Mapping[str, Attribute] = _NOTHING, *, kind: Kind = Kind.SERVER, incoming: str = ""
    ) -> Span:
        """The first span of a new trace; here it is decided whether the trace is kept.

        Args:
            name: Of a small set.
            attributes: See the module.
            kind: Which side of a call.
            incoming: The trace context that whoever asks has sent. It becomes a link, since who asks must not decide
                what is kept, unless the operator trusts those who ask.
        """

    def span(
        self,
        name: str,
        attributes: Mapping[str, Attribute] = _NOTHING,
        *,
        kind: Kind = Kind.INTERNAL,
        parent: str | None = None,
        links: Iterable[str] = (),
    ) -> Span:
        """A span in the trace of ``parent``, or of the current span when None; records nothing outside a kept trace.

        In a ``with`` statement it is also how one goes on in the trace of a parent that is not kept.
        """

    def batch(
        self,
        name: str,
        traceparents: Iterable[str],
        attributes: Mapping[str, Attribute] = _NOTHING,
        *,
        kind: Kind = Kind.INTERNAL,
        since_ns: int = 0,
    ) -> Span:
        """A span of work on several things at once, each of which came with a context of its own, or with "".

        ``NO_SPAN`` when no context is of a kept trace. Where all that are belong to one trace it is a part of that
        trace; where several meet it begins one of its own, linked to each.

        Args:
            name: Of a small set.
            traceparents: What the things came with; may be anything.
            attributes: See the module.
            kind: Which side of a call.
            since_ns: When it began, in Unix time; now when 0.
        """


class _NoTracing:
    """Telemetry is off: everything is ``NO_SPAN``, and nothing is carried on."""

    def begin(
        self, name: str, attributes: Mapping[str, Attribute] = _NOTHING, *, kind: Kind = Kind.SERVER, incoming: str = ""
    ) -> Span:
        return NO_SPAN

    def span(
        self,
        name: str,
        attributes: Mapping[str, Attribute] = _NOTHING,
        *,
        kind: Kind = Kind.INTERNAL,
        parent: str | None = None,
        links: Iterable[str] = (),
    ) -> Span:
        return NO_SPAN

    def batch(
        self,
        name: str,
        traceparents: Iterable[str],
        attributes: Mapping[str, Attribute] = _NOTHING,
        *,
        kind: Kind = Kind.INTERNAL,
        since_ns: int = 0,
    ) -> Span:
        return NO_SPAN


NO_TRACING: Final[Tracing] = _NoTracing()

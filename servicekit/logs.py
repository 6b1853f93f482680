"""Logs: one JSON object per line on stderr (or a readable line in development), a fixed message, values in fields.

Never a payload, a ticket, a token or a user's text: fields named like one are withheld. Libraries, and ``carrel``
itself, log by the standard library, with their fields in ``extra``. A line that is written within a span carries its
ids. Not metrics and not traces.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, TextIO

import orjson

from carrel.pseudonyms import hash_user
from servicekit.telemetry.tracing import current_span

__all__ = ["Logger", "bind", "configure", "get_logger", "hash_user"]

_MAX_TEXT: Final = 1000
_MAX_TRACEBACK: Final = 8000
_WITHHELD: Final = frozenset(
    "ticket token socket_token authorization password secret payload data data_json text prompt result".split()
)
_EMPTY: Final[Mapping[str, Any]] = {}
# What every record has; whatever else one has came in ``extra``, from code that uses the standard library's loggers.
_OF_EVERY_RECORD: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "fields"})

_bound: ContextVar[Mapping[str, Any]] = ContextVar("servicekit_log_fields", default=_EMPTY)


class Logger:
    """Logs a fixed message with values in fields: ``log.info("run admitted", engines=2)``."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        """Details for whoever looks for a fault."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """What an operator wants to know when all is well."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """What works again by itself, or should be looked at."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, *, error: BaseException | None = None, **fields: object) -> None:
        """What somebody must look at; ``error`` adds its traceback."""
        self._log(logging.ERROR, event, fields, error)

    def _log(self, level: int, event: str, fields: dict[str, object], error: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            # Two frames up is who called info() and its like.
            self._logger.log(level, "%s", event, extra={"fields": fields}, exc_info=error, stacklevel=3)


def get_logger(name: str) -> Logger:
    """The logger of a module."""
    return Logger(logging.getLogger(name))


class bind:  # noqa: N801 -- reads as a verb, in a with statement or alone
    """Add fields to every line that this task (and tasks it starts) logs from now on.

    Alone it holds for the rest of the task; in a ``with`` statement until its end.
    """

    __slots__ = ("_token",)

    def __init__(self, **fields: object) -> None:
        self._token: Token[Mapping[str, Any]] = _bound.set({**_bound.get(), **fields})

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _bound.reset(self._token)


def configure(service: str, level: str = "info", format: str = "json", stream: TextIO | None = None) -> None:  # noqa: A002
    """Send every log line of this process to ``stream`` (stderr), in the given form ("json" or "console")."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_ConsoleFormatter(service) if format == "console" else _JsonFormatter(service))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # These tell at INFO what a caller's own line tells already.
    for name in ("alembic", "asyncio", "grpc"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


class _Formatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def fields_of(self, record: logging.LogRecord) -> dict[str, Any]:
        extra = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        own = getattr(record, "fields", _EMPTY)
        if not isinstance(own, Mapping):  # of another library's making
            own = {"fields": own}
        fields = {name: _safe(name, value) for name, value in {**_bound.get(), **extra, **own}.items()}
        span = current_span()
        if span.traceparent:
            # Of traces that are not kept as well: they join the lines that services write about one request.
            fields["trace_id"], fields["span_id"] = span.trace_id, span.span_id
        if record.exc_info and record.exc_info[0] is not None:
            fields["error_type"] = record.exc_info[0].__name__
            fields["traceback"] = self.formatException(record.exc_info)[-_MAX_TRACEBACK:]
        return fields


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "event": record.getMessage()[:_MAX_TEXT],
            **{f"_{name}" if name in _RESERVED else name: value for name, value in self.fields_of(record).items()},
        }
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class _ConsoleFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields_of(record)
        trace = fields.pop("traceback", "")
        told = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        head = f"{clock}.{int(record.msecs):03d} {record.levelname.lower():<7} {record.getMessage()[:_MAX_TEXT]}"
        return f"{head}  {told}".rstrip() + (f"\n{trace}" if trace else "")


_RESERVED: Final = frozenset({"time", "level", "service", "logger", "event"})


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


def _safe(name: str, value: object) -> Any:
    if name in _WITHHELD:
        return "[withheld]"
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:  # orjson refuses the whole line for a longer one
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe("", item) for item in list(value)[:50]]
    if isinstance(value, Mapping):
        return {str(key): _safe(str(key), item) for key, item in list(value.items())[:50]}
    # Lone surrogates would make orjson refuse the whole line.
    text = str(value).encode("utf-8", "replace").decode()
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return repr(text) if isinstance(value, str) and (not text or any(c.isspace() for c in text)) else text

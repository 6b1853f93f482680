"""What is no HTTP, in the log: a line a second with a count, not a traceback each with what the peer has sent."""

from __future__ import annotations

import logging
import time
from typing import Final

from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["MalformedRequests"]

_EVERY_S: Final = 1.0


class MalformedRequests(logging.Filter):
    """A filter for aiohttp's own logger. Other records pass as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self._told = 0
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Count it; let one a second pass, without its text."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if not isinstance(error, HttpProcessingError):
            return True
        self.seen += 1
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _EVERY_S
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args, record.exc_info = "malformed requests", (), None
        record.fields = {"count": self.seen - self._told, "last": type(error).__name__}
        self._told = self.seen
        return True

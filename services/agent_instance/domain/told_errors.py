"""Errors that code of agents' authors tells: taken as they are, but for details without end.

An error travels in one message with others: to the agent, into the journal, as the outcome of a stage. One that is too
large for that would cost the attempt, and every one after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from carrel.errors import CarrelError, from_dict

__all__ = ["MAX_ERROR_BYTES", "bounded_error", "error_bytes", "told_error"]

_E = TypeVar("_E", bound=CarrelError)

MAX_ERROR_BYTES: Final = 256 * 1024
_MAX_CODE: Final = 64


def error_bytes(error: CarrelError) -> int:
    """How large it is on its way: bytes of its JSON."""
    return len(json.dumps(error.to_dict(), separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))


def bounded_error(error: _E) -> _E:
    """The same error; its details are left out, and that is said in their place, when it is over the bound."""
    if len(error.code) > _MAX_CODE:
        error.code = error.code[:_MAX_CODE]
    if (size := error_bytes(error)) > MAX_ERROR_BYTES:
        error.details = {"left_out": f"details of {size} bytes; {MAX_ERROR_BYTES} can be passed on"}
    return error


def told_error(told: Mapping[str, Any]) -> CarrelError:
    """What a worker tells of an error. Never fails."""
    return bounded_error(from_dict(told))

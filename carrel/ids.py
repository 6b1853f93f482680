"""The rules of ids: their form, the placeholders nobody may use, how new ones and those of child operations are made.

Not a registry: nothing here remembers which ids exist, except ``ChildIds`` for the children of one run.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from typing import Final

from carrel.errors import InvalidIdError, LimitExceededError

__all__ = [
    "FORBIDDEN_PREFIXES",
    "FORBIDDEN_WORDS",
    "MAX_ID_LENGTH",
    "MAX_REQUEST_ID_LENGTH",
    "ChildIds",
    "check_id",
    "check_minted_id",
    "check_operation_name",
    "extends",
    "new_id",
]

MAX_ID_LENGTH: Final = 128
# A child's request_id repeats those of all its ancestors.
MAX_REQUEST_ID_LENGTH: Final = 512
MAX_OPERATION_LENGTH: Final = 48
MAX_CHILDREN: Final = 10_000

FORBIDDEN_WORDS: Final = frozenset(
    "registry placeholder default temp none null nil undefined unknown example dummy todo xxx 0 1".split()
)
FORBIDDEN_PREFIXES: Final = ("placeholder_", "registry_", "default_", "temp_", "example_", "dummy_", "fake_", "mock_")

# Printable ASCII without the space and without "/", which separates parts of URLs and of storage keys.
_ID: Final = re.compile(r"[!-.0-~]+")
_OPERATION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9.-])?")
_PREFIX: Final = re.compile(r"[a-z][a-z0-9]{0,15}")

_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """Mint an id such as ``run-0193f0c2a1b40007d0c1f6b2a9e4``: sortable by time, unique, and without ``_``.

    Ids of one process sort in the order they were made, even within a millisecond or when the clock steps back.
    """
    if not _PREFIX.fullmatch(prefix):
        raise InvalidIdError(f"id prefix {prefix[:20]!r} is not a short lower-case word", field="prefix")
    global _last  # noqa: PLW0603  (one clock for the process)
    with _lock:
        _last = stamp = max(_last + 1, time.time_ns() // 1_000_000 << 12)
    return f"{prefix}-{stamp:015x}{secrets.token_hex(7)[:13]}"


def check_id(value: object, field: str, max_length: int = MAX_ID_LENGTH) -> str:
    """Return ``value`` when it is 1 to ``max_length`` printable ASCII characters without ``/`` and space.

    Raises:
        InvalidIdError: It is not; the message names ``field`` and never the value.
    """
    if isinstance(value, str) and len(value) <= max_length and _ID.fullmatch(value):
        return value
    if not isinstance(value, str):
        problem = f"must be a string, not {type(value).__name__}"
    elif not value:
        problem = "is required"
    elif len(value) > max_length:
        problem = f"is {len(value)} characters long; at most {max_length} are allowed"
    else:
        problem = "may hold printable ASCII only, without '/' and space"
    raise InvalidIdError(f"{field} {problem}", fields={field: problem}, field=field)


def check_minted_id(value: object, field: str, max_length: int = MAX_ID_LENGTH) -> str:
    """``check_id``, and no placeholder: for ids we mint and for thread ids that clients send (not for users' names).

    Raises:
        InvalidIdError: It breaks the form, is a forbidden word or begins with a forbidden prefix.
    """
    text = check_id(value, field, max_length)
    low = text.lower()
    if low in FORBIDDEN_WORDS:
        problem = f"is the placeholder {low!r}"
    elif low.startswith(FORBIDDEN_PREFIXES):
        problem = f"begins with the placeholder prefix {low.partition('_')[0] + '_'!r}"
    else:
        return text
    raise InvalidIdError(f"{field} {problem}", advice=f"send a real {field}", fields={field: problem}, field=field)


def check_operation_name(name: object) -> str:
    """Return ``name`` when it can name a child operation: letters, digits, ``.``, ``-``, inner ``_``; at most 48.

    Raises:
        InvalidIdError: It cannot.
    """
    if isinstance(name, str) and len(name) <= MAX_OPERATION_LENGTH and _OPERATION.fullmatch(name):
        return name
    problem = f"must be 1 to {MAX_OPERATION_LENGTH} letters, digits, '.', '-' or '_', neither first nor last a '_'"
    raise InvalidIdError(f"operation_name {problem}", fields={"operation_name": problem}, field="operation_name")


def extends(request_id: str, ancestor: str) -> bool:
    """Whether ``request_id`` is ``ancestor`` itself or one of its descendants.

    Exact for a root, because minted roots hold no ``_``; of a deeper ancestor it says what the ids' text says.
    """
    return request_id == ancestor or request_id.startswith(ancestor + "_")


class ChildIds:
    """Names the child operations of one run so that no two of its contexts have the same ``request_id``.

    A repeated name gets ``_2``, ``_3``…; so does one that only looks repeated (a child ``a_b`` beside ``b`` of ``a``).
    The owner is the host's table of contexts: one per run attempt, not shared between threads.
    """

    def __init__(self, root_request_id: str) -> None:
        self.root = root_request_id
        self._taken = {root_request_id}
        self._next: dict[str, int] = {}

    def name(self, parent_request_id: str, operation_name: str) -> str:
        """Reserve and return the operation's name below this parent, with its number when it is a repeated one.

        Raises:
            InvalidIdError: The name is malformed.
            LimitExceededError: The run has opened ``MAX_CHILDREN`` children already.
        """
        check_operation_name(operation_name)
        if len(self._taken) > MAX_CHILDREN:
            raise LimitExceededError(
                "the run has opened too many child contexts",
                advice="open one child for many small steps",
                limit="max_children",
                limit_value=MAX_CHILDREN,
                use=MAX_CHILDREN,
            )
        first = f"{parent_request_id}_{operation_name}"
        number = self._next.get(first, 1)
        candidate = first if number == 1 else f"{first}_{number}"
        while candidate in self._taken:
            number += 1
            candidate = f"{first}_{number}"
        self._taken.add(candidate)
        self._next[first] = number + 1
        return candidate[len(parent_request_id) + 1 :]

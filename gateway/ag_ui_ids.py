"""What a translation keeps of ids that agents give: bounded in number and length, and by rule, so that a replay agrees.

Ids come from agents' code: without bounds, one run could cost each of its readers all memory there is.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

__all__ = ["LATEST", "keep_latest", "short_id"]

# Of calls, of messages, and of all else that is kept by id, each.
LATEST: Final = 4096
_LONGEST: Final = 200


def short_id(value: object) -> str:
    """The id as it is, or where it is too long to be kept, one that always comes out the same."""
    text = str(value)
    if len(text) <= _LONGEST:
        return text
    return f"sha256-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"


def keep_latest(kept: dict[str, Any], key: str, value: Any, most: int) -> None:
    """Keep a value as the latest, and of the others the ``most - 1`` that were kept last."""
    kept.pop(key, None)
    while len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value

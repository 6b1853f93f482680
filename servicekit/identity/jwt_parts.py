"""One part of a JWT as strictly read JSON: for tickets here and for login tokens in the gateway.

PyJWT takes the last of two equal names, and Python's JSON reader takes NaN. Neither passes here. What the fields mean
is the caller's, and so is the error that is raised in the end.
"""

from __future__ import annotations

import base64
import json
from typing import Any

__all__ = ["PartError", "read_part"]


class PartError(ValueError):
    """Why a part is refused, as the end of a sentence about the token; it quotes nothing of the token."""


class _Refused(Exception):  # noqa: N818 -- a signal between two functions, no error of the tree
    """JSON that parses but must not."""


def read_part(part: str, what: str) -> dict[str, Any]:
    """The object that a base64url part holds.

    Args:
        part: The part, without padding.
        what: "header" or "payload", for the error.

    Raises:
        PartError: It is no JSON object, repeats a name at any depth, or holds a number that JSON does not know.
    """
    try:
        data = json.loads(
            base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True),
            object_pairs_hook=_no_repeats,
            parse_constant=_no_constants,
        )
    except _Refused as refused:
        raise PartError(f"{refused} in its {what}") from None
    except (ValueError, RecursionError):
        raise PartError(f"has a {what} that is not JSON") from None
    if not isinstance(data, dict):
        raise PartError(f"has a {what} that is no object")
    return data


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise _Refused("repeats a name")
    return data


def _no_constants(_name: str) -> None:
    raise _Refused("has a number that is no JSON")

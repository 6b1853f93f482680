"""Objects that name one field twice, in what clients send: orjson silently takes the last, others the first.

Not a parser: it looks at text that has been parsed already.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Final

from carrel.errors import InvalidRequestError

__all__ = ["refuse_twins"]


class _Twins(Exception):  # noqa: N818 -- a signal between two functions, no error of the tree
    """Its text is the name."""


def refuse_twins(text: str, what: str, error: type[InvalidRequestError]) -> None:
    """Look at every object in the text: 2 µs for a small frame, 1 ms for each 64 KiB.

    Args:
        text: JSON.
        what: What it is, for the message: "the frame".
        error: The class to raise.

    Raises:
        InvalidRequestError: A name is there twice; ``fields`` has it.
        ValueError: Python's reader does not take what orjson's has taken.
        RecursionError: It nests too deep for Python's.
    """
    try:
        _ = _STRICT.decode(text)
    except _Twins as twins:
        raise error(
            f"{what} names one field twice",
            advice="send each field once; of two values nobody can know which is meant",
            fields={str(twins)[:40]: "is there twice"},
        ) from None


def _look(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) == len(pairs):
        return
    counts = Counter(name for name, _ in pairs)
    raise _Twins(next(name for name in counts if counts[name] > 1))


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_look)

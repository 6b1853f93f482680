"""JSON values that cannot be changed: how contexts and requests hold maps without sharing a mutable object.

``freeze`` copies in and checks, ``thaw`` copies out. Not a general immutable-collections library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn, TypeAlias

from carrel.errors import InvalidRequestError

__all__ = [
    "JSON",
    "MAX_EXACT_INT",
    "MAX_NESTING",
    "FrozenDict",
    "freeze",
    "freeze_map",
    "is_frozen",
    "json_size",
    "nests_too_deep",
    "thaw",
]

# A JSON value. Any rather than a recursive union, so that authors can write ``result["total"]`` without a cast.
JSON: TypeAlias = Any

# google.protobuf.Struct and JavaScript carry numbers as doubles: beyond this an integer would silently change.
MAX_EXACT_INT: Final = 2**53
# What goes as JSON text only (arguments, results, event data) may use 64 bits.
MAX_INT: Final = 2**63 - 1
MAX_NESTING: Final = 32


class FrozenDict(dict[str, Any]):
    """A dict that refuses every change; still a ``dict`` to ``json``, to equality and to ``isinstance``."""

    __slots__ = ()

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("this mapping is read-only; build a new one")

    __setitem__ = __delitem__ = clear = pop = popitem = setdefault = update = _refuse
    __ior__ = _refuse

    def __hash__(self) -> NoReturn:  # type: ignore[override]  # stays unhashable: values may be floats or long
        raise TypeError("unhashable type: 'FrozenDict'")

    def __repr__(self) -> str:
        return dict.__repr__(self)

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, memo: object) -> FrozenDict:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling a dict subclass item by item would call the refusing __setitem__.
        return FrozenDict, (dict(self),)


def freeze(value: object, where: str = "value", max_int: int = MAX_INT, _depth: int = 0) -> Any:
    """A read-only deep copy of a JSON value: mappings become ``FrozenDict``, lists become tuples.

    Args:
        value: What to copy.
        where: Its name in messages.
        max_int: The largest magnitude of an integer.

    Raises:
        InvalidRequestError: It is no JSON value, nests too deeply, or holds an integer beyond ``max_int``.
    """
    if value is None or isinstance(value, bool | str | int | float):
        return _scalar(value, where, max_int)
    if _depth >= MAX_NESTING:
        raise _wrong(_root(where), f"nests more than {MAX_NESTING} levels deep")
    if isinstance(value, Mapping):
        frozen: dict[str, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise _wrong(where, f"has a key of type {type(key).__name__}; keys are strings")
            # Most values are plain words: no copy, no name for messages, a third of the time.
            if item.__class__ is str and key.__class__ is str and item.isascii() and key.isascii():
                frozen[key] = item
            else:
                frozen[_text(key, where)] = freeze(item, f"{where}.{key[:40]}", max_int, _depth + 1)
        return FrozenDict(frozen)
    if isinstance(value, list | tuple):
        return tuple(freeze(item, f"{where}[{index}]", max_int, _depth + 1) for index, item in enumerate(value))
    raise _wrong(where, f"is a {type(value).__name__}, which is no JSON value")


def freeze_map(value: object, where: str, max_int: int = MAX_INT) -> FrozenDict:
    """``freeze`` for a field that must be a mapping; None counts as an empty one.

    Raises:
        InvalidRequestError: It is no JSON object.
    """
    if value is None:
        return _EMPTY
    if not isinstance(value, Mapping):
        raise _wrong(where, f"must be a mapping, not {type(value).__name__}")
    frozen: FrozenDict = freeze(value, where, max_int)
    return frozen


def thaw(value: Any) -> Any:
    """An ordinary, mutable deep copy: dicts and lists, ready for ``json``."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value


def is_frozen(value: object) -> bool:
    """Whether nothing reachable from ``value`` can be changed."""
    if type(value) is FrozenDict:
        return all(is_frozen(item) for item in value.values())
    if type(value) is tuple:
        return all(is_frozen(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def nests_too_deep(value: object) -> bool:
    """Whether parsed JSON nests deeper than ``freeze`` takes; without recursion, for what a stranger sent."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def json_size(value: object) -> int:
    """Bytes of the compact UTF-8 JSON of ``value``."""
    return len(_encode(value).encode())


def _scalar(value: bool | str | float | None, where: str, max_int: int) -> bool | str | float | None:
    # Subclasses (enums, numpy's float64) become the plain type: they may hold more than the value.
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int):
        if -max_int <= value <= max_int:
            return int(value)
        bits = max_int.bit_length() - (max_int & 1 == 0)
        raise _wrong(where, f"is an integer beyond ±2**{bits}, which would not arrive unchanged; send it as a string")
    if math.isfinite(value):
        return float(value)
    raise _wrong(where, "is not a finite number")


def _root(where: str) -> str:
    return where.split(".", 1)[0].split("[", 1)[0]


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(where, "holds text that is not valid Unicode") from None
    return str.__str__(value)


def _wrong(where: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{where} {problem}", fields={where: problem})


_EMPTY: Final = FrozenDict()
_encode: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode

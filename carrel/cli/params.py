"""``--param name=value``: values are JSON where they are JSON, and text otherwise. ``a.b=1`` is ``{"a": {"b": 1}}``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

__all__ = ["parse_params"]


def parse_params(given: Iterable[str]) -> dict[str, Any]:
    """The parameters that the options describe.

    Raises:
        ValueError: One has no ``=``, an empty name, or contradicts another.
    """
    params: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        path = [part.strip() for part in name.split(".")]
        if not equals or not all(path):
            raise ValueError(f"{text!r} is not of the form name=value")
        place = params
        for part in path[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"{name} is inside something that is a value already")
        if path[-1] in place:
            raise ValueError(f"{name} is given twice")
        place[path[-1]] = _value(value)
    return params


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError:
        return text


def _no_constant(name: str) -> Any:
    # NaN and Infinity are no JSON; a person who writes them means the word.
    raise ValueError(name)

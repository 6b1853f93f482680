"""The tool ``convert_units``: lengths, masses, volumes, times, speeds, data and temperatures, by fixed factors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from carrel import ToolError, tool

__all__ = ["convert", "convert_units"]

# By kind, in the kind's first unit.
_FACTORS: Final[Mapping[str, Mapping[str, float]]] = {
    "length": {
        "m": 1,
        "km": 1000,
        "cm": 0.01,
        "mm": 0.001,
        "mi": 1609.344,
        "yd": 0.9144,
        "ft": 0.3048,
        "in": 0.0254,
        "nmi": 1852,
    },
    "mass": {"kg": 1, "g": 0.001, "mg": 1e-6, "t": 1000, "lb": 0.45359237, "oz": 0.028349523125},
    "volume": {"l": 1, "ml": 0.001, "m3": 1000, "gal": 3.785411784, "pt": 0.473176473, "cup": 0.2365882365},
    "time": {"s": 1, "ms": 0.001, "min": 60, "h": 3600, "d": 86_400, "week": 604_800},
    "speed": {"m/s": 1, "km/h": 1 / 3.6, "mph": 0.44704, "kn": 1852 / 3600},
    "data": {"byte": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1024, "mib": 1024**2, "gib": 1024**3},
}
_TEMPERATURES: Final = ("c", "f", "k")
_NAMES: Final[Mapping[str, str]] = {
    "meter": "m",
    "metre": "m",
    "kilometer": "km",
    "kilometre": "km",
    "centimeter": "cm",
    "mile": "mi",
    "yard": "yd",
    "foot": "ft",
    "feet": "ft",
    "inch": "in",
    "inche": "in",
    "kilogram": "kg",
    "gram": "g",
    "pound": "lb",
    "lbs": "lb",
    "ounce": "oz",
    "liter": "l",
    "litre": "l",
    "gallon": "gal",
    "second": "s",
    "minute": "min",
    "hour": "h",
    "day": "d",
    "celsius": "c",
    "fahrenheit": "f",
    "kelvin": "k",
    "kph": "km/h",
    "kmh": "km/h",
    "knot": "kn",
}
_KINDS: Final = {unit: kind for kind, units in _FACTORS.items() for unit in units} | dict.fromkeys(
    _TEMPERATURES, "temperature"
)


class UnitError(ToolError):
    """Units that do not exist, or do not go together."""

    default_advice = f"units are {', '.join(_KINDS)}"


@tool
async def convert_units(value: float, source: str, target: str) -> str:
    """Convert a value from one unit into another, for example 5 km into mi, or 20 celsius into fahrenheit."""
    return f"{convert(value, source, target):.10g} {_unit(target)}"


def convert(value: float, source: str, target: str) -> float:
    """The value in the other unit.

    Raises:
        UnitError: A unit is unknown, the two do not go together, or the value is none.
    """
    if not math.isfinite(value):
        raise UnitError("the value is no number", advice="give a number")
    one, other = _unit(source), _unit(target)
    kind = _KINDS[one]
    if kind != _KINDS[other]:
        raise UnitError(f"{one} is a unit of {kind}, {other} one of {_KINDS[other]}", advice="convert within one kind")
    if kind == "temperature":
        return _from_kelvin(_to_kelvin(value, one), other)
    return value * _FACTORS[kind][one] / _FACTORS[kind][other]


def _unit(name: str) -> str:
    text = name.strip().lower().removeprefix("°")
    for candidate in (text, text.removesuffix("s")):
        unit = _NAMES.get(candidate, candidate)
        if unit in _KINDS:
            return unit
    raise UnitError(f"there is no unit {name[:32]!r}")


def _to_kelvin(value: float, unit: str) -> float:
    kelvin = {"c": value + 273.15, "f": (value - 32) / 1.8 + 273.15, "k": value}[unit]
    if kelvin < 0:
        raise UnitError("there is nothing colder than absolute zero", advice="check the value")
    return kelvin


def _from_kelvin(kelvin: float, unit: str) -> float:
    # Sums of decimals leave dust in the last digits.
    return round({"c": kelvin - 273.15, "f": (kelvin - 273.15) * 1.8 + 32, "k": kelvin}[unit], 9)

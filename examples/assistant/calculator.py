"""The tool ``calculate``: arithmetic from text, by walking its syntax tree. Nothing in it is ever executed.

Only numbers, operators and a few functions are known, and every step is bounded, so that ``9**9**9`` costs nothing.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Final

from carrel import ToolError, tool

__all__ = ["calculate", "evaluate"]

_MAX_CHARS: Final = 200
_MAX_BITS: Final = 4096
Number = int | float

_BINARY: Final[Mapping[type[ast.operator], Callable[[Number, Number], Number]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Final[Mapping[type[ast.unaryop], Callable[[Number], Number]]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: Final[Mapping[str, Callable[..., Number]]] = {
    "abs": abs,
    "round": round,
    "min": min,
    "max": max,
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "floor": math.floor,
    "ceil": math.ceil,
    "hypot": math.hypot,
    "degrees": math.degrees,
    "radians": math.radians,
}
_CONSTANTS: Final[Mapping[str, float]] = {"pi": math.pi, "e": math.e, "tau": math.tau}


class CalculationError(ToolError):
    """What was to be calculated cannot be."""

    default_advice = (
        f"write numbers, + - * / // % **, parentheses, {', '.join(_CONSTANTS)} "
        f"and the functions {', '.join(_FUNCTIONS)}"
    )


@tool
async def calculate(expression: str) -> str:
    """Calculate an arithmetic expression, for example (3 + 4) * sqrt(2) or 17 % 5, exactly as it is written."""
    return evaluate(expression)


def evaluate(expression: str) -> str:
    """The value as text: whole numbers exactly, others to 12 digits.

    Raises:
        CalculationError: It is no arithmetic, too long, too large, or has no value.
    """
    if len(expression) > _MAX_CHARS:
        raise CalculationError(f"the expression is over {_MAX_CHARS} characters", advice="calculate it in parts")
    try:
        # `^` is what many write for powers; Python's exclusive or is of no use here.
        tree = ast.parse(expression.strip().replace("^", "**"), mode="eval")
        value = _value(tree.body)
    except (SyntaxError, RecursionError, MemoryError):
        raise CalculationError("this is no arithmetic expression") from None
    except ZeroDivisionError:
        raise CalculationError("it divides by zero", advice="check the expression") from None
    except (ValueError, OverflowError, TypeError):
        raise CalculationError("it has no value that can be written down", advice="check the expression") from None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CalculationError("it has no value that can be written down", advice="check the expression")
        return f"{value:.12g}"
    return str(value)


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _operate(type(op), _value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and args:
            return _bounded(_FUNCTIONS[name](*(_value(argument) for argument in args)))
        case _:
            raise CalculationError("it holds something that is no arithmetic")


def _operate(kind: type[ast.operator], left: Number, right: Number) -> Number:
    whole = isinstance(left, int) and isinstance(right, int)
    if kind is ast.Pow and whole and int(left).bit_length() * abs(int(right)) > _MAX_BITS and abs(left) > 1:
        raise CalculationError("the number becomes too large", advice="use floating point, such as 10.0 ** 300")
    value = _BINARY[kind](left, right)
    if isinstance(value, complex):
        raise CalculationError("it has no real value", advice="check the expression")
    return _bounded(value)


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise CalculationError("the number becomes too large", advice="ask for less")
    return value

"""Messages of the contract, filled at random from their descriptors, and their bytes, broken at random. Seeded."""

from __future__ import annotations

import random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

__all__ = ["fill", "mutated"]

_TEXTS: Final = (
    *("", "a", "run-1", "thread-1", "default", "..", "../../etc/passwd", "a b", "'; DROP TABLE runs; --", "%00"),
    *("\x00", "\u202e", "\U0001f600" * 40, "a" * 129, "a" * 5_000, "echo", "nobody", "agent_thinking", "run_completed"),
)
_BYTES: Final = (
    b"",
    b"{}",
    b'{"text":"x"}',
    b"null",
    b"[[[[",
    b"\x00" * 64,
    b"\xff" * 300,
    b'{"a":1e999}',
    b"x" * 9_000,
)
_INTEGERS: Final = (0, 1, 2, 7, 100, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
_FLOATS: Final = (0.0, -1.0, 0.5, float("nan"), float("inf"), float("-inf"), 1e308, -0.0)
_MAX_DEPTH: Final = 4
_UNSIGNED: Final = {FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64}
_BITS: Final = {
    FieldDescriptor.CPPTYPE_INT32: 31,
    FieldDescriptor.CPPTYPE_UINT32: 32,
    FieldDescriptor.CPPTYPE_INT64: 63,
    FieldDescriptor.CPPTYPE_UINT64: 64,
    FieldDescriptor.CPPTYPE_ENUM: 31,
}


def fill(message: Message, chance: random.Random, keep: frozenset[str] = frozenset(), depth: int = 0) -> Message:
    """Set about half of the message's fields, and theirs, but none of those named."""
    for field in message.DESCRIPTOR.fields:
        if field.name in keep or chance.random() < 0.5:
            continue
        if field.is_repeated:
            _fill_list(message, field, chance, depth)
        elif field.message_type is not None:
            if depth < _MAX_DEPTH:
                inner = getattr(message, field.name)
                inner.SetInParent()
                fill(inner, chance, depth=depth + 1)
        else:
            setattr(message, field.name, _value(field, chance))
    return message


def _fill_list(message: Message, field: Any, chance: random.Random, depth: int) -> None:
    target: Any = getattr(message, field.name)
    kind: Descriptor | None = field.message_type
    for _ in range(chance.choice((1, 1, 2, 30))):
        if kind is None:
            target.append(_value(field, chance))
        elif kind.GetOptions().map_entry:
            value = kind.fields_by_name["value"]
            if value.message_type is None:
                target[str(chance.choice(_TEXTS))] = _value(value, chance)
            elif depth < _MAX_DEPTH:
                fill(target[str(chance.choice(_TEXTS))], chance, depth=depth + 1)
        elif depth < _MAX_DEPTH:
            fill(target.add(), chance, depth=depth + 1)


def _value(field: Any, chance: random.Random) -> Any:
    kind = field.cpp_type
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.choice(_BYTES)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return chance.choice(_TEXTS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if kind in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return chance.choice(_FLOATS)
    bits = _BITS[kind]
    least = 0 if kind in _UNSIGNED else -(2**bits)
    return chance.choice([number for number in _INTEGERS if least <= number < 2**bits])


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one to four breaks: flipped, cut, doubled, put in, with lengths that lie."""
    result = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(result) + 1)
        what = chance.randrange(6)
        if what == 0 and at < len(result):
            result[at] ^= 1 << chance.randrange(8)
        elif what == 1:
            del result[at:]
        elif what == 2:
            result[at:at] = result[at : at + chance.randrange(1, 40)]
        elif what == 3:
            result[at:at] = chance.randbytes(chance.randrange(1, 12))
        elif what == 4:
            # A length, or a number, of as many bytes as it may have and one more.
            result[at:at] = b"\xff" * chance.choice((5, 9, 10, 11)) + b"\x01"
        else:
            # A group that never ends, and a message in itself in itself.
            result[at:at] = chance.choice((b"\x0b", b"\x0a\x04\x0a\x02\x0a\x00")) * chance.choice((1, 200))
    return bytes(result)

"""JSON that hurts a careless reader: deep, huge, doubled, half; and the fields that hold JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.security.rpc_table import methods

__all__ = ["NASTY", "filled", "json_fields"]

_MANY: Final = 4_000

# Each stands for one JSON value, whether it is one or not.
NASTY: Final[Mapping[str, bytes]] = {
    "a bit deep": b"[" * 40 + b"]" * 40,
    "deeper than can be written": b"[" * 300 + b"]" * 300,
    "as deep as can be read": b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "too deep": b"[" * 20_000 + b"]" * 20_000,
    "too deep and never closed": b'{"a":' * 10_000,
    "a long number": b"9" * 20_000,
    "a number beyond 64 bits": b"18446744073709551616",
    "a long fraction": b"0." + b"1" * 20_000,
    "a number beyond all doubles": b"1e999",
    "minus nothing": b"-0.0",
    "NaN": b"NaN",
    "infinity": b"-Infinity",
    "a big string": b'"' + b"a" * 40_000 + b'"',
    "a string of escapes": b'"' + b"\\u0000" * 5_000 + b'"',
    "many keys": b"{" + b",".join(b'"k%d":0' % n for n in range(_MANY)) + b"}",
    "one key many times": b"{" + b",".join([b'"k":0'] * _MANY) + b"}",
    "keys that are escapes of each other": b'{"a":1,"\\u0061":2}',
    "a key that is a prototype": b'{"__proto__":{"x":1},"constructor":0}',
    "many items": b"[" + b",".join([b"0"] * 15_000) + b"]",
    "a lone surrogate": b'"\\ud800"',
    "a surrogate in a key": b'{"\\udfff":1}',
    "a mark of byte order": b"\xef\xbb\xbf1",
    "quotes of one": b"'a'",
    "a comma too many": b"[1,]",
    "two values": b"1 2",
    "nothing": b"",
    "null": b"null",
    "a word": b"true",
}
# No text at all: only where bytes are sent.
BYTES: Final[Mapping[str, bytes]] = {
    "a surrogate as bytes": b'"\xed\xa0\x80"',
    "no UTF-8": b'"\xff\xfe"',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "an overlong slash": b'"\xc0\xaf"',
}


def json_fields() -> Iterator[tuple[str, tuple[FieldDescriptor, ...]]]:
    """Every RPC and the way to each field of its request that holds JSON."""
    for name, method in sorted(methods().items()):
        for way in _ways(method.input_type, ()):
            yield name, way


def _ways(message: Descriptor, before: tuple[FieldDescriptor, ...]) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in message.fields:
        way = (*before, field)
        if field.type == FieldDescriptor.TYPE_BYTES:
            if field.name.endswith("_json") or field.name == "data":
                yield way
        elif field.message_type is not None and field.message_type not in [known.containing_type for known in before]:
            yield from _ways(field.message_type, way)


def filled(request: Message, way: tuple[FieldDescriptor, ...], value: bytes) -> Message:
    """The request with the value where the way leads; the first of a list, or a new one."""
    at: Any = request
    for field in way[:-1]:
        inner = getattr(at, field.name)
        if field.is_repeated:
            at = inner[0] if len(inner) else inner.add()
        else:
            inner.SetInParent()
            at = inner
    setattr(at, way[-1].name, value)
    return request

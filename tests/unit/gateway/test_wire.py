"""WebSocket messages as bytes: however they are cut, what breaks the protocol, and both kinds of bounds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.encoding import ws_text
from gateway.wire import Message, MessageReader, Opcode, WireError, close_frame, deflated, pong_frame

MOST = 70_000


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, key: bytes = b"\x0a\x5b\xc3\xff"
) -> bytes:
    """A client's frame."""
    first, size = bytes((opcode | rsv | (0x80 if fin else 0),)), len(payload)
    if size < 126:
        head = bytes((0x80 | size,))
    elif size < 65536:
        head = b"\xfe" + size.to_bytes(2, "big")
    else:
        head = b"\xff" + size.to_bytes(8, "big")
    masked = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    return first + head + key + masked


def deflate(payload: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-15)
    return (packing.compress(payload) + packing.flush(zlib.Z_SYNC_FLUSH))[:-4]


def read(reader: MessageReader, data: bytes) -> Iterator[Message]:
    """What ``data`` completes."""
    reader.feed(data)
    return (message for message in reader.read() if message is not None)


@given(data=st.data(), texts=st.lists(st.text(max_size=300), max_size=5))
def test_messages_are_the_same_however_the_bytes_are_cut(data: st.DataObject, texts: list[str]) -> None:
    stream = b""
    for text in texts:
        payload = text.encode()
        cuts = sorted({0, len(payload), *data.draw(st.lists(st.integers(0, len(payload)), max_size=3))})
        pieces = [payload[a:b] for a, b in pairwise(cuts)] or [b""]
        for number, piece in enumerate(pieces):
            stream += frame(1 if number == 0 else 0, piece, fin=number == len(pieces) - 1)
            if data.draw(st.booleans()):
                stream += frame(9, b"p")
    reader, seen, at = MessageReader(MOST), list[Message](), 0
    while at < len(stream):
        size = data.draw(st.integers(1, 64))
        reader.feed(stream[at : at + size])
        # Left in the middle now and then.
        most = data.draw(st.integers(0, 3))
        seen += [message for message in islice(reader.read(), most) if message is not None]
        at += size
    seen += read(reader, b"")
    assert [message.text for message in seen if message.opcode is Opcode.TEXT] == texts
    assert all(message.data == b"p" for message in seen if message.opcode is Opcode.PING)
    assert reader._buffer is None, "nothing is held for a connection that is silent"


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, MOST])
def test_every_length_of_a_message(size: int) -> None:
    (message,) = read(MessageReader(MOST), frame(1, b"x" * size))
    assert message.text == "x" * size
    (binary,) = read(MessageReader(MOST), frame(2, b"\xff" * size))
    assert (binary.opcode, binary.data) == (Opcode.BINARY, b"\xff" * size)


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"\x81\x02hi", 1002),
        (frame(3), 1002),
        (frame(11), 1002),
        (frame(1, rsv=0x40), 1002),
        (frame(1, rsv=0x10), 1002),
        (frame(0, b"x"), 1002),
        (frame(1, b"x", fin=False) + frame(1, b"y"), 1002),
        (frame(9, b"x", fin=False), 1002),
        (frame(9, b"x" * 126), 1002),
        (frame(8, b"\x03"), 1002),
        (frame(8, (1005).to_bytes(2, "big")), 1002),
        (frame(8, (1000).to_bytes(2, "big") + b"\xff"), 1007),
        (frame(1, b"\xff\xfe"), 1007),
        (frame(1, b"\xc3", fin=False) + frame(0, b"\x28"), 1007),
        (b"\x81\xff" + (MOST + 1).to_bytes(8, "big"), 1009),
        (frame(1, b"x" * MOST, fin=False) + frame(0, b"y"), 1009),
    ],
)
def test_what_breaks_the_protocol_has_its_code_and_what_came_before_it_counts(stream: bytes, code: int) -> None:
    seen = list[Message]()
    with pytest.raises(WireError) as broken:
        seen.extend(read(MessageReader(MOST), frame(1, b"before") + stream))
    assert broken.value.code == code
    assert [message.text for message in seen] == ["before"]


def test_a_close_has_a_code_or_none() -> None:
    (plain,) = read(MessageReader(MOST), frame(8))
    assert plain.code == 1005
    (coded,) = read(MessageReader(MOST), frame(8, (4000).to_bytes(2, "big") + b"drain"))
    assert (coded.code, coded.text) == (4000, "drain")
    assert close_frame(1005) == b"\x88\x00"
    assert close_frame(4000, "drain") == b"\x88\x07\x0f\xa0drain"
    assert pong_frame(b"x") == b"\x8a\x01x"


def test_many_tiny_fragments_are_one_message() -> None:
    stream = frame(1, b"a", fin=False) + frame(0, b"b", fin=False) * 5000 + frame(0, b"c")
    (message,) = read(MessageReader(MOST), stream)
    assert message.text == "a" + "b" * 5000 + "c"


def test_every_frame_is_told_of_and_reading_goes_on_where_it_was_left() -> None:
    reader = MessageReader(MOST)
    reader.feed(frame(1, b"a", fin=False) + frame(0, fin=False) * 3 + frame(10) + frame(0, b"b"))
    assert [next(reader.read()) for _ in range(4)] == [None] * 4
    reader.feed(frame(1, b"c"))
    pong, *texts = reader.read()
    assert pong == Message(Opcode.PONG)
    assert [message.text for message in texts if message is not None] == ["ab", "c"]
    assert reader._buffer is None


def test_a_compressed_message_is_unpacked_within_its_bound() -> None:
    reader = MessageReader(MOST, deflate=True)
    packed = deflate(b"hello " * 1000)
    (message,) = read(reader, frame(1, packed, rsv=0x40))
    assert message.text == "hello " * 1000
    (plain,) = read(reader, frame(1, b"as it is"))
    assert plain.text == "as it is"
    with pytest.raises(WireError) as bomb:
        list(read(reader, frame(1, deflate(b"\0" * 10_000_000), rsv=0x40)))
    assert bomb.value.code == 1009
    with pytest.raises(WireError) as broken:
        list(read(MessageReader(MOST, deflate=True), frame(1, b"\x07nonsense", rsv=0x40)))
    assert broken.value.code == 1007


@pytest.mark.parametrize("size", [10, 127, 500, 100_000])
@pytest.mark.parametrize("bits", [9, 15])
def test_what_goes_out_is_compressed_when_that_helps(size: int, bits: int) -> None:
    wire = ws_text(b'{"a":"%b"}' % (b"z" * size))
    made = deflated(wire, bits)
    if size == 10:
        assert made == wire
        return
    assert len(made) < len(wire)
    assert made[0] == 0xC1
    head = 2 if made[1] < 126 else 4
    unpacking = zlib.decompressobj(-bits)
    assert unpacking.decompress(made[head:] + b"\x00\x00\xff\xff") == b'{"a":"%b"}' % (b"z" * size)

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionat.errors import RemoteProtocolError
from trionat.protocol.frames import (
    BIG_ENDIAN,
    FIRST_FRAME_BYTES,
    HEADER_BYTES,
    LITTLE_ENDIAN,
    Frame,
    FrameReader,
    encode_frame,
)

if TYPE_CHECKING:
    import struct

orders = pytest.mark.parametrize(
    "header", [BIG_ENDIAN, LITTLE_ENDIAN], ids=["big-endian", "little-endian"]
)
frames = st.builds(Frame, st.integers(0, 2**32 - 1), st.binary(max_size=300))


def read_all(reader: FrameReader) -> list[Frame]:
    found: list[Frame] = []
    while (frame := reader.next_frame()) is not None:
        found.append(frame)
    return found


def test_header_byte_for_byte() -> None:
    assert encode_frame(0x01020304, b"ab") == b"\0\0\0\2\1\2\3\4ab"
    assert encode_frame(0x01020304, b"ab", header=LITTLE_ENDIAN) == b"\2\0\0\0\4\3\2\1ab"


@orders
@given(sent=st.lists(frames, max_size=8), data=st.data())
def test_any_cut_gives_the_same_frames(
    header: struct.Struct, sent: list[Frame], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(frame.id, frame.payload, header=header) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    reader = FrameReader(header=header)
    found: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[start:end])
        found += read_all(reader)
    assert found == sent
    assert reader.trailing == b""


@orders
@given(sent=st.lists(frames, min_size=1, max_size=4))
def test_byte_at_a_time(header: struct.Struct, sent: list[Frame]) -> None:
    reader = FrameReader(header=header)
    found: list[Frame] = []
    for byte in b"".join(encode_frame(frame.id, frame.payload, header=header) for frame in sent):
        reader.feed(bytes([byte]))
        found += read_all(reader)
    assert found == sent


@given(sent=frames, rest=st.binary(max_size=HEADER_BYTES - 1))
def test_trailing_is_what_belongs_to_no_frame(sent: Frame, rest: bytes) -> None:
    reader = FrameReader()
    reader.feed(encode_frame(sent.id, sent.payload) + rest)
    assert read_all(reader) == [sent]
    assert reader.trailing == rest


@orders
def test_limit_itself_is_allowed_and_one_more_refused(header: struct.Struct) -> None:
    reader = FrameReader(header=header)
    reader.feed(encode_frame(1, bytes(FIRST_FRAME_BYTES), header=header))
    assert read_all(reader) == [Frame(1, bytes(FIRST_FRAME_BYTES))]
    reader.feed(header.pack(FIRST_FRAME_BYTES + 1, 7))  # not a byte of payload yet
    with pytest.raises(RemoteProtocolError, match="frame 7 of 4097 bytes"):
        reader.next_frame()


def test_refused_without_a_limit_on_what_the_header_may_say() -> None:
    reader = FrameReader()
    reader.feed(b"\xff" * HEADER_BYTES)
    with pytest.raises(RemoteProtocolError):
        reader.next_frame()


def test_limit_may_be_raised_between_two_frames() -> None:
    reader = FrameReader(limit=10)
    reader.feed(encode_frame(1, bytes(10)) + encode_frame(2, bytes(11)))
    assert reader.next_frame() == Frame(1, bytes(10))
    reader.limit = 11
    assert reader.next_frame() == Frame(2, bytes(11))


def test_memory_that_is_written_over_after_feeding_does_no_harm() -> None:
    buffer = bytearray(encode_frame(1, b"abc"))
    reader = FrameReader()
    reader.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert reader.next_frame() == Frame(1, b"abc")


@given(st.binary(max_size=200), st.integers(0, 64))
def test_random_bytes_give_frames_or_a_protocol_error(data: bytes, limit: int) -> None:
    reader = FrameReader(limit=limit)
    reader.feed(data)
    try:
        found = read_all(reader)
    except RemoteProtocolError:
        return
    assert all(len(frame.payload) <= limit for frame in found)
    assert b"".join(encode_frame(f.id, f.payload) for f in found) + reader.trailing == data

"""The frame that everything travels in: an 8-byte header (payload length, message id), then the payload.

Sans-IO: bytes in, frames out, no clock and no socket. Both byte orders are here because the Go program exists in two forms
on the wire; the native dialect (`docs/protocol.md`) is big-endian.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

from trionat.errors import RemoteProtocolError

BIG_ENDIAN: Final = struct.Struct(">II")
LITTLE_ENDIAN: Final = struct.Struct("<II")
HEADER_BYTES: Final = 8

# Bounds of the specification: a peer that has not authenticated yet may make us hold 4 KiB, one that has 64 KiB.
FIRST_FRAME_BYTES: Final = 4 * 1024
CONTROL_FRAME_BYTES: Final = 64 * 1024


@attrs.frozen
class Frame:
    """One frame: its message id (0 to 2**32 - 1) and its payload."""

    id: int
    payload: bytes = attrs.field(repr=False)


def encode_frame(message_id: int, payload: bytes, *, header: struct.Struct = BIG_ENDIAN) -> bytes:
    """Return header and payload as the bytes that go out."""
    return header.pack(len(payload), message_id) + payload


@attrs.define(eq=False)
class FrameReader:
    """Cuts a stream of bytes, in whatever pieces it arrives, into frames.

    Holds at most one header and `limit` bytes more than the last piece that was fed: a longer payload is refused as soon as
    its header is there, before a byte of it is kept. `limit` may be raised between two frames.
    """

    limit: int = FIRST_FRAME_BYTES
    header: struct.Struct = BIG_ENDIAN
    _buffer: bytearray = attrs.field(init=False, repr=False, factory=bytearray)

    @property
    def trailing(self) -> bytes:
        """What was fed and belongs to no frame yet; whoever takes the connection over needs it."""
        return bytes(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that have arrived."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None until more bytes are fed.

        Raises:
            RemoteProtocolError: the header announces more than `limit` bytes. The stream cannot be read on after that.
        """
        if len(self._buffer) < HEADER_BYTES:
            return None
        length, message_id = self.header.unpack_from(self._buffer)
        if length > self.limit:
            raise RemoteProtocolError(
                f"frame {message_id} of {length} bytes is larger than the {self.limit} allowed here"
            )
        end = HEADER_BYTES + length
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[HEADER_BYTES:end])
        del self._buffer[:end]
        return Frame(message_id, payload)

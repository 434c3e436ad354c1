"""WebSocket as it stands in recorded bytes (RFC 6455): messages, unmasked, joined, and decompressed (RFC 7692).

Bounded as `http_view` is, and nothing here raises.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.client.inspector.http_view import Message

MOST_MESSAGES: Final = 2000
MOST_SHOWN: Final = 64 * 1024
"""Bytes of a message that are shown."""

MOST_INFLATED: Final = 8 * 1024 * 1024
"""Bytes that are decompressed, of all messages of a direction."""

_OPCODES: Final = {0: "continuation", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
_CONTROL: Final = 8


@attrs.frozen(kw_only=True)
class SocketMessage:
    """A message, or a control frame. `start` is its place in the bytes of its direction, `size` its length on the wire.

    `data` is the beginning of what it says; `note` tells what is not shown.
    """

    start: int
    kind: str
    size: int
    data: bytes
    is_whole: bool
    note: str = ""


@attrs.frozen
class _Frame:
    start: int
    final: bool
    compressed: bool
    opcode: int
    payload: bytes
    is_whole: bool


def deflates(answer: Message) -> bool:
    """Tell whether messages may be compressed."""
    return any(
        "permessage-deflate" in value.lower() for value in answer.values("sec-websocket-extensions")
    )


def _frames(data: bytes, at: int) -> Iterator[_Frame]:
    while at + 2 <= len(data):
        start = at
        first, second = data[at], data[at + 1]
        length, at = second & 0x7F, at + 2
        more = {126: 2, 127: 8}.get(length, 0)
        if more:
            if at + more > len(data):
                return
            length = int.from_bytes(data[at : at + more], "big")
            at += more
        mask = b""
        if second & 0x80:
            mask, at = data[at : at + 4], at + 4
        payload = data[at : at + length]
        if mask:
            payload = _unmask(payload, mask)
        at += length
        yield _Frame(
            start, bool(first & 0x80), bool(first & 0x40), first & 0x0F, payload, at <= len(data)
        )


def _unmask(payload: bytes, mask: bytes) -> bytes:
    if len(mask) < 4 or not payload:
        return payload
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    joined = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return joined.to_bytes(len(payload), "big")


@attrs.define
class _Inflater:
    """Decompresses one message after another, which may refer to those before."""

    _engine: Any = attrs.field(init=False, factory=lambda: zlib.decompressobj(-15))
    _left: int = attrs.field(init=False, default=MOST_INFLATED)
    _failed: str = attrs.field(init=False, default="")

    def inflate(self, data: bytes) -> tuple[bytes, str]:
        if self._failed:
            return b"", self._failed
        try:
            text = self._engine.decompress(data + b"\x00\x00\xff\xff", self._left)
        except zlib.error:
            self._failed = "compressed, and cannot be decompressed"
            return b"", self._failed
        self._left -= len(text)
        if self._left <= 0:
            self._failed = "compressed, and too much to be decompressed here"
        elif self._engine.eof:  # a last block ends the stream, and the next message begins anew
            self._engine = zlib.decompressobj(-15)
        return text, ""


def read_messages(
    data: bytes, at: int, *, deflated: bool, most: int = MOST_SHOWN
) -> list[SocketMessage]:
    """Read the messages of one direction, from that position on, and of each at most so many bytes."""
    found: list[SocketMessage] = []
    begun: list[_Frame] = []
    inflater = _Inflater()

    def finish(frames: list[_Frame], *, is_whole: bool) -> None:
        first = frames[0]
        payload = b"".join(frame.payload for frame in frames)
        size, note = len(payload), ""
        if first.compressed and deflated:
            payload, note = (
                inflater.inflate(payload)
                if is_whole
                else (b"", "compressed, and not all of it is here")
            )
        if len(payload) > most:
            note = f"only the first {most // 1024} KiB of {len(payload)} bytes are shown"
        found.append(
            SocketMessage(
                start=first.start,
                kind=_OPCODES.get(first.opcode, f"opcode {first.opcode}"),
                size=size,
                data=payload[:most],
                is_whole=is_whole,
                note=note,
            )
        )

    for frame in _frames(data, at):
        if len(found) >= MOST_MESSAGES:
            return found
        if frame.opcode >= _CONTROL:
            finish([frame], is_whole=frame.is_whole)
            continue
        if frame.opcode and begun:  # the one before was never finished
            finish(begun, is_whole=False)
            begun = []
        begun.append(frame)
        if frame.final or not frame.is_whole:
            finish(begun, is_whole=frame.is_whole)
            begun = []
    if begun:
        finish(begun, is_whole=False)
    return found

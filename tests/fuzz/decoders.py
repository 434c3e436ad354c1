"""What holds of every decoder, whatever the bytes: targets for hypothesis, and for a fuzzer that follows coverage.

A target takes any bytes, and raises where a promise is broken. The first byte says into which pieces the rest is cut; the pieces,
the whole, and one byte at a time must give the same messages and then the same error of the peer, or none; and a decoder never
holds more than its bound.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from trionat.errors import RefusedError, RemoteProtocolError
from trionat.hostnames import MAX_HOSTNAME, parse_hostname, parse_label, parse_pattern
from trionat.protocol.client_hello import CLIENT_HELLO_BYTES, parse_client_hello
from trionat.protocol.dialect import detect_dialect
from trionat.protocol.frames import (
    CONTROL_FRAME_BYTES,
    FIRST_FRAME_BYTES,
    HEADER_BYTES,
    FrameReader,
)
from trionat.protocol.legacy import HEADERS
from trionat.protocol.legacy import decode as decode_legacy
from trionat.protocol.legacy import encode as encode_legacy
from trionat.protocol.messages import decode_message, encode_message
from trionat.protocol.proxy import MOST_PROXY_BYTES, read_proxy_header
from trionat.protocol.ticket import Ticket
from trionat.protocol.tunnel_frames import SMALL_FRAME_BYTES, TunnelReader
from trionat.server.accounts.scope import MOST_PORTS, Only, read_caveat, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from struct import Struct

    from trionat.protocol.dialect import Dialect

OVERWRITTEN: Final = 0xAA


def read_the_same_in_any_pieces(
    data: bytes, read: Callable[[Iterable[bytes]], list[object]]
) -> None:
    """Check that `read` takes the same out of a stream however it is cut."""
    size, stream = 1 + data[0] if data else 1, data[1:]
    whole = read([stream])
    assert read(pieces(stream, size)) == whole
    assert read(pieces(stream, 1)) == whole


def pieces(stream: bytes, size: int) -> Iterator[bytes]:
    """Cut a stream into pieces of that many bytes."""
    return (stream[start : start + size] for start in range(0, len(stream), size))


def control(data: bytes) -> None:
    """Messages of a control connection, before and after its peer is known."""
    for limit in (FIRST_FRAME_BYTES, CONTROL_FRAME_BYTES):

        def read(cut: Iterable[bytes], limit: int = limit) -> list[object]:
            reader = FrameReader(limit)
            found: list[object] = []
            try:
                for piece in cut:
                    reader.feed(piece)
                    while (frame := reader.next_frame()) is not None:
                        assert len(frame.payload) <= limit
                        message = decode_message(frame)
                        again = FrameReader(CONTROL_FRAME_BYTES)
                        again.feed(encode_message(message))
                        copy = again.next_frame()
                        assert copy is not None
                        assert decode_message(copy) == message
                        found.append(message)
                    assert len(reader.trailing) < HEADER_BYTES + limit
            except RemoteProtocolError as error:
                found.append(str(error))
            return found

        read_the_same_in_any_pieces(data, read)


def tunnel(data: bytes) -> None:
    """Frames and bytes on a tunnel, out of one buffer that is written over after each piece."""
    for keep in (False, True):

        def read(cut: Iterable[bytes], keep: bool = keep) -> list[object]:
            reader = TunnelReader()
            found: list[object] = []
            try:
                for piece in cut:
                    buffer = bytearray(piece)
                    reader.feed(memoryview(buffer))
                    while (event := reader.next()) is not None:
                        _add(found, event)
                        if keep:
                            reader.keep()
                            buffer[:] = bytes([OVERWRITTEN]) * len(buffer)
                    assert len(reader._partial) < HEADER_BYTES + SMALL_FRAME_BYTES
                    assert len(reader._data) <= len(piece)
                    buffer[:] = bytes([OVERWRITTEN]) * len(buffer)
            except (RemoteProtocolError, RefusedError) as error:
                found.append(error.args)
            return found

        read_the_same_in_any_pieces(data, read)


def legacy(data: bytes) -> None:
    """Messages of the Go program, in both of its dialects."""
    for spoken, header in HEADERS.items():

        def read(
            cut: Iterable[bytes], spoken: Dialect = spoken, header: Struct = header
        ) -> list[object]:
            reader = FrameReader(header=header)
            found: list[object] = []
            try:
                for piece in cut:
                    reader.feed(piece)
                    while (frame := reader.next_frame()) is not None:
                        assert len(frame.payload) <= FIRST_FRAME_BYTES
                        message = decode_legacy(frame, spoken)
                        again = FrameReader(header=header)
                        again.feed(encode_legacy(message, spoken))
                        copy = again.next_frame()
                        assert copy is not None
                        assert decode_legacy(copy, spoken) == message
                        found.append(message)
                    assert len(reader.trailing) < HEADER_BYTES + FIRST_FRAME_BYTES
            except RemoteProtocolError as error:
                found.append(str(error))
            return found

        read_the_same_in_any_pieces(data, read)


def _add(found: list[object], event: object) -> None:
    """Append, and join bytes with those before: where DATA is cut says nothing."""
    if not isinstance(event, memoryview):
        found.append(event)
    elif found and isinstance(found[-1], bytearray):
        found[-1] += event
    else:
        found.append(bytearray(event))


def dialect(data: bytes) -> None:
    """The first bytes of a connection: what is told once stays true, and eight bytes tell."""
    told = [detect_dialect(data[:length]) for length in range(min(len(data), 2 * HEADER_BYTES) + 1)]
    assert None not in told[HEADER_BYTES:]
    assert len({answer for answer in told if answer is not None}) <= 1
    assert told == sorted(told, key=lambda answer: answer is not None)


def client_hello(data: bytes) -> None:
    """A ClientHello is found, or is none, or needs more bytes, and never more than the bound; what more bytes follow changes nothing."""
    for first in (data, b"\x16\x03\x01" + len(data).to_bytes(2) + data):
        told: list[object] = []
        for length in range(0, len(first) + 1, max(1, len(first) // 50)):
            try:
                told.append(parse_client_hello(first[:length]))
            except RemoteProtocolError:
                told.append("none")
        decided = [answer for answer in told if answer is not None]
        assert told == [None] * (len(told) - len(decided)) + decided
        assert all(answer == decided[0] for answer in decided)
    with suppress(RemoteProtocolError):
        assert parse_client_hello((data or b"\x16") * CLIENT_HELLO_BYTES) is not None


def proxy(data: bytes) -> None:
    """The header of a proxy: read from the peeked bytes as a server does, it ends at the same byte however it is cut."""

    def read(cut: Iterable[bytes]) -> list[object]:
        seen = b""
        for piece in cut:
            try:
                header = read_proxy_header(seen + piece)
            except RemoteProtocolError:
                return ["no header"]
            seen += piece
            if header is not None:
                assert len(seen) - len(piece) < header.size <= min(len(seen), MOST_PROXY_BYTES)
                assert (header.source is None) == (header.destination is None)
                return [header]
            assert len(seen) < MOST_PROXY_BYTES
        return []

    read_the_same_in_any_pieces(data, read)


def ticket(data: bytes) -> None:
    """Any text, and any body with the right checksum, is a ticket that is written as it was read, or is refused."""
    sealed: list[str] = []
    for prefix in ("tn1_", "tn2_", "tn3_"):
        checksum = hashlib.sha256(prefix.encode() + data).digest()[:4]
        sealed.append(prefix + base64.urlsafe_b64encode(data + checksum).rstrip(b"=").decode())
    for text in (data.decode("utf-8", "replace"), *sealed):
        with suppress(ValueError):
            assert Ticket.decode(text).encode() == "".join(text.split())


def caveat(data: bytes) -> None:
    """Any text is a caveat that is written as it was read, with a bounded number of ports, or is refused; the same for names."""
    for text in (data.decode("utf-8", "replace"), data[1:].decode("utf-8", "replace")):
        with suppress(ValueError):
            found = read_caveat(text)
            assert (str(found) if isinstance(found, Only) else until(found)) == text
            assert not isinstance(found, Only) or len(found.ports) <= MOST_PORTS
        for parse in (parse_label, parse_hostname, parse_pattern):
            with suppress(ValueError):
                name = parse(text)
                assert parse(name) == name
                assert len(name) <= MAX_HOSTNAME


DECODERS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (control, tunnel, legacy, dialect, client_hello, proxy, ticket, caveat)
}

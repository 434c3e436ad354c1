"""What travels on a tunnel once it is attached: the frames, and a reader that never copies visitors' bytes.

A tunnel serves one visitor after another. For each of them::

    server                                     client
    OPEN(visitor, service, addresses)  ->      connects to the local service
    DATA ...                          <->      DATA ...
    END | ABORT(visitor, reason)      <->      END | ABORT(visitor, reason)

END says that no more bytes follow in this direction: the other one goes on (half-close). ABORT ends both: whoever gets one
before it has ended its own direction answers with one. A conversation is over at a side that has both sent and received an
END or ABORT; then the tunnel is idle and the next OPEN may follow at once, without a round trip.

An ABORT can cross the peer's last frame, so it names its visitor: one for the visitor before the current one is late and
ignored. Everything else is in the order that TCP keeps. PROBE and PROBED ask an idle tunnel whether it is still alive.

A stream that can be resumed has a position in each direction: its bytes, counted from 0, and 1 more for END. ACK tells how far the
receiver is. When its tunnel is lost, the stream goes on over another one::

    server                                     client
    RESUME(visitor, received, ...)     ->      finds the stream
                                       <-      RESUMED(received) | ABORT(visitor, GONE)
    DATA from there ...               <->      DATA from there ...
"""

from __future__ import annotations

import enum
import struct
from typing import ClassVar, Final, NoReturn, Self, TypeAlias

import attrs

from trionat.errors import RefusedError, RemoteProtocolError
from trionat.protocol.frames import BIG_ENDIAN, HEADER_BYTES, encode_frame
from trionat.protocol.messages import Refused

DATA_ID: Final = 40102
END_ID: Final = 40103

# A DATA frame holds at least one byte and at most this (specification); we send at most what one read of ours fills.
DATA_BYTES: Final = 1024 * 1024
# No other frame of a tunnel needs more: OPEN with two addresses and ABORT with its text are the largest.
SMALL_FRAME_BYTES: Final = 1024
HOST_BYTES: Final = 255
TEXT_BYTES: Final = 512

END_FRAME: Final = encode_frame(END_ID, b"")


class AbortReason(enum.IntEnum):
    """Why a conversation ended without an END."""

    RESET = 1  # the visitor or the local service reset its connection
    REFUSED = 2  # the local service could not be reached
    TIMEOUT = 3  # somebody took too long
    STOPPED = 4  # this side ends
    OTHER = 5  # something that this version has no name for
    GONE = 6  # the stream that is to be resumed is not here

    @classmethod
    def _missing_(cls, value: object) -> AbortReason:
        return cls.OTHER


_OPEN: Final = struct.Struct(">QHHHBB")


@attrs.frozen(kw_only=True)
class Open:
    """The next visitor: its number, unique on the server; the service that it wants (index into EXPOSE's list); addresses.

    `host` and `port` are the visitor's own address, `visit_host` and `visit_port` the one that it dialled; a host has at most
    255 bytes.
    """

    ID: ClassVar[int] = 40101
    visitor: int
    service: int
    host: str
    port: int
    visit_host: str
    visit_port: int

    def encode(self) -> bytes:
        """Return the whole frame."""
        return encode_frame(self.ID, self.payload())

    def payload(self) -> bytes:
        """Return the payload."""
        host, visit_host = self.host.encode()[:HOST_BYTES], self.visit_host.encode()[:HOST_BYTES]
        return (
            _OPEN.pack(
                self.visitor, self.service, self.port, self.visit_port, len(host), len(visit_host)
            )
            + host
            + visit_host
        )

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if len(payload) < _OPEN.size:
            raise RemoteProtocolError("OPEN: the payload is too short")
        visitor, service, port, visit_port, host_bytes, visit_host_bytes = _OPEN.unpack_from(
            payload
        )
        hosts = payload[_OPEN.size :]
        if len(hosts) != host_bytes + visit_host_bytes:
            raise RemoteProtocolError("OPEN: the payload is not as long as its parts")
        try:
            host, visit_host = hosts[:host_bytes].decode(), hosts[host_bytes:].decode()
        except UnicodeDecodeError:
            raise RemoteProtocolError("OPEN: an address is not UTF-8") from None
        return cls(
            visitor=visitor,
            service=service,
            host=host,
            port=port,
            visit_host=visit_host,
            visit_port=visit_port,
        )


_FORWARD: Final = struct.Struct(">QBB")
"""Fence, whether it begins with TLS, and the length of the name."""


@attrs.frozen(kw_only=True)
class Forward(Open):
    """Between nodes of a cluster: as OPEN, for the claim with this fence. `service` is of no use there.

    A visitor of a name has come to no visit port that counts: `name` is the one, of at most 253 characters of ASCII, and `with_tls` says whether what it has said begins with TLS.
    """

    ID: ClassVar[int] = 40111
    fence: int
    name: str = ""
    with_tls: bool = False

    def payload(self) -> bytes:
        """Return the payload."""
        name = self.name.encode("ascii")
        return _FORWARD.pack(self.fence, self.with_tls, len(name)) + name + super().payload()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if len(payload) < _FORWARD.size:
            raise RemoteProtocolError("FORWARD: the payload is too short")
        fence, with_tls, length = _FORWARD.unpack_from(payload)
        end = _FORWARD.size + length
        name = payload[_FORWARD.size : end]
        if len(name) != length or not name.isascii() or with_tls > 1:
            raise RemoteProtocolError("FORWARD: there is no name where it has to be")
        opening = Open.decode(payload[end:])
        return cls(
            fence=fence, name=name.decode("ascii"), with_tls=bool(with_tls), **attrs.asdict(opening)
        )


_RESUME: Final = struct.Struct(">QQI")


@attrs.frozen
class Resume:
    """Server to client: a stream whose tunnel was lost goes on here. `open` says whose it is, as OPEN did.

    `received` is how far the server has received it, and `kept` from where it can send again, both as positions. `attempt` counts how often
    it was resumed, this time included.
    """

    ID: ClassVar[int] = 40107
    open: Open
    received: int
    kept: int
    attempt: int

    def encode(self) -> bytes:
        """Return the whole frame."""
        positions = _RESUME.pack(self.received, self.kept, self.attempt)
        return encode_frame(self.ID, positions + self.open.payload())

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if len(payload) < _RESUME.size:
            raise RemoteProtocolError("RESUME: the payload is too short")
        received, kept, attempt = _RESUME.unpack_from(payload)
        return cls(Open.decode(payload[_RESUME.size :]), received, kept, attempt)


_POSITION: Final = struct.Struct(">Q")


@attrs.frozen
class Resumed:
    """Client to server: the stream is here, and has been received so far."""

    ID: ClassVar[int] = 40108
    received: int

    def encode(self) -> bytes:
        """Return the whole frame."""
        return encode_frame(self.ID, _POSITION.pack(self.received))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if len(payload) != _POSITION.size:
            raise RemoteProtocolError(f"RESUMED: the payload is not {_POSITION.size} bytes long")
        return cls(*_POSITION.unpack(payload))


_ACK: Final = struct.Struct(">QQ")


@attrs.frozen
class Ack:
    """The stream of `visitor` has been received so far: its end of the stream has taken all of that."""

    ID: ClassVar[int] = 40109
    visitor: int
    received: int

    def encode(self) -> bytes:
        """Return the whole frame."""
        return encode_frame(self.ID, _ACK.pack(self.visitor, self.received))

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if len(payload) != _ACK.size:
            raise RemoteProtocolError(f"ACK: the payload is not {_ACK.size} bytes long")
        return cls(*_ACK.unpack(payload))


_ABORT: Final = struct.Struct(">QH")


@attrs.frozen
class Abort:
    """The conversation with `visitor` is over in both directions; `text` (at most 512 bytes) is for people."""

    ID: ClassVar[int] = 40104
    visitor: int
    reason: AbortReason
    text: str = ""

    def encode(self) -> bytes:
        """Return the whole frame."""
        # The text may name a socket whose path is not UTF-8, which Python has as half surrogate pairs (PEP 383).
        text = self.text.encode(errors="replace")[:TEXT_BYTES]
        return encode_frame(self.ID, _ABORT.pack(self.visitor, self.reason) + text)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Parse and check the payload."""
        if not _ABORT.size <= len(payload) <= _ABORT.size + TEXT_BYTES:
            raise RemoteProtocolError("ABORT: the payload has not the length that it must have")
        visitor, reason = _ABORT.unpack_from(payload)
        return cls(visitor, AbortReason(reason), payload[_ABORT.size :].decode(errors="replace"))


class TunnelRefused:
    """The server's answer to ATTACH where it does not want the tunnel: REFUSED, as on a control connection."""

    ID: ClassVar[int] = Refused.id

    @classmethod
    def decode(cls, payload: bytes) -> NoReturn:
        """Raise `RefusedError`: there is nothing to do with it but that."""
        refused = Refused.from_payload(payload)
        raise RefusedError(refused.code, refused.text)


@attrs.frozen
class _Empty:
    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Check that there is no payload."""
        if payload:
            raise RemoteProtocolError(f"{cls.__name__.upper()}: a payload where there must be none")
        return cls()


@attrs.frozen
class End(_Empty):
    """No more bytes in this direction."""

    ID: ClassVar[int] = END_ID


@attrs.frozen
class Probe(_Empty):
    """Server to client: is this tunnel alive?"""

    ID: ClassVar[int] = 40105


@attrs.frozen
class Probed(_Empty):
    """Client to server: it is."""

    ID: ClassVar[int] = 40106


PROBE_FRAME: Final = encode_frame(Probe.ID, b"")
PROBED_FRAME: Final = encode_frame(Probed.ID, b"")

TunnelFrame: TypeAlias = Open | Forward | Resume | Resumed | Ack | Abort | End | Probe | Probed
_KINDS: Final[dict[int, type[TunnelFrame | TunnelRefused]]] = {
    kind.ID: kind
    for kind in (Open, Forward, Resume, Resumed, Ack, Abort, End, Probe, Probed, TunnelRefused)
}


@attrs.define(eq=False)
class TunnelReader:
    """Cuts what arrives on a tunnel into frames and pieces of visitors' bytes.

    Visitors' bytes come out as slices of the very memory that was fed, so whoever feeds a buffer that others write to must
    either use up everything or call `keep` before that happens. What is kept between two pieces is at most one small frame.
    """

    _data: memoryview = attrs.field(init=False, repr=False, factory=lambda: memoryview(b""))
    _at: int = attrs.field(init=False, default=0)
    _is_ours: bool = attrs.field(init=False, default=True)
    _data_left: int = attrs.field(init=False, default=0)
    _partial: bytearray = attrs.field(init=False, repr=False, factory=bytearray)

    def feed(self, data: memoryview) -> None:
        """Give the next piece; everything of the one before must have been used up."""
        self._data = data
        self._at = 0
        self._is_ours = False

    def keep(self) -> None:
        """Move what is not yet used up into memory of its own, so that the memory that was fed is free again."""
        if not self._is_ours:
            self._data = memoryview(bytes(self._data[self._at :]))
            self._at = 0
            self._is_ours = True

    def next(self) -> memoryview | TunnelFrame | None:
        """Return the next bytes for the other end of the conversation, or the next frame, or None: feed more.

        Raises:
            RemoteProtocolError: an unknown frame, or one that is too long or malformed.
            RefusedError: the server does not want this tunnel.
        """
        data, at = self._data, self._at
        left = len(data) - at
        if self._data_left:
            if not left:
                return None
            taken = min(self._data_left, left)
            self._data_left -= taken
            self._at = at + taken
            return data[at : at + taken]
        if not self._partial and left >= HEADER_BYTES:
            length, frame_id = BIG_ENDIAN.unpack_from(data, at)
            if frame_id == DATA_ID:
                self._start_data(length)
                self._at = at + HEADER_BYTES
                return self.next()
        return self._next_small() if left else None

    def _start_data(self, length: int) -> None:
        if not 0 < length <= DATA_BYTES:
            raise RemoteProtocolError(f"DATA of {length} bytes: it has 1 to {DATA_BYTES}")
        self._data_left = length

    def _next_small(self) -> memoryview | TunnelFrame | None:
        """Collect a header, then a small frame, over as many pieces as it takes."""
        if not self._collect(HEADER_BYTES):
            return None
        length, frame_id = BIG_ENDIAN.unpack_from(self._partial)
        if frame_id == DATA_ID:
            self._partial.clear()
            self._start_data(length)
            return self.next()
        kind = _KINDS.get(frame_id)
        if kind is None:
            raise RemoteProtocolError(f"unknown frame {frame_id} on a tunnel")
        if length > SMALL_FRAME_BYTES:
            raise RemoteProtocolError(
                f"{kind.__name__.upper()} of {length} bytes is larger than {SMALL_FRAME_BYTES}"
            )
        if not self._collect(HEADER_BYTES + length):
            return None
        payload = bytes(self._partial[HEADER_BYTES:])
        self._partial.clear()
        return kind.decode(payload)

    def _collect(self, wanted: int) -> bool:
        missing = wanted - len(self._partial)
        if missing > 0:
            piece = self._data[self._at : self._at + missing]
            self._at += len(piece)
            self._partial += piece
        return len(self._partial) >= wanted

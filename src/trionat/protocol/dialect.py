"""Which of the dialects a connection speaks, from its first bytes.

That the first byte 0x16 means TLS is not enough to go by: it would take the credentials of a `nat-doc` client whose
payload is 22 bytes long (0x16 as a little-endian length) for a TLS record, so the next two bytes, TLS's record version, count
as well: a length that continues in 0x03 0x01 is above any frame's bound.
"""

from __future__ import annotations

import enum
from typing import Final

from trionat.protocol.frames import BIG_ENDIAN, FIRST_FRAME_BYTES, HEADER_BYTES, LITTLE_ENDIAN
from trionat.protocol.messages import JOIN_BYTES, Join
from trionat.protocol.proxy import is_proxy_header

TLS_HANDSHAKE: Final = 0x16
TLS_MAJOR_VERSION: Final = 0x03

# The header of a native tunnel's first frame where tunnels are not encrypted.
_JOIN: Final = BIG_ENDIAN.pack(JOIN_BYTES, Join.id)

# The ids that the first frame of a legacy connection can have: credentials on the control port, a uid on the tunnel port.
LEGACY_FIRST_IDS: Final = frozenset({60001, 20002})


class Dialect(enum.Enum):
    """What a peer speaks, as far as its first bytes tell. The value is the text for the log."""

    NATIVE = "TLS"
    PLAIN_TUNNEL = "a tunnel without TLS"
    NAT_DOC = "nat-doc"
    NAT_V1 = "nat-v1"
    HTTP = "plain HTTP"
    SSH = "SSH"
    PROXY = "the PROXY protocol, which ProxyControlAddr is for"
    UNKNOWN = "no dialect of this port"


def detect_dialect(first: bytes) -> Dialect | None:
    """Tell the dialect from a connection's first bytes, or None while they are too few.

    Eight bytes always decide.
    """
    if first[:1] and first[0] == TLS_HANDSHAKE:
        if len(first) >= 3 and first[1] == TLS_MAJOR_VERSION and first[2] <= 0x04 and first[2] != 0:
            return Dialect.NATIVE
        if first[1:2] == bytes([TLS_MAJOR_VERSION]) and len(first) < 3:
            return None
    if len(first) < HEADER_BYTES:
        return None
    for header, dialect in ((LITTLE_ENDIAN, Dialect.NAT_DOC), (BIG_ENDIAN, Dialect.NAT_V1)):
        length, message_id = header.unpack_from(first)
        if message_id in LEGACY_FIRST_IDS and length <= FIRST_FRAME_BYTES:
            return dialect
    if first[:HEADER_BYTES] == _JOIN:
        return Dialect.PLAIN_TUNNEL
    if is_proxy_header(first):
        return Dialect.PROXY
    if first.startswith(b"SSH-"):
        return Dialect.SSH
    if first.split(b" ")[0] in {
        b"GET",
        b"POST",
        b"HEAD",
        b"PUT",
        b"OPTIONS",
        b"DELETE",
        b"CONNECT",
    }:
        return Dialect.HTTP
    return Dialect.UNKNOWN

"""The ticket: one printable string that is all a client needs to reach a server and to log in.

Owns the text form (`tn1_…`, `tn2_…`) and the credential in it. Knows nothing of sockets, files or accounts: who makes a ticket brings
the key and the account's salt, and who is shown one asks for the same token again and compares.

The text is `tn1_` and the unpadded base64url of:

| bytes | field |
| --- | --- |
| 1 | flags: bit 0 says that a fingerprint follows; the others are 0 |
| 2 | port, big-endian, 1 to 65535 |
| 16 | token |
| 0 or 32 | fingerprint: SHA-256 of the server's certificate in DER |
| 1 | length of the host in bytes |
| 1 to 255 | host: name or IP address, UTF-8 |
| 1 to 1020 | user name, UTF-8: all that is left before the checksum |
| 4 | checksum: the first bytes of the SHA-256 of everything before, `tn1_` included |

A ticket with several addresses is `tn2_`, so that a trionat which knows only one says that it has to be updated. It has 0 as its port, and in
place of the host:

| bytes | field |
| --- | --- |
| 1 | number of addresses, 2 to 16 |
| 4 to 258 each | port (2 bytes), length of the host (1 byte), host |

The checksum is for people, not against forgers: it tells a ticket that was cut off or mistyped from one that the server refuses.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from typing import TYPE_CHECKING, Final, Self

import attrs

from trionat.address import TCPAddress
from trionat.fingerprint import FINGERPRINT_BYTES
from trionat.text import invisible_in, join_words, unwrap

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKEN_BYTES: Final = 16
"""128 bits of the HMAC are kept, so that the ticket stays short: RFC 2104 section 5 allows no less than half of the hash."""
MAX_USERNAME_BYTES: Final = 1020
"""255 characters of up to four bytes: what the widest store, a `varchar(255)` of MySQL, can hold."""

MAX_ADDRESSES: Final = 16
"""How many servers one ticket may name."""

_PREFIX: Final = "tn1_"
_PREFIX_OF_SEVERAL: Final = "tn2_"
_NEWER: Final = re.compile(r"tn([3-9]|[1-9][0-9]+)_")
_NEWER_TEXT: Final = "the ticket was made by a newer trionat: update this one"
_HAS_FINGERPRINT: Final = 0x01
_HEAD: Final = struct.Struct(f">BH{TOKEN_BYTES}s")
_PORT: Final = struct.Struct(">H")
_CHECKSUM_BYTES: Final = 4
_MAX_TEXT: Final = 8192
"""Characters; more than the longest ticket has. It only bounds the work on a file that is none."""
_DAMAGED: Final = "the ticket is damaged: copy it again, whole"


def _host_is_sane(_: object, __: object, host: str) -> None:
    if not host.isprintable() or " " in host or not 1 <= len(host.encode()) <= 255:
        raise ValueError(f"the host of a ticket is 1 to 255 bytes without blanks, got {host!r}")


def _others_are_sane(ticket: Ticket, _: object, others: tuple[TCPAddress, ...]) -> None:
    if len(others) >= MAX_ADDRESSES:
        raise ValueError(f"a ticket has room for {MAX_ADDRESSES} addresses, got {len(others) + 1}")
    for address in others:
        _host_is_sane(ticket, None, address.host)
        _port_is_sane(ticket, None, address.port)
    if len({*others, TCPAddress(ticket.host, ticket.port)}) <= len(others):
        raise ValueError("an address stands twice in the ticket")


def _username_is_sane(_: object, __: object, username: str) -> None:
    if not username.isprintable() or not 1 <= len(username.encode()) <= MAX_USERNAME_BYTES:
        raise ValueError(
            f"the user name of a ticket is 1 to {MAX_USERNAME_BYTES} printable bytes, got {username!r}"
        )


def _port_is_sane(_: object, __: object, port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"the port of a ticket is 1 to 65535, got {port}")


def _fingerprint_is_sane(_: object, __: object, fingerprint: bytes | None) -> None:
    if fingerprint is not None and len(fingerprint) != FINGERPRINT_BYTES:
        raise ValueError(
            f"a fingerprint is {FINGERPRINT_BYTES} bytes, got {len(fingerprint)} of them"
        )


def _token_is_sane(_: object, __: object, token: bytes) -> None:
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"the token of a ticket is {TOKEN_BYTES} bytes, got {len(token)} of them")


@attrs.frozen(kw_only=True)
class Ticket:
    """What a ticket says. The constructor raises `ValueError` for what the text form cannot hold.

    `host` and `port` are the server's public control address, `others` are those of further servers that take the same ticket. `fingerprint` is the SHA-256 of the certificate that the server
    has to show, 32 bytes; None means that an ordinary check by certificate authorities decides. `token` proves that the
    server's operator made the ticket for `username`; whoever has it can log in, so `repr` leaves it out.
    """

    host: str = attrs.field(validator=_host_is_sane)
    port: int = attrs.field(validator=_port_is_sane)
    fingerprint: bytes | None = attrs.field(validator=_fingerprint_is_sane)
    username: str = attrs.field(validator=_username_is_sane)
    token: bytes = attrs.field(validator=_token_is_sane, repr=False)
    others: tuple[TCPAddress, ...] = attrs.field(default=(), validator=_others_are_sane)

    @property
    def addresses(self) -> tuple[TCPAddress, ...]:
        """All control addresses, in the order in which they were written."""
        return (TCPAddress(self.host, self.port), *self.others)

    def encode(self) -> str:
        """Return the text form: printable ASCII, no blanks, nothing that a shell would touch."""
        flags = 0 if self.fingerprint is None else _HAS_FINGERPRINT
        several = bool(self.others)
        prefix = _PREFIX_OF_SEVERAL if several else _PREFIX
        body = b"".join(
            (
                _HEAD.pack(flags, 0 if several else self.port, self.token),
                self.fingerprint or b"",
                _pack_addresses(self.addresses) if several else _pack_host(self.host),
                self.username.encode(),
            )
        )
        return prefix + _text(body + _checksum(prefix, body))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read the text form; blanks and quotes round it and line breaks within, as mail programs make them, do not matter.

        Raises:
            ValueError: It is no ticket, is damaged, or was made by a newer trionat. One line, without the ticket's text.
        """
        text = join_words(unwrap(text[: 2 * _MAX_TEXT]))
        if (found := invisible_in(text)) is not None:
            raise ValueError(f"the ticket has {found}: copy it again")
        if _NEWER.match(text):
            raise ValueError(_NEWER_TEXT)
        prefix = text[: len(_PREFIX)]
        if prefix not in (_PREFIX, _PREFIX_OF_SEVERAL):
            raise ValueError(f"this is not a valid ticket: a ticket starts with {_PREFIX}")
        if len(text) > _MAX_TEXT:
            raise ValueError(_DAMAGED)
        return cls._from_body(_verified_body(prefix, text), several=prefix == _PREFIX_OF_SEVERAL)

    @classmethod
    def _from_body(cls, body: bytes, *, several: bool) -> Self:
        """Take apart a body whose checksum was right; it can still be one that no trionat of ours made."""
        try:
            flags, port, token = _HEAD.unpack_from(body)
            if flags & ~_HAS_FINGERPRINT:
                raise ValueError(_NEWER_TEXT)
            start = _HEAD.size + (FINGERPRINT_BYTES if flags & _HAS_FINGERPRINT else 0)
            fingerprint = body[_HEAD.size : start] or None
            if several:
                addresses, end = _unpack_addresses(body, start)
            else:
                host, end = _unpack_host(body, start)
                addresses = [TCPAddress(host, port)]
            username = body[end:].decode()
        except (struct.error, IndexError, UnicodeDecodeError):
            raise ValueError(_DAMAGED) from None
        if several and (port or not 2 <= len(addresses) <= MAX_ADDRESSES):
            raise ValueError(_DAMAGED)
        first, *others = addresses
        return cls(
            host=first.host,
            port=first.port,
            fingerprint=fingerprint,
            username=username,
            token=token,
            others=tuple(others),
        )


def _pack_host(host: str) -> bytes:
    encoded = host.encode()
    return bytes((len(encoded),)) + encoded


def _unpack_host(body: bytes, start: int) -> tuple[str, int]:
    """Return the host that stands there, and where it ends."""
    end = start + 1 + body[start]
    return body[start + 1 : end].decode(), end


def _pack_addresses(addresses: Sequence[TCPAddress]) -> bytes:
    packed = (_PORT.pack(address.port) + _pack_host(address.host) for address in addresses)
    return bytes((len(addresses),)) + b"".join(packed)


def _unpack_addresses(body: bytes, start: int) -> tuple[list[TCPAddress], int]:
    addresses: list[TCPAddress] = []
    position = start + 1
    for _ in range(body[start]):
        [port] = _PORT.unpack_from(body, position)
        host, position = _unpack_host(body, position + _PORT.size)
        addresses.append(TCPAddress(host, port))
    return addresses, position


def ticket_token(ticket_key: bytes, username: str, salt: bytes) -> bytes:
    """Return the token of a user's ticket: it follows from the server's key, the name and the account's salt.

    So a server keeps no table of tickets, can print one again at any time, and a ticket dies with a new salt or with its
    account. Compare with `hmac.compare_digest`.

    Args:
        ticket_key: The server's secret, 32 random bytes.
        username: The account's name.
        salt: The account's salt; a new one revokes every ticket of the account.
    """
    message = b"".join(
        len(part).to_bytes(4, "big") + part
        for part in (b"trionat ticket 1", username.encode(), salt)
    )
    return hmac.digest(ticket_key, message, "sha256")[:TOKEN_BYTES]


def _verified_body(prefix: str, text: str) -> bytes:
    encoded = text.removeprefix(prefix)
    try:
        data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except ValueError:
        raise ValueError(_DAMAGED) from None
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # The decoder skips characters outside its alphabet and ignores the spare bits of the last one, so that several texts give
    # the same bytes: only the one that we would have written counts.
    if _text(data) != encoded or not hmac.compare_digest(_checksum(prefix, body), checksum):
        raise ValueError(_DAMAGED)
    return body


def _checksum(prefix: str, body: bytes) -> bytes:
    return hashlib.sha256(prefix.encode() + body).digest()[:_CHECKSUM_BYTES]


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

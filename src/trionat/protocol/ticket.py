"""The ticket: one printable string that is all a client needs to reach a server and to log in.

Owns the text form (`tn1_…`, `tn2_…`, `tn3_…`) and the credential in it. Knows nothing of sockets, files or accounts: who makes a ticket brings
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

A ticket that was narrowed is `tn3_`, so that a trionat which knows no caveats says that it has to be updated. It is written like `tn2_`, but with 1 to 16
addresses, and between these and the user name has:

| bytes | field |
| --- | --- |
| 1 | number of caveats, 1 to 16 |
| 2 to 256 each | length (1 byte), caveat: printable ASCII without double quotes and backslashes |

A caveat is a line of text which says what the ticket is good for at most (`server/accounts/scope.py` knows which there are). Whoever has a ticket
can add one, without the server, and nobody can take one away: the new token is the HMAC of the caveat with the token before as its key, and
the token before is forgotten.

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
from trionat.text import invisible_in, join_words, quoted, unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TOKEN_BYTES: Final = 16
"""128 bits of the HMAC are kept, so that the ticket stays short: RFC 2104 section 5 allows no less than half of the hash."""
MAX_USERNAME_BYTES: Final = 1020
"""255 characters of up to four bytes: what the widest store, a `varchar(255)` of MySQL, can hold."""

MAX_ADDRESSES: Final = 16
"""How many servers one ticket may name."""

MAX_CAVEATS: Final = 16
MAX_CAVEAT: Final = 255
MAX_CAVEATS_TOGETHER: Final = 1024
"""Caveats of a ticket, and characters of one and of all: with the longest names a HELLO still fits into a first frame."""

_PREFIX: Final = "tn1_"
_PREFIX_OF_SEVERAL: Final = "tn2_"
_PREFIX_OF_NARROWED: Final = "tn3_"
_NEWER: Final = re.compile(r"tn([4-9]|[1-9][0-9]+)_")
_NEWER_TEXT: Final = "the ticket was made by a newer trionat: update this one"
_HAS_FINGERPRINT: Final = 0x01
_HEAD: Final = struct.Struct(f">BH{TOKEN_BYTES}s")
_PORT: Final = struct.Struct(">H")
_CHECKSUM_BYTES: Final = 4
_MAX_TEXT: Final = 9216
"""Characters; more than the longest ticket has. It only bounds the work on a file that is none."""
_CAVEAT: Final = re.compile(rf"[ !#-\[\]-~]{{1,{MAX_CAVEAT}}}", re.ASCII)
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


def check_caveats(caveats: Sequence[str]) -> None:
    """Check that a ticket, and a HELLO, can hold these caveats, whatever they say.

    Raises:
        ValueError: They are too many, too long, or have other characters than printable ASCII without double quotes and backslashes.
    """
    if len(caveats) > MAX_CAVEATS or sum(map(len, caveats)) > MAX_CAVEATS_TOGETHER:
        raise ValueError(
            f"a ticket has room for {MAX_CAVEATS} restrictions of {MAX_CAVEATS_TOGETHER} characters together: ask for a new one"
        )
    for caveat in caveats:
        if not _CAVEAT.fullmatch(caveat):
            raise ValueError(
                f"a restriction of a ticket is 1 to {MAX_CAVEAT} printable characters of ASCII, got {quoted(caveat)}"
            )


def _caveats_are_sane(_: object, __: object, caveats: tuple[str, ...]) -> None:
    check_caveats(caveats)


def _token_is_sane(_: object, __: object, token: bytes) -> None:
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"the token of a ticket is {TOKEN_BYTES} bytes, got {len(token)} of them")


@attrs.frozen(kw_only=True)
class Ticket:
    """What a ticket says. The constructor raises `ValueError` for what the text form cannot hold.

    `host` and `port` are the server's public control address, `others` are those of further servers that take the same ticket. `fingerprint` is the SHA-256 of the certificate that the server
    has to show, 32 bytes; None means that an ordinary check by certificate authorities decides. `token` proves that the
    server's operator made the ticket for `username`; whoever has it can log in, so `repr` leaves it out. `caveats` say what the ticket is good
    for at most, in the order in which it was narrowed; the token is of just these.
    """

    host: str = attrs.field(validator=_host_is_sane)
    port: int = attrs.field(validator=_port_is_sane)
    fingerprint: bytes | None = attrs.field(validator=_fingerprint_is_sane)
    username: str = attrs.field(validator=_username_is_sane)
    token: bytes = attrs.field(validator=_token_is_sane, repr=False)
    others: tuple[TCPAddress, ...] = attrs.field(default=(), validator=_others_are_sane)
    caveats: tuple[str, ...] = attrs.field(default=(), validator=_caveats_are_sane)

    @property
    def addresses(self) -> tuple[TCPAddress, ...]:
        """All control addresses, in the order in which they were written."""
        return (TCPAddress(self.host, self.port), *self.others)

    def narrow(self, *caveats: str) -> Self:
        """Return the ticket with further caveats; takes no key of the server's.

        Raises:
            ValueError: A ticket cannot hold them.
        """
        check_caveats(together := (*self.caveats, *caveats))
        return attrs.evolve(self, token=narrow_token(self.token, caveats), caveats=together)

    def encode(self) -> str:
        """Return the text form: printable ASCII, no blanks, nothing that a shell would touch."""
        flags = 0 if self.fingerprint is None else _HAS_FINGERPRINT
        several = bool(self.others or self.caveats)
        prefix = _PREFIX_OF_SEVERAL if several else _PREFIX
        if self.caveats:
            prefix = _PREFIX_OF_NARROWED
        body = b"".join(
            (
                _HEAD.pack(flags, 0 if several else self.port, self.token),
                self.fingerprint or b"",
                _pack_addresses(self.addresses) if several else _pack_host(self.host),
                _pack_caveats(self.caveats),
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
        if not text:
            raise ValueError("there is no ticket: this is empty")
        if _NEWER.match(text):
            raise ValueError(_NEWER_TEXT)
        prefix = text[: len(_PREFIX)]
        if prefix not in (_PREFIX, _PREFIX_OF_SEVERAL, _PREFIX_OF_NARROWED):
            raise ValueError("this is not a valid ticket: a ticket starts with tn")
        if len(text) > _MAX_TEXT:
            raise ValueError(_DAMAGED)
        return cls._from_body(_verified_body(prefix, text), prefix)

    @classmethod
    def _from_body(cls, body: bytes, prefix: str) -> Self:
        """Take apart a body whose checksum was right; it can still be one that no trionat of ours made."""
        several, narrowed = prefix != _PREFIX, prefix == _PREFIX_OF_NARROWED
        caveats: tuple[str, ...] = ()
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
            if narrowed:
                caveats, end = _unpack_caveats(body, end)
            username = body[end:].decode()
        except (struct.error, IndexError, UnicodeDecodeError):
            raise ValueError(_DAMAGED) from None
        least = 1 if narrowed else 2
        if several and (port or not least <= len(addresses) <= MAX_ADDRESSES):
            raise ValueError(_DAMAGED)
        if narrowed and not caveats:
            raise ValueError(_DAMAGED)
        first, *others = addresses
        return cls(
            host=first.host,
            port=first.port,
            fingerprint=fingerprint,
            username=username,
            token=token,
            others=tuple(others),
            caveats=caveats,
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


def _pack_caveats(caveats: Sequence[str]) -> bytes:
    if not caveats:
        return b""
    packed = (bytes((len(caveat),)) + caveat.encode() for caveat in caveats)
    return bytes((len(caveats),)) + b"".join(packed)


def _unpack_caveats(body: bytes, start: int) -> tuple[tuple[str, ...], int]:
    """Return the caveats that stand there, and where they end."""
    caveats: list[str] = []
    position = start + 1
    for _ in range(body[start]):
        caveat, position = _unpack_host(body, position)
        caveats.append(caveat)
    return tuple(caveats), position


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


def narrow_token(token: bytes, caveats: Iterable[str]) -> bytes:
    """Return the token of a ticket that was narrowed by these caveats, one after another; `token` is that of the ticket before.

    As with macaroons (Birgisson et al. 2014), each is the HMAC of a caveat, with the token before as its key. So a server that knows
    the first token can follow, and from the last one nobody finds one before. Compare with `hmac.compare_digest`.
    """
    for caveat in caveats:
        token = hmac.digest(token, caveat.encode(), "sha256")[:TOKEN_BYTES]
    return token


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

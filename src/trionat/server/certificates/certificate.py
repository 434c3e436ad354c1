"""What a certificate says, and whether a key and a chain belong together. Knows nothing of files and of authorities.

`cryptography` is imported with this module (9 MiB, 80 ms): only servers with names have it, and load it before their loop runs.
"""

from __future__ import annotations

import ipaddress
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

MOST_BYTES: Final = 100_000
"""Of a key with its chain; those of public authorities have 3,000 to 8,000."""

_LONGEST_CHAIN: Final = 10
_CLOCKS_DIFFER: Final = 86_400.0
"""Seconds by which a certificate may begin in our future: a clock may be wrong by its zone."""


@attrs.frozen
class Certificate:
    """What the first certificate of a chain says. `begins` and `ends` are seconds since 1970, `pem` is itself, without key and chain."""

    names: frozenset[str]
    begins: float
    ends: float
    pem: str = attrs.field(repr=False)

    @property
    def life(self) -> float:
        """Seconds from its beginning to its end."""
        return self.ends - self.begins

    def is_for(self, name: str) -> bool:
        """Tell whether a client that wants `name` (lower case) takes it: by the name itself, or by a wildcard for its first label."""
        return name in self.names or wildcard_of(name) in self.names


def wildcard_of(name: str) -> str:
    """Return the only wildcard that covers a name (RFC 6125 section 6.4.3); one of an address covers nothing."""
    return "*." + name.partition(".")[2]


def read_pair(key_pem: bytes, chain_pem: bytes) -> Certificate:
    """Check that a key without a password and a chain belong together, and that each certificate has signed the one before.

    Raises:
        ValueError: They do not, or are damaged; the message says what is wrong, and shows neither.
    """
    if len(key_pem) + len(chain_pem) > MOST_BYTES:
        raise ValueError(f"key and chain have more than {MOST_BYTES:,} bytes")
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        raise ValueError("there is no private key in it that we can read") from None
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        public = chain[0].public_key()
        names = _names(chain[0])
        begins, ends = map(_seconds, (chain[0].not_valid_before_utc, chain[0].not_valid_after_utc))
    except Exception:  # noqa: BLE001 - the library has a kind of its own for each oddity, and not all are ValueErrors
        raise ValueError("there is no certificate in it that we can read") from None
    if _spki(key.public_key()) != _spki(public):
        raise ValueError("the key is not the one of the certificate")
    if not names:
        raise ValueError("the certificate is for no name")
    _check_chain(chain)
    pem = chain[0].public_bytes(serialization.Encoding.PEM).decode()
    return Certificate(names, begins, ends, pem)


def check_issued(certificate: Certificate, names: Iterable[str], now: float) -> None:
    """Check that a certificate is what was ordered, and valid at `now` (seconds since 1970).

    Raises:
        ValueError: It is not.
    """
    if missing := sorted(name for name in names if not certificate.is_for(name)):
        raise ValueError(f"it is not for {', '.join(missing)}")
    if certificate.ends <= now:
        raise ValueError("it has run out already")
    if certificate.begins > now + _CLOCKS_DIFFER:
        raise ValueError("it is not valid yet")


def _check_chain(chain: list[x509.Certificate]) -> None:
    if len(chain) > _LONGEST_CHAIN:
        raise ValueError(f"the chain has more than {_LONGEST_CHAIN} certificates")
    for signed, signer in pairwise(chain):
        try:
            signed.verify_directly_issued_by(signer)
        except Exception:  # noqa: BLE001 - as above
            raise ValueError(
                "the chain is in disorder: one has not signed the one before"
            ) from None


def _names(certificate: x509.Certificate) -> frozenset[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    hosts = (name.lower() for name in found.get_values_for_type(x509.DNSName))
    return frozenset((*hosts, *map(str, found.get_values_for_type(x509.IPAddress))))


def _seconds(moment: datetime) -> float:
    return moment.timestamp()


def _spki(key: object) -> bytes:
    try:
        return key.public_bytes(  # type: ignore[attr-defined,no-any-return]  # every kind of key has it
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except AttributeError:
        raise ValueError("the key is of a kind that no certificate has") from None


def server_name(name: str) -> str:
    """Return what an authority that checks `name` by tls-alpn-01 sends as the name of the server (RFC 8738 section 6)."""
    try:
        return ipaddress.ip_address(name).reverse_pointer
    except ValueError:
        return name

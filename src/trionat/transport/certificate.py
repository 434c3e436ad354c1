"""The server's certificate: making the self-signed one, and the fingerprint of any.

Knows nothing of files, sockets or of who is trusted. Run as a program, it makes one certificate for `make_certificate_aside`; nothing of trionat is imported here,
so that this takes no longer than it must.
"""

# ruff: noqa: PLC0415 - cryptography takes longer to import than all of trionat, and only a server's first start needs it

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

_COMMON_NAME: Final = "trionat"
_NO_EXPIRY: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""How a certificate says that it has no good date to end at: RFC 5280 section 4.1.2.5."""
_BLOCK: Final = re.compile(
    "-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", flags=re.DOTALL
)

_HELPER_TIMEOUT: Final = 10.0
"""Seconds for a process to make a certificate, of which it needs some 0.3. Chosen."""


def make_certificate(
    names: Sequence[str] = ("localhost",), *, key_pem: bytes | None = None
) -> tuple[bytes, bytes]:
    """Make a self-signed certificate that never expires, and its key (EC, P-256).

    The extensions are those that Python 3.13's `VERIFY_X509_STRICT` wants of a certificate that is its own authority, so that
    whoever prefers a CA check to a fingerprint can simply trust the file. Takes some milliseconds, and about 80 more the first
    time, as `cryptography` is imported here: only a server's first start needs it.

    Args:
        names: What the certificate is for: host names and IP addresses, at least one.
        key_pem: The key to use, PEM without a password; None makes a new one.

    Returns:
        Key (PKCS #8) and certificate, both PEM.

    Raises:
        ValueError: `key_pem` is no private key, or a name is none.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    if key_pem is None:
        key = ec.generate_private_key(ec.SECP256R1())
    else:
        try:
            loaded = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
            raise ValueError("there is no private key in it that we can read") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("the private key in it is of another kind than ours (EC)")
        key = loaded
    public = key.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _COMMON_NAME)])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # A client's clock may be behind ours; a day covers a wrong time zone as well.
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(_NO_EXPIRY)
        .add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


def make_certificate_aside(
    names: Sequence[str] = ("localhost",), *, key_pem: bytes | None = None
) -> tuple[bytes, bytes]:
    """Make a certificate as `make_certificate` does, but in a process that ends with that: in this one `cryptography` would stay, which takes 12 MiB.

    Keys pass through pipes only. Where there is no such process, or it fails in whatever way, the certificate is made here. Blocks for `_HELPER_TIMEOUT` at most, and as long as
    `make_certificate`.
    """
    made = None if "cryptography.x509" in sys.modules else _ask_helper(names, key_pem)
    return make_certificate(names, key_pem=key_pem) if made is None else made


def _ask_helper(names: Sequence[str], key_pem: bytes | None) -> tuple[bytes, bytes] | None:
    # A program that was frozen, or has Python within, is `sys.executable` itself: it would not run a script, but something else.
    if not Path(sys.executable or "").name.lower().startswith(("python", "pypy")):
        return None
    key = None if key_pem is None else key_pem.decode("latin-1")
    # Nothing is imported from beside this module, where names are those of other libraries as well.
    safe = "-I" if sys.flags.isolated else "-P"
    # Some of our own variables are passwords.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRIONAT_")}
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            [sys.executable, safe, __file__],
            input=json.dumps({"names": list(names), "key": key}).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_HELPER_TIMEOUT,
            check=True,
            env=environ,
        )
        match json.loads(done.stdout):
            case {"key": str(made), "certificate": str(certificate)}:
                return made.encode(), certificate.encode()
            case _:
                return None
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _help() -> None:
    """Make what standard input asks for, and write it to standard output."""
    question: dict[str, Any] = json.load(sys.stdin)
    given: str | None = question["key"]
    key, certificate = make_certificate(
        question["names"], key_pem=None if given is None else given.encode("latin-1")
    )
    json.dump({"key": key.decode(), "certificate": certificate.decode()}, sys.stdout)


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.encode("idna").decode() if not name.isascii() else name)


def first_certificate(pem: str) -> bytes:
    """Return the first certificate of a PEM file in DER: the server's own, where a chain follows it.

    Raises:
        ValueError: There is none in it.
    """
    block = _BLOCK.search(pem)
    if block is None:
        raise ValueError("there is no certificate in it")
    return ssl.PEM_cert_to_DER_cert(block[0])


def validity(pem: str) -> tuple[datetime, datetime]:
    """Return when the first certificate of a PEM file begins to be valid, and when it ends.

    Takes some 80 ms the first time, as `cryptography` is imported here.

    Raises:
        ValueError: There is none in it, or it is damaged.
    """
    from cryptography import x509

    try:
        certificate = x509.load_der_x509_certificate(first_certificate(pem))
    except x509.InvalidVersion as error:
        raise ValueError(str(error)) from error
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def fingerprint(der: bytes) -> bytes:
    """Return the SHA-256 of a certificate in DER, 32 bytes; `ssl` gives it as `getpeercert(binary_form=True)`."""
    return hashlib.sha256(der).digest()


if __name__ == "__main__":
    _help()

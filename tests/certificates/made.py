"""Certificates that tests make: of any names, any validity, any key."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import UTC, datetime
from typing import Any

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trionat.server.certificates.certificate import Certificate

DAY = 86_400.0


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


@attrs.frozen
class Maker:
    """An authority of the tests."""

    key: ec.EllipticCurvePrivateKey = attrs.field(factory=make_key)

    @property
    def pem(self) -> bytes:
        return self._sign(["authority"], self.key.public_key(), ca=True)

    def chain(
        self,
        *names: str,
        key: Any = None,
        begins: float | None = None,
        ends: float | None = None,
        between: int = 0,
    ) -> tuple[bytes, bytes]:
        """Return a key and its chain. `begins` and `ends` are seconds since 1970, `key` a public key, whose private one is not known here."""
        own = make_key()
        public = own.public_key() if key is None else key
        leaf = self._sign(list(names), public, begins=begins, ends=ends)
        return key_pem(own), leaf + self.pem * (1 + between)

    def _sign(
        self,
        names: list[str],
        key: Any,
        *,
        ca: bool = False,
        begins: float | None = None,
        ends: float | None = None,
    ) -> bytes:
        now = datetime.now(UTC).timestamp()
        begins = now - 3600 if begins is None else begins
        ends = now + 90 * DAY if ends is None else ends
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(names[0] if ca else "somebody"))
            .issuer_name(_name("authority"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.fromtimestamp(int(begins), UTC))
            .not_valid_after(datetime.fromtimestamp(int(ends), UTC))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        if not ca:
            others = x509.SubjectAlternativeName([_general(name) for name in names])
            builder = builder.add_extension(others, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def with_version(pem: bytes, number: int) -> bytes:
    """Return a certificate whose version is a number that there is none of; its signature is not right any more."""
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    changed = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a0030201") + bytes([number]))
    return ssl.DER_cert_to_PEM_cert(changed).encode()


def certificate(
    begins: float = 0.0, life: float = 90 * DAY, name: str = "a.example"
) -> Certificate:
    """Return what a certificate says that nobody has made."""
    return Certificate(frozenset({name}), begins, begins + life, "")

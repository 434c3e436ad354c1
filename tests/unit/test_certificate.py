from __future__ import annotations

import hashlib
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.certificates.made import with_version
from trionat.transport import certificate as certificate_module
from trionat.transport.certificate import (
    fingerprint,
    first_certificate,
    make_certificate,
    make_certificate_aside,
    validity,
)

if TYPE_CHECKING:
    from pathlib import Path


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A whole TLS handshake in memory; raises what the client finds wrong."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    for side in (here, there, here, there):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert here.version() == "TLSv1.3"


def contexts(folder: Path, key: bytes, certificate: bytes) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    (folder / "key").write_bytes(key)
    (folder / "crt").write_bytes(certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "crt", folder / "key")
    client = ssl.create_default_context(cadata=certificate.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from 3.13 on
    return server, client


@pytest.mark.parametrize("name", ["tunnel.example.com", "192.0.2.7", "2001:db8::7"])
def test_the_certificate_passes_a_strict_check_by_itself(tmp_path: Path, name: str) -> None:
    key, certificate = make_certificate(["tunnel.example.com", "192.0.2.7", "2001:db8::7"])
    shake_hands(*contexts(tmp_path, key, certificate), name)


def test_another_name_or_another_certificate_does_not_pass(tmp_path: Path) -> None:
    key, certificate = make_certificate(["localhost"])
    server, client = contexts(tmp_path, key, certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"doesn't match|mismatch"):
        shake_hands(server, client, "example.com")
    stranger = ssl.create_default_context(cadata=make_certificate(["localhost"])[1].decode())
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, stranger, "localhost")


def test_what_is_in_it() -> None:
    certificate = x509.load_pem_x509_certificate(make_certificate()[1])
    assert certificate.not_valid_after_utc.isoformat() == "9999-12-31T23:59:59+00:00"
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).critical
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert usage.digital_signature
    own = x509.SubjectKeyIdentifier.from_public_key(key)
    assert certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value == own


def test_every_certificate_has_its_own_key_unless_one_is_given() -> None:
    key, first = make_certificate()
    assert make_certificate()[0] != key
    again, second = make_certificate(key_pem=key)
    assert again == key
    assert second != first
    keys = [x509.load_pem_x509_certificate(pem).public_key() for pem in (first, second)]
    assert keys[0] == keys[1]


def test_a_name_beyond_ascii_is_written_as_dns_knows_it() -> None:
    certificate = x509.load_pem_x509_certificate(make_certificate(["bücher.example"])[1])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["xn--bcher-kva.example"]


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def test_a_key_that_cannot_be_used_is_told_in_one_line() -> None:
    for key, reason in [
        (b"nonsense", "no private key in it"),
        (pem(ec.generate_private_key(ec.SECP256R1()), b"secret"), "no private key in it"),
        (pem(rsa.generate_private_key(65537, 2048), None), "another kind"),
    ]:
        with pytest.raises(ValueError, match=f"^[^\n]*{reason}[^\n]*$"):
            make_certificate(key_pem=key)


ASIDE = """
import sys
from trionat.transport.certificate import make_certificate_aside
key, certificate = make_certificate_aside(["tunnel.example.com"])
again, second = make_certificate_aside(["tunnel.example.com"], key_pem=key)
assert again == key and second != certificate
assert "cryptography" not in sys.modules
sys.stdout.write((key + certificate).decode())
"""

SPY = """#!/bin/sh
echo "$*" >> {folder}/arguments
env >> {folder}/environ
exec {python} "$@"
"""


def test_one_that_is_made_aside_leaves_nothing_here(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-c", ASIDE], capture_output=True, check=True).stdout
    key, line, certificate = made.partition(b"-----BEGIN CERTIFICATE")
    shake_hands(*contexts(tmp_path, key, line + certificate), "tunnel.example.com")


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a server that has not imported it yet."""
    monkeypatch.delitem(sys.modules, "cryptography.x509")


@pytest.mark.skipif(sys.platform == "win32", reason="a shell")
@pytest.mark.usefixtures("without_library")
def test_nobody_sees_the_key_of_one_that_is_made_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = tmp_path / "python3"
    spy.write_text(SPY.format(folder=tmp_path, python=sys.executable))
    spy.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(spy))
    monkeypatch.setenv("TRIONAT_DATABASE_PASSWORD", "secret")
    key, _ = make_certificate_aside()
    assert make_certificate_aside(key_pem=key)[0] == key
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert arguments == [f"-P {certificate_module.__file__}"] * 2
    assert "TRIONAT_" not in (tmp_path / "environ").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"python3", "arguments", "environ"}


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("", ""),
        ("server", "echo ran > {folder}/ran"),  # of Python within another program
        ("python3", "exit 1"),
        ("python3", "echo nonsense"),
        ("python3", "echo '{{\"key\": 1}}'"),
        ("python3", "echo []"),
        ("python3", "kill -9 $$"),
        ("python3", "exec sleep 60"),
        ("missing/python3", None),
    ],
    ids=str,
)
@pytest.mark.skipif(sys.platform == "win32", reason="a shell")
@pytest.mark.usefixtures("without_library")
def test_it_is_made_here_where_another_process_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str | None
) -> None:
    if name and script is not None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script.format(folder=tmp_path)}\n")
        (tmp_path / name).chmod(0o700)
    monkeypatch.setattr(sys, "executable", name and str(tmp_path / name))
    monkeypatch.setattr(certificate_module, "_HELPER_TIMEOUT", 0.5)
    shake_hands(*contexts(tmp_path, *make_certificate_aside(["a.example"])), "a.example")
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("without_library")
def test_a_key_that_cannot_be_used_aside_is_told_the_same() -> None:
    for key in (b"nonsense", b"\xff"):
        with pytest.raises(ValueError, match="no private key in it"):
            make_certificate_aside(key_pem=key)


def test_fingerprint_is_that_of_the_first_certificate() -> None:
    _, own = make_certificate()
    _, issuer = make_certificate()
    der = x509.load_pem_x509_certificate(own).public_bytes(serialization.Encoding.DER)
    assert first_certificate(f"comment\n{own.decode()}{issuer.decode()}") == der
    assert fingerprint(der) == hashlib.sha256(der).digest()
    with pytest.raises(ValueError, match="no certificate"):
        first_certificate("-----BEGIN PRIVATE KEY-----")


def test_how_long_one_is_valid_that_no_library_reads() -> None:
    _, pem = make_certificate()
    begins, ends = validity(pem.decode())
    assert begins < ends
    for odd in (with_version(pem, 7), b"", pem[:100]):
        with pytest.raises(ValueError, match=r"certificate|version"):
            validity(odd.decode())


def test_cryptography_is_imported_only_to_make_one() -> None:
    code = "import sys, trionat.server.state_folder; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

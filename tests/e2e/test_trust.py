"""A client talks to its own server only, and says clearly why it does not talk to another."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import ipaddress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e import running, services
from tests.e2e.running import ask
from trionat.protocol.ticket import Ticket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.services import Service

pytestmark = pytest.mark.limit(60)

OTHER = "SHA256:" + base64.b64encode(hashlib.sha256(b"another").digest()).decode().rstrip("=")


async def refusal(folder: Path, *arguments: str) -> str:
    """Run `trionat connect`, which ends with code 4; return its one line."""
    async with running.client_process(folder, *arguments) as client:
        assert await client.wait() == 4
        lines = client.process.errors.decode().splitlines()
        [told] = [line for line in lines if line.startswith("trionat: ")]
        return told


async def test_wrong_fingerprint(echo_server: Service, tmp_path: Path) -> None:
    """Loud, both fingerprints side by side; the server hears a handshake and not one byte after it."""
    async with running.server(tmp_path / "s", "--start-auth", "false") as server:
        shown = server.ready["fingerprint"]
        login = ["-c", server.ready["control"], "--fingerprint", OTHER, str(echo_server)]
        told = await refusal(tmp_path / "c", *login, "-u", "ann", "-P", "very secret")
        wrong = (
            f"WRONG SERVER at {server.ready['control']}: it shows {shown} but has to show {OTHER}"
        )
        assert told.startswith(f"trionat: {wrong}")
        closed = await server.wait_record("connection closed")
        # A reset where the server's session tickets came before the client hung up, without having read them.
        ended, reset = "the peer closed the connection", "connection lost: Connection reset by peer"
        assert closed["reason"] in {ended, reset}
        assert not [record for record in server.records if "session" in record["event"]]


async def test_server_with_a_new_key(echo_server: Service, tmp_path: Path) -> None:
    """A ticket is for the one that made it; a client that was connected says so, sends nothing, and waits for the right one."""
    control = f"{services.HOST}:{services.free_low_port()}"
    start = partial(running.server, control=control)
    async with running.server(tmp_path / "right", control=control) as server:
        ticket, right = server.ticket, server.ready["fingerprint"]
        async with running.client(tmp_path / "c", ticket, echo_server) as client:
            server.kill()
            await client.process.next_event("disconnected")
            async with start(tmp_path / "wrong") as wrong:
                assert wrong.ready["fingerprint"] != right
                told = await refusal(tmp_path / "new", ticket, str(echo_server))
                expected = f"it shows {wrong.ready['fingerprint']} but has to show {right}"
                assert expected in told
                while expected not in (await client.process.next_event("disconnected"))["reason"]:
                    pass
            async with start(tmp_path / "right"):
                await client.wait_connected()
                client.terminate()
                assert await client.wait() == 0


async def test_unknown_server(echo_server: Service, tmp_path: Path) -> None:
    """Without pin and authority there is no way in but by a word of the user; trust is remembered, and binds."""
    control = f"{services.HOST}:{services.free_low_port()}"
    start = partial(running.server, control=control)
    local = str(echo_server)
    login = ["-c", control, "-u", "trionat", "-P", "x", local]
    async with start(tmp_path / "s", "--start-auth", "false") as server:
        shown = server.ready["fingerprint"]
        told = await refusal(tmp_path / "c", *login)
        assert f"--fingerprint {shown}" in told
        assert "--trust-on-first-use" in told
        flags = [*login, "--trust-on-first-use"]
        async with running.client_process(tmp_path / "c", *flags) as client:
            await client.wait_connected()
            trusting = "trusting this server from now on, unseen (TrustOnFirstUse)"
            await client.wait_record(trusting, fingerprint=shown)
        remembered = await trio.Path(tmp_path / "c" / "state" / "known_servers").read_text()
        assert remembered == f"{control} {shown}\n"
        async with running.client_process(tmp_path / "c", *login) as client:
            await client.wait_connected()
            async with await client.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
    async with start(tmp_path / "other", "--start-auth", "false") as other:
        for arguments in (login, flags):
            told = await refusal(tmp_path / "c", *arguments)
            assert f"it shows {other.ready['fingerprint']} but has to show {shown}" in told


async def test_certificate_of_an_authority(echo_server: Service, tmp_path: Path) -> None:
    """`Certificate`, `CertificateKey` and `--ca-file`; the ticket has no fingerprint then, and another name is refused."""
    authority, certificate, key = await trio.to_thread.run_sync(_make_certificates, tmp_path)
    flags = ["--certificate", str(certificate), "--certificate-key", str(key)]
    async with running.server(tmp_path / "s", *flags, visit="0,0") as server:
        local, ca = str(echo_server), ["--ca-file", str(authority)]
        async with running.client(tmp_path / "a", server.ticket, local, *ca) as client:
            async with await client.visit() as visitor:
                assert await ask(visitor, b"hello") == b"hello"
        told = await refusal(tmp_path / "b", server.ticket, local)
        assert "shows a certificate that does not check out: " in told
        assert f"give --fingerprint {server.ready['fingerprint']}, or --ca-file FILE" in told
        assert "ticket" not in told  # it has one, and that was not enough
        warned = await server.wait_record("the configuration may not be what was meant")
        assert (warned["place"], warned["key"]) == ("flag --certificate", "Server.Certificate")
        assert "client needs --fingerprint or --ca-file besides its ticket" in warned["reason"]
        pin = ["--fingerprint", server.ready["fingerprint"]]
        async with running.client(tmp_path / "d", server.ticket, local, *pin):
            pass
        wrong_name = f"localhost:{server.control[1]}"
        told = await refusal(tmp_path / "c", "-c", wrong_name, "-u", "x", "-P", "x", *ca, local)
        assert "Hostname mismatch" in told
        assert "--ca-file" not in told
        configured = {
            "TRIONAT_SERVER_CERTIFICATE": str(certificate),
            "TRIONAT_SERVER_CERTIFICATE_KEY": str(key),
        }
        for environ in (configured, {}):  # the flags of the server are nowhere but in its folder
            result = await services.run_trionat(
                *("user", "ticket", "trionat", "--state-dir", server.state),
                stdin=b"",
                cwd=tmp_path,
                **environ,
            )
            assert result.stdout.decode().strip() == server.ticket
        files = {path.name for path in await trio.Path(server.state).iterdir()}
        assert not files & {"server.key", "server.crt"}
    async with running.server(tmp_path / "s") as server:  # and back
        result = await services.run_trionat(
            "user", "ticket", "trionat", "--state-dir", server.state, cwd=tmp_path
        )
        assert Ticket.decode(result.stdout.decode()).fingerprint is not None


def _make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Make an authority, and a certificate for 127.0.0.1 by it."""
    now = dt.datetime.now(dt.UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a server")])

    def build(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
        )

    is_authority = x509.BasicConstraints(ca=True, path_length=None)
    authority = build(authority_name, authority_key.public_key()).add_extension(
        is_authority, critical=True
    )
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(services.HOST))])
    leaf = build(name, key.public_key()).add_extension(address, critical=False)
    files = folder / "authority.pem", folder / "server.pem", folder / "server.key"
    for path, builder in zip(files, (authority, leaf), strict=False):
        made = builder.sign(authority_key, hashes.SHA256())
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoded = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    files[2].write_bytes(encoded)
    files[2].chmod(0o600)
    return files

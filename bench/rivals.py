"""Other ways from visitor to service, each in the same shape: a program at either end, and the path between the two."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    load_pem_private_key,
    pkcs12,
)
from cryptography.x509 import load_pem_x509_certificate

from bench.cargo import installed
from bench.chain import Chain, Ends, Ports
from bench.program import HOST, MissingError, find, free_port, output_of, wait_listening
from trionat.transport.certificate import make_certificate

if TYPE_CHECKING:
    from bench.chain import Site
    from bench.program import Program

_KEYGEN_TIMEOUT: Final = 20.0


async def _direct(_site: Site, home: Ports) -> Ends:  # noqa: ASYNC124 (the others do wait)
    """No ends at all: what the service and the load generator can do on this machine."""
    return Ends(public=(), private=(), visit=home)


# --- nginx ---

_STREAM_MODULE: Final = "ngx_stream_module.so"
_ANSWER_TIMEOUT: Final = 10.0


async def stream_module(nginx: Path) -> str:
    """Return the line that loads the stream module; none is needed where the module is inside.

    Raises:
        MissingError: this nginx wants it from a file, and the file is not there.
    """
    built = await output_of([nginx, "-V"], within=_ANSWER_TIMEOUT)
    if re.search(r"--with-stream(\s|$)", built):
        return ""
    folder = re.search(r"--modules-path=(\S+)", built)
    module = Path(folder[1] if folder else "/usr/lib/nginx/modules") / _STREAM_MODULE
    if not module.exists():
        raise MissingError(
            f"nginx has no stream module: {module} is not there (Debian's package libnginx-mod-stream)"
        )
    return f"load_module {module};"


async def _nginx(site: Site, home: Ports, *, encrypted: bool = False) -> Ends:
    """Two stream proxies in a row, one worker each."""
    private, visit = Ports(free_port(), free_port()), Ports(free_port(), free_port())
    listen = dial = ""
    if encrypted:
        key, certificate = make_certificate()
        (site.folder / "key.pem").write_bytes(key)
        (site.folder / "cert.pem").write_bytes(certificate)
        listen = (
            f"ssl_certificate {site.folder}/cert.pem; ssl_certificate_key {site.folder}/key.pem;"
            " ssl_protocols TLSv1.3;"
        )
        dial = "proxy_ssl on; proxy_ssl_protocols TLSv1.3;"
    inner = _stream(private.bulk, home.bulk, listen) + _stream(
        private.requests, home.requests, listen
    )
    private_end = await _start_nginx(site, "nginx-private", inner)
    await wait_listening(private.bulk, private.requests)
    _, bulk = await site.cross(private.bulk)
    _, requests = await site.cross(private.requests)
    outer = _stream(visit.bulk, bulk, dial) + _stream(visit.requests, requests, dial)
    public_end = await _start_nginx(site, "nginx-public", outer)
    return Ends(public=(public_end,), private=(private_end,), visit=visit)


def _stream(listen: int, target: int, options: str) -> str:
    ssl = "ssl" if "ssl_certificate" in options else ""
    return (
        f"server {{ listen {HOST}:{listen} {ssl} backlog=4096; {options}"
        f" proxy_buffer_size 64k; proxy_pass {HOST}:{target}; }}\n"
    )


async def _start_nginx(site: Site, name: str, servers: str) -> Program:
    file = site.folder / f"{name}.conf"
    nginx = find("nginx", package="nginx-light, with libnginx-mod-stream")
    module = await stream_module(nginx)
    file.write_text(
        f"daemon off; worker_processes 1; worker_rlimit_nofile 16384; pid {site.folder}/{name}.pid;\n"
        f"error_log stderr; {module}\nevents {{ worker_connections 8192; }}\nstream {{\n{servers}}}\n"
    )
    return await site.run(name, nginx, "-e", "stderr", "-c", file)


async def _nginx_encrypted(site: Site, home: Ports) -> Ends:
    return await _nginx(site, home, encrypted=True)


# --- rathole ---


async def _rathole(site: Site, home: Ports, *, encrypted: bool = False) -> Ends:
    rathole = await installed("rathole", "rathole")
    control, visit = free_port(), Ports(free_port(), free_port())
    host, port = await site.cross(control)
    served = dialled = ""
    if encrypted:
        _write_identity(site.folder)
        served = (
            '[server.transport]\ntype = "tls"\n[server.transport.tls]\n'
            'pkcs12 = "identity.pfx"\npkcs12_password = "bench"\n'
        )
        dialled = (
            '[client.transport]\ntype = "tls"\n[client.transport.tls]\n'
            'trusted_root = "cert.pem"\nhostname = "localhost"\n'
        )
    (site.folder / "server.toml").write_text(
        f'[server]\nbind_addr = "{HOST}:{control}"\ndefault_token = "bench"\n{served}'
        f'[server.services.bulk]\nbind_addr = "{HOST}:{visit.bulk}"\n'
        f'[server.services.requests]\nbind_addr = "{HOST}:{visit.requests}"\n'
    )
    (site.folder / "client.toml").write_text(
        f'[client]\nremote_addr = "{host}:{port}"\ndefault_token = "bench"\n{dialled}'
        f'[client.services.bulk]\nlocal_addr = "{HOST}:{home.bulk}"\n'
        f'[client.services.requests]\nlocal_addr = "{HOST}:{home.requests}"\n'
    )
    public_end = await site.run("rathole-server", rathole, "--server", "server.toml")
    await wait_listening(control)
    private_end = await site.run("rathole-client", rathole, "--client", "client.toml")
    return Ends(public=(public_end,), private=(private_end,), visit=visit)


def _write_identity(folder: Path) -> None:
    """Write a certificate, and with its key in the container that rathole wants."""
    key_pem, certificate_pem = make_certificate()
    (folder / "cert.pem").write_bytes(certificate_pem)
    key = load_pem_private_key(key_pem, password=None)
    assert isinstance(key, EllipticCurvePrivateKey)
    certificate = load_pem_x509_certificate(certificate_pem)
    encryption = BestAvailableEncryption(b"bench")
    identity = pkcs12.serialize_key_and_certificates(b"bench", key, certificate, None, encryption)
    (folder / "identity.pfx").write_bytes(identity)


async def _rathole_encrypted(site: Site, home: Ports) -> Ends:
    return await _rathole(site, home, encrypted=True)


# --- bore ---

_BORE_PORT: Final = 7835
"""Where its server listens and its client dials; neither can be told another."""


async def _bore(site: Site, home: Ports) -> Ends:
    bore = await installed("bore-cli", "bore")
    visit = Ports(free_port(), free_port())
    public_end = await site.run("bore-server", bore, "server", "--bind-addr", HOST)
    await wait_listening(_BORE_PORT)
    host, _ = await site.cross(_BORE_PORT, ("127.0.0.2", _BORE_PORT))
    private_ends = [
        await site.run(
            *(f"bore-{name}", bore, "local", local, "--local-host", HOST),
            *("--to", host, "--port", public),
        )
        for name, local, public in (
            ("bulk", home.bulk, visit.bulk),
            ("requests", home.requests, visit.requests),
        )
    ]
    return Ends(public=(public_end,), private=tuple(private_ends), visit=visit)


# --- ssh -R ---


async def _ssh(site: Site, home: Ports) -> Ends:
    """Both services over one connection of OpenSSH's, with the ciphers on which the two ends agree by themselves."""
    sshd, ssh = find("sshd", package="openssh-server"), find("ssh", package="openssh-client")
    keygen = find("ssh-keygen", package="openssh-client")
    for name in ("host", "user"):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-f", site.folder / name]
        await output_of(command, within=_KEYGEN_TIMEOUT)
    _write_ssh_files(site.folder)
    control, visit = free_port(), Ports(free_port(), free_port())
    listen = f"ListenAddress={HOST}:{control}"
    public_end = await site.run("sshd", sshd, "-D", "-e", "-f", "sshd_config", "-o", listen)
    await wait_listening(control)
    host, port = await site.cross(control)
    private_end = await site.run(
        *("ssh", ssh, "-N", "-F", "ssh_config", "-p", port),
        *("-R", f"{HOST}:{visit.bulk}:{HOST}:{home.bulk}"),
        *("-R", f"{HOST}:{visit.requests}:{HOST}:{home.requests}"),
        f"{getpass.getuser()}@{host}",
    )
    return Ends(public=(public_end,), private=(private_end,), visit=visit)


def _write_ssh_files(folder: Path) -> None:
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\n"
        "UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    (folder / "known_hosts").write_text(f"bench {(folder / 'host.pub').read_text()}")
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nBatchMode yes\nExitOnForwardFailure yes\n"
        f"UserKnownHostsFile {folder}/known_hosts\nHostKeyAlias bench\n"
    )
    if os.geteuid() == 0:  # sshd insists on its empty folder, which Debian's service makes
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


DIRECT: Final = Chain(name="no relay", encrypted=False, build=_direct)
NGINX: Final = Chain(name="nginx twice", encrypted=False, build=_nginx)
NGINX_ENCRYPTED: Final = Chain(name="nginx twice, TLS", encrypted=True, build=_nginx_encrypted)
RATHOLE: Final = Chain(name="rathole", encrypted=False, build=_rathole)
RATHOLE_ENCRYPTED: Final = Chain(name="rathole, TLS", encrypted=True, build=_rathole_encrypted)
BORE: Final = Chain(name="bore", encrypted=False, build=_bore)
SSH: Final = Chain(name="ssh -R", encrypted=True, build=_ssh)

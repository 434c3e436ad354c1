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
from bench.program import (
    HOST,
    FailedError,
    MissingError,
    find,
    free_port,
    output_of,
    wait_listening,
)
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


# --- frp ---

_FRP: Final = "a release of frp, or built from the Go module github.com/fatedier/frp, on the PATH"


async def _frp(site: Site, home: Ports, *, plain: bool = False) -> Ends:
    """As it is by default: TLS, and all visitors multiplexed on one connection; `plain` has neither."""
    frps, frpc = find("frps", origin=_FRP), find("frpc", origin=_FRP)
    control, visit = free_port(), Ports(free_port(), free_port())
    host, port = await site.cross(control)
    both = "transport.tcpMux = false\n" if plain else ""
    dialled = "transport.tls.enable = false\n" if plain else ""
    (site.folder / "frps.toml").write_text(
        f'bindAddr = "{HOST}"\nbindPort = {control}\nproxyBindAddr = "{HOST}"\n{both}'
    )
    (site.folder / "frpc.toml").write_text(
        f'serverAddr = "{host}"\nserverPort = {port}\n{both}{dialled}'
        + _frp_proxy("bulk", home.bulk, visit.bulk)
        + _frp_proxy("requests", home.requests, visit.requests)
    )
    public_end = await site.run("frps", frps, "-c", "frps.toml")
    await wait_listening(control)
    private_end = await site.run("frpc", frpc, "-c", "frpc.toml")
    return Ends(public=(public_end,), private=(private_end,), visit=visit)


def _frp_proxy(name: str, local: int, remote: int) -> str:
    return (
        f'[[proxies]]\nname = "{name}"\ntype = "tcp"\n'
        f'localIP = "{HOST}"\nlocalPort = {local}\nremotePort = {remote}\n'
    )


async def _frp_plain(site: Site, home: Ports) -> Ends:
    return await _frp(site, home, plain=True)


# --- chisel ---

_CHISEL: Final = (
    "a release of chisel, or built from the Go module github.com/jpillora/chisel, on the PATH"
)


async def _chisel(site: Site, home: Ports) -> Ends:
    """Both services over one connection: SSH's protocol in a WebSocket."""
    chisel = find("chisel", origin=_CHISEL)
    control, visit = free_port(), Ports(free_port(), free_port())
    host, port = await site.cross(control)
    listen = ["--host", HOST, "--port", control]
    public_end = await site.run("chisel-server", chisel, "server", "--reverse", *listen)
    await wait_listening(control)
    private_end = await site.run(
        *("chisel-client", chisel, "client", f"http://{host}:{port}"),
        f"R:{HOST}:{visit.bulk}:{HOST}:{home.bulk}",
        f"R:{HOST}:{visit.requests}:{HOST}:{home.requests}",
    )
    return Ends(public=(public_end,), private=(private_end,), visit=visit)


# --- NAT, the Go program that trionat replaces ---

_NAT: Final = "NAT, the Go program, on the PATH"
_NAT_VISIT: Final = "[VisitAddress]"


async def _nat(site: Site, home: Ports) -> Ends:
    """Its client has one service, so there are two of them; the server hands out the visit ports, on all addresses."""
    server, client = find("nat-server", origin=_NAT), find("nat-client", origin=_NAT)
    control, tunnel, pool = free_port(), free_port(), (free_port(), free_port())
    control_host, control_port = await site.cross(control)
    tunnel_host, tunnel_port = await site.cross(tunnel)
    (site.folder / "server.yml").write_text(
        f'Server:\n  Name: "bench"\n  ControllerAddr: "{HOST}:{control}"\n  TunnelAddr: "{HOST}:{tunnel}"\n'
        f"  VisitPort: [{pool[0]}, {pool[1]}]\n  TaskQueueNum: 4\n  TaskQueueBuff: 32\n  MaxTCPConnNum: 2\n"
        '  MaxConnNum: 128\n  LogFilename: "server.log"\n  StartAuth: false\n  StartLog: false\n'
    )
    (site.folder / "client.yml").write_text(
        'Auth:\n  Username: "bench"\n  Password: "bench"\n'
        f'Client:\n  Name: "bench"\n  PublicServerAddr: "{HOST}"\n'
        f'  TunnelServerAddr: "{tunnel_host}:{tunnel_port}"\n'
        f'  ControllerAddr: "{control_host}:{control_port}"\n  LocalServerAddr: "{HOST}:{home.bulk}"\n'
    )
    public_end = await site.run("nat-server", server)
    await wait_listening(control, tunnel)
    private_ends: list[Program] = []
    visit: list[int] = []
    for name, local in (("bulk", home.bulk), ("requests", home.requests)):
        program = await site.run(f"nat-client-{name}", client, "-l", f"{HOST}:{local}")
        private_ends.append(program)
        visit.append(visit_port(await program.wait_words(_NAT_VISIT)))
    return Ends(public=(public_end,), private=tuple(private_ends), visit=Ports(*visit))


def visit_port(line: str) -> int:
    """Return the port of the public address that a client of NAT has told.

    Raises:
        FailedError: there is none in this line.
    """
    found = re.search(r":(\d+)", line.partition(_NAT_VISIT)[2])
    if found is None:
        raise FailedError(f"no port in what nat-client said: {line.strip()}")
    return int(found[1])


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
FRP: Final = Chain(name="frp", encrypted=True, build=_frp)
FRP_PLAIN: Final = Chain(name="frp, TLS and mux off", encrypted=False, build=_frp_plain)
CHISEL: Final = Chain(name="chisel", encrypted=True, build=_chisel)
NAT: Final = Chain(name="NAT (Go)", encrypted=False, build=_nat)
SSH: Final = Chain(name="ssh -R", encrypted=True, build=_ssh)

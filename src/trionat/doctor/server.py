"""Whether the server is up, and its ports its own."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from trionat.address import TCPAddress
from trionat.doctor.finding import Finding, fine, unknown, warning, wrong
from trionat.errors import RemoteProtocolError, StartupError
from trionat.server.admin.messages import AskStatus, decode_answer, encode_request
from trionat.server.admin.snapshot import Snapshot
from trionat.server.admin.socket import call
from trionat.text import counted
from trionat.transport.dial import is_localhost, is_numeric

if TYPE_CHECKING:
    from trionat.doctor.host import Host


def check_server(host: Host) -> list[Finding]:
    """Ask the server that runs on the state folder. Blocks."""
    try:
        snapshot = Snapshot.of(decode_answer(call(host.folder, encode_request(AskStatus()))))
    except StartupError as error:
        return [wrong(str(error), "")]
    except RemoteProtocolError as error:
        return [
            warning(
                f"{host.folder}: the server's answer is not understood: {error}",
                "has trionat been updated? Then restart the server",
            )
        ]
    host.is_up = True
    server = snapshot.server
    host.session_limit = server.session_limit
    host.port_count = (server.ports_free or 0) + (server.ports_held or 0)
    host.ports_in_use = frozenset(
        [each.port for session in snapshot.sessions for each in session.services if each.port]
        + [port for reserved in snapshot.reserved for port in reserved.ports]
    )
    text = f"trionat {server.version} is up since {server.since}, {counted(len(snapshot.sessions), 'session')} of {server.session_limit}, {counted(server.ports_free or 0, 'visit port')} free"
    if server.stopping:
        return [
            warning(f"{text}; it stops, and lets nobody in", "start it anew when it has stopped")
        ]
    found = [fine(text)]
    for session in snapshot.sessions:
        found += [
            warning(
                f"{session.user}: the client cannot reach its service {service.local} (visit port {service.port})",
                "start that service; trionat doctor there says more",
            )
            for service in session.services
            if service.down
        ]
    return found


def check_ports(host: Host) -> list[Finding]:
    """Look whether the ports of a server that is not up are free: another program may have one. Blocks."""
    if host.is_up:
        return [fine("the server has its ports; trionat status shows those that were left out")]
    config = host.config
    wanted: list[tuple[TCPAddress, str]] = [
        (config.controller_addr, "--controller-addr"),
        (config.tunnel_addr, "--tunnel-addr"),
    ]
    names = (
        (config.effective_http_addr, "--http-addr"),
        (config.effective_https_addr, "--https-addr"),
        (config.console_addr, "--console-addr"),
    )
    wanted += [(address, flag) for address, flag in names if address is not None]
    wanted += [
        (TCPAddress(config.effective_visit_host, port), "--visit-port")
        for port in config.visit_port
    ]
    found: list[Finding] = []
    for address, flag in wanted:
        if address.port and (is_numeric(address.host) or is_localhost(address.host)):
            found += _bind(address, flag)
    return found or [fine(f"{counted(len(wanted), 'port')} of this server are free")]


def _bind(address: TCPAddress, flag: str) -> list[Finding]:
    host = "127.0.0.1" if is_localhost(address.host) else address.host
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, address.port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return [
                wrong(
                    f"{address} is another program's: {error.strerror}",
                    f"find it with `ss -ltnp 'sport = :{address.port}'` and stop it, or choose another port with {flag}",
                )
            ]
        if error.errno in (errno.EACCES, errno.EPERM):
            return [
                wrong(
                    f"{address}: {error.strerror}",
                    f"ports below 1024 are for root and for services that may (AmbientCapabilities=CAP_NET_BIND_SERVICE); or another one with {flag}",
                )
            ]
        if error.errno == errno.EADDRNOTAVAIL:
            return [
                wrong(
                    f"{address}: this machine has no such address",
                    f"listen on 0.0.0.0 ({flag}), and name the address that clients use with --public-addr",
                )
            ]
        return [unknown(f"{address}: {error.strerror}")]
    return []

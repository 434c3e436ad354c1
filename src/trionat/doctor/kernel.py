"""Limits of the Linux kernel that all programs of this machine share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from trionat.doctor.finding import Finding, fine, unknown, warning, wrong
from trionat.transport.dial import ephemeral_ports

if TYPE_CHECKING:
    from collections.abc import Sequence

_SYSTEM: Final = Path("/proc/sys")

_LEAST_BACKLOG: Final = 128
"""Connections that may wait to be accepted; below that a burst of visitors loses some. Chosen."""

_LEAST_PORTS: Final = 4096
"""For outgoing connections, of which each visitor takes one to its local service. Chosen."""

_FULL: Final = 0.9
"""Of a table at which it is told. Chosen."""


def check_kernel() -> list[Finding]:
    """Look at what is shared by all programs. Blocks."""
    if not _SYSTEM.is_dir():
        return [unknown("this system does not tell its limits (/proc/sys)")]
    found = [*_backlog(), *_connections(), *_files()]
    return found or [fine(f"{_SYSTEM}: nothing is short")]


def _backlog() -> list[Finding]:
    backlog = _number("net/core/somaxconn")
    if backlog is not None and backlog < _LEAST_BACKLOG:
        return [
            wrong(
                f"only {backlog} connections may wait to be accepted (net.core.somaxconn)",
                "sysctl -w net.core.somaxconn=4096, and the same in /etc/sysctl.d: a burst of visitors is lost otherwise",
            )
        ]
    return []


def _connections() -> list[Finding]:
    """The table of connections of a firewall: where it is full, new ones are dropped without a word."""
    used, most = (_number(f"net/netfilter/nf_conntrack_{each}") for each in ("count", "max"))
    if used is not None and most and used > _FULL * most:
        return [
            wrong(
                f"the firewall's table of connections is full: {used} of {most} (nf_conntrack)",
                f"sysctl -w net.netfilter.nf_conntrack_max={4 * most}: new connections are dropped otherwise",
            )
        ]
    return []


def _files() -> list[Finding]:
    try:
        used, _, most = map(int, (_SYSTEM / "fs/file-nr").read_text().split())
    except (OSError, ValueError):
        return []
    if used > _FULL * most:
        return [
            wrong(
                f"all programs of this machine together have {used} of {most} open files",
                f"sysctl -w fs.file-max={4 * most}",
            )
        ]
    return []


def check_ephemeral(visit_ports: Sequence[int]) -> list[Finding]:
    """Look at the ports for outgoing connections: whether there are enough, and none of the visit ports among them. Blocks."""
    ports = ephemeral_ports()
    if ports is None:
        return [unknown("this system does not tell which ports outgoing connections get")]
    found: list[Finding] = []
    if len(ports) < _LEAST_PORTS:
        found.append(
            wrong(
                f"only {len(ports)} ports are for outgoing connections ({ports.start}-{ports.stop - 1})",
                'sysctl -w net.ipv4.ip_local_port_range="32768 60999": each visitor takes one at its client',
            )
        )
    reserved = _reserved()
    taken = [port for port in visit_ports if port in ports and port not in reserved]
    if taken:
        span = f"{taken[0]}-{taken[-1]}" if len(taken) > 1 else str(taken[0])
        found.append(
            warning(
                f"an outgoing connection may take a visit port while the server is down: {span} of {ports.start}-{ports.stop - 1}",
                f"sysctl -w net.ipv4.ip_local_reserved_ports={span}, and the same in /etc/sysctl.d",
            )
        )
    return found or [fine(f"{ports.start}-{ports.stop - 1} are for outgoing connections")]


def _reserved() -> set[int]:
    try:
        text = (_SYSTEM / "net/ipv4/ip_local_reserved_ports").read_text().strip()
    except OSError:
        return set()
    found: set[int] = set()
    for part in text.split(",") if text else ():
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found


def _number(name: str) -> int | None:
    try:
        return int((_SYSTEM / name).read_text())
    except (OSError, ValueError):
        return None

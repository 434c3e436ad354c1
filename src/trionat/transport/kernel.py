"""What a kernel does for a TCP connection, or tells of one, that not every kernel does: Linux does all of it.

Where it does not, the clocks of the protocol find out the same, later: `docs/platforms.md`.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress
from typing import Any, Final

INHERITS_OPTIONS: Final = sys.platform == "linux"
"""Whether a connection has all options of the socket that it was accepted from."""

# tcpi_retransmits, tcpi_probes, tcpi_unacked (segments) and tcpi_last_ack_recv (milliseconds ago) of Linux's struct tcp_info
# (linux/tcp.h). Its first byte is the state; other systems that have something of that name have other numbers in it.
_TCP_INFO: Final = struct.Struct("=2xBB20xI28xI")
_CLOSE_WAIT: Final = 8


def is_tcp(sock: socket.socket) -> bool:
    """Tell whether that is a TCP socket, and not a Unix one."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def limit_silence(sock: socket.socket, seconds: float) -> None:
    """Let a connection fail when the other end's kernel acknowledges nothing of what was sent for so long (tcp(7), TCP_USER_TIMEOUT)."""
    option: Any = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is not None and is_tcp(sock):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, round(seconds * 1000))


def silent_for(sock: socket.socket) -> float:
    """Tell for how many seconds the other end's kernel has owed an acknowledgement; 0 where it owes none, or the system cannot tell."""
    info = _tcp_info(sock, _TCP_INFO.size)
    if len(info) < _TCP_INFO.size:
        return 0.0
    repeated, probes, unacknowledged, milliseconds = _TCP_INFO.unpack(info)
    # A kernel without room for a segment leaves it unacknowledged, but answers: then neither is counted.
    owes = (unacknowledged and repeated) or probes
    return milliseconds / 1000 if owes else 0.0


def is_half_closed(sock: socket.socket) -> bool:
    """Tell whether the peer has ended its direction, behind bytes that may be unread; False where the system cannot tell."""
    info = _tcp_info(sock, 1)
    return bool(info) and info[0] == _CLOSE_WAIT


def _tcp_info(sock: socket.socket, size: int) -> bytes:
    option: Any = getattr(socket, "TCP_INFO", None)
    if sys.platform != "linux" or option is None or sock.fileno() < 0 or not is_tcp(sock):
        return b""
    return sock.getsockopt(socket.IPPROTO_TCP, option, size)

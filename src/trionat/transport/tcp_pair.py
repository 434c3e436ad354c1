"""A pair of connected sockets, as `socket.socketpair` gives it, but of TCP: a reset at one end is a reset at the other, and not an end."""

from __future__ import annotations

import socket

from trionat.transport.endpoint import set_stream_options

_STRANGERS: int = 8
"""Connections of other programs that may come in the moment in which one listens."""

_WITHIN: float = 0.05
"""Seconds, in which nothing else runs. It is there at once, unless a firewall drops what this machine sends to itself."""


def open_tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends, which are non-blocking; each is closed by whoever holds it. Takes some 0.1 ms, and waits for nobody but the kernel.

    Raises:
        OSError: there is no descriptor or port left, or something keeps this machine from connecting to itself.
    """
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(_STRANGERS)
        listening.settimeout(_WITHIN)
        one = socket.socket()
        try:
            one.settimeout(_WITHIN)
            one.connect(listening.getsockname())  # it is in the kernel's queue then
            while True:
                other, peer = listening.accept()
                if peer == one.getsockname():
                    break
                other.close()
        except BaseException:
            one.close()
            raise
    for sock in (one, other):
        sock.setblocking(False)
        set_stream_options(sock)
    return one, other

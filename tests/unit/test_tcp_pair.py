"""A pair of sockets between two processes: what a stream of TCP can say arrives at the other end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest

from trionat.transport.tcp_pair import open_tcp_pair


def read(sock: socket.socket) -> bytes:
    sock.settimeout(2)
    return sock.recv(100)


@pytest.mark.parametrize("turned", [False, True])
def test_ends_and_resets_are_two_things(turned: bool, nothing_left: None) -> None:
    one, other = open_tcp_pair()[:: -1 if turned else 1]
    assert one.gettimeout() == other.gettimeout() == 0
    assert not other.get_inheritable()
    assert one.send(b"question") == 8
    one.shutdown(socket.SHUT_WR)
    assert read(other) == b"question"
    assert read(other) == b""
    assert other.send(b"answer") == 6
    assert read(one) == b"answer"
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    other.close()
    with pytest.raises(ConnectionResetError):
        read(one)
    one.close()


def test_each_pair_is_its_own(nothing_left: None) -> None:
    pairs = [open_tcp_pair() for _ in range(50)]
    for number, (one, _) in enumerate(pairs):
        one.send(b"%d" % number)
    for number, (one, other) in enumerate(pairs):
        assert read(other) == b"%d" % number
        one.close()
        other.close()


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("tc") is None,
    reason="network namespaces are root's, on Linux",
)
def test_a_machine_that_cannot_connect_to_itself_holds_nobody_up() -> None:
    """The loopback interface of a new namespace drops all; so do some firewalls."""
    program = (
        "import os, time; from trionat.transport.tcp_pair import open_tcp_pair\n"
        "began = time.monotonic()\n"
        "try: open_tcp_pair()\n"
        "except OSError as error: print(type(error).__name__, time.monotonic() - began < 1)\n"
    )
    drop = "ip link set lo up && tc qdisc add dev lo root pfifo limit 0"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f'{drop} && exec "$0" -c "$1"', sys.executable, program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "TimeoutError True\n", done.stderr

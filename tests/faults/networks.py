"""Networks of a test's own, made of the kernel's namespaces: a server's, a client's, and a router between them.

The kernel ends a namespace with the last process in it, so nothing has to be cleaned up, whatever happens to the test. With root's
privileges they are made as such, else within a user namespace, where that is allowed. Linux only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import pytest
import trio

from tests.e2e.services import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.services import Handler

# What keeps a namespace, and gives out sockets of it: they belong to the network in which they were made, whoever uses them.
_KEEPER: Final = """
import socket
end = socket.socket(fileno=0)
end.send(b"up")
while end.recv(1):
    with socket.socket() as made:
        socket.send_fds(end, [b"x"], [made.fileno()])
"""

_IS_ROOT: Final = hasattr(os, "geteuid") and os.geteuid() == 0
_PROGRAMS: Final = ("unshare", "nsenter", "ip")


@attrs.define(eq=False)
class Network:
    """One namespace, kept by a process that ends with the test's."""

    holder: subprocess.Popen[bytes]
    end: socket.socket

    @property
    def user(self) -> tuple[str, ...]:
        """The beginning of a command line that is to run with power over this network, but not in it."""
        target = f"--target={self.holder.pid}"
        return ("nsenter", target, *(() if _IS_ROOT else ("--user", "--preserve-credentials")))

    @property
    def inside(self) -> tuple[str, ...]:
        """The beginning of a command line that is to run in this network."""
        return (*self.user, "--net")

    def run(self, *command: str) -> None:
        """Run a command that ends at once."""
        subprocess.run([*self.inside, *command], check=True, timeout=10, capture_output=True)

    def socket(self) -> socket.socket:
        """Return a new TCP socket of this network; the caller closes it."""
        self.end.send(b"x")
        _, [made], _, _ = socket.recv_fds(self.end, 1, 1)
        return socket.socket(fileno=made)

    async def connect(self, host: str, port: int) -> trio.SocketStream:
        """Connect from within this network; the caller closes."""
        connecting = trio.socket.from_stdlib_socket(self.socket())
        try:
            await connecting.connect((host, port))
        except BaseException:
            connecting.close()
            raise
        return trio.SocketStream(connecting)

    async def serve(self, handler: Handler, nursery: trio.Nursery) -> Service:
        """Serve connections on this network's own loopback until the nursery is cancelled."""
        listening = trio.socket.from_stdlib_socket(self.socket())
        await listening.bind(("127.0.0.1", 0))
        listening.listen()
        await nursery.start(trio.serve_listeners, handler, [trio.SocketListener(listening)])
        return Service(listening.getsockname()[1])


@contextmanager
def network(beside: Network | None = None) -> Iterator[Network]:
    """Make a namespace with nothing but a loopback, to be joined with the one that it is `beside`.

    Where that is not possible the test is skipped.
    """
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"no network namespaces without {', '.join(missing)}")
    unshare = ["unshare", "--net"]
    if not _IS_ROOT and beside is None:
        unshare += ["--user", "--map-root-user"]
    elif not _IS_ROOT and beside is not None:  # who joins two must have power over both
        unshare = [*beside.user, *unshare]
    near, far = socket.socketpair()
    with near, far:
        holder = subprocess.Popen(
            [*unshare, sys.executable, "-c", _KEEPER], stdin=far.fileno(), stderr=subprocess.PIPE
        )
        far.close()
        try:
            if near.recv(2) != b"up":
                _, errors = holder.communicate(timeout=10)
                pytest.skip(f"no network namespaces here: {errors.decode().strip()}")
            made = Network(holder, near)
            made.run("ip", "link", "set", "lo", "up")
            yield made
        finally:
            near.close()  # which ends the holder
            holder.communicate(timeout=10)


@attrs.define(eq=False)
class Lab:
    """Two networks and a router between them. The server's address stays, the client's can be changed."""

    server: Network
    client: Network
    router: Network
    moves: int = 0

    SERVER: Final = "10.77.0.1"

    def connect_server(self) -> None:
        """Give the server its cable."""
        self._cable(self.server, "server", self.SERVER, "10.77.0.254")
        self.mend()

    def move_client(self) -> None:
        """Give the client a new cable, with another address; the old one is gone."""
        if self.moves:
            self.client.run("ip", "link", "del", "eth0")
        self.moves += 1
        self._cable(
            self.client, f"client{self.moves}", f"10.77.{self.moves}.1", f"10.77.{self.moves}.254"
        )

    def _cable(self, host: Network, name: str, address: str, router: str) -> None:
        peer = ("peer", "name", "eth0", "netns", str(host.holder.pid))
        self.router.run("ip", "link", "add", name, "type", "veth", *peer)
        self.router.run("ip", "address", "add", f"{router}/24", "dev", name)
        self.router.run("ip", "link", "set", name, "up")
        host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        self._plug(host, router)

    def _plug(self, host: Network, router: str) -> None:
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "replace", "default", "via", router)

    def cut(self) -> None:
        """Drop everything in the middle: neither end sees anything but silence."""
        self._forward(on=False)

    def mend(self) -> None:
        """Let everything through."""
        self._forward(on=True)

    def _forward(self, *, on: bool) -> None:
        self.router.run("sh", "-c", f"echo {int(on)} > /proc/sys/net/ipv4/ip_forward")

    def unplug_client(self) -> None:
        """Take the client's cable away; its own kernel sees that."""
        self.client.run("ip", "link", "set", "eth0", "down")

    def plug_client(self) -> None:
        """Put it back, with the same address."""
        self._plug(self.client, f"10.77.{self.moves}.254")


@contextmanager
def open_lab() -> Iterator[Lab]:
    """Make the networks; skips the test where there can be none."""
    with ExitStack() as networks:
        router = networks.enter_context(network())
        server = networks.enter_context(network(beside=router))
        client = networks.enter_context(network(beside=router))
        made = Lab(server=server, client=client, router=router)
        made.connect_server()
        made.move_client()
        yield made

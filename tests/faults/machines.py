"""Machines of a test's own: each has a network namespace, an address, a folder, and names in a hosts file; a router joins all of them.

A cut between two of them loses packets in silence, as a broken network does. Linux, with power over namespaces.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from tests.e2e import services
from tests.faults.networks import Network, network

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ROUTER: Final = "10.0.0.254"


@attrs.define(eq=False)
class Machine:
    """What runs `inside` has its network and its names; `folder` is its own, and stands for `/etc/trionat` and for the home folder. `added` comes to the environment, `resolver` is its resolv.conf, if it has one of its own."""

    name: str
    address: str
    network: Network
    folder: Path
    hosts: Path
    added: dict[str, str] = attrs.field(factory=lambda: {})
    resolver: Path | None = None

    @property
    def inside(self) -> tuple[str, ...]:
        """The beginning of a command line that is to run on this machine."""
        binds = f"mount --bind {shlex.quote(str(self.hosts))} /etc/hosts"
        if self.resolver is not None:
            binds += f" && mount --bind {shlex.quote(str(self.resolver))} /etc/resolv.conf"
        with_names = f'{binds} && exec "$@"'
        return (*self.network.inside, *("unshare", "--mount", "sh", "-c", with_names, "sh"))

    @property
    def environ(self) -> dict[str, str]:
        """The environment of commands: the trionat of this interpreter, and a home folder of the machine's own."""
        own = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        home = {"HOME": str(self.folder), "XDG_STATE_HOME": str(self.folder / "state")}
        return services.trionat_environ(PATH=own, **home, **self.added)

    @property
    def etc(self) -> Path:
        """What stands for `/etc/trionat`."""
        return self.folder / "etc"

    def name_hosts(self, names: Mapping[str, tuple[str, ...]]) -> None:
        """Say which names lead to which addresses; programs that run see it at their next look."""
        lines = ["127.0.0.1 localhost"]
        lines += [f"{address} {name}" for name, found in names.items() for address in found]
        self.hosts.write_text("\n".join(lines) + "\n")

    def ask_names_at(self, address: str) -> None:
        """Have the programs that are started from now on ask a DNS server; what is in the hosts file comes first."""
        self.resolver = self.folder / "resolv.conf"
        self.resolver.write_text(f"nameserver {address}\noptions timeout:2\n")

    def words(self, command: str) -> list[str]:
        """Return a command line of this machine, as it stands on a page."""
        return shlex.split(command.replace("/etc/trionat", str(self.etc)))

    def run(self, script: str, *, timeout: float = 30) -> str:
        """Run lines of a shell as they stand on a page, and return what they print. Blocks."""
        done = subprocess.run(
            [*self.inside, "sh", "-ec", script.replace("/etc/trionat", str(self.etc))],
            check=False,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            timeout=timeout,
            encoding="utf-8",
        )
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}{done.stderr}"
        return done.stdout


@attrs.define(eq=False)
class Site:
    """All machines, by name."""

    router: Network
    machines: dict[str, Machine]

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def cut(self, one: str, other: str) -> None:
        """Lose everything between two machines, from now on."""
        self._rules("add", one, other)

    def mend(self, one: str, other: str) -> None:
        """Let it through again."""
        self._rules("del", one, other)

    def _rules(self, what: str, one: str, other: str) -> None:
        ends = self[one].address, self[other].address
        for source, target in (ends, ends[::-1]):
            self.router.run("ip", "rule", what, "from", source, "to", target, "blackhole")


@contextmanager
def open_site(folder: Path, addresses: Mapping[str, str]) -> Iterator[Site]:
    """Make machines with these names and addresses; skips the test where there can be none."""
    with ExitStack() as networks:
        router = networks.enter_context(network())
        router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        machines: dict[str, Machine] = {}
        for name, address in addresses.items():
            own = networks.enter_context(network(beside=router))
            peer = ("peer", "name", "eth0", "netns", str(own.holder.pid))
            router.run("ip", "link", "add", name, "type", "veth", *peer)
            router.run("ip", "address", "add", f"{_ROUTER}/32", "dev", name)
            router.run("ip", "link", "set", name, "up")
            router.run("ip", "route", "add", f"{address}/32", "dev", name)
            own.run("ip", "address", "add", f"{address}/32", "dev", "eth0")
            own.run("ip", "link", "set", "eth0", "up")
            own.run("ip", "route", "add", _ROUTER, "dev", "eth0")
            own.run("ip", "route", "add", "default", "via", _ROUTER)
            home = folder / name
            (home / "etc").mkdir(parents=True)
            machines[name] = Machine(name, address, own, home, home / "hosts")
            machines[name].name_hosts({})
        yield Site(router, machines)

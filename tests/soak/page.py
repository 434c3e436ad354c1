"""docs/cluster.md, followed word for word: its files and commands, on machines that have the addresses and names of the page.

What is not taken from the page: `scp` copies by `cp` here, and `serve` gets `--json`, so that we hear when it is up.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from tests.faults.machines import Machine, Site

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = ROOT / "examples/cluster"

ADDRESSES: Final = {
    "n1": "10.0.0.11",
    "n2": "10.0.0.12",
    "n3": "10.0.0.13",
    "proxy": "10.0.0.1",
    "redis": "10.0.0.21",
    "db": "10.0.0.22",
    "public": "10.0.1.1",
}
"""Of the page and of examples/cluster; the last is where clients and visitors are."""

NODES: Final = ("n1", "n2", "n3")
INSIDE: Final = {
    "redis.example.com": (ADDRESSES["redis"],),
    "db.example.com": (ADDRESSES["db"],),
}
REDIS_PASSWORD: Final = "of Redis"

_BLOCK: Final = re.compile(r"^( *)```(sh|yaml|sql)\n(.+?)^ *```$", re.DOTALL | re.MULTILINE)


@attrs.frozen
class Page:
    """The blocks of the page, in their order, and what becomes of them."""

    database: str
    single: str
    cluster: str
    proxies: str
    make_account: str
    serve: str
    make_ticket: str
    init: str
    copy: str
    rename: str
    look: str
    drain: str
    alone: str

    @classmethod
    def read(cls) -> Page:
        """Take the page apart; it fails where the page has more or other blocks than are followed here."""
        text = (ROOT / "docs/cluster.md").read_text("utf-8")
        found: dict[str, list[str]] = {"yaml": [], "sh": [], "sql": []}
        for indent, kind, block in _BLOCK.findall(text):
            found[kind].append(re.sub(f"^{indent}", "", block, flags=re.MULTILINE))
        single, cluster, proxies = found["yaml"]
        [database] = found["sql"]
        account, serve, ticket, init, copy, rename, again, look, drain, alone = found["sh"]
        assert again == serve
        return cls(
            database=database,
            single=single,
            cluster=cluster,
            proxies=proxies,
            make_account=account,
            serve=serve,
            make_ticket=ticket,
            init=init,
            copy=copy,
            rename=rename,
            look=look,
            drain=drain,
            alone=alone,
        )

    def begin(self, machine: Machine) -> None:
        """Write the file of the one server."""
        text = self.single.replace("/etc/trionat", str(machine.etc))
        text = text.replace("/var/lib/trionat", str(machine.folder / "state/trionat"))
        _write(machine.etc / "server.yml", text)

    def add_cluster(self, machine: Machine) -> None:
        """Add the section, and the password beside it."""
        file = machine.etc / "server.yml"
        section = self.cluster.replace("/etc/trionat", str(machine.etc))
        _write(file, file.read_text() + section)
        _write(machine.etc / "redis-password", f"{REDIS_PASSWORD}\n")

    def copy_to(self, site: Site, name: str) -> None:
        """Bring the files of n1 to another machine, and change what has to be another one there."""
        machine = site[name]
        words = self._of(name, self.copy).split()
        *files, target = [word for word in words if "/" in word]
        assert target == f"root@{machine.address}:/etc/trionat/"
        for file in files:
            source = Path(file.replace("/etc/trionat", str(site["n1"].etc)))
            shutil.copy2(source, machine.etc)
        yml = machine.etc / "server.yml"  # whose paths are those of the machine that it comes from
        _write(yml, yml.read_text().replace(str(site["n1"].folder), str(machine.folder)))
        for path in machine.etc.iterdir():
            path.chmod(0o644)  # the page makes them what they have to be
        users = machine.folder / "passwd"  # the server's user of the page is us
        users.write_text(f"{Path('/etc/passwd').read_text()}trionat:x:0:0::/:/bin/sh\n")
        machine.run(f"mount --bind {users} /etc/passwd\n{self._of(name, self.rename)}")
        assert {path.stat().st_mode & 0o777 for path in machine.etc.iterdir()} == {0o600}

    def add_proxies(self, name: str, machine: Machine) -> None:
        """Add the keys for a proxy to the section `Server`."""
        file = machine.etc / "server.yml"
        keys = self._of(name, self.proxies)
        _write(file, file.read_text().replace("Server:\n", keys))

    def _of(self, name: str, block: str) -> str:
        """Return a block of n1 or n2 as it is for another machine."""
        if name == "n3":
            block = block.replace("Node: n2", "Node: n3").replace("10.0.0.12", ADDRESSES[name])
        if "Proxy" in block:
            block = block.replace(ADDRESSES["n1"], ADDRESSES[name])
        return block


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)

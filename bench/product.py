"""trionat itself, with its tunnels encrypted, as they are by default, and not."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Final

from bench.chain import Chain, Ends, Ports
from bench.program import HOST, free_port, running

if TYPE_CHECKING:
    from bench.chain import Site

TRIONAT: Final = (sys.executable, "-m", "trionat")
_READY: Final = '"event": "ready"'
_CONNECTED: Final = '"event": "connected"'
_SECTIONS: Final = {"server.yml": "Server", "client.yml": "Client"}


async def _build(site: Site, home: Ports, *flags: str) -> Ends:
    """Run a server and a client as a user runs them, with the path, if there is one, between the two. `flags` are more of the client's."""
    control = free_port()
    host, port = await site.cross(control)
    addresses = ["--controller-addr", f"{HOST}:{control}", "--tunnel-addr", f"{HOST}:0"]
    addresses += ["--expose-port", "0,0", "--public-addr", f"{host}:{port}"]
    state = site.folder / "state"
    serve = [*TRIONAT, "serve", "--json", *addresses, "--state-dir", state]
    # The one that is measured has its key already, as any server has but at its first start, when making it costs memory.
    async with running("first-start", serve, site.folder) as first:
        await first.wait_words(_READY)
    server = await site.run("serve", *serve)
    ticket = json.loads(await server.wait_words(_READY))["ticket"]
    command = [*TRIONAT, "connect", "--json", "--state-dir", site.folder / "client", *flags]
    client = await site.run("connect", *command, home.bulk, home.requests, TRIONAT_TICKET=ticket)
    connected = json.loads(await client.wait_words(_CONNECTED))
    visit = [int(service["public"].rpartition(":")[2]) for service in connected["services"]]
    return Ends(public=(server,), private=(client,), visit=Ports(*visit))


async def _build_unencrypted(site: Site, home: Ports) -> Ends:
    """The same with configuration files, which both find in their folder: both have to say so."""
    for name, section in _SECTIONS.items():
        (site.folder / name).write_text(f"{section}: {{TunnelEncryption: none}}\n")
    return await _build(site, home)


async def _build_inspected(site: Site, home: Ports) -> Ends:
    """The same, with an inspector that nobody looks at."""
    return await _build(site, home, "--inspect-addr", f"{HOST}:0")


ENCRYPTED: Final = Chain(name="trionat", encrypted=True, build=_build)
UNENCRYPTED: Final = Chain(name="trionat, TLS off", encrypted=False, build=_build_unencrypted)
INSPECTED: Final = Chain(name="trionat, inspected", encrypted=True, build=_build_inspected)

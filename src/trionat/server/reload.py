"""From one configuration of a running server to another.

All that is new is read and opened first. Then plain functions, without a checkpoint between them, put it into force everywhere. So nobody ever
sees half of a change, and one that fails, or is cancelled, has changed nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from trionat.config.values import PORTS
from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.server.change import ServerChange
from trionat.server.control_certificate import certificate_files, load_certificate
from trionat.server.listeners import open_visit_ports

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection, Sequence

    from trionat.config.load import Configuration
    from trionat.server.admission.bans import Bans
    from trionat.server.console.console import Console
    from trionat.server.events.delivery import Delivery
    from trionat.server.names.frontend import Names
    from trionat.server.serving_process import ServingProcess
    from trionat.server.state_folder import StateFolder
    from trionat.server.upgrade.upgrade import Upgrade
    from trionat.server.visitors.ports import PortPool

log = get_logger(__name__)

_OF_A_CLUSTER: Final = ("Server.VisitPort", "Server.OtherServers", "Server.MaxTCPConnNum")
"""On these the nodes of a cluster have to agree, so they change with a restart."""

_CERTIFICATE: Final = ("Server.Certificate", "Server.CertificateKey")
_OF_NAMES: Final = ("certificate", "certificate_key", "certificates_dir", "pages_dir")
"""Fields of what `Names.open` reads."""


@attrs.define(eq=False, kw_only=True)
class ServerReload:
    """See the module, and `Reloadable`. The parts are those of the server; `sections` and `origins` are what the console shows of the configuration."""

    server: ServingProcess
    state: StateFolder
    ports: PortPool
    bans: Bans
    stopping: trio.Event
    names: Names | None
    delivery: Delivery | None
    console: Console | None
    upgrade: Upgrade | None
    sections: dict[str, Any]
    origins: dict[str, str]

    def needs_restart(self, before: Configuration, wanted: Configuration) -> Collection[str]:
        """See `Reloadable`."""
        held = set(self.server.needs_restart())
        old, new = before.server, wanted.server
        if (old.certificate is None) != (new.certificate is None):
            held.update(_CERTIFICATE)  # tickets hold a fingerprint, or none
        if 0 in old.visit_port or 0 in new.visit_port:
            held.add("Server.VisitPort")  # which one it was, nobody has said
        if before.cluster is not None:
            held.update(_OF_A_CLUSTER)
        if self.delivery is None:
            held.add("Events")
        return held

    async def change(self, before: Configuration, after: Configuration) -> Sequence[str]:
        """See `Reloadable`."""
        running = self.server.config
        config = attrs.evolve(
            after.server, http_addr=running.http_addr, https_addr=running.https_addr
        )
        wanted = frozenset(config.visit_port)
        removed = tuple(number for number in self.ports.ports if number not in wanted)
        if 0 in wanted:
            wanted, removed = frozenset(self.ports.ports), ()
        new = [number for number in config.visit_port if number in wanted - self.ports.ports.keys()]
        if leaving := [number for number in new if self.ports.is_leaving(number)]:
            raise StartupError(
                f"visit port {PORTS.write(leaving)} is still being given up by its client: try again in a moment"
            )
        with ExitStack() as opened:
            self._check()
            # A file may be a pipe, or on a network that is gone: a thread that waits for one is left behind.
            tls, _ = await trio.to_thread.run_sync(
                load_certificate, config, self.state, abandon_on_cancel=True
            )
            names = await self._read_names(before, after)
            receivers = await self._open_receivers(after)
            added, left_out = await open_visit_ports(config, new, self.server.listeners.all, opened)
            if before.server.other_servers != config.other_servers:
                await trio.to_thread.run_sync(self.state.remember_others, config.other_servers)
            self._check()
            opened.pop_all()
        # No checkpoint from here on.
        certificate, key = certificate_files(config, self.state)
        self.bans.take_limits(config.ban_after, config.ban_time)
        if names is not None and self.names is not None:
            self.names.become(names)
        self.server.take_change(
            ServerChange(
                config=config,
                acme=after.acme,
                tls=tls,
                certificate=certificate,
                key=key,
                added=added,
                removed=removed,
            )
        )
        if self.delivery is not None:
            self.delivery.take_config(after.events, receivers)
        self.sections |= {"Server": config, "Acme": after.acme, "Events": after.events}
        self.origins |= after.origins
        if self.console is not None:
            self.console.take_config(config, tls, tuple(self.ports.ports))
        if added or removed:
            log.info(
                "visit ports changed",
                added=PORTS.write(listener.address.port for listener in added) or None,
                removed=PORTS.write(removed) or None,
            )
        return () if left_out is None else (left_out,)

    def _check(self) -> None:
        if self.stopping.is_set():
            raise StartupError("the server stops: its configuration is not read again")
        if self.upgrade is not None and self.upgrade.is_under_way:
            raise StartupError("another process takes the place of this one, and reads it anyway")

    async def _read_names(self, before: Configuration, after: Configuration) -> Names | None:
        """Read certificates and pages, where they are to come from somewhere else; those that are there already are watched."""
        if self.names is None or all(
            getattr(before.server, field) == getattr(after.server, field) for field in _OF_NAMES
        ):
            return None
        config = attrs.evolve(after.server, access_log=None)
        return await self.names.open(config, after.acme, self.state.folder)

    async def _open_receivers(self, after: Configuration) -> ssl.SSLContext | None:
        """Return what webhooks are asked with; None where there is none, or one already."""
        if self.delivery is None or self.delivery.tls is not None or not after.events.webhooks:
            return None
        return await trio.to_thread.run_sync(self.delivery.open_context)

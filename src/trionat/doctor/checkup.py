"""Which checks there are for a client and for a server, and in which order."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trionat.config.client import NATIVE
from trionat.doctor.certificates import certificate_files, check_certificates
from trionat.doctor.check import PATIENCE, Check
from trionat.doctor.clock import check_clock
from trionat.doctor.descriptors import check_descriptors
from trionat.doctor.disk import check_disk
from trionat.doctor.dns import check_dns
from trionat.doctor.files import SecretFile, check_files
from trionat.doctor.finding import unknown
from trionat.doctor.kernel import check_ephemeral, check_kernel
from trionat.doctor.login import PATIENCE as LOGIN_PATIENCE
from trionat.doctor.login import check_login
from trionat.doctor.offer import check_offer
from trionat.doctor.peer import Peer
from trionat.doctor.port import check_port
from trionat.doctor.proxies import check_proxies
from trionat.doctor.service import check_service
from trionat.doctor.tls import check_identity, check_trionat
from trionat.doctor.version import check_version
from trionat.doctor.visitors import check_visitors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from trionat.client.native.dialer import Server
    from trionat.config.client import ClientConfig
    from trionat.config.load import Configuration
    from trionat.config.service import Service
    from trionat.doctor.finding import Finding

_OTHER_DESCRIPTORS: Final = 8
"""Of a client that is up, besides those for visitors."""


def _blocking(
    look: Callable[[], Sequence[Finding]],
) -> Callable[[], Awaitable[Sequence[Finding]]]:
    """Make a plain function that blocks one that a check may have; left behind where a disk hangs."""

    async def run() -> Sequence[Finding]:
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)

    return run


def _at_once(look: Callable[[], Sequence[Finding]]) -> Callable[[], Awaitable[Sequence[Finding]]]:
    """Make a plain function that waits for nothing one that a check may have."""

    async def run() -> Sequence[Finding]:
        await trio.lowlevel.checkpoint()
        return look()

    return run


def given(name: str, findings: Sequence[Finding]) -> Check:
    """Return a check of what was found before."""
    return Check(name=name, look=_at_once(lambda: findings))


def machine_checks(
    visit_ports: Callable[[], Sequence[int]] = tuple, after: tuple[Check, ...] = ()
) -> Iterator[Check]:
    """Return what concerns the machine, whatever runs on it; `visit_ports` is asked when those are done that come before."""
    yield Check(name="kernel", look=_blocking(check_kernel))
    yield Check(
        name="ephemeral",
        look=_blocking(lambda: check_ephemeral(sorted(visit_ports()))),
        after=after,
    )


def client_checks(
    config: ClientConfig,
    servers: Sequence[Server],
    services: Sequence[Service],
    secrets: Sequence[SecretFile],
    *,
    beside_server: bool = False,
) -> Iterator[Check]:
    """Return the checks of a client of these servers; `secrets` are files that it reads. What concerns the machine is left to those of the server, where there is one as well."""
    yield Check(name="files", look=_blocking(lambda: check_files(secrets)))
    for server in servers:
        about = "" if len(servers) == 1 else str(server.control)
        yield from _server_checks(config, server, services, about)
    places = list(dict.fromkeys(service.local for service in services))  # several may be at one
    for local in places:
        look = functools.partial(check_service, local, config.local_timeout)
        about = str(local) if len(places) > 1 else ""
        yield Check(name="service", about=about, look=look, patience=config.local_timeout + 1)
    if not beside_server:
        yield Check(
            name="descriptors", look=_at_once(lambda: check_descriptors(*descriptors_of(config)))
        )
        yield from machine_checks()
    if config.log_filename is not None:
        folder = Path(config.log_filename).absolute().parent
        yield Check(name="disk", look=_blocking(lambda: check_disk(folder, "the log")))


def descriptors_of(config: ClientConfig) -> tuple[int, str]:
    """Return how many descriptors a client may need at once, and what for."""
    tunnels = config.max_tunnels
    return 2 * tunnels + _OTHER_DESCRIPTORS, f"MaxTunnels {tunnels}, each with a local connection"


def _server_checks(
    config: ClientConfig, server: Server, services: Sequence[Service], about: str
) -> Iterator[Check]:
    peer = Peer(server=server, config=config, services=services)

    def check(
        name: str,
        look: Callable[[Peer], Awaitable[Sequence[Finding]]],
        *needs: Check,
        patience: float = PATIENCE,
    ) -> Check:
        bound = functools.partial(look, peer)
        return Check(name=name, about=about, look=bound, needs=needs, patience=patience)

    def seen(name: str, look: Callable[[Peer], Sequence[Finding]], needs: Check) -> Check:
        """Return a check of what another one has seen."""
        bound = _at_once(functools.partial(look, peer))
        return Check(name=name, about=about, look=bound, needs=(needs,))

    yield (dns := check("dns", check_dns))
    yield (port := check("port", check_port, dns))
    if config.dialect != NATIVE:
        yield seen("trionat", _another_dialect, port)
        return
    yield (trionat := check("trionat", check_trionat, port))
    yield (identity := check("tls", check_identity, trionat))
    yield (login := check("ticket", check_login, identity, patience=LOGIN_PATIENCE))
    yield seen("version", check_version, login)
    yield seen("clock", check_clock, login)
    yield seen("proxies", check_proxies, login)
    yield seen("visitors", check_visitors, login)
    if services:
        yield seen("offer", check_offer, login)


def _another_dialect(peer: Peer) -> list[Finding]:
    return [
        unknown(
            f"{peer.control} is a server of NAT, the Go program ({peer.config.dialect}), of which no more can be seen"
        )
    ]


def server_checks(
    configuration: Configuration, secrets: Sequence[SecretFile], beside: ClientConfig | None = None
) -> Iterator[Check]:
    """Return the checks of a server on this machine, and of the machine also for a client `beside` it.

    Raises:
        StartupError: there is no place for its state.
    """
    # A client's doctor has no use for a server.
    from trionat.doctor.database import check_accounts_file, check_database  # noqa: PLC0415 - memory
    from trionat.doctor.host import Host  # noqa: PLC0415 - memory
    from trionat.doctor.public_address import check_public_address  # noqa: PLC0415 - memory
    from trionat.doctor.server import check_ports, check_server  # noqa: PLC0415 - memory
    from trionat.server.app import descriptors_for  # noqa: PLC0415 - memory
    from trionat.server.state_folder import database_file  # noqa: PLC0415 - memory

    config, database, cluster = configuration.server, configuration.database, configuration.cluster
    folder = config.effective_state_dir
    host = Host(config=config, folder=folder)
    yield Check(
        name="files", look=_blocking(lambda: check_files([*secrets, *_own_secrets(folder)]))
    )
    server = Check(name="server", look=_blocking(lambda: check_server(host)), patience=20.0)
    yield server
    # They look at a server that is down in another way.
    yield Check(name="ports", look=_blocking(lambda: check_ports(host)), after=(server,))
    yield Check(
        name="public address",
        look=lambda: check_public_address(host),
        after=(server,),
        patience=30.0,
    )
    if config.start_auth and database is None:
        yield Check(name="accounts", look=lambda: check_accounts_file(database_file(folder)))
    if database is not None:
        patience = 3 * database.timeout + 5.0
        yield Check(name="database", look=lambda: check_database(database), patience=patience)
    if cluster is not None:
        from trionat.doctor.redis import check_redis  # noqa: PLC0415 - memory

        yield Check(name="redis", look=lambda: check_redis(cluster))
    yield Check(
        name="certificates",
        look=_blocking(lambda: check_certificates(certificate_files(config, folder))),
    )
    if config.domain is not None:
        from trionat.doctor.names import check_names  # noqa: PLC0415 - memory

        domain = config.domain
        yield Check(name="names", look=lambda: check_names(host, domain), patience=35.0)

    def look_at_descriptors() -> Sequence[Finding]:
        needs = [descriptors_for(*host.sizes(), config.max_visitors)]
        if beside is not None:
            needs.append(descriptors_of(beside))
        return check_descriptors(*max(needs))  # each process has the same limit

    yield Check(name="descriptors", look=_at_once(look_at_descriptors), after=(server,))
    yield from machine_checks(host.known_ports, after=(server,))
    yield Check(
        name="disk", look=_blocking(lambda: check_disk(folder, "accounts, keys and traffic"))
    )
    log_folder = Path(config.effective_log_filename).absolute().parent
    if config.start_log and log_folder != folder.absolute():
        yield Check(
            name="disk", about="log", look=_blocking(lambda: check_disk(log_folder, "the log"))
        )


def _own_secrets(folder: Path) -> list[SecretFile]:
    """Return what a server keeps in its state folder for itself alone."""
    return [
        SecretFile(folder / "server.key", "the server's key"),
        SecretFile(folder / "ticket.key", "the key of all tickets"),
        SecretFile(folder / "trionat.db", "the accounts"),
        SecretFile(
            folder / "certificates" / "account.key", "the key of the account at the authority"
        ),
    ]

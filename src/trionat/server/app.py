"""The server as a whole: what it opens, in which order it starts, and in which it stops.

Read `serve` from outside to inside: that is the order of start, and backwards that of the end.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import AsyncExitStack, contextmanager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import trio

from trionat.address import TCPAddress
from trionat.config.acme import AcmeConfig
from trionat.config.events import EventsConfig
from trionat.errors import StartupError, StoreUnavailableError
from trionat.events import Ready
from trionat.fingerprint import format_fingerprint
from trionat.log import get_logger
from trionat.protocol.ticket import TOKEN_BYTES, Ticket
from trionat.server.accounts.accounts import ANONYMOUS, Accounts
from trionat.server.accounts.first_user import ensure_first_user, find_first_user
from trionat.server.accounts.name_owners import NameOwners
from trionat.server.accounts.tickets import make_ticket
from trionat.server.accounts.traffic import open_traffic
from trionat.server.admin.socket import open_admin_socket
from trionat.server.admission.bans import Bans
from trionat.server.control_certificate import certificate_files, load_certificate
from trionat.server.events.event import server_stopping, server_up
from trionat.server.events.hub import Hub
from trionat.server.listeners import CONSOLE, open_listeners
from trionat.server.refusals import RefusalCounters
from trionat.server.reload import ServerReload
from trionat.server.single import SingleProcess
from trionat.server.state_folder import (
    State,
    StateFolder,
    database_file,
    lock_state,
    make_memory_state,
    prepare_state,
)
from trionat.server.tally import Tally
from trionat.server.upgrade.upgrade import is_possible
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.store.backend import open_store
from trionat.system import has_unix_sockets
from trionat.text import counted
from trionat.transport.descriptors import Descriptors, require, warn_if_short
from trionat.transport.isolation import leaves
from trionat.transport.tls import name_mismatch
from trionat.version import VERSION

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from trionat.config.cluster import ClusterConfig
    from trionat.config.database import DatabaseConfig
    from trionat.config.reload import Reloader
    from trionat.config.server import ServerConfig
    from trionat.server.cluster.member import Member
    from trionat.server.console.console import Console, Door
    from trionat.server.events.delivery import Delivery
    from trionat.server.listeners import GivenListeners
    from trionat.server.names.frontend import Names
    from trionat.server.serving_process import ServingProcess
    from trionat.server.upgrade.predecessor import Predecessor
    from trionat.server.upgrade.upgrade import Upgrade
    from trionat.store.base import Store
    from trionat.transport.listener import Listener

log = get_logger(__name__)

_OTHER_DESCRIPTORS: Final = 32
"""Of a server besides its visit ports: the event loop, the log, listeners, files, the store, and the first connections. Chosen."""

_IDLE_TUNNELS: Final = 4
"""Of a session, as a client keeps them that is not told otherwise."""

_PREPARE_INTERVAL: Final = 2.0
"""Seconds between two looks at a database that is waited for."""


async def serve(  # noqa: ASYNC128 - what it has chosen calls it, when it serves
    config: ServerConfig,
    *,
    database: DatabaseConfig | None = None,
    cluster: ClusterConfig | None = None,
    acme: AcmeConfig | None = None,
    origins: Mapping[str, str] = MappingProxyType({}),
    events: EventsConfig | None = None,
    stopping: trio.Event | None = None,
    reserved: bool = False,
    reloader: Reloader | None = None,
    upgrade: Upgrade | None = None,
    predecessor: Predecessor | None = None,
    default_folder: bool = False,
    task_status: trio.TaskStatus[Ready] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server until it is cancelled, or until `stopping` is set and every session has ended.

    Start it with `ready = await nursery.start(trionat.serve, config)`: that returns when all ports are bound. Setting
    `stopping` is the planned stop: nobody new is let in, clients are told, visitors may finish for `config.drain_grace`
    seconds. Cancelling stops at once. Either way no task, socket or file is left behind. Where `stopping` is set while the store is
    still waited for, that returns; `nursery.start` has nothing to return then, and raises StartupError.

    `reserved` says that the caller holds `reserve(config)`; else it is done here.

    Where clients have to log in, nothing is listened on before the store can be used: it is waited for, or ends the start, as
    `database.wait` says. Where they need not, the store is for their traffic only, and holds nothing up.

    Where `config` has a domain, services may have names; `acme` says where their certificates come from.

    Where `config` has an address for the console, that is there; `origins` says by keys such as `Server.VisitPort` where each is from, for people.
    `events` says who is told what happens.

    `reloader` has the server change to the configuration that it reads, while the server runs; the server runs it.
    With `upgrade`, another process may take the place of this one: then it returns. With `predecessor`, this one takes another's place, in which `reserve` has met it.

    Where `config` names no state folder, all is in memory, and some things cannot be had (`_check_memory`); with `default_folder`, the
    user's is meant, as for `trionat serve`.

    With `cluster`, this server is a node of it, and `database` has to be there; at the start its Redis is waited for as `cluster.wait` says.

    Raises:
        StartupError: there are too few descriptors for the visit ports, an address cannot be bound, or the state folder not be used, or another server runs on it;
            or it cannot be a node of its cluster, or needs a state folder and has none.
        StoreUnavailableError: the accounts cannot be asked for.
    """
    stopping = trio.Event() if stopping is None else stopping
    if config.worker_count > 1 and not has_unix_sockets():
        raise StartupError(
            "Server.Workers: several processes need Unix sockets, which Python does not have on Windows: leave it out, or write 1"
        )
    if predecessor is not None and cluster is not None:
        raise StartupError(
            "a server becomes a node of a cluster by a restart: stop it, and start it anew"
        )
    folder = config.effective_state_dir if default_folder else config.state_dir
    if folder is None:
        _check_memory(config, cluster, events)
        assert (reloader, upgrade, predecessor) == (None, None, None), "commands have a folder"  # noqa: S101 - nobody else gives them
    async with AsyncExitStack() as resources:
        if folder is None:
            require(
                _least_descriptors(len(config.visit_port)),
                counted(len(config.visit_port), "visit port"),
            )
        elif not reserved:
            await trio.to_thread.run_sync(resources.enter_context, reserve(config))
        _warn_of_few_descriptors(config)
        file = None if folder is None else database_file(folder)
        store = await resources.enter_async_context(open_store(database, file))
        if config.start_auth:
            wait = database is not None and database.wait
            if not await _prepare(store, wait=wait, stopping=stopping):
                log.info("told to stop before it was up")
                if task_status is trio.TASK_STATUS_IGNORED:
                    return
                raise StartupError("the server was told to stop before it was up")
        traffic = await resources.enter_async_context(
            open_traffic(folder, store, later=predecessor is not None)
        )
        given = None if predecessor is None else predecessor.listeners
        listeners = await open_listeners(config, resources, given)
        control, tunnel, visits = listeners.control, listeners.tunnel, listeners.visits
        if listeners.https is not None:  # port 0 is a port by now, which stands in URLs
            config = attrs.evolve(
                config,
                http_addr=_address_of(listeners.http),
                https_addr=listeners.https.address,
            )
        pool = PortPool([VisitPort(listener.address.port) for listener in visits])
        hub = Hub(config.name if cluster is None else cluster.node)
        bans = Bans(config.ban_after, config.ban_time, events=hub)
        # Before the state folder is read: it gets the cluster's key and certificate.
        member = (
            None if cluster is None else await _enter(cluster, config, pool, bans, resources, hub)
        )
        resources.callback((descriptors := Descriptors()).close)
        public = _public_address(config, control.address)
        make = make_memory_state if folder is None else partial(prepare_state, folder)
        state: State = await trio.to_thread.run_sync(
            partial(make, names=_names(public), self_signed=config.certificate is None)
        )
        tls, shown = await trio.to_thread.run_sync(load_certificate, config, state)
        door = (
            None if config.console_addr is None else await _open_door(config, tls, resources, given)
        )
        await trio.to_thread.run_sync(_tell_other_name, config, public)
        if isinstance(state, StateFolder):
            await trio.to_thread.run_sync(
                partial(state.remember_certificate, self_signed=config.certificate is None)
            )
            await trio.to_thread.run_sync(state.remember_address, public)
            await trio.to_thread.run_sync(state.remember_others, config.other_servers)
        accounts = Accounts(
            state,
            store if config.start_auth else None,
            traffic,
            upgrade_passwords=database is not None and database.upgrade_passwords,
            events=hub,
        )
        # Accounts in a database are for its operator to make.
        embedded = database is None
        first = await ensure_first_user(store) if config.start_auth and embedded else None
        ready = Ready(
            name=config.name,
            control=control.address,
            tunnel=tunnel.address,
            public=public,
            visit_ports=tuple(listener.address.port for listener in visits),
            sessions=config.session_limit,
            authentication=config.start_auth,
            legacy_clients=config.legacy_clients,
            fingerprint=format_fingerprint(shown),
            state_dir=None if folder is None else str(folder),
            database=None if database is None else f"{database.db_name} at {database.address}",
            proxy_control=_address_of(listeners.proxy_control),
            proxy_visit=_address_of(listeners.proxy_visit),
            domain=config.domain,
            http=_address_of(listeners.http),
            https=_address_of(listeners.https),
            ticket=await _ticket(config, state, store if embedded else None, public, shown),
            console=None if door is None else door.url(public.host),
            first_user=None if first is None else first.user.name,
            first_password=None if first is None else first.password,
        )
        if config.legacy_clients:
            log.warning("clients of NAT are let in: their traffic can be read on the way")
        refusals = RefusalCounters()
        tally = None if config.console_addr is None else Tally()
        names = (
            None
            if config.domain is None or folder is None
            else await _open_names(config, acme or AcmeConfig(), folder)
        )
        owners = None if names is None or not config.start_auth else NameOwners(store)
        if events is None:
            events = EventsConfig()
        delivery = None
        if (events.webhooks or door is not None) and folder is not None:
            later = predecessor is not None
            delivery = await _open_delivery(hub, events, folder, resources, later=later)
        sections: dict[str, Any] = {
            "Server": config,
            **({} if acme is None else {"Acme": acme}),
            "Events": events,
            **({} if database is None else {"Database": database}),
            **({} if cluster is None else {"Cluster": cluster}),
        }
        known_origins = dict(origins)
        console = (
            None
            if door is None or not isinstance(state, StateFolder)
            else _make_console(
                door,
                delivery=delivery,
                config=config,
                ready=ready,
                state=state,
                store=store,
                accounts=accounts,
                traffic=traffic,
                bans=bans,
                refusals=refusals,
                descriptors=descriptors,
                sections=sections,
                origins=known_origins,
            )
        )
        if upgrade is not None:
            upgrade.why_not = _why_no_upgrade(cluster)

        def is_elsewhere() -> bool:
            return (upgrade is not None and upgrade.is_done) or (
                predecessor is not None and not predecessor.has_given
            )

        admin_socket = resources.enter_context(
            nullcontext()
            if folder is None
            else open_admin_socket(
                folder, None if predecessor is None else predecessor.admin_socket, is_elsewhere
            )
        )
        async with trio.open_nursery() as preparing:
            if hub.is_on:
                preparing.start_soon(_tell_stopping, hub, config, stopping, name="tell the stop")
                preparing.start_soon(bans.tell_lifted, name="tell bans that are over")
            if names is not None:
                preparing.start_soon(names.watch_records, public, name="watch DNS records")
            if not config.start_auth:
                # Also while visitors may finish: their traffic is for the store.
                prepare_later = partial(_prepare, store, wait=True, stopping=trio.Event())
                preparing.start_soon(prepare_later, name="prepare the store")
            if config.worker_count > 1 and isinstance(state, StateFolder):
                from trionat.server.workers.parent import Parent  # noqa: PLC0415 - one process needs none of it

                certificate, key = certificate_files(config, state)
                server: ServingProcess = Parent(
                    config=config,
                    ready=ready,
                    accounts=accounts,
                    traffic=traffic,
                    bans=bans,
                    refusals=refusals,
                    descriptors=descriptors,
                    stopping=stopping,
                    certificate=certificate,
                    key=key,
                    state=state,
                    listeners=listeners,
                    ports=pool,
                    member=member,
                    names=names,
                    owners=owners,
                    console=console,
                    tally=tally,
                    reload=None if reloader is None else reloader.reload,
                    events=hub,
                    upgrade=upgrade,
                    predecessor=predecessor,
                    delivery=delivery,
                )
            else:
                server = SingleProcess(
                    config=config,
                    ready=ready,
                    accounts=accounts,
                    traffic=traffic,
                    bans=bans,
                    refusals=refusals,
                    descriptors=descriptors,
                    stopping=stopping,
                    tls=tls,
                    state=state,
                    listeners=listeners,
                    ports=pool,
                    member=member,
                    names=names,
                    owners=owners,
                    console=console,
                    tally=tally,
                    reload=None if reloader is None else reloader.reload,
                    events=hub,
                    upgrade=upgrade,
                    predecessor=predecessor,
                    delivery=delivery,
                )
            if reloader is not None and isinstance(state, StateFolder):
                reloader.reloadable = ServerReload(
                    server=server,
                    state=state,
                    ports=pool,
                    bans=bans,
                    stopping=stopping,
                    names=names,
                    delivery=delivery,
                    console=console,
                    upgrade=upgrade,
                    sections=sections,
                    origins=known_origins,
                )

            def be_up() -> None:
                hub.publish(server_up(version=VERSION, control=str(ready.control)))
                if reloader is not None:
                    preparing.start_soon(reloader.run, name="reload")
                task_status.started(ready if member is None else member.describe(ready))

            await server.serve(admin_socket, be_up)
            preparing.cancel_scope.cancel("the server stops")


def _check_memory(
    config: ServerConfig, cluster: ClusterConfig | None, events: EventsConfig | None
) -> None:
    """Refuse what is kept in a state folder, or read there by others, where there is none."""
    for needed, wanted in (
        ("Server.Domain: certificates and names are kept", config.domain is not None),
        ("Server.ConsoleAddr: what is changed there is kept", config.console_addr is not None),
        ("Server.Workers: several processes find their keys", config.worker_count > 1),
        ("Cluster: a node's keys are kept", cluster is not None),
        ("Events: what receivers have not heard yet is kept", bool(events and events.webhooks)),
    ):
        if wanted:
            raise StartupError(
                f"{needed} in a state folder, and this server has none: give ServerConfig a state_dir"
            )


async def _open_names(config: ServerConfig, acme: AcmeConfig, folder: Path) -> Names:
    # Imported only where there is a domain: it brings libraries of 9 MiB.
    from trionat.server.names.frontend import Names  # noqa: PLC0415 - memory

    return await Names.open(config, acme, folder)


async def _open_door(
    config: ServerConfig,
    tls: ssl.SSLContext,
    resources: AsyncExitStack,
    given: GivenListeners | None,
) -> Door:
    # Imported only where there is a console: it brings libraries of 11 MiB.
    from trionat.server.console.console import Door  # noqa: PLC0415 - memory

    assert config.console_addr is not None, "it is asked for"  # noqa: S101 - for type checkers
    if not config.start_auth:
        raise StartupError(
            "a console is for who can log in, and with StartAuth: false there are no accounts: leave out one of the two"
        )
    before = None if given is None else given.take(CONSOLE, config.console_addr)
    return await Door.open(config.console_addr, tls, resources, before)


def _make_console(door: Door, **parts: Any) -> Console:
    from trionat.server.console.console import Console  # noqa: PLC0415 - memory

    return Console(door=door, **parts)


async def _open_delivery(
    hub: Hub, events: EventsConfig, folder: Path, resources: AsyncExitStack, *, later: bool
) -> Delivery:
    # Imported only where somebody is told: it brings a library, and the authorities of the system.
    from trionat.server.events.delivery import open_delivery  # noqa: PLC0415 - memory

    return await resources.enter_async_context(open_delivery(hub, events, folder, later=later))


async def _tell_stopping(hub: Hub, config: ServerConfig, stopping: trio.Event) -> None:
    await stopping.wait()
    hub.publish(server_stopping(grace=config.drain_grace))


async def _enter(
    cluster: ClusterConfig,
    config: ServerConfig,
    pool: PortPool,
    bans: Bans,
    resources: AsyncExitStack,
    hub: Hub,
) -> Member:
    # Imported only where there is a cluster: it brings a library of 18 MiB.
    from trionat.server.cluster.member import Member  # noqa: PLC0415 - memory

    return await Member.enter(cluster, config, pool, bans, resources, hub)


def _address_of(listener: Listener | None) -> TCPAddress | None:
    return None if listener is None else listener.address


def _why_no_upgrade(cluster: ClusterConfig | None) -> str:
    """Return why no other process can take the place of a server; empty: one can."""
    if os.getpid() == 1:
        return "this is the first process of its container, which ends with it: start a container of the new image"
    if not is_possible():
        return "this system cannot hand connections from one process to another: stop the server, and start it anew"
    if cluster is not None:
        return "a node of a cluster is not upgraded in its place: trionat drain sends its clients to the other nodes; then stop it, and start it anew"
    return ""


@contextmanager
def reserve(
    config: ServerConfig,
    *,
    upgrade: Upgrade | None = None,
    predecessor: Predecessor | None = None,
) -> Generator[None]:
    """Check what a server needs before it opens any other file, and keep other servers off its state folder for the block.

    With `predecessor`, that one has the folder, and is told why it has to keep it, where the block ends with an error. `upgrade` is what another one needs to come after this.

    Blocks, for a moment, or as long as `Predecessor.meet` does.

    Raises:
        StartupError: There are too few descriptors for the visit ports, another server runs on the state folder, or it cannot be used.
    """
    folder = config.effective_state_dir
    try:
        require(
            _least_descriptors(len(config.visit_port)),
            counted(len(config.visit_port), "visit port"),
        )
        with lock_state(folder) if predecessor is None else predecessor.meet(folder) as lock:
            if upgrade is not None:
                upgrade.lock = lock
            yield
    except BaseException as error:
        if predecessor is not None:
            reasons = (
                leaves(cast("BaseExceptionGroup[BaseException]", error))
                if isinstance(error, BaseExceptionGroup)
                else [error]
            )
            predecessor.decline("; ".join(str(each) or type(each).__name__ for each in reasons))
        raise


def _least_descriptors(ports: int) -> int:
    return ports + _OTHER_DESCRIPTORS


def _warn_of_few_descriptors(config: ServerConfig) -> None:
    """Tell where the limits do not fit this process's descriptors.

    They fit when every session can be up with its idle tunnels while one of them has all visitors that it may have, which leave
    a quarter free (`Descriptors`).
    """
    sizes = len(config.visit_port), config.session_limit
    warn_if_short(*descriptors_for(*sizes, config.max_visitors))


def descriptors_for(ports: int, sessions: int, visitors: int) -> tuple[int, str]:
    """Return how many descriptors a server of these limits may need at once, and what for."""
    return (
        _least_descriptors(ports) + sessions * (1 + _IDLE_TUNNELS) + 2 * visitors * 4 // 3,
        f"{counted(ports, 'visit port')}, MaxTCPConnNum {sessions}, MaxVisitors {visitors}",
    )


async def _prepare(store: Store, *, wait: bool, stopping: trio.Event) -> bool:
    """Make the store ready, or with `wait` try until it is; False where `stopping` came first.

    Every reason is logged, but once while it stays the same.
    """
    reason = ""
    while not stopping.is_set():
        try:
            await store.prepare()
        except StoreUnavailableError as error:
            if not wait:
                raise
            if reason != (reason := str(error)):
                log.warning("waiting for the store", reason=reason, retry_in=_PREPARE_INTERVAL)
            with trio.move_on_after(_PREPARE_INTERVAL):
                await stopping.wait()
        else:
            if reason:
                log.info("the store is there")
            return True
    return False


def _tell_other_name(config: ServerConfig, public: TCPAddress) -> None:
    """Log that tickets lead to an address that was found here, and that the operator's certificate is not for. Blocks. One that is configured is looked at with the configuration."""
    certificate, key = config.certificate, config.certificate_key
    if certificate is None or key is None or config.public_addr is not None:
        return
    if (told := name_mismatch(certificate, key, public.host)) is not None:
        log.warning(
            "tickets lead to an address that the certificate is not for, so clients refuse it: set PublicAddr (--public-addr) to a name that it is for",
            address=public.host,
            certificate=str(certificate),
            reason=told,
        )


async def _ticket(
    config: ServerConfig, state: State, store: Store | None, public: TCPAddress, shown: bytes
) -> str | None:
    """Return the ticket that can be shown to whoever starts the server: everybody's, or of the only account in this store."""
    pinned = config.certificate is None
    if not config.start_auth:
        return Ticket(
            host=public.host,
            port=public.port,
            fingerprint=shown if pinned else None,
            username=ANONYMOUS,
            token=bytes(TOKEN_BYTES),
            others=tuple(address for address in config.other_servers if address != public),
        ).encode()
    user = None if store is None else await find_first_user(store)
    return (
        None
        if user is None
        else make_ticket(
            state,
            user,
            public.host,
            public.port,
            pinned=pinned,
            others=config.other_servers,
        ).encode()
    )


def _public_address(config: ServerConfig, bound: TCPAddress) -> TCPAddress:
    """Return the control address as clients should dial it: configured, or bound, or as this machine calls itself."""
    host = config.public_host or (_own_address() if bound.is_any_host else bound.host)
    return TCPAddress(host, config.public_port or bound.port)


def _own_address() -> str:
    """Return the address from which this machine would reach the world, IPv4 first; told loudly where the world cannot reach it.

    Connecting a datagram socket sends nothing: it only asks the kernel for the route. 192.0.2.1 and 2001:db8::1 are for
    documentation (RFC 5737, RFC 3849), so nobody has them.
    """
    for family, somewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((somewhere, 9))
                host: str = probe.getsockname()[0].partition("%")[0]
        except OSError:
            continue
        break
    else:
        host = "127.0.0.1"
    if not ipaddress.ip_address(host).is_global:
        log.warning(
            "visitors and clients outside cannot reach the address that was found here: set PublicAddr (--public-addr)",
            address=host,
        )
    return host


def _names(public: TCPAddress) -> Sequence[str]:
    return tuple(dict.fromkeys((public.host, "localhost")))

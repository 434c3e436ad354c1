"""The server as a whole: what it opens, in which order it starts, and in which it stops.

Read `serve` from outside to inside: that is the order of start, and backwards that of the end.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from trionat.address import TCPAddress
from trionat.config.server import REQUIRE
from trionat.config.values import PORTS
from trionat.errors import StartupError, StoreUnavailableError
from trionat.events import Ready
from trionat.fingerprint import format_fingerprint
from trionat.log import get_logger
from trionat.networks import Networks
from trionat.protocol.ticket import TOKEN_BYTES, Ticket
from trionat.server.accounts.accounts import ANONYMOUS, Accounts
from trionat.server.accounts.first_user import ensure_first_user, find_first_user
from trionat.server.accounts.tickets import make_ticket
from trionat.server.accounts.traffic import open_traffic
from trionat.server.admin.commands import LocalCommands
from trionat.server.admin.kick import kick_for_others
from trionat.server.admin.metrics import Metrics
from trionat.server.admin.server import AdminServer
from trionat.server.admin.socket import open_admin_socket
from trionat.server.admission.authenticator import LocalAuthenticator
from trionat.server.admission.bans import Bans
from trionat.server.admission.leases import Leases
from trionat.server.admission.queue import Admission
from trionat.server.control.connections import ConnectionHandler
from trionat.server.control.context import ServerContext
from trionat.server.proxies import ProxyListener
from trionat.server.refusals import RefusalCounters
from trionat.server.sessions.registry import Sessions
from trionat.server.state_folder import (
    StateFolder,
    database_file,
    lock_state,
    prepare_state,
)
from trionat.server.visitors.acceptor import VisitorAcceptor
from trionat.server.visitors.ports import PortPool, VisitPort
from trionat.store.backend import open_store
from trionat.text import counted
from trionat.transport.certificate import fingerprint, first_certificate
from trionat.transport.descriptors import Descriptors, require, warn_if_short
from trionat.transport.listener import Listener, look_up
from trionat.transport.tls import server_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from trionat.config.cluster import ClusterConfig
    from trionat.config.database import DatabaseConfig
    from trionat.config.server import ServerConfig
    from trionat.server.cluster.member import Member
    from trionat.store.base import Store

log = get_logger(__name__)

_OTHER_DESCRIPTORS: Final = 32
"""Of a server besides its visit ports: the event loop, the log, listeners, files, the store, and the first connections. Chosen."""

_IDLE_TUNNELS: Final = 4
"""Of a session, as a client keeps them that is not told otherwise."""

_AT_ONCE: Final = 64
"""Visit ports that are opened before other tasks get their turn: some 5 ms."""

_JOIN_PATIENCE: Final = 5.0
"""Seconds to wait for Redis, which has just answered."""

_PREPARE_INTERVAL: Final = 2.0
"""Seconds between two looks at a database that is waited for."""


async def serve(
    config: ServerConfig,
    *,
    database: DatabaseConfig | None = None,
    cluster: ClusterConfig | None = None,
    stopping: trio.Event | None = None,
    reserved: bool = False,
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

    With `cluster`, this server is a node of it, and `database` has to be there; at the start its Redis is waited for as `cluster.wait` says.

    Raises:
        StartupError: there are too few descriptors for the visit ports, an address cannot be bound, or the state folder not be used, or another server runs on it;
            or it cannot be a node of its cluster.
        StoreUnavailableError: the accounts cannot be asked for.
    """
    stopping = trio.Event() if stopping is None else stopping
    if config.worker_count > 1 and not hasattr(socket, "AF_UNIX"):
        raise StartupError(
            "Server.Workers: several processes need Unix sockets, which Python does not have on Windows: leave it out, or write 1"
        )
    folder = config.effective_state_dir
    async with AsyncExitStack() as resources:
        if not reserved:
            await trio.to_thread.run_sync(resources.enter_context, reserve(config))
        _warn_of_few_descriptors(config)
        store = await resources.enter_async_context(open_store(database, database_file(folder)))
        if config.start_auth:
            wait = database is not None and database.wait
            if not await _prepare(store, wait=wait, stopping=stopping):
                log.info("told to stop before it was up")
                if task_status is trio.TASK_STATUS_IGNORED:
                    return
                raise StartupError("the server was told to stop before it was up")
        traffic = await resources.enter_async_context(open_traffic(folder, store))
        control, tunnel, visits, proxies = await _open_listeners(config, resources)
        proxy_control, proxy_visit = proxies
        ports = [VisitPort(listener.address.port) for listener in visits]
        pool, bans = PortPool(ports), Bans(config.ban_after, config.ban_time)
        # Before the state folder is read: it gets the cluster's key and certificate.
        member = None if cluster is None else await _enter(cluster, config, pool, bans, resources)
        node = None if member is None else member.node
        resources.callback((descriptors := Descriptors()).close)
        public = _public_address(config, control.address)
        state = await trio.to_thread.run_sync(
            partial(
                prepare_state,
                folder,
                names=_names(public),
                self_signed=config.certificate is None,
            )
        )
        tls, shown = await trio.to_thread.run_sync(_certificate, config, state)
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
            state_dir=str(state.folder),
            database=None if database is None else f"{database.db_name} at {database.address}",
            proxy_control=None if proxy_control is None else proxy_control.address,
            proxy_visit=None if proxy_visit is None else proxy_visit.address,
            ticket=await _ticket(config, state, store if embedded else None, public, shown),
            first_user=None if first is None else first.user.name,
            first_password=None if first is None else first.password,
        )
        # Also while visitors may finish: their traffic is for the store.
        prepare_later = partial(_prepare, store, wait=True, stopping=trio.Event())
        if config.legacy_clients:
            log.warning("clients of NAT are let in: their traffic can be read on the way")
        refusals = RefusalCounters()
        admin_socket = resources.enter_context(open_admin_socket(folder))
        if config.worker_count > 1:
            from trionat.server.workers.parent import Parent  # noqa: PLC0415 - one process needs none of it

            certificate, key = _certificate_files(config, state)
            parent = Parent(
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
                listeners=(control, tunnel),
                visits=visits,
            )
            async with trio.open_nursery() as preparing:
                if not config.start_auth:
                    preparing.start_soon(prepare_later, name="prepare the store")
                await parent.serve(admin_socket, partial(task_status.started, ready))
                preparing.cancel_scope.cancel("the server stops")
            return
        leases = (
            Leases(config, pool, refusals)
            if node is None
            else Leases(config, pool, refusals, registry=node.registry)
        )
        sessions = Sessions(traffic.accounted)
        context = ServerContext(
            config=config,
            authenticator=LocalAuthenticator(accounts, bans),
            refusals=refusals,
            bans=bans,
            leases=leases,
            admission=Admission(config, leases),
            sessions=sessions,
            stopping=stopping,
            public_host=public.host,
            node=node,
        )
        connections = ConnectionHandler(context, tls)
        acceptor = VisitorAcceptor(config, refusals)
        metrics = Metrics(ready, context, descriptors)
        async with trio.open_nursery() as serving:
            if member is not None:
                await _start_member(member, serving, context, state, acceptor, descriptors)
            serving.start_soon(context.admission.run, name="admission")
            serving.start_soon(leases.expire_visitors, name="expire visitors")
            serving.start_soon(refusals.tell_regularly, name="tell refusals")
            if not config.start_auth:
                serving.start_soon(prepare_later, name="prepare the store")
            serving.start_soon(accounts.watch, sessions.by_uid, name="watch accounts")
            serving.start_soon(traffic.flush_regularly, name="flush traffic")
            serving.start_soon(metrics.count_rates, name="count rates")
            if admin_socket is not None:
                admin = AdminServer(LocalCommands(metrics))
                serving.start_soon(admin.serve, admin_socket, name="admin server")
            accept_client = connections.acceptor(serving)
            for listener in (control, tunnel):
                name = f"listener {listener.address}"
                serving.start_soon(listener.serve, accept_client, descriptors, name=name)
            behind = partial(
                ProxyListener,
                trusted=Networks(config.trusted_proxies),
                most_waiting=config.max_handshakes,
                refusals=refusals,
            )
            if proxy_control is not None:

                def take(connection: socket.socket, source: TCPAddress, _: TCPAddress) -> None:
                    accept_client(connection, source)

                name = f"proxies at {proxy_control.address}"
                serving.start_soon(behind(proxy_control).serve, take, descriptors, name=name)
            async with trio.open_nursery() as visiting:  # stops first
                for port, listener in zip(ports, visits, strict=True):
                    accept = partial(acceptor.accept, port, listener.address)
                    serve_port = partial(
                        listener.serve, accept, descriptors, most=descriptors.for_visitors
                    )
                    visiting.start_soon(serve_port, name=f"visit port {port.number}")
                if proxy_visit is not None:
                    serve_all = partial(
                        behind(proxy_visit).serve,
                        partial(acceptor.accept_behind_proxy, leases.ports.ports),
                        descriptors,
                        most=descriptors.for_visitors,
                    )
                    visiting.start_soon(serve_all, name=f"proxies at {proxy_visit.address}")
                task_status.started(ready)
                await stopping.wait()
                visiting.cancel_scope.cancel("the server stops")
            for listener in visits:
                listener.close()
            log.info("stopping", sessions=len(sessions.by_uid), grace=config.drain_grace)
            until = trio.current_time() + config.drain_grace
            context.admission.drain()
            await sessions.wait_none()  # each ends by itself within the grace
            if member is not None:
                await member.leave(until)
            serving.cancel_scope.cancel("the server stops")


async def _enter(
    cluster: ClusterConfig,
    config: ServerConfig,
    pool: PortPool,
    bans: Bans,
    resources: AsyncExitStack,
) -> Member:
    # Imported only where there is a cluster: it brings a library of 18 MiB.
    from trionat.server.cluster.member import Member  # noqa: PLC0415 - memory

    return await Member.enter(cluster, config, pool, bans, resources)


async def _start_member(
    member: Member,
    serving: trio.Nursery,
    context: ServerContext,
    state: StateFolder,
    acceptor: VisitorAcceptor,
    descriptors: Descriptors,
) -> None:
    """Be a node in `serving`, and wait for a moment until Redis knows this one: a client that comes sooner has to come again."""
    node, sessions = member.node, context.sessions

    def figures() -> tuple[int, int]:
        return len(sessions.by_uid), sum(lease.queue.present for lease in context.leases)

    def kick_too(request: bytes) -> None:
        serving.start_soon(kick_for_others, context, request, name="kick")

    node.figures, node.on_kick = figures, kick_too
    serving.start_soon(member.run, context.config, state, acceptor, descriptors, name="node")
    with trio.move_on_after(_JOIN_PATIENCE):
        await node.wait_joined()


@contextmanager
def reserve(config: ServerConfig) -> Generator[None]:
    """Check what a server needs before it opens any other file, and keep other servers off its state folder for the block.

    Blocks, for a moment.

    Raises:
        StartupError: There are too few descriptors for the visit ports, another server runs on the state folder, or it cannot be used.
    """
    require(_least_descriptors(config), counted(len(config.visit_port), "visit port"))
    with lock_state(config.effective_state_dir):
        yield


def _least_descriptors(config: ServerConfig) -> int:
    return len(config.visit_port) + _OTHER_DESCRIPTORS


def _warn_of_few_descriptors(config: ServerConfig) -> None:
    """Tell where the limits do not fit this process's descriptors.

    They fit when every session can be up with its idle tunnels while one of them has all visitors that it may have, which leave
    a quarter free (`Descriptors`).
    """
    ports, sessions, visitors = len(config.visit_port), config.session_limit, config.max_visitors
    warn_if_short(
        _least_descriptors(config) + sessions * (1 + _IDLE_TUNNELS) + 2 * visitors * 4 // 3,
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


async def _open_listeners(
    config: ServerConfig, resources: AsyncExitStack
) -> tuple[Listener, Listener, list[Listener], tuple[Listener | None, Listener | None]]:
    own: list[tuple[TCPAddress, str]] = []
    visit_host = TCPAddress(config.effective_visit_host, next(iter(config.visit_port), 0))
    proxies = config.proxy_control_addr, config.proxy_visit_addr
    wanted = (config.controller_addr, config.tunnel_addr, visit_host, *filter(None, proxies))
    numbers = {address.host: await look_up(address) for address in wanted}

    def listen(address: TCPAddress, what: str) -> Listener:
        try:
            listener = Listener.open(address, host=numbers[address.host])
        except StartupError as error:
            for other, its in own:
                if _is_same(address, other):
                    text = f"cannot listen on {address}: that is this server's own {its} port: choose another {what} port"
                    raise StartupError(text) from error
            raise
        own.append((listener.address, what))
        resources.callback(listener.close)
        return listener

    control = listen(config.controller_addr, "control")
    tunnel = listen(config.tunnel_addr, "tunnel")
    proxy_control, proxy_visit = (
        None if address is None else listen(address, what)
        for address, what in zip(proxies, ("proxy control", "proxy visit"), strict=True)
    )
    visits: list[Listener] = []
    failures: list[tuple[int, StartupError]] = []
    for number, port in enumerate(config.visit_port):
        if (
            number % _AT_ONCE == 0
        ):  # thousands take a while: a signal, or whoever shares the loop, need not wait for it
            await trio.lowlevel.checkpoint()
        try:
            visits.append(listen(TCPAddress(config.effective_visit_host, port), "visit"))
        except StartupError as error:
            if config.visit_port_policy == REQUIRE:
                raise
            failures.append((port, error))
    if failures:
        missing, reason = [port for port, _ in failures], failures[0][1]
        if not visits:
            raise reason
        log.warning(
            "visit ports are left out (VisitPortPolicy)",
            ports=PORTS.write(missing),
            reason=str(reason),
        )
    return control, tunnel, visits, (proxy_control, proxy_visit)


def _certificate_files(config: ServerConfig, state: StateFolder) -> tuple[Path, Path]:
    return config.certificate or state.certificate_file, config.certificate_key or state.key_file


def _certificate(config: ServerConfig, state: StateFolder) -> tuple[ssl.SSLContext, bytes]:
    """Return the TLS context and the fingerprint of what it shows. Blocks."""
    certificate, key = _certificate_files(config, state)
    try:
        return server_context(certificate, key), fingerprint(
            first_certificate(certificate.read_text())
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StartupError(
            f"cannot use the certificate {certificate} with the key {key}: {reason}"
        ) from error


async def _ticket(
    config: ServerConfig, state: StateFolder, store: Store | None, public: TCPAddress, shown: bytes
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
    host = config.public_host or (_own_address() if _is_any(bound.host) else bound.host)
    return TCPAddress(host, config.public_port or bound.port)


def _is_same(one: TCPAddress, other: TCPAddress) -> bool:
    """Tell whether not both can be listened on."""
    return one.port == other.port and (
        one.host == other.host or _is_any(one.host) or _is_any(other.host)
    )


def _is_any(host: str) -> bool:
    return host in ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to


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

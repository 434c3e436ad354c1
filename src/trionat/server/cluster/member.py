"""This server as a member of its cluster: what starts and stops with it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Self

import attrs
import trio

from trionat.errors import RegistryAwayError, StartupError
from trionat.server.admission.bans import HALF_LIFE
from trionat.server.cluster.handover import Handover
from trionat.server.cluster.membership import join, member_of
from trionat.server.cluster.node import Node
from trionat.server.cluster.node_link import NodeLinks, node_context
from trionat.server.cluster.redis_link import require_library
from trionat.server.cluster.seal import read_key_file
from trionat.transport.listener import Listener, look_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from trionat.address import TCPAddress
    from trionat.config.cluster import ClusterConfig
    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.server.admission.bans import Bans
    from trionat.server.certificates.renewal import Lock
    from trionat.server.certificates.store import CertificateStore
    from trionat.server.cluster.node_link import Deliver
    from trionat.server.events.hub import Hub
    from trionat.server.state_folder import StateFolder
    from trionat.server.visitors.acceptor import VisitorAcceptor
    from trionat.server.visitors.ports import PortPool
    from trionat.transport.descriptors import Descriptors

_JOIN_PATIENCE: Final = 5.0
"""Seconds to wait for Redis, which has just answered."""


@attrs.define(eq=False)
class Member:
    """See the module. `enter` makes one; what `start` starts has to run while the server does, and `leave` comes last in a planned stop."""

    node: Node
    listener: Listener
    handover: Handover = attrs.field(init=False)
    links: NodeLinks | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.handover = Handover(self.node)

    @classmethod
    async def enter(
        cls,
        cluster: ClusterConfig,
        server: ServerConfig,
        pool: PortPool,
        bans: Bans,
        resources: AsyncExitStack,
        events: Hub,
    ) -> Self:
        """Take the cluster's identity into the state folder, and listen for other nodes; `resources` closes that.

        Raises:
            StartupError: this server cannot be a node of the cluster, or Redis does not answer and is not to be waited for.
        """
        require_library()
        folder = server.effective_state_dir
        seal = await trio.to_thread.run_sync(read_key_file, cluster.key_file)
        try:
            identity = await join(cluster, seal, folder, wait=cluster.wait)
        except RegistryAwayError as error:
            raise StartupError(str(error)) from error
        host = await look_up(cluster.node_addr)
        listener = Listener.open(cluster.node_addr, host=host)
        resources.callback(listener.close)
        node = Node(
            config=cluster,
            seal=seal,
            identity=identity,
            member=await trio.to_thread.run_sync(member_of, folder),
            pool=pool,
            slots=server.session_limit,
            reservation=server.port_reservation,
            events=events,
        )
        node.on_ban, node.on_lift = bans.ban, bans.lift
        bans.on_fail = partial(
            node.note_failure, after=bans.after, ban=bans.time, half_life=HALF_LIFE
        )
        return cls(node, listener)

    def share(self, store: CertificateStore) -> Lock:
        """Return the lock under which one node alone orders for a name; see `SharedCertificates`."""
        # Imported only where there are names: it brings libraries of 9 MiB.
        from trionat.server.cluster.certificates import SharedCertificates  # noqa: PLC0415 - memory

        return SharedCertificates(self.node.link, self.node.seal, store).lock

    def start(
        self,
        nursery: trio.Nursery,
        server: ServerConfig,
        state: StateFolder,
        acceptor: VisitorAcceptor,
        descriptors: Descriptors,
        *,
        public: TCPAddress,
        others: tuple[TCPAddress, ...],
        figures: Callable[[], tuple[int, int]],
        on_kick: Callable[[bytes], None],
        tell_others: Callable[[tuple[TCPAddress, ...]], None],
        deliver: Deliver | None = None,
    ) -> None:
        """Be a node in `nursery`: `public`, `figures` and `on_kick` are as for `Node`, `others` and `tell_others` as for `Handover`, `deliver` as for `NodeLinks`."""
        self.node.figures, self.node.on_kick, self.node.public = figures, on_kick, public
        self.handover.configured, self.handover.tell = others, tell_others
        nursery.start_soon(self.run, server, state, acceptor, descriptors, deliver, name="node")
        nursery.start_soon(self.handover.run, name="offer clients")

    def describe(self, ready: Ready) -> Ready:
        """Add what whoever starts this server is told of the cluster."""
        node = self.node
        return attrs.evolve(
            ready,
            node=node.name,
            node_addr=self.listener.address,
            other_nodes=len(node.table.nodes.keys() - {node.name}),
            redis_away=node.away,
        )

    async def wait_joined(self, stopping: trio.Event) -> None:
        """Wait for a moment until Redis knows this node, or it is to stop: a client that comes sooner has to come again."""

        async def watch(scope: trio.CancelScope) -> None:
            await stopping.wait()
            scope.cancel("the server stops")

        with trio.move_on_after(_JOIN_PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                await self.node.wait_joined()
                nursery.cancel_scope.cancel("it is known")

    async def run(
        self,
        server: ServerConfig,
        state: StateFolder,
        acceptor: VisitorAcceptor,
        descriptors: Descriptors,
        deliver: Deliver | None = None,
    ) -> None:
        """Be a node until cancelled: beat, pass visitors on, and take those that other nodes pass; `deliver` is as for `NodeLinks`."""
        tls = await trio.to_thread.run_sync(node_context, state.certificate_file, state.key_file)
        node = self.node
        links = self.links = NodeLinks(
            config=server,
            name=node.name,
            seal=node.seal,
            identity=node.identity,
            table=node.table,
            pool=node.pool,
            acceptor=acceptor,
            refusals=acceptor.refusals,
            deliver=deliver,
        )
        acceptor.elsewhere = links
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run, name="link to Redis")
            nursery.start_soon(links.run, name="links to nodes")
            accept = links.acceptor_of(nursery, tls)
            nursery.start_soon(
                self.listener.serve, accept, descriptors, name=f"listener {self.listener.address}"
            )

    async def leave(self, until: float) -> None:
        """Let visitors that are passed on finish, until then at the latest, and tell the other nodes that this one is gone."""
        if self.links is not None:
            with trio.CancelScope(deadline=until):
                await self.links.wait_none()
        await self.node.leave()

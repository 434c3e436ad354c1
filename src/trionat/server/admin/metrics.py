"""Looks at a running server: what its sessions are doing, and how fast."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.server.admin.snapshot import (
    BannedView,
    ClusterView,
    NodeView,
    QueuedView,
    ReservedView,
    ServerView,
    ServiceView,
    SessionView,
    Snapshot,
    VisitorView,
)
from trionat.server.refusals import Bound

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.relay.stream import VisitorStream
    from trionat.server.admission.bans import Bans
    from trionat.server.admission.lease import Lease
    from trionat.server.admission.queued_client import QueuedClient
    from trionat.server.cluster.node import Node
    from trionat.server.control.context import ServerContext
    from trionat.server.sessions.session import Session
    from trionat.server.visitors.ports import PortPool
    from trionat.server.visitors.visitor import Visitor
    from trionat.transport.descriptors import Descriptors

COUNT_INTERVAL: Final = 5.0
"""Seconds from one count of all bytes to the next. A rate is over the time since the last but one: 5 to 10 s."""

_BANS_TURN: Final = 256
"""Bans to look at before others get their turn."""

_VERSION: Final = version("trionat")


def _now() -> datetime:
    return datetime.now(UTC)


@attrs.frozen
class _Count:
    """How many bytes each session had relayed at a moment, by uid."""

    time: float
    relayed: dict[int, int]


@attrs.define(eq=False)
class Metrics:
    """Takes snapshots. `count_rates` has to run for their rates; nothing is measured on the way of the bytes."""

    ready: Ready
    context: ServerContext
    descriptors: Descriptors
    now: Callable[[], datetime] = _now
    _started: float = attrs.field(init=False, factory=trio.current_time)
    _counts: deque[_Count] = attrs.field(init=False, factory=lambda: deque(maxlen=2))

    async def count_rates(self) -> None:
        """Count what every session has relayed, now and then, for ever."""
        while True:
            relayed = {
                uid: each.tunnels.relayed for uid, each in self.context.sessions.by_uid.items()
            }
            self._counts.append(_Count(trio.current_time(), relayed))
            await trio.sleep(COUNT_INTERVAL)

    async def snapshot(self) -> Snapshot:
        """Take a snapshot. Others get their turn after each session, each reserved lease and some bans, so the last one is seen a moment later than the first."""
        context, ports = self.context, self.context.leases.ports
        sessions: list[SessionView] = []
        for session in list(context.sessions.by_uid.values()):
            if session.uid in context.sessions.by_uid:
                sessions.append(self._session(session))
                await trio.lowlevel.checkpoint()
        reserved: list[ReservedView] = []
        for lease in context.leases:
            if lease.vacant_since is not None and not lease.given_up and not lease.released:
                reserved.append(self._reserved(lease, lease.vacant_since))
                await trio.lowlevel.checkpoint()
        banned = await view_banned(context.bans)
        return Snapshot(
            server=view_server(
                self.ready,
                context.config,
                self._started,
                ports,
                rate=sum((session.rate for session in sessions), 0.0),
                stopping=context.stopping.is_set(),
                drained=context.admission.is_closed,
                now=self.now,
            ),
            sessions=tuple(sessions),
            queue=tuple(self._queued(client) for client in context.admission.queue),
            reserved=tuple(reserved),
            refused=self._refused(),
            banned=banned,
            cluster=None if context.node is None else await view_cluster(context.node),
        )

    def _refused(self) -> dict[str, int]:
        counts = {bound.value: count for bound, count in self.context.refusals.counts.items()}
        if self.descriptors.refused:
            counts[Bound.DESCRIPTORS.value] = self.descriptors.refused
        return counts

    def _session(self, session: Session) -> SessionView:
        lease, tunnels = session.lease, session.tunnels
        served = [
            self._visitor(visitor, stream)
            for visitor, stream in tunnels.streams.items()
            if not visitor.is_over
        ]
        visitors = served + self._waiting(lease)
        return SessionView(
            uid=session.uid,
            user=session.username,
            client=session.client_name,
            dialect=session.dialect,
            address=str(session.address),
            since=self._date(session.since),
            seconds=_ago(session.since),
            round_trip=None if session.round_trip is None else round(session.round_trip, 6),
            services=tuple(
                ServiceView(
                    name=service.name,
                    local=service.local,
                    port=port,
                    down=number in lease.queue.down,
                )
                for number, (service, port) in enumerate(
                    zip(lease.services, lease.port_numbers, strict=True)
                )
            ),
            visitors=tuple(sorted(visitors, key=lambda visitor: visitor.number)),
            tunnels_idle=tunnels.count - len(tunnels.streams),
            tunnels_busy=len(tunnels.streams),
            received=tunnels.received,
            sent=tunnels.sent,
            rate=self._rate(session),
            group=None if lease.group is None else lease.group.name,
        )

    def _rate(self, session: Session) -> float:
        if not self._counts:
            return 0.0
        before = self._counts[0]
        seconds = _ago(max(before.time, session.since))
        new = session.tunnels.relayed - before.relayed.get(session.uid, 0)
        return round(new / seconds, 1) if seconds else 0.0

    def _waiting(self, lease: Lease) -> list[VisitorView]:
        return [
            self._visitor(visitor, visitor.stream, waits=True)
            for visitor in lease.queue.waiting_visitors
        ]

    def _visitor(
        self, visitor: Visitor, stream: VisitorStream | None, *, waits: bool = False
    ) -> VisitorView:
        return VisitorView(
            number=visitor.number,
            address=str(visitor.address),
            port=visitor.visited.port,
            since=self._date(visitor.arrived),
            seconds=_ago(visitor.arrived),
            received=stream.taken if stream else 0,
            sent=stream.given if stream else 0,
            waiting=waits,
        )

    def _queued(self, client: QueuedClient) -> QueuedView:
        return QueuedView(
            position=max(client.position, 1),
            user=client.key[0],
            client=client.client_name,
            address=str(client.address),
            since=self._date(client.since),
            seconds=_ago(client.since),
        )

    def _reserved(self, lease: Lease, since: float) -> ReservedView:
        waiting = self._waiting(lease)
        return ReservedView(
            user=lease.key[0],
            ports=lease.port_numbers,
            since=self._date(since),
            seconds=_ago(since),
            remaining=round(max(0.0, self.context.config.port_reservation - _ago(since)), 3),
            waiting=len(waiting),
            visitors=tuple(sorted(waiting, key=lambda visitor: visitor.number)),
            group=None if lease.group is None else lease.group.name,
        )

    def _date(self, moment: float) -> str:
        return _date(moment, self.now)


def view_server(
    ready: Ready,
    config: ServerConfig,
    started: float,
    ports: PortPool,
    *,
    rate: float,
    stopping: bool,
    drained: bool,
    now: Callable[[], datetime] = _now,
) -> ServerView:
    """Look at the server itself, which has `started` at that moment of Trio's clock."""
    return ServerView(
        name=ready.name,
        version=_VERSION,
        since=_date(started, now),
        seconds=_ago(started),
        control=str(ready.control),
        tunnel=str(ready.tunnel),
        ports_free=ports.free,
        ports_held=len(ports.ports) - ports.free,
        session_limit=config.session_limit,
        queue_places=config.queue_places,
        rate=round(rate, 1),
        stopping=stopping,
        drained=drained,
    )


async def view_banned(bans: Bans) -> tuple[BannedView, ...]:
    """Look at the bans. Others get their turn after some of them."""
    banned: list[BannedView] = []
    for network, seconds in bans.banned().items():
        banned.append(BannedView(network=network, remaining=round(seconds, 3)))
        if len(banned) % _BANS_TURN == 0:
            await trio.lowlevel.checkpoint()
    return tuple(banned)


def _date(moment: float, now: Callable[[], datetime]) -> str:
    date = now() - timedelta(seconds=_ago(moment))
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def view_cluster(node: Node) -> ClusterView:
    """Look at the cluster, as far as this node knows it."""
    nodes = await node.ask_nodes()
    return ClusterView(
        node=node.name,
        away=node.away,
        claims=node.table.clients,
        nodes=tuple(NodeView(**attrs.asdict(each)) for each in nodes),
    )


def _ago(moment: float) -> float:
    return round(trio.current_time() - moment, 3)

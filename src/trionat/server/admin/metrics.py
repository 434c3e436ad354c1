"""Looks at a running server: what its sessions are doing, and how fast."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.server.admin.readings import Readings, count_present, meter_sessions
from trionat.server.admin.snapshot import (
    BannedView,
    CertificateView,
    ClusterView,
    NodeView,
    QueuedView,
    ReservedView,
    ServerView,
    ServiceView,
    SessionView,
    Snapshot,
    VisitorView,
    WorkerView,
)
from trionat.server.refusals import Bound
from trionat.server.visitors.ports import public_url
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trionat.config.server import ServerConfig
    from trionat.events import Ready
    from trionat.relay.stream import VisitorStream
    from trionat.server.admin.readings import Present
    from trionat.server.admission.bans import Bans
    from trionat.server.admission.lease import Lease
    from trionat.server.admission.queued_client import QueuedClient
    from trionat.server.certificates.renewal import NameStatus
    from trionat.server.cluster.node import Node
    from trionat.server.control.context import ServerContext
    from trionat.server.sessions.session import Session
    from trionat.server.tally import Tally
    from trionat.server.visitors.ports import PortPool
    from trionat.server.visitors.visitor import Visitor
    from trionat.transport.descriptors import Descriptors

COUNT_INTERVAL: Final = 5.0
"""Seconds from one count of all bytes to the next. A rate is over the time since the last but one: 5 to 10 s."""

_VISITORS_TURN: Final = 128
"""Visitors to look at before others get their turn: some 2 ms."""

_BANS_TURN: Final = 256
"""Bans to look at before others get their turn."""


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
    certificates: Callable[[], Sequence[NameStatus]] = tuple
    quotas: Mapping[str, tuple[int, int]] = attrs.field(factory=lambda: {})
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
        """Take a snapshot. Others get their turn after each session, some visitors, each reserved lease and some bans, so the last one is seen a moment later than the first."""
        context, ports = self.context, self.context.leases.ports
        sessions = [
            await self._session(session)
            for session in list(context.sessions.by_uid.values())
            if session.uid in context.sessions.by_uid
        ]
        reserved: list[ReservedView] = []
        for lease in context.leases:
            if lease.is_reserved and lease.vacant_since is not None:
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
            refused=self.refused(),
            banned=banned,
            cluster=None if context.node is None else await view_cluster(context.node),
            certificates=view_certificates(self.certificates()),
        )

    async def readings(self) -> Readings:
        """Read what `/metrics` tell."""
        context = self.context
        assert context.tally is not None, "asked where metrics are on"  # noqa: S101 - for type checkers
        meter_sessions(context)
        return view_readings(
            context.tally,
            count_present(context),
            server=view_server(
                self.ready,
                context.config,
                self._started,
                context.leases.ports,
                rate=0.0,
                stopping=context.stopping.is_set(),
                drained=context.admission.is_closed,
                now=self.now,
            ),
            refused=self.refused(),
            banned=len(await view_banned(context.bans)),
            has_names=context.config.domain is not None,
            certificates=view_certificates(self.certificates()),
            quotas=dict(self.quotas),
            cluster=None if context.node is None else await view_cluster(context.node),
        )

    def refused(self) -> dict[str, int]:
        """Return how many were refused since the start, by bound."""
        counts = {bound.value: count for bound, count in self.context.refusals.counts.items()}
        if self.descriptors.refused:
            counts[Bound.DESCRIPTORS.value] = self.descriptors.refused
        return counts

    async def _session(self, session: Session) -> SessionView:
        lease, tunnels = session.lease, session.tunnels
        # Both in one moment: who gets his tunnel meanwhile is neither missing nor there twice.
        served, visitors = list(tunnels.streams.items()), self._waiting(lease)
        for number, (visitor, stream) in enumerate(served):
            if number % _VISITORS_TURN == 0:
                await trio.lowlevel.checkpoint()
            if not visitor.is_over:
                visitors.append(self._visitor(visitor, stream))
        await trio.lowlevel.checkpoint()
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
                    down=(number if lease.group is not None else point.service) in lease.queue.down,
                    url=public_url(point, self.context.config),
                    requests=None if point.requests is None else point.requests.figures,
                )
                for number, (service, port, point) in enumerate(
                    zip(lease.services, lease.port_numbers, lease.points, strict=True)
                )
            ),
            visitors=tuple(sorted(visitors, key=lambda visitor: visitor.number)),
            tunnels_idle=tunnels.count - len(tunnels.streams),
            tunnels_busy=len(tunnels.streams),
            received=tunnels.received,
            sent=tunnels.sent,
            rate=self._rate(session),
            group=None if lease.group is None else lease.group.name,
            restrictions=session.restrictions,
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
            name=visitor.name,
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
            ports=tuple(filter(None, lease.port_numbers)),
            names=lease.names,
            since=self._date(since),
            seconds=_ago(since),
            remaining=round(max(0.0, self.context.config.port_reservation - _ago(since)), 3),
            waiting=len(waiting),
            visitors=tuple(sorted(waiting, key=lambda visitor: visitor.number)),
            group=None if lease.group is None else lease.group.name,
        )

    def _date(self, moment: float) -> str:
        return _date(moment, self.now)


def view_readings(
    tally: Tally,
    present: Present,
    *,
    server: ServerView,
    refused: Mapping[str, int],
    banned: int,
    has_names: bool,
    certificates: tuple[CertificateView, ...],
    quotas: Mapping[str, tuple[int, int]],
    cluster: ClusterView | None,
    workers: tuple[WorkerView, ...] = (),
) -> Readings:
    """Read what was counted, and put it to what there is."""
    return Readings(
        server=server,
        present=present,
        sessions=tally.sessions,
        handshakes=dict(tally.handshakes),
        refused=refused,
        traffic=tally.traffic.figures,
        requests=tally.requests.figures,
        first_byte=tally.first_byte.figures,
        visitor_duration=tally.visitor_duration.figures,
        request_duration=tally.request_duration.figures,
        loop_lag=tally.loop_lag.figures,
        banned=banned,
        has_names=has_names,
        certificates=certificates,
        quotas=quotas,
        cluster=cluster,
        workers=workers,
    )


def view_certificates(statuses: Sequence[NameStatus]) -> tuple[CertificateView, ...]:
    """Look at the certificates of names."""
    return tuple(
        CertificateView(
            name=status.name,
            state=status.state,
            ends=_moment(status.ends),
            reason=status.reason,
            retry=_moment(status.retry_at),
        )
        for status in statuses
    )


def _moment(moment: float | None) -> str | None:
    return (
        None
        if moment is None
        else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
    )


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
        version=VERSION,
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

"""The server itself: its figures, the last hour, its tasks, its health, and draining it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from trionat.server.admin.snapshot import WorkerView
from trionat.server.admin.task_tree import Branch
from trionat.server.console.operation import Call, Nothing, Operation, Reply
from trionat.server.console.principal import Permission, Principal
from trionat.server.console.sampler import HISTORY_INTERVAL, HistoryPoint, Sample

if TYPE_CHECKING:
    from trionat.server.console.context import Context


@attrs.frozen(kw_only=True)
class Parts:
    """What the server needs: whether the accounts can be asked for, and Redis (null: it is in no cluster)."""

    store: Literal["ok", "away"]
    redis: Literal["ok", "away"] | None


@attrs.frozen(kw_only=True)
class ClusterRow:
    """The cluster as this node sees it; `away` says why Redis cannot be asked."""

    node: str
    away: str | None
    claims: int
    nodes: int


@attrs.frozen(kw_only=True)
class Whole:
    """What only administrators see of the server. `refused` counts by bound since the start."""

    ports_free: int | None
    ports_held: int | None
    session_limit: int
    queue_places: int
    queued: int
    reserved: int
    banned: int
    refused: dict[str, int]
    health: Parts
    workers: tuple[WorkerView, ...]
    cluster: ClusterRow | None


@attrs.frozen(kw_only=True)
class ServerRow:
    """The server. Sessions, visitors and rates (in bytes per second) are those of the account that asks, and all for an administrator; `whole` is null for all others."""

    name: str
    version: str
    since: str
    seconds: float
    control: str
    tunnel: str
    public: str
    domain: str | None
    stopping: bool
    drained: bool
    sessions: int
    visitors: int
    rate: float
    received_rate: float
    sent_rate: float
    whole: Whole | None


def server_row(context: Context, sample: Sample, principal: Principal) -> ServerRow:
    """Return what somebody sees of a look at the server."""
    server = sample.snapshot.server
    admin = principal.is_admin
    sessions = [row for row in sample.sessions.values() if principal.may_see(row.user)]
    visitors = sum(principal.may_see(row.user) for row in sample.visitors.values())
    received, sent = sample.rates_of(principal.may_see)
    return ServerRow(
        name=server.name,
        version=server.version,
        since=server.since,
        seconds=server.seconds,
        control=server.control,
        tunnel=server.tunnel,
        public=str(context.ready.public),
        domain=context.ready.domain,
        stopping=server.stopping,
        drained=server.drained,
        sessions=len(sessions),
        visitors=visitors,
        rate=round(sum(row.rate for row in sessions), 1),
        received_rate=received,
        sent_rate=sent,
        whole=_whole(context, sample) if admin else None,
    )


def _whole(context: Context, sample: Sample) -> Whole:
    snapshot, cluster = sample.snapshot, sample.snapshot.cluster
    server = snapshot.server
    return Whole(
        ports_free=server.ports_free,
        ports_held=server.ports_held,
        session_limit=server.session_limit,
        queue_places=server.queue_places,
        queued=len(snapshot.queue),
        reserved=len(snapshot.reserved),
        banned=len(snapshot.banned),
        refused=dict(snapshot.refused),
        health=Parts(
            store="ok" if context.health.is_well else "away",
            redis=None if cluster is None else "ok" if cluster.away is None else "away",
        ),
        workers=snapshot.workers,
        cluster=None
        if cluster is None
        else ClusterRow(
            node=cluster.node,
            away=cluster.away,
            claims=cluster.claims,
            nodes=len(cluster.nodes),
        ),
    )


@attrs.frozen(kw_only=True)
class History:
    """The last hour: a point each `interval` seconds, the oldest first."""

    interval: int
    points: tuple[HistoryPoint, ...]


@attrs.frozen(kw_only=True)
class DrainRow:
    """How far a drain has come, where one has begun: clients that are still up, how many of them are `moved` elsewhere by now, visitors that are here, and lost clients whose ports are kept."""

    draining: bool
    sessions: int
    moved: int
    visitors: int
    reserved: int
    others: tuple[str, ...]
    waits_for: str | None


@attrs.frozen(kw_only=True)
class Status:
    """Whether the server can do what it is there for."""

    status: Literal["ok", "store_unavailable"]


async def _get(call: Call[Nothing, Nothing]) -> ServerRow:
    await call.context.health.store_answers()
    return server_row(call.context, await call.context.sampler.look(), call.principal)


async def _history(call: Call[Nothing, Nothing]) -> History:
    await call.context.sampler.look()
    return History(interval=int(HISTORY_INTERVAL), points=tuple(call.context.sampler.history))


async def _tasks(call: Call[Nothing, Nothing]) -> Branch:
    return await call.context.commands.tasks()


async def _drain(call: Call[Nothing, Nothing]) -> DrainRow:
    drained = await call.context.commands.drain()
    return DrainRow(draining=True, **attrs.asdict(drained))


async def _look_at_drain(call: Call[Nothing, Nothing]) -> DrainRow:
    sample = await call.context.sampler.look()
    if sample.snapshot.server.drained:
        return await _drain(call)
    return DrainRow(
        draining=False,
        sessions=len(sample.sessions),
        moved=0,
        visitors=len(sample.visitors),
        reserved=len(sample.snapshot.reserved),
        others=(),
        waits_for=None,
    )


async def _tell_health(call: Call[Nothing, Nothing]) -> Reply:
    if await call.context.health.store_answers():
        return Reply(values=Status(status="ok"))
    return Reply(values=Status(status="store_unavailable"), status=503)


OPERATIONS = (
    Operation(
        method="GET",
        path="/server",
        name="get_server",
        summary="The server as it is now",
        answer=ServerRow,
        handle=_get,
    ),
    Operation(
        method="GET",
        path="/history",
        name="get_history",
        summary="The last hour of the server",
        is_for_admins=True,
        answer=History,
        handle=_history,
    ),
    Operation(
        method="GET",
        path="/tasks",
        name="get_tasks",
        summary="The tasks of the server and the nurseries that hold them, as they own each other",
        is_for_admins=True,
        answer=Branch,
        handle=_tasks,
        is_long=True,
    ),
    Operation(
        method="GET",
        path="/drain",
        name="get_drain",
        summary="How far a drain has come",
        is_for_admins=True,
        answer=DrainRow,
        handle=_look_at_drain,
    ),
    Operation(
        method="POST",
        path="/drain",
        name="drain",
        summary="Let nobody in any more, and send clients to other servers; said again it tells how far that is",
        permission=Permission.MANAGE,
        is_for_admins=True,
        answer=DrainRow,
        handle=_drain,
    ),
    Operation(
        method="GET",
        path="/healthz",
        name="get_health",
        summary="Whether the server can do what it is there for; 503 where it cannot",
        permission=Permission.OPEN,
        answer=Status,
        other_statuses=(503,),
        handle=_tell_health,
        is_outside=True,
    ),
)

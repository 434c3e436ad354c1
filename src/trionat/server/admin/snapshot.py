"""What a server is doing at one moment, as values: nothing in them refers to anything that lives, so any thread may have them.

Times are ISO 8601, UTC, and `seconds` is how long ago that was. `received` and `sent` are bytes, as a visitor sends and gets
them. Addresses are `HOST:PORT`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from trionat.server.visitors.figures import RequestFigures

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen(kw_only=True)
class ServerView:
    """The server itself. `rate` is that of all sessions; what is None is not told to who asks. `stopping` says that nobody new is let in any more, and `drained` that clients are sent to other servers besides."""

    name: str
    version: str
    since: str
    seconds: float
    control: str
    tunnel: str
    ports_free: int | None
    ports_held: int | None
    session_limit: int
    queue_places: int
    rate: float
    stopping: bool
    drained: bool = False


@attrs.frozen(kw_only=True)
class ServiceView:
    """One service of a session: as its client calls it, where it is there, and the visit port that leads to it (0: none), or the URL; `down`: the client cannot reach it."""

    name: str
    local: str
    port: int
    down: bool = False
    url: str | None = None
    requests: RequestFigures | None = None


@attrs.frozen(kw_only=True)
class VisitorView:
    """A visitor and the port it came to, and the name that it asked for, if it did; `waiting` for a tunnel, or else served."""

    number: int
    address: str
    port: int
    since: str
    seconds: float
    received: int
    sent: int
    waiting: bool
    name: str | None = None


@attrs.frozen(kw_only=True)
class SessionView:
    """A session that is up; its visitors in the order in which they came.

    `client` is what it calls itself, `round_trip` is in seconds (None: not known, or not yet), `rate` in bytes per second, both
    ways, over the last seconds. `group` is that with which it shares its ports. `restrictions` are the caveats of the ticket that it has come with.
    """

    uid: int
    user: str
    client: str
    dialect: str
    address: str
    since: str
    seconds: float
    round_trip: float | None
    services: tuple[ServiceView, ...]
    visitors: tuple[VisitorView, ...]
    tunnels_idle: int
    tunnels_busy: int
    received: int
    sent: int
    rate: float
    group: str | None = None
    restrictions: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class QueuedView:
    """A client that waits for a slot or for ports; `position` is what it was told."""

    position: int
    user: str
    client: str
    address: str
    since: str
    seconds: float


@attrs.frozen(kw_only=True)
class ReservedView:
    """Ports and names that are kept for a client which was lost, for `remaining` seconds; `visitors` wait for it, `waiting` is how many.

    In a `group` it is the client's place at them that is kept.
    """

    user: str
    ports: tuple[int, ...]
    since: str
    seconds: float
    remaining: float
    waiting: int
    visitors: tuple[VisitorView, ...] = ()
    group: str | None = None
    names: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BannedView:
    """An address, or a network of IPv6, of which no password is tried for `remaining` seconds."""

    network: str
    remaining: float


@attrs.frozen(kw_only=True)
class WorkerView:
    """A worker process (`Server.Workers`); `state` is starting, up or away, `restarts` is how many have ended before it."""

    name: str
    state: str
    pid: int | None
    sessions: int
    restarts: int


@attrs.frozen(kw_only=True)
class NodeView:
    """A node of the cluster; None is what is not known, since Redis is away. `silent` is how many seconds ago it told that it is there, `public` is where clients reach it."""

    name: str
    address: str
    silent: float | None
    sessions: int | None
    visitors: int | None
    public: str | None = None
    drained: bool = False


@attrs.frozen(kw_only=True)
class ClusterView:
    """The cluster, as this node (`node`) sees it. `away` says why Redis cannot be asked, and is None where it can. `claims` counts those at all nodes."""

    node: str
    away: str | None
    claims: int
    nodes: tuple[NodeView, ...]


@attrs.frozen(kw_only=True)
class CertificateView:
    """How the certificate of a name stands, which is there until `ends`; `state` is valid, late (it should have been renewed long ago), expired, missing, ordering, or own (the operator's).

    Where the last order has failed, `reason` says why, and `retry` when the next one is.
    """

    name: str
    state: str
    ends: str | None = None
    reason: str = ""
    retry: str | None = None


@attrs.frozen(kw_only=True)
class Snapshot:
    """All of it; `sessions` by uid, `queue` in its order, `refused` by bound (`server/refusals.py`), since the start.

    `workers` is empty where the server is one process, and `cluster` is there where it is a node. `certificates` has one for each name that is in use.
    """

    server: ServerView
    sessions: tuple[SessionView, ...]
    queue: tuple[QueuedView, ...]
    reserved: tuple[ReservedView, ...]
    refused: Mapping[str, int]
    banned: tuple[BannedView, ...]
    workers: tuple[WorkerView, ...] = ()
    cluster: ClusterView | None = None
    certificates: tuple[CertificateView, ...] = ()

    @classmethod
    def of(cls, values: dict[str, Any]) -> Snapshot:
        """Return the snapshot that `attrs.asdict` has made these values of.

        Raises:
            TypeError: it was another version's.
            KeyError: the same.
        """
        return cls(
            server=ServerView(**values["server"]),
            sessions=tuple(map(_session, values["sessions"])),
            queue=tuple(QueuedView(**each) for each in values["queue"]),
            reserved=tuple(map(_reserved, values["reserved"])),
            refused=dict(values["refused"]),
            banned=tuple(BannedView(**each) for each in values["banned"]),
            workers=tuple(WorkerView(**each) for each in values.get("workers", ())),
            cluster=_cluster(values.get("cluster")),
            certificates=tuple(CertificateView(**each) for each in values.get("certificates", ())),
        )


def _session(values: dict[str, Any]) -> SessionView:
    parts: dict[str, Any] = {
        "services": tuple(map(_service, values["services"])),
        "visitors": tuple(VisitorView(**each) for each in values["visitors"]),
        "restrictions": tuple(values.get("restrictions", ())),
    }
    return SessionView(**values | parts)


def _service(values: dict[str, Any]) -> ServiceView:
    requests = values.get("requests")
    parts: dict[str, Any] = {
        "requests": None if requests is None else RequestFigures(**requests),
    }
    return ServiceView(**values | parts)


def _reserved(values: dict[str, Any]) -> ReservedView:
    parts: dict[str, Any] = {
        "ports": tuple(values["ports"]),
        "names": tuple(values.get("names", ())),
        "visitors": tuple(VisitorView(**each) for each in values.get("visitors", ())),
    }
    return ReservedView(**values | parts)


def _cluster(values: dict[str, Any] | None) -> ClusterView | None:
    if values is None:
        return None
    nodes: dict[str, Any] = {"nodes": tuple(NodeView(**each) for each in values["nodes"])}
    return ClusterView(**values | nodes)

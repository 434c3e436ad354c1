"""What `/metrics` tell of a server at one moment, as values: how many there are, and how many there were. No visitor or session is in them by itself, so they cost the same however many there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trionat.server.admin.snapshot import (
        CertificateView,
        ClusterView,
        ServerView,
        WorkerView,
    )
    from trionat.server.control.context import ServerContext
    from trionat.server.tally import HistogramFigures, SumFigures


@attrs.frozen(kw_only=True)
class Present:
    """How many there are in one process, or in several together.

    `sessions` that are up, visitors that are `served` and that are `waiting`, leases that are `reserved`, clients in the queue (`queued`), tunnels (`idle`, `busy`), `handshakes` that have not ended.
    """

    sessions: int = 0
    served: int = 0
    waiting: int = 0
    reserved: int = 0
    queued: int = 0
    idle: int = 0
    busy: int = 0
    handshakes: int = 0

    @classmethod
    def together(cls, parts: Iterable[Present]) -> Present:
        """Add up several processes."""
        return cls(**{name: sum(values) for name, values in _columns(parts)})


def _columns(parts: Iterable[Present]) -> Iterable[tuple[str, list[int]]]:
    rows = [attrs.asdict(part) for part in parts]
    return ((each.name, [row[each.name] for row in rows]) for each in attrs.fields(Present))


@attrs.frozen(kw_only=True)
class Readings:
    """All of it. What is counted is since the start.

    `sessions` have come up, `handshakes` by how they have ended, `refused` by bound, `traffic` (bytes received from visitors, and sent to them) by user, `requests` (by class of
    status, 1xx to 5xx) by name; and times. `has_names` says whether services may have names. `banned` is how many networks are. `quotas` has, of users with a quota and a session,
    what they have used of it this month, and the quota, in bytes. `workers` and `cluster` are as in a snapshot.
    """

    server: ServerView
    present: Present
    sessions: int
    handshakes: Mapping[str, int]
    refused: Mapping[str, int]
    traffic: SumFigures
    requests: SumFigures
    first_byte: HistogramFigures
    visitor_duration: HistogramFigures
    request_duration: HistogramFigures
    loop_lag: HistogramFigures
    banned: int
    has_names: bool
    certificates: tuple[CertificateView, ...] = ()
    quotas: Mapping[str, tuple[int, int]] = attrs.field(factory=lambda: {})
    workers: tuple[WorkerView, ...] = ()
    cluster: ClusterView | None = None


def count_present(context: ServerContext) -> Present:
    """Count in this process."""
    sessions, leases = context.sessions.by_uid.values(), list(context.leases)
    busy = sum(len(session.tunnels.streams) for session in sessions)
    reserved = [lease for lease in leases if lease.is_reserved]
    queues = [lease.queue for lease in reserved] + [each.lease.queue for each in sessions]
    return Present(
        sessions=len(sessions),
        served=busy,
        waiting=sum(len(queue.waiting_visitors) for queue in queues),
        reserved=len(reserved),
        queued=len(tuple(context.admission.queue)),
        idle=sum(session.tunnels.count for session in sessions) - busy,
        busy=busy,
        handshakes=0 if context.tally is None else context.tally.pending_handshakes,
    )


def meter_sessions(context: ServerContext) -> None:
    """Bring what live sessions have relayed to the tally."""
    if (tally := context.tally) is not None:
        for uid, session in context.sessions.by_uid.items():
            tunnels = session.tunnels
            tally.meter_session(uid, session.username, tunnels.received, tunnels.sent)

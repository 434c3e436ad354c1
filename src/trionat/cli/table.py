"""A snapshot of a server as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

import attrs

from trionat.address import parse_tcp_address
from trionat.config.values import PORTS
from trionat.log import escape
from trionat.server.admin.snapshot import (
    CertificateView,
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
from trionat.store.amount import format_amount
from trionat.text import counted

_TITLES: Final = (
    *("uid", "user", "ports", "visitors", "tunnels"),
    *("bytes/s", "bytes", "rtt", "up", "from"),
)
_TEXTS: Final = frozenset({"user", "ports", "from"})
"""Columns of text, which stand to the left and may be cut off; the others are numbers."""

_LEAST: Final = 5
"""Characters that are left of a text in any case."""

_AGES: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


@attrs.frozen
class Table:
    """Lines of at most `width` characters; None: as long as they get."""

    width: int | None

    def draw(self, snapshot: Snapshot, *, visitors: bool, cluster: bool = False) -> list[str]:
        """Return the lines; with `visitors`, every visitor has one below its session, or below the ports that are reserved for its client; with `cluster`, every node has one."""
        lines = list(self._lines(snapshot, visitors))
        if cluster and snapshot.cluster is not None:
            lines += ["", "Nodes of the cluster:", *map(_node, snapshot.cluster.nodes)]
        elif cluster:
            lines += [
                "",
                "This server is no node of a cluster: its configuration had no section Cluster when it was started.",
            ]
        return [self._cut(line) for line in lines]

    def _lines(self, snapshot: Snapshot, visitors: bool) -> Iterator[str]:
        yield from _server(snapshot.server, snapshot)
        yield ""
        if snapshot.sessions:
            yield from self._sessions(snapshot.sessions, visitors)
        else:
            yield "No client is connected."
        if groups := _groups(snapshot.sessions):
            yield ""
            yield "Groups:"
            yield from groups
        if names := list(_names(snapshot.sessions)):
            yield ""
            yield "Requests to names:"
            yield from names
        if snapshot.certificates:
            yield ""
            yield "Certificates:"
            yield from map(_certificate, snapshot.certificates)
        if snapshot.queue:
            yield ""
            yield "In the queue:"
            yield from map(_queued, snapshot.queue)
        if snapshot.reserved:
            yield ""
            yield "Reserved for clients that were lost:"
            for reserved in snapshot.reserved:
                yield _reserved(reserved)
                if visitors:
                    yield from map(_visitor, reserved.visitors)

    def _sessions(self, sessions: Sequence[SessionView], visitors: bool) -> Iterator[str]:
        rows = [_TITLES, *map(_row, sessions)]
        widths = self._widths(rows)
        for row, session in zip(rows, (None, *sessions), strict=True):
            cells = zip(_TITLES, row, widths, strict=True)
            yield " ".join(_cell(*cell) for cell in cells).rstrip()
            if session is not None and session.restrictions:
                yield f"    narrowed ticket: {escape('; '.join(session.restrictions))}"
            if visitors and session is not None:
                yield from map(_visitor, session.visitors)

    def _widths(self, rows: Iterable[Sequence[str]]) -> list[int]:
        """As wide as what is in them; where that is too wide, the widest texts are cut off."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        texts = [number for number, title in enumerate(_TITLES) if title in _TEXTS]
        while self.width is not None and sum(widths) + len(widths) - 1 > self.width:
            widest = max(texts, key=widths.__getitem__)
            if widths[widest] <= _LEAST:
                break
            widths[widest] -= 1
        return widths

    def _cut(self, line: str) -> str:
        return line if self.width is None else _shortened(line, self.width)


def _server(server: ServerView, snapshot: Snapshot) -> Iterator[str]:
    waiting = sum(visitor.waiting for each in snapshot.sessions for visitor in each.visitors)
    served = sum(len(each.visitors) for each in snapshot.sessions) - waiting
    waiting += sum(each.waiting for each in snapshot.reserved)
    drained = ", is drained" if server.drained else ""
    stops = ", is stopping" if server.stopping else drained
    yield f"{escape(server.name)}, trionat {server.version}, up {_age(server.seconds)}{stops}"
    yield f"  addresses  control {server.control}, tunnels {server.tunnel}"
    # The clients of a group take one place together.
    places = {
        each.uid if each.group is None else (each.user, each.group) for each in snapshot.sessions
    }
    clients = len(snapshot.sessions)
    more = f" ({counted(clients, 'client')})" if clients != len(places) else ""
    ports = (
        ""  # an ordinary account asks from afar
        if server.ports_held is None
        else f", visit ports: {server.ports_held} held, {server.ports_free} free"
    )
    yield f"  sessions   {len(places)} of {server.session_limit}{more}{ports}"
    yield f"  queue      {len(snapshot.queue)} of {server.queue_places}"
    yield f"  visitors   {served} served, {waiting} waiting, {format_amount(round(server.rate))}/s"
    if snapshot.workers:
        yield f"  workers    {', '.join(map(_worker, snapshot.workers))}"
    if (cluster := snapshot.cluster) is not None:
        there = f"{counted(len(cluster.nodes), 'node')}, sessions and reserved: {cluster.claims}"
        away = "" if cluster.away is None else f"; Redis is away: {escape(cluster.away)}"
        yield f"  cluster    node {cluster.node}, {there}{away}"
    if snapshot.refused:
        counts = sorted(snapshot.refused.items(), key=lambda item: -item[1])
        yield f"  refused    {', '.join(f'{bound} {count}' for bound, count in counts)}"
    if snapshot.banned:
        yield f"  banned     {len(snapshot.banned)} (--json names them)"


def _worker(worker: WorkerView) -> str:
    if worker.state != "up":
        return f"{worker.name} {worker.state}"
    restarts = f" after {counted(worker.restarts, 'restart')}" if worker.restarts else ""
    return f"{worker.name} {counted(worker.sessions, 'session')}{restarts}"


def _node(node: NodeView) -> str:
    beat = "not known" if node.silent is None else f"beat {node.silent:g} s ago"
    figures = (
        "" if node.sessions is None else f", sessions: {node.sessions}, visitors: {node.visitors}"
    )
    drained = ", is drained" if node.drained else ""
    return f"  {node.name}  {node.address}  {beat}{figures}{drained}"


def _row(session: SessionView) -> list[str]:
    waiting = sum(visitor.waiting for visitor in session.visitors)
    served = len(session.visitors) - waiting
    tunnels = session.tunnels_busy + session.tunnels_idle
    return [
        str(session.uid),
        escape(session.user),
        _where(session.services),
        f"{served}+{waiting}" if waiting else str(served),
        f"{session.tunnels_busy}/{tunnels}",
        _short(round(session.rate)),
        _short(session.received + session.sent),
        "-" if session.round_trip is None else _round_trip(session.round_trip),
        _age(session.seconds),
        parse_tcp_address(session.address).host,
    ]


def _where(services: Iterable[ServiceView]) -> str:
    """Return where services are: visit ports in short, and names."""
    ports = PORTS.write(sorted(each.port for each in services if each.port)).replace(" ", "")
    names = [urlsplit(each.url).hostname or "" for each in services if each.url and not each.port]
    return ",".join(filter(None, [ports, *names]))


def _cell(title: str, text: str, width: int) -> str:
    return f"{_shortened(text, width):{'<' if title in _TEXTS else '>'}{width}}"


def _visitor(visitor: VisitorView) -> str:
    how = "waiting, here for" if visitor.waiting else "served"
    amounts = f"{_short(visitor.received)} in, {_short(visitor.sent)} out"
    return f"    v{visitor.number} {how} {_age(visitor.seconds)} {visitor.address} at {visitor.name or visitor.port}, {amounts}"


def _groups(sessions: Iterable[SessionView]) -> list[str]:
    """Return a line for each group of clients that share their ports."""
    members: dict[tuple[str, str], list[SessionView]] = {}
    for session in sessions:
        if session.group is not None:
            members.setdefault((session.user, session.group), []).append(session)
    lines: list[str] = []
    for (user, name), those in members.items():
        ports = _where(those[0].services)
        each = ", ".join(
            f"{session.uid}{' (service down)' * any(service.down for service in session.services)}"
            for session in those
        )
        lines.append(f"  {escape(name)} of {escape(user)} at {ports}: uid {each}")
    return lines


def _names(sessions: Iterable[SessionView]) -> Iterator[str]:
    """Go through the names that requests were made to: how many a second, with which statuses, and how long they took."""
    for session in sessions:
        for service in session.services:
            if (figures := service.requests) is None or not figures.total:
                continue
            statuses = ", ".join(f"{kind} {count}" for kind, count in figures.statuses.items())
            times = " / ".join(
                "-" if each is None else _round_trip(each)
                for each in (figures.median, figures.slow)
            )
            yield f"  {service.url}  {figures.rate:g}/s, {figures.total} in all: {statuses}; median / 95 % {times}"


_STATES: Final = {
    "valid": "",
    "own": "of your own, ",
    "late": "NOT RENEWED IN TIME, ",
    "expired": "EXPIRED, ",
    "ordering": "is being ordered",
    "missing": "none yet",
}


def _certificate(certificate: CertificateView) -> str:
    """Say until when it is good, and where there was a failure, why, and when it is tried again."""
    parts = [_STATES.get(certificate.state, certificate.state)]
    if certificate.ends is not None:
        there = parts[0] if parts[0].endswith(", ") or not parts[0] else f"{parts[0]}, "
        parts = [f"{there}good until {certificate.ends[:10]}"]
    if certificate.reason:
        parts.append(escape(certificate.reason))
    if certificate.retry is not None:
        parts.append(f"tried again at {certificate.retry[:16].replace('T', ' ')} UTC")
    return f"  {certificate.name}  {'; '.join(parts)}"


def _queued(queued: QueuedView) -> str:
    return f"  {queued.position:>3}  {escape(queued.user)}, {queued.address}, for {_age(queued.seconds)}"


def _reserved(reserved: ReservedView) -> str:
    waiting = f", visitors waiting: {reserved.waiting}" if reserved.waiting else ""
    ports = ", ".join(filter(None, [PORTS.write(sorted(reserved.ports)), *reserved.names]))
    group = "" if reserved.group is None else f" in the group {escape(reserved.group)}"
    return (
        f"  {ports}  {escape(reserved.user)}{group}, for {_age(reserved.remaining)} more{waiting}"
    )


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _short(amount: int) -> str:
    """Without a unit, which the title has: `999`, `1.5k`, `12.3G`."""
    return format_amount(amount).replace(" ", "").removesuffix("B")


def _round_trip(seconds: float) -> str:
    return f"{seconds:.1f}s" if seconds >= 0.9995 else f"{seconds * 1000:.0f}ms"


def _age(seconds: float) -> str:
    """A time in one unit, of which there are at least two: `90s`, `2m`, `47h`, `3d`."""
    for unit, length in _AGES:
        if seconds >= 2 * length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"

"""The control connection of a native session: welcome, demand, liveness both ways, last words."""

from __future__ import annotations

import hmac
import secrets
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import RefusedError, RemoteProtocolError
from trionat.log import get_logger
from trionat.protocol.messages import (
    APPROVALS,
    CAPABILITIES,
    EXAMINE,
    GROUPS,
    MOST_DESCRIPTION,
    MOVE,
    NAMES,
    NARROWED_TICKETS,
    PLAIN_TUNNELS,
    RESUME,
    ROUTES,
    SECRET_BYTES,
    SERVICE_CHANGES,
    Acks,
    Approve,
    Ask,
    Change,
    Changed,
    Close,
    Demand,
    Down,
    Drain,
    Early,
    Examine,
    Join,
    Lost,
    Moved,
    Resumption,
    Welcome,
)
from trionat.relay.acknowledgements import acks_of, take_acks
from trionat.relay.early import EarlyOutbox
from trionat.relay.liveness import RESUMED_AFTER, acknowledged_within
from trionat.relay.send_buffer import SendBuffer
from trionat.server.sessions.early import EarlyVisitors
from trionat.server.sessions.examination import Examination
from trionat.server.sessions.native_tunnels import NativeTunnels
from trionat.server.sessions.session import Session, SessionEnd
from trionat.server.visitors.ports import public_url
from trionat.transport.control_link import ControlLink

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from datetime import datetime

    from trionat.protocol.messages import ServiceRequest
    from trionat.server.visitors.approvals import Question
    from trionat.server.visitors.ports import VisitPoint
    from trionat.transport.channel import Channel
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# Demand is told again after this, in seconds, while it lasts: the client may have failed to open some tunnels.
_DEMAND_AGAIN = 1.0

# What a client that leaves has sent last is still on its tunnels, which it has closed; CLOSE, on another connection, may be
# faster by this much, in seconds. Whatever else is on a tunnel ends with it and takes no time.
_LAST_BYTES = 1.0

# Seconds from one CHANGE of a client to the next: each is logged, and may ask the store. Chosen: nobody reloads so often.
_CHANGE_INTERVAL = 0.5

# How far behind the highest number of its kind a plain tunnel may be: a client has fewer dials under way at once.
_NUMBERS_BEHIND = 1024

# Tunnels that a session may have beyond its visitors: idle ones.
SPARE_TUNNELS = 64


@attrs.define(eq=False, kw_only=True)
class NativeSession(Session):
    """See `Session`. `keep_idle` is how many idle tunnels the client wants at least.

    `plain_tunnels` says that both sides are configured to use tunnels without TLS, `resumes` that both can let streams outlive their tunnels.
    `route` is told to the client, so that its tunnels come to this process, `can_move` that the client goes to another server
    when this one stops, `groups` that the client tells which of its services are down. `expires_at` is when its login is void, for `trionat doctor`.
    `change` is there where it may change its services; `refusal_of` tells why services would be refused, if they would.
    """

    channel: Channel
    keep_idle: int
    public_host: str
    plain_tunnels: bool = False
    resumes: bool = False
    route: str | None = None
    can_move: bool = False
    groups: bool = False
    expires_at: datetime | None = None
    change: (
        Callable[[Collection[int], tuple[ServiceRequest, ...]], Awaitable[tuple[VisitPoint, ...]]]
        | None
    ) = None
    refusal_of: Callable[[tuple[ServiceRequest, ...]], str]
    _changing: bool = attrs.field(init=False, default=False)
    _changed_at: float = attrs.field(init=False, default=float("-inf"))
    link: ControlLink = attrs.field(init=False)
    _tunnels: NativeTunnels = attrs.field(init=False)
    _told: bool = attrs.field(init=False, default=False)  # that this server stops, or is drained
    _early: EarlyVisitors = attrs.field(init=False)
    _secret: bytes = attrs.field(
        init=False, repr=False, factory=lambda: secrets.token_bytes(SECRET_BYTES)
    )
    _numbers: set[int] = attrs.field(init=False, factory=lambda: set())

    def __attrs_post_init__(self) -> None:
        self.link = ControlLink(
            self.channel, "the client", self.config.ping_interval, self.config.peer_timeout
        )
        outbox = EarlyOutbox(lambda: self.link.ask(Early, outbox.next))
        self._early = EarlyVisitors(
            self.lease.queue,
            outbox,
            self._new_buffer,
            lambda received, sent: self.tunnels.count_bytes(received, sent),
        )
        self.tunnels = self._tunnels = NativeTunnels(
            queue=self.lease.queue,
            limit=self.config.max_visitors + SPARE_TUNNELS,
            keep_idle=self.keep_idle,
            acknowledged_within=RESUMED_AFTER
            if self.resumes
            else acknowledged_within(self.config.peer_timeout),
            new_buffer=self._new_buffer if self.resumes else None,
            resume_wait=self.config.effective_resume_wait,
            on_acks=lambda: self.link.ask(
                Acks, lambda: acks_of(self._tunnels.streams_on_tunnels())
            ),
            release=self._early.release,
        )

    def _new_buffer(self) -> SendBuffer:
        return SendBuffer(self.config.resume_buffer, self.lease.send_memory)

    @property
    def dialect(self) -> str:
        """See `Session`."""
        return "native, tunnels not encrypted" if self.plain_tunnels else "native"

    @property
    def moves(self) -> bool:
        """See `Session`."""
        return self.can_move

    @property
    def round_trip(self) -> float | None:
        """See `Session`."""
        return self.link.round_trip

    def attach(self, wire: Endpoint, secret: bytes) -> bool:
        """Take over a tunnel's wire if the secret is right and there is room; otherwise the caller keeps it."""
        return hmac.compare_digest(secret, self._secret) and self.tunnels.attach(wire)

    def attach_plain(self, wire: Endpoint, attach: Join) -> bool:
        """Take over the wire of a tunnel without TLS, on the same terms; a proof that was used before is none."""
        return (
            self.plain_tunnels
            and attach.is_proven(self._secret)
            and self._is_fresh(attach.number)
            and self.tunnels.attach(wire)
        )

    def _is_fresh(self, number: int) -> bool:
        """Tell whether a tunnel's number is seen for the first time; what is too old to be remembered is not."""
        highest = max(self._numbers, default=0)
        if number in self._numbers or number < highest - _NUMBERS_BEHIND:
            return False
        self._numbers.add(number)
        if len(self._numbers) > 2 * _NUMBERS_BEHIND:
            oldest = max(highest, number) - _NUMBERS_BEHIND
            self._numbers = {seen for seen in self._numbers if seen >= oldest}
        return True

    async def _converse(self, nursery: trio.Nursery) -> SessionEnd:
        self.link.post(self._welcome())
        nursery.start_soon(self.link.run, name="control link")
        nursery.start_soon(self._tell_demand, name="demand")
        if self.resumes:
            nursery.start_soon(self._early.run, name="early visitors")
        self._ask_owners(self.lease.points, nursery)
        examination: Examination | None = None  # only few clients ever ask for one
        while True:
            match message := await self.link.receive():
                case Drain(seconds=seconds):
                    if not self.lease.given_up:  # else it is known
                        log.info("the client is leaving", seconds=seconds)
                        self.lease.drain()
                case Acks() if self.resumes:
                    take_acks(message, self._tunnels.streams_on_tunnels())
                case Early() if self.resumes:
                    self._early.take(message)
                case Lost() if self.resumes:
                    self._tunnels.give_up(message)
                case Moved() if self._told:
                    self.moved.set()
                case Approve(service=service, host=host, approved=approved):
                    point = self._find(service, "APPROVE")
                    restrictions = None if point is None else point.restrictions
                    if restrictions is not None:
                        restrictions.approvals.answer(host, approved=approved)
                case Examine(service=service):
                    self._find(service, "EXAMINE")
                    if examination is None:
                        find = partial(self._find, message="EXAMINE")
                        examination = Examination(
                            self.public_host, self.address, find, self.expires_at, self.refusal_of
                        )
                        nursery.start_soon(
                            examination.run, self.link.post, name="visit the client's services"
                        )
                    examination.ask(message)
                case Change() if self.change is not None and not self._changing:
                    self._changing = True
                    nursery.start_soon(self._change, message, nursery, name="change services")
                case Down(services=services) if self.groups:
                    if services:
                        self._find(services[-1], "DOWN")
                    self.lease.queue.down = frozenset(services)
                case Close(text=text):
                    end = SessionEnd("left", f"the client says: {text}", tell=False, goodbye=True)
                    self._note(end)
                    self.lease.give_up(end.text)
                    with trio.move_on_after(_LAST_BYTES):
                        await self.lease.queue.wait_empty()
                    return end
                case _:
                    raise RemoteProtocolError(
                        f"{type(message).__name__.upper()} from a client in a session"
                    )

    def _ask_owners(self, points: Iterable[VisitPoint], nursery: trio.Nursery) -> None:
        for point in points:
            if point.publish is not None and point.publish.approve:
                nursery.start_soon(self._ask_owner, point.service, point, name="ask the owner")

    async def _change(self, message: Change, nursery: trio.Nursery) -> None:
        """Do what the client asks for, and answer."""
        assert self.change is not None, "asked before"  # noqa: S101 - for type checkers
        await trio.sleep_until(self._changed_at + _CHANGE_INTERVAL)
        self._changed_at = trio.current_time()
        try:
            points = await self.change(message.removed, message.added)
        except RefusedError as refusal:
            log.info("services stay as they are", reason=refusal.text)
            self.link.post(Changed(code=refusal.code, text=refusal.text))
        else:
            self._ask_owners(points, nursery)
            numbers = (point.id if isinstance(point.id, int) else 0 for point in points)
            self.link.post(Changed(ports=tuple(numbers), urls=self._urls(points)))
        finally:
            self._changing = False

    def _welcome(self) -> Welcome:
        return Welcome(
            uid=self.uid,
            secret=self._secret,
            ports=self.lease.port_numbers,
            urls=self._urls(self.lease.points),
            host=self.public_host,
            ping_interval=self.config.ping_interval,
            peer_timeout=self.config.peer_timeout,
            max_tunnels=self.tunnels.limit,
            capabilities=(
                *CAPABILITIES,
                *([PLAIN_TUNNELS] if self.plain_tunnels else []),
                *([RESUME] if self.resumes else []),
                *([MOVE] if self.moves else []),
                *([] if self.route is None else [ROUTES]),
                *([GROUPS] if self.groups else []),
                *([NARROWED_TICKETS] if self.restrictions else []),
                NAMES,
                APPROVALS,
                EXAMINE,
                *([] if self.change is None else [SERVICE_CHANGES]),
            ),
            route=self.route,
            resumption=Resumption(
                lease=self.lease.token,
                wait=self.config.effective_resume_wait,
                buffer=self.config.resume_buffer,
            )
            if self.resumes
            else None,
        )

    def _find(self, service: int, message: str) -> VisitPoint | None:
        """Return where a service of the client is; None for one that was taken away.

        Raises:
            RemoteProtocolError: it has no such service.
        """
        if self.lease.group is not None and service < len(self.lease.points):
            return self.lease.points[service]
        for point in self.lease.points:
            if point.service == service:
                return point
        if service < self.lease.next_number:
            return None
        raise RemoteProtocolError(f"{message} for service {service}, which is not there")

    async def _ask_owner(self, service: int, point: VisitPoint) -> None:
        """Ask about each address that waits, once in a session, those first that came first, as long as the service is published here."""
        told: list[Question] = []
        while (restrictions := point.restrictions) is not None:
            approvals = restrictions.approvals
            questions = list(approvals.open_questions())
            for question in questions:
                if question not in told:
                    host, what = question.host, question.what[:MOST_DESCRIPTION]
                    self.link.post(Ask(service=service, host=host, what=what), (service, host))
            told = questions
            await approvals.changed.wait()

    def _urls(self, points: tuple[VisitPoint, ...]) -> tuple[str | None, ...] | None:
        """Return where services are that are published by name; None where none is."""
        if all(point.publish is None for point in points):
            return None
        return tuple(public_url(point, self.config) for point in points)

    async def _tell_demand(self) -> None:
        queue = self.lease.queue
        while True:
            while not queue.waiting:
                await queue.arrived.wait()
            self.link.post(Demand(queue.waiting))
            with trio.move_on_after(_DEMAND_AGAIN):
                await queue.arrived.wait()

    def _tell_drain(self) -> None:
        self._told = True
        servers = self.elsewhere() if self.moves else ()
        self.link.post(Drain(seconds=self.config.drain_grace, servers=servers))

    async def _tell_end(self, end: SessionEnd) -> None:
        await self.link.say_last(Close(code=end.code, text=end.text))

"""A client's session at a native server: one nursery that owns all of it."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain, count
from typing import TYPE_CHECKING, Final, NoReturn

import attrs
import trio

from trionat.address import parse_public_address
from trionat.client.native.early import EarlyStreams
from trionat.client.native.expose import expose
from trionat.client.native.streams import WaitingStreams
from trionat.client.native.tunnel_pool import TunnelPool
from trionat.client.session import Session, public_services
from trionat.config.values import UNENCRYPTED
from trionat.errors import (
    ConnectionLostError,
    PeerError,
    PeerTimeoutError,
    RefusedError,
    RemoteProtocolError,
    SessionOverError,
    StartupError,
)
from trionat.events import ApprovalAsked, Draining, Queued
from trionat.log import get_logger
from trionat.protocol import messages
from trionat.protocol.messages import (
    APPROVALS,
    CAPABILITIES,
    EXAMINE,
    GROUPS,
    MOVE,
    NAMES,
    NARROWED_TICKETS,
    PLAIN_TUNNELS,
    QUEUE_INTERVAL,
    QUEUE_TIMEOUT,
    RESUME,
    ROUTES,
    SERVICE_CHANGES,
    Acks,
    Approve,
    Ask,
    Attach,
    Begin,
    Change,
    Changed,
    Close,
    CloseCode,
    Down,
    Drain,
    Early,
    Examine,
    Examined,
    Hello,
    Join,
    Lost,
    Moved,
    Ping,
    Pong,
    RefusalCode,
    Welcome,
)
from trionat.relay.acknowledgements import acks_of, take_acks
from trionat.relay.early import EarlyOutbox
from trionat.relay.liveness import RESUMED_AFTER, acknowledged_within
from trionat.signals import Signal
from trionat.transport.channel import Channel
from trionat.transport.control_link import ControlLink
from trionat.transport.deadline import deadline
from trionat.transport.descriptors import room_for_visitors
from trionat.transport.endpoint import Endpoint, close_after_last_words, lost, send_all
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trionat.address import TCPAddress
    from trionat.client.native.dialer import Server
    from trionat.client.native.servers import Place, Servers
    from trionat.config.service import Service
    from trionat.protocol.messages import ServiceRequest
    from trionat.relay.stream import VisitorStream

log = get_logger(__name__)

_LAST_WORDS: Final = 1.0

# What visitors have sent last is still on the tunnels, which the server has closed; CLOSE, on another connection, may be faster
# by this much, in seconds. Less than the second for which the server reads on, so that no PING of ours fails meanwhile.
_LAST_BYTES: Final = 0.5

# What a server may ask for at most, in seconds; its own configuration allows no less.
_SHORTEST_PING_INTERVAL: Final = 0.1

# Seconds between two positions in the queue that are told: a server may send as many as it likes. The last one is told always.
_TELL_INTERVAL: Final = 1.0

# Times that a server may send us to another of its processes, one after another: it has moved us, and then somebody has moved again.
_MOST_MOVES: Final = 3

# Seconds, besides its grace, that a server has to end the session of a client that is up at another one. Chosen.
_TO_END: Final = 10.0

# Seconds for the answer to CHANGE: the server may have to ask its store whose a name is. Chosen.
_TO_ANSWER: Final = 10.0

_IS_NOT_HELD: Final = "this server would not keep to the restrictions of the ticket: it is older, and asks nobody for a credential"

_SOFTWARE: Final = f"trionat {VERSION}"


@attrs.define(eq=False, kw_only=True)
class NativeSession(Session):
    """A session in which everything is encrypted and tunnels are recycled, at one of the `servers`, but not at the one that it goes `besides`.

    `preferred_ports` are the visit ports of the session before, to be asked for again; `waiting_streams` are the streams of that session,
    with which this one goes on.
    """

    servers: Servers
    identity: str
    preferred_ports: tuple[int | None, ...]
    besides: Place | None = None
    waiting_streams: WaitingStreams = attrs.field(factory=lambda: WaitingStreams(0))
    place: Place | None = attrs.field(init=False, default=None)
    _position: int | None = attrs.field(init=False, default=None)  # in the queue
    _grace: float = attrs.field(init=False, default=0.0)  # of a server that stops
    _moved: Signal = attrs.field(init=False, factory=Signal)
    _link: ControlLink | None = attrs.field(init=False, default=None)  # for answers to ASK
    _control: ControlLink | None = attrs.field(init=False, default=None)
    welcome: Welcome | None = attrs.field(init=False, default=None)
    _examined: dict[int, Examined | None] = attrs.field(init=False, factory=lambda: {})
    _host: str = attrs.field(init=False, default="")
    _changes: bool = attrs.field(init=False, default=False)  # whether the server takes CHANGE
    _answer: Changed | None = attrs.field(init=False, default=None)
    _answered: Signal = attrs.field(init=False, factory=Signal)
    _pool: TunnelPool | None = attrs.field(init=False, default=None)

    async def run(self) -> None:
        """See `Session`."""
        moves = 0
        while (moved := await self._run_at_once()) is not None:
            place, refused = moved
            if (moves := moves + 1) > _MOST_MOVES:
                raise RefusedError(refused.code, refused.text)
            place.dialer.route = refused.route
            log.debug("the server sends us to another of its processes", route=refused.route)

    async def _run_at_once(self) -> tuple[Place, messages.Refused] | None:
        """Run where the route leads; return what which server said where another process of it has to be asked."""
        self.place, endpoint = await self.servers.connect(self.besides)
        place = self.place
        try:
            channel = Channel(endpoint)
            channel.allow_control_frames()
            welcome = await self._log_in(channel, place.dialer.server)
            if isinstance(welcome, messages.Refused):
                return place, welcome
            place.dialer.route = welcome.route if ROUTES in welcome.capabilities else None
            place.dialer.remember_session(endpoint)
            self.welcome = welcome
            await self._serve(channel, welcome, place)
            with trio.move_on_after(_LAST_WORDS, shield=True):
                await close_after_last_words(endpoint)
            return None
        finally:
            self._link = self._control = None
            self._answered.notify()
            self._pool = None
            # At once, unless we have just said goodbye: the next session need not wait for a server that is silent.
            endpoint.close()

    def approve(self, service: int, host: str, *, approved: bool) -> bool:
        """Tell the server what the owner has said of an address that wants to visit a service; return whether it can be told."""
        if self._link is None:
            return False
        answer = Approve(service=service, host=host, approved=approved)
        self._link.post(answer, (service, host))
        return True

    async def examine(
        self, service: int, token: str, wanted: Sequence[ServiceRequest] = ()
    ) -> Examined | None:
        """Have the server visit a service, which says `token` first of all, and tell whether services like those that are `wanted` would be refused; return what came of it, or None where the server is older and cannot do that.

        The caller sets the deadline; there has to be a session.
        """
        link, welcome = self._control, self.welcome
        if link is None or welcome is None or EXAMINE not in welcome.capabilities:
            await trio.lowlevel.checkpoint()
            return None
        self._examined[service] = None
        link.post(Examine(service=service, token=token, wanted=tuple(wanted)), service)
        while (examined := self._examined[service]) is None:
            await self._answered.wait()
        del self._examined[service]
        return examined

    @property
    def round_trip(self) -> float | None:
        """See `Session`; the time of the last ping."""
        return None if self._control is None else self._control.round_trip

    def visitors(self) -> Iterator[tuple[int, str, VisitorStream]]:
        """See `Session`."""
        return iter(()) if self._pool is None else self._pool.visitors()

    @property
    def can_change(self) -> bool:
        """Whether services can go and come within this session."""
        return self._changes and self._control is not None

    async def change_services(self, removed: Sequence[int], added: Sequence[Service]) -> None:
        """Have services go, by their numbers, and others come; not two of it at once, and only where it `can_change`. Cancelling it leaves it open whether that is so at the server: end the session then.

        Raises:
            StartupError: the server refuses, and nothing has changed.
            PeerError: the session has ended meanwhile, or there was no answer.
        """
        if (link := self._control) is None:
            raise ConnectionLostError("the session has ended")
        self._answer = None
        requests = expose(added, (None,) * len(added), idle_tunnels=0).services if added else ()
        link.post(Change(removed=tuple(sorted(removed)), added=requests))
        with deadline(_TO_ANSWER, f"the server has not answered within {_TO_ANSWER:g} s"):
            answer = await self._wait_answer(link)
        if answer.code is not None:
            raise StartupError(f"the server refuses other services: {answer.text}")
        if len(answer.ports) != len(added):
            raise RemoteProtocolError(
                f"CHANGED with {len(answer.ports)} ports for {len(added)} services"
            )
        if answer.urls is None and any(service.by_name for service in added):
            raise RemoteProtocolError("CHANGED without a URL for a service with a name")
        kept = [place for place, n in enumerate(self.forwarder.numbers) if n not in removed]
        self.forwarder.change(removed, added)
        ports, connected = self.ports or (), self.connected
        self.ports = (*(ports[place] for place in kept), *answer.ports)
        if connected is not None:
            new = public_services(added, self._host, answer.ports, answer.urls)
            services = (*(connected.services[place] for place in kept), *new)
            self.connected = attrs.evolve(connected, services=services)
            self.tell(self.connected)

    async def _wait_answer(self, link: ControlLink) -> Changed:
        while self._answer is None:
            if self._control is not link:
                raise ConnectionLostError("the session has ended")
            await self._answered.wait()
        return self._answer

    def note_end(self, problem: PeerError, *, final: bool) -> bool:
        """See `Session`."""
        return self.place is not None and self.servers.ended(self.place, problem, final=final)

    async def _log_in(self, channel: Channel, server: Server) -> Welcome | messages.Refused:
        with deadline(QUEUE_TIMEOUT, f"the server has read nothing for {QUEUE_TIMEOUT:g} s"):
            await channel.send(
                Hello(
                    username=server.username,
                    password=server.password,
                    token=server.token,
                    identity=self.identity,
                    name=self.config.name,
                    software=_SOFTWARE,
                    capabilities=(
                        *CAPABILITIES,
                        RESUME,
                        ROUTES,
                        *([] if self.config.once else [MOVE]),
                        GROUPS,
                        NAMES,
                        APPROVALS,
                        SERVICE_CHANGES,
                        *([PLAIN_TUNNELS] if self._wants_plain else []),
                        *([NARROWED_TICKETS] if server.caveats else []),
                    ),
                    resume=self.waiting_streams.token,
                    caveats=server.caveats,
                )
            )
            await channel.send(
                expose(
                    self.forwarder.services,
                    self.preferred_ports,
                    idle_tunnels=self.config.min_idle_tunnels,
                    group=self.config.group,
                )
            )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping_while_queued, channel, name="ping while queued")
            nursery.start_soon(self._tell_position, name="tell the position")
            welcome = await self._wait_welcome(channel)
            nursery.cancel_scope.cancel("let in")
        if isinstance(welcome, messages.Refused):
            return welcome
        if server.caveats and NARROWED_TICKETS not in welcome.capabilities:
            raise RefusedError(RefusalCode.UNSUPPORTED_VERSION, _IS_NOT_HELD)
        if len(welcome.ports) != len(self.forwarder.services):
            raise RemoteProtocolError(
                f"WELCOME with {len(welcome.ports)} ports for {len(self.forwarder.services)} services"
            )
        if self.config.group is not None and GROUPS not in welcome.capabilities:
            await self._leave(
                channel,
                RefusalCode.UNSUPPORTED_VERSION,
                "the server does not know groups: update it, or leave out Group",
            )
        named = any(service.by_name for service in self.forwarder.services)
        if named and (NAMES not in welcome.capabilities or welcome.urls is None):
            await self._leave(
                channel,
                RefusalCode.NAME_NOT_OFFERED,
                "the server does not know names: update it, or ask for visit ports",
            )
        asks = any(service.approve for service in self.forwarder.services)
        if asks and APPROVALS not in welcome.capabilities:
            await self._leave(
                channel,
                RefusalCode.NAME_NOT_OFFERED,
                "the server does not ask about visitors: update it, or leave out Approve",
            )
        return welcome

    async def _leave(self, channel: Channel, code: RefusalCode, text: str) -> NoReturn:
        """Leave a server that would not do what the client is for. It is told why, if it reads."""
        with suppress(PeerError), trio.move_on_after(_LAST_WORDS):
            await channel.send(Close(code=CloseCode.STOPPED, text=text))
        raise RefusedError(code, text)

    async def _ping_while_queued(self, channel: Channel) -> None:
        while True:
            await trio.sleep(QUEUE_INTERVAL)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + QUEUE_TIMEOUT):
                await channel.send(
                    Ping(0)
                )  # shielded: half a frame would be the end of the connection

    async def _tell_position(self) -> None:
        told: int | None = None
        while True:
            while self._position == told:
                await self._moved.wait()
            told = self._position
            self.tell(Queued(told))
            await trio.sleep(_TELL_INTERVAL)

    async def _wait_welcome(self, channel: Channel) -> Welcome | messages.Refused:
        """Return what ends the wait, unless it is a refusal for good or for now."""
        while True:
            with deadline(QUEUE_TIMEOUT, f"nothing heard from the server for {QUEUE_TIMEOUT:g} s"):
                message = await channel.receive()
            match message:
                case Welcome():
                    return message
                case messages.Queued(position=position):
                    self._position = position  # it comes again and again, as a sign of life
                    self._moved.notify()
                case messages.Refused(code=RefusalCode.MOVED, route=str()):
                    return message
                case messages.Refused(code=code, text=text, servers=servers):
                    raise RefusedError(code, text, servers=servers)
                case Ping() | Pong():
                    pass
                case _:
                    raise RemoteProtocolError(
                        f"{type(message).__name__.upper()} instead of WELCOME"
                    )

    async def _serve(self, channel: Channel, welcome: Welcome, place: Place) -> None:
        dialer, server = place.dialer, place.dialer.server
        ping_interval = max(welcome.ping_interval, _SHORTEST_PING_INTERVAL)
        peer_timeout = max(welcome.peer_timeout, 2 * ping_interval)
        link = ControlLink(channel, "the server", ping_interval, peer_timeout)
        plain = self._wants_plain and PLAIN_TUNNELS in welcome.capabilities
        if self._wants_plain and not plain:
            log.warning("tunnels are encrypted: the server's TunnelEncryption is not none")
        numbers, route = count(1), dialer.route  # its own, whatever the next session is told

        async def open_wire() -> Endpoint:
            address, host = server.tunnel, place.host_of(server.tunnel)
            if plain:
                attach = Join.prove(welcome.uid, next(numbers), welcome.secret)
                return await _attached(await dialer.connect_plain(address, host), attach)
            return await _attached(
                await dialer.connect(address, host, route), Attach(welcome.uid, welcome.secret)
            )

        resumption = welcome.resumption if RESUME in welcome.capabilities else None
        self.waiting_streams.begin(resumption, str(server.control))
        pool = TunnelPool(
            open_wire,
            self.forwarder,
            limit=max(1, room_for_visitors(min(self.config.max_tunnels, welcome.max_tunnels))),
            least_idle=self.config.min_idle_tunnels,
            waiting_streams=self.waiting_streams,
            on_lost=lambda: link.ask(Lost, self.waiting_streams.lost),
            on_acks=lambda: link.ask(Acks, lambda: acks_of(pool.streams_on_tunnels())),
            release=lambda visitor: early.release(visitor),
            acknowledged_within=acknowledged_within(peer_timeout)
            if resumption is None
            else RESUMED_AFTER,
        )
        outbox = EarlyOutbox(lambda: link.ask(Early, outbox.next))
        early = EarlyStreams(pool.open_service, self.waiting_streams, outbox, lambda: pool.room)
        self._come_up(
            uid=welcome.uid,
            ports=welcome.ports,
            urls=welcome.urls,
            host=welcome.host or server.control.host,
            server=server.control,
            tunnel=server.tunnel,
            username=server.username,
            encrypted=not plain,
        )
        self._link = link if APPROVALS in welcome.capabilities else None
        self._control, self._changes = link, SERVICE_CHANGES in welcome.capabilities
        self._pool = pool
        self._host = welcome.host or server.control.host
        if shown := self.config.public_server_addr:
            self._host, _ = parse_public_address(shown)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run, name="control link")
            nursery.start_soon(pool.run, name="tunnel pool")
            nursery.start_soon(self._read, link, pool, early, name="control reader")
            nursery.start_soon(self.forwarder.check, name="check services")
            if MOVE in welcome.capabilities:
                nursery.start_soon(self._tell_moved, link, name="tell that we have moved")
            if GROUPS in welcome.capabilities:
                nursery.start_soon(self._tell_down, link, name="tell services that are down")
            if self.looks_after:
                nursery.start_soon(self.forwarder.look_after, name="look after services")
            elif self.config.group is not None:
                nursery.start_soon(self.forwarder.retry, name="try services that are down")
            await self.stopping.wait()
            link.post(Drain(seconds=self.config.drain_grace))
            with trio.move_on_after(self.config.drain_grace):
                await pool.wait_not_busy()
            nursery.cancel_scope.cancel("the client stops")
        await link.say_last(Close(code=CloseCode.STOPPED, text="it was stopped"))

    async def _tell_moved(self, link: ControlLink) -> None:
        """Tell the server when this client is up at another one; it ends this session when the last visitor here has gone."""
        await self.moved.wait()
        link.post(Moved())
        await trio.sleep(self._grace + _TO_END)
        raise PeerTimeoutError("the server that was to stop has not ended the session")

    async def _tell_down(self, link: ControlLink) -> None:
        told: tuple[int, ...] = ()
        while True:
            if (down := self.forwarder.down) != told:
                told = down
                link.post(Down(down))
            await self.forwarder.changed.wait()

    async def _read(self, link: ControlLink, pool: TunnelPool, early: EarlyStreams) -> None:
        async with trio.open_nursery() as nursery:
            await self._read_messages(link, pool, early, nursery)

    async def _read_messages(
        self, link: ControlLink, pool: TunnelPool, early: EarlyStreams, nursery: trio.Nursery
    ) -> None:
        draining, resumes = False, self.waiting_streams.resumption is not None
        while True:
            match message := await link.receive():
                case messages.Demand(number):
                    pool.demand(number)
                case Acks() if resumes:
                    take_acks(message, chain(pool.streams_on_tunnels(), self.waiting_streams))
                    self.waiting_streams.forget_acknowledged()
                case Begin() if resumes:
                    early.begin(message, nursery)
                case Early() if resumes:
                    early.take(message)
                case Ask(service=service, host=host, what=what):
                    if (found := self.forwarder.find(service)) is not None:
                        name = found.name
                        self.tell(ApprovalAsked(service=service, name=name, host=host, what=what))
                case Examined(service=service) if service in self._examined:
                    self._examined[service] = message
                    self._answered.notify()
                case Changed() if self._changes:
                    self._answer = message
                    self._answered.notify()
                case Drain(seconds=seconds, servers=servers):
                    if not draining:
                        self.tell(Draining(seconds))
                        self._grace = seconds
                    draining = True
                    self._note_drain(servers)  # again, where there are others by now
                case Close(code=code, text=text):
                    with trio.move_on_after(_LAST_BYTES):
                        await pool.wait_not_busy()
                    raise SessionOverError(code, text)
                case _:
                    raise RemoteProtocolError(
                        f"{type(message).__name__.upper()} from a server in a session"
                    )

    def _note_drain(self, servers: Sequence[TCPAddress]) -> None:
        if self.place is not None and not self.config.once:  # else the first session is the last
            self.moving = self.servers.stops(self.place, servers)
            self.changed.notify()

    @property
    def _wants_plain(self) -> bool:
        return self.config.tunnel_encryption == UNENCRYPTED


async def _attached(wire: Endpoint, attach: Attach | Join) -> Endpoint:
    """Say whose tunnel it is, and return it; closes it where that fails."""
    try:
        await send_all(wire, messages.encode_message(attach))
    except OSError as error:
        wire.close()
        raise lost(error) from error
    except BaseException:
        wire.close()
        raise
    return wire

"""The client's pool of tunnels: how many there are, and what runs on each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.client.native.outage import Outage
from trionat.client.native.pooled_tunnel import PooledTunnel
from trionat.client.native.streams import WaitingStreams
from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.relay.acknowledgements import are_owed
from trionat.relay.client_tunnel import LocalServiceError
from trionat.relay.liveness import ACKNOWLEDGED_WITHIN, SWEEP_INTERVAL
from trionat.signals import Signal
from trionat.transport.descriptors import SHORTAGE, TOLD_AGAIN_AFTER, room_for_visitors
from trionat.transport.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trionat.client.forwarder import Forwarder
    from trionat.protocol.tunnel_frames import Open
    from trionat.relay.stream import VisitorStream
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# Idle tunnels follow demand: a quarter of those in use, within these limits. Each costs a descriptor and two tasks per side.
_IDLE_SHARE: Final = 4
_MOST_IDLE: Final = 64

# Handshakes at once. More would only queue at the server, whose every handshake takes about a millisecond.
_MOST_DIALS: Final = 64

# Where visitors begin on the control connection, tunnels are dialled in small groups with this pause in seconds between them: for 50 visitors two
# at a time, and of more the same share. Measured: with eight at a time their handshakes hold up the first answers by half a round trip of 100 ms.
_PACE: Final = 0.005
_GROUPS: Final = 25
_LEAST_GROUP: Final = 2

# After a tunnel for which there was no descriptor, nobody tries for this long, in seconds.
_PAUSE: Final = 0.5

# Seconds for which a client that stops waits until the server has asked for last words that it may not have heard. It does so at once, where it has not.
_LAST_WORDS_WITHIN: Final = 2.0

# A server gives a tunnel up that is silent for so many sweeps when a visitor comes; the end of the connection may be lost as well.
_FORGOTTEN_AFTER: Final = 5

# The server tells its demand every second while it lasts; what it has not told for this long, in seconds, is no more.
_DEMAND_LASTS: Final = 2.5


async def _at_once(_: int) -> None:
    pass


@attrs.define(eq=False)
class TunnelPool:
    """Keeps idle tunnels ready, opens more when visitors wait, and serves visitors over them.

    `open_wire` returns a connection to the server that is attached to the session. `run` owns all of them: when it is
    cancelled, every tunnel and every local connection is closed. `limit` bounds their number; `least_idle` are kept idle. While
    descriptors are short, there are fewer, so that each has one for its service.

    Nothing that happens for each visitor looks at all tunnels, but for those who wait at all idle ones, so that a visitor costs the same
    in any crowd. `acknowledged_within` is as in `Tunnel`.

    A stream whose tunnel is lost goes to `waiting_streams`, and `on_lost` is called. Where the server cannot resume streams, those are reset.
    `on_acks` is called, once a second or where a buffer is full, when the server is to be told how far they are. `release` is waited for before a tunnel
    goes on with a visitor's stream.
    """

    open_wire: Callable[[], Awaitable[Endpoint]]
    forwarder: Forwarder
    limit: int
    least_idle: int
    waiting_streams: WaitingStreams = attrs.field(factory=lambda: WaitingStreams(0))
    on_lost: Callable[[], None] = lambda: None
    on_acks: Callable[[], None] = lambda: None
    release: Callable[[int], Awaitable[None]] = _at_once
    acknowledged_within: float = ACKNOWLEDGED_WITHIN
    served: int = attrs.field(init=False, default=0)
    outage: Outage = attrs.field(init=False, factory=Outage)
    _limit_when_short: int | None = attrs.field(init=False, default=None)
    _told_shortage: bool = attrs.field(init=False, default=False)
    _quiet_until: float = attrs.field(init=False, default=float("-inf"))
    _tunnels: set[PooledTunnel] = attrs.field(init=False, factory=lambda: set())
    _idle: set[PooledTunnel] = attrs.field(init=False, factory=lambda: set())
    _ending: set[PooledTunnel] = attrs.field(init=False, factory=lambda: set())
    _dialing: int = attrs.field(init=False, default=0)
    _waiting: int = attrs.field(init=False, default=0)
    _demanded: float = attrs.field(init=False, default=float("-inf"))
    _changed: Signal = attrs.field(init=False, factory=Signal)
    _less_busy: Signal = attrs.field(init=False, factory=Signal)

    @property
    def busy(self) -> int:
        """Tunnels with a visitor."""
        return len(self._tunnels) - len(self._idle)

    @property
    def room(self) -> int:
        """How many more visitors could have a tunnel and a connection to their service. Those whose stream waits for a tunnel have the latter."""
        return self._most - self.busy - len(self.waiting_streams)

    @property
    def _most(self) -> int:
        return self.limit if self._limit_when_short is None else self._limit_when_short

    def demand(self, visitors: int) -> None:
        """So many visitors wait at the server for a tunnel."""
        self._waiting = visitors
        self._demanded = trio.current_time()
        self._changed.notify()

    async def wait_not_busy(self) -> None:
        """Wait until no visitor is left, neither on a tunnel nor waiting for another one.

        Those of whom only the last words may have to be said once more count for `_LAST_WORDS_WITHIN`.
        """
        until = trio.current_time() + _LAST_WORDS_WITHIN
        while (
            self.busy
            or self._ending
            or any(
                not stream.over or trio.current_time() < until for stream in self.waiting_streams
            )
        ):
            await self._less_busy.wait()  # notified once a second, at the latest

    async def run(self) -> None:
        """Open and serve tunnels until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep, name="sweep")
            while True:
                for _ in range(self._group(self._missing())):
                    self._dialing += 1
                    nursery.start_soon(self._serve, name="tunnel")
                if self._missing():
                    await trio.sleep(_PACE)
                else:
                    await self._changed.wait()

    def _group(self, missing: int) -> int:
        """Return how many tunnels to dial before others get their turn: few where visitors begin without one, since handshakes would hold them up."""
        if self.waiting_streams.resumption is None:
            return missing
        return min(missing, max(_LEAST_GROUP, missing // _GROUPS))

    def _missing(self) -> int:
        """Return how many tunnels to open now."""
        if trio.current_time() < self.outage.paused_until:
            return 0
        count, busy = len(self._tunnels), self.busy
        wanted = max(self.least_idle, min(busy // _IDLE_SHARE, _MOST_IDLE)) + self._waiting
        missing = wanted - self._usable() - self._dialing
        return max(0, min(missing, self._most - count - self._dialing, _MOST_DIALS - self._dialing))

    def _usable(self) -> int:
        """Return how many tunnels are idle; while visitors wait, not those that the server would use if it still had them."""
        if not self._waiting:
            return len(self._idle)
        return sum(each.tunnel.liveness.silent < _FORGOTTEN_AFTER for each in self._idle)

    async def _serve(self) -> None:
        """Open one tunnel and serve visitors over it until it ends. Its failure is nobody else's."""
        with isolated(log, "tunnel lost"):
            began = trio.current_time()
            try:
                wire = await self.open_wire()
            except PeerError as error:
                now = trio.current_time()
                if _is_shortage(error):
                    self.outage.paused_until = now + _PAUSE
                    self._note_shortage()
                else:
                    self.outage.failed(error, tried_for=now - began, opened=False)
                return
            finally:
                self._dialing -= 1
                self._changed.notify()
            await PooledTunnel(self, wire).run()

    def _note_shortage(self) -> None:
        """There was no descriptor for a tunnel or a service: send idle tunnels home, and tell that once."""
        now = trio.current_time()
        if self._limit_when_short is None and now >= self._quiet_until:
            self._told_shortage, self._quiet_until = True, now + TOLD_AGAIN_AFTER
            log.warning(
                "descriptors are short: there are fewer tunnels until there is room again (ulimit -n)"
            )
        self._fit()

    def _fit(self) -> None:
        """While descriptors are short: have no more tunnels than can have a connection to a service each."""
        idle = len(self._idle)
        fits = self.busy + room_for_visitors(self.limit, idle=idle)
        self._limit_when_short = max(1, fits)
        for tunnel in list(self._idle)[: max(0, self.busy + idle - self._limit_when_short)]:
            self._give_up(tunnel, "descriptors are short")
            tunnel.wire.close()  # at once: somebody waits for a descriptor

    def _give_up(self, tunnel: PooledTunnel, reason: str) -> None:
        """End a tunnel, which counts no more from now on; its task is still to end. The caller closes the wire."""
        self._idle.discard(tunnel)
        self._ending.add(tunnel)
        self._tunnels.remove(tunnel)
        tunnel.scope.cancel(reason)

    # -- what a tunnel of it tells, and asks for ----------------------------------------------------------------------

    def add(self, tunnel: PooledTunnel) -> None:
        """It is open, and idle."""
        log.debug("tunnel opened", idle=len(self._idle) + 1, busy=self.busy)
        self._tunnels.add(tunnel)
        self._idle.add(tunnel)

    def take(self, tunnel: PooledTunnel) -> None:
        """The server has given it a visitor."""
        self._idle.discard(tunnel)

    def rests(self, tunnel: PooledTunnel) -> None:
        """Its visitor is done with."""
        if tunnel in self._tunnels:
            self._idle.add(tunnel)
        self._less_busy.notify()

    def remove(self, tunnel: PooledTunnel) -> None:
        """It has ended."""
        for tunnels in (self._tunnels, self._idle, self._ending):
            tunnels.discard(tunnel)
        log.debug("tunnel closed", idle=len(self._idle), busy=self.busy)
        self._changed.notify()
        self._less_busy.notify()

    def note_failed(self, problem: PeerError, tried_for: float) -> None:
        """A tunnel has ended as soon as it was open."""
        self.outage.failed(problem, tried_for=tried_for, opened=True)
        self._changed.notify()

    def note_worked(self) -> None:
        """A tunnel that was opened in an outage stays."""
        self.outage.worked()
        self._changed.notify()

    def lose(self, frame: Open, stream: VisitorStream) -> None:
        """The stream's tunnel is lost: another one may go on with it."""
        self.waiting_streams.hold(frame, stream)
        self.on_lost()

    async def find(self, visitor: int) -> VisitorStream | None:
        """Take a visitor's stream off its tunnel, which we may not have noticed to be lost; see `ClientTunnel`."""
        await self.release(visitor)
        stream = self.waiting_streams.take(visitor)
        if stream is None:
            await self._take_off(visitor)
            stream = self.waiting_streams.take(visitor)
        if stream is not None:
            self._waiting = max(0, self._waiting - 1)
            self._changed.notify()
        return stream

    async def _take_off(self, visitor: int) -> None:
        """Give up the tunnels that serve this visitor, so that its stream waits, if there is one."""
        for each in list(self._tunnels):
            if each.tunnel.serves(visitor):
                self._give_up(each, "its visitor goes on over another tunnel")
                each.wire.reset()
        # One that was given up before may still have the stream: without it, the service would be connected to for a second time.
        while any(each.tunnel.serves(visitor) for each in self._ending):
            await self._less_busy.wait()

    def streams_on_tunnels(self) -> Iterator[VisitorStream]:
        """Those of which each side tells the other how far it is; some that wait are told by the server, too."""
        for each in self._tunnels:
            yield from each.tunnel.streams

    def visitors(self) -> Iterator[tuple[int, str, VisitorStream]]:
        """Yield service, address and stream of each visitor on a tunnel."""
        for each in self._tunnels - self._idle:
            for frame, stream in each.visitors():
                yield frame.service, _address(frame), stream

    async def connect(self, frame: Open) -> Endpoint:
        """Return a connection to the local service of a visitor for whom a tunnel was opened; see `open_service`."""
        log.debug("visitor paired with a tunnel", visitor=frame.visitor, service=frame.service)
        self._waiting = max(0, self._waiting - 1)
        if self._missing():  # one idle tunnel less
            self._changed.notify()
        return await self.open_service(frame)

    async def open_service(self, frame: Open) -> Endpoint:
        """Return a connection to the visitor's local service; see `Forwarder.open`."""
        visitor = TCPAddress(frame.host, frame.port)
        visited = TCPAddress(frame.visit_host, frame.visit_port)
        try:
            try:
                return await self.forwarder.open(frame.service, visitor, visited)
            except LocalServiceError as error:
                if not _is_shortage(error):
                    raise
                self._note_shortage()
                return await self.forwarder.open(frame.service, visitor, visited)
        except LocalServiceError as error:
            self.forwarder.note_refused(
                frame.service, str(error), visitor=frame.visitor, address=_address(frame)
            )
            raise

    def note_end(self, frame: Open, stream: VisitorStream) -> None:
        """A visitor is done with; of one that was before, only the last words have gone over another tunnel."""
        if stream.finished:
            return
        stream.finished = True
        self.served += 1
        self.forwarder.note_closed(stream.plain, stream.end)
        log.info(
            "visitor closed",
            visitor=frame.visitor,
            address=_address(frame),
            service=self.forwarder.name(frame.service),
            reason=stream.end,
            received=stream.given,
            sent=stream.taken,
            seconds=round(trio.current_time() - stream.since, 3),
        )

    async def _sweep(self) -> None:
        """Once a second: see after every tunnel, and after a pause."""
        while True:
            await trio.sleep(SWEEP_INTERVAL)
            for each in list(self._tunnels):
                try:
                    each.tunnel.sweep()
                except PeerError as error:
                    log.info("tunnel given up", reason=str(error))
                    self._give_up(each, str(error))
                    # The other end may wait for a plain end that does not read, and would not see a mere end.
                    each.wire.reset()
            if are_owed(self.streams_on_tunnels()):
                self.on_acks()
            self.waiting_streams.tell()
            if self.waiting_streams.has_untold:  # one message does not hold them all
                self.on_lost()
            if self._limit_when_short is not None:
                self._fit()
                if self._limit_when_short >= self.limit:
                    self._limit_when_short = None
                    if self._told_shortage:
                        self._told_shortage = False
                        log.info("there are enough descriptors again")
            if trio.current_time() - self._demanded > _DEMAND_LASTS:
                self._waiting = 0
            self._changed.notify()
            self._less_busy.notify()  # of those that wait, some may be given up


def _is_shortage(error: BaseException) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in SHORTAGE


def _address(frame: Open) -> str:
    return str(TCPAddress(frame.host, frame.port))

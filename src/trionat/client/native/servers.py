"""The servers at which a client may have its session: which one is tried when, and which one answers first.

As in happy eyeballs (RFC 8305), several are asked, each a moment after the one before, and the first that has shown who it is wins; connections to
the others are closed. A name counts as many servers as it has addresses, since each may be another machine.

At a start the order is random, so that many clients spread over all servers. After a loss the server that had the session comes first and
has a moment more than the others: it still has the ports, and streams can go on there only.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress, parse_tcp_address
from trionat.errors import (
    ConnectionLostError,
    IdentityError,
    PeerError,
    RefusedError,
    SessionOverError,
)
from trionat.log import get_logger
from trionat.protocol.messages import CloseCode, RefusalCode
from trionat.signals import Signal
from trionat.transport.dial import is_localhost, is_numeric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trionat.client.native.dialer import ServerDialer
    from trionat.transport.tls_endpoint import TLSEndpoint

log = get_logger(__name__)

# Seconds after which the next server is tried beside the one before ("Connection Attempt Delay", RFC 8305 8).
_STAGGER: Final = 0.25

# Seconds for TLS, where somebody has answered. One that is busy, or far away, would get many a handshake in vain otherwise. Chosen.
_HANDSHAKE: Final = 2.0

# Seconds for which the server that had the session may answer later than another one. When a network comes back, it is a matter of chance
# which of them hears us first: TCP repeats itself after 1, 3 and 7 s. Chosen: half of what a client may be away.
_FOR_HOME: Final = 2.0

# What is said about the client, and not about one server.
_SENT_AWAY: Final = {
    RefusalCode.EVICTED,
    RefusalCode.KICKED,
    CloseCode.EVICTED,
    CloseCode.KICKED,
}

# Why a server may have ended a session that it would go on with: it did not hear us, or not what it expected.
_COMES_BACK: Final = {CloseCode.TIMEOUT, CloseCode.PROTOCOL}


@attrs.frozen
class Place:
    """A server at one of its addresses."""

    dialer: ServerDialer
    host: str

    def host_of(self, address: TCPAddress) -> str | None:
        """Return where to dial an address of the server, so that it is the same machine; None: as the address says."""
        control = self.dialer.server.control.host
        return self.host if self.host != control == address.host else None


@attrs.define(eq=False)
class Servers:
    """See the module. `dialers` has at least one; `make` makes one for a server that another one has named."""

    dialers: tuple[ServerDialer, ...]
    make: Callable[[TCPAddress], ServerDialer] | None = None
    _order: list[ServerDialer] = attrs.field(init=False)
    _home: Place | None = attrs.field(init=False, default=None)
    _returns: Place | None = attrs.field(init=False, default=None)
    _several: set[ServerDialer] = attrs.field(init=False, factory=lambda: set())
    _doubted: set[ServerDialer] = attrs.field(init=False, factory=lambda: set())

    def __attrs_post_init__(self) -> None:
        self._order = random.sample(self.dialers, len(self.dialers))

    async def connect(self, besides: Place | None = None) -> tuple[Place, TLSEndpoint]:
        """Return the server that has answered, and a connection to it, which the caller owns. The one that it goes `besides` is not asked.

        A server that cannot be reached costs a quarter of a second where another one can be, one that had the session or does not get beyond TCP about two.

        Raises:
            IdentityError: whoever answers is not the server, at every address.
            PeerError: none can be reached; of several servers each has its reason.
            StartupError: as `ServerDialer.connect`.
        """
        if besides == self._returns:
            besides = None
        race = _Race(tuple(self._order), self._several, self._home, besides)
        try:
            won = await race.run()
        finally:
            race.close()
        if won is None:
            raise _sum_up(race.problems)
        self._tell_doubts(race.problems)
        self._home = won[0]
        dialer = self._home.dialer
        self._order = [dialer, *(other for other in self._order if other is not dialer)]
        return won

    def stops(self, place: Place, named: Sequence[TCPAddress]) -> bool:
        """Note that the server there stops, and names others; return whether there is any other one.

        Where it names the address that leads to it, others are behind the same address, and it is dialled again, by no route: that would lead back.
        """
        place.dialer.route = None
        if self.make is not None:
            own = {dialer.server.control for dialer in self.dialers}
            new = [self.make(address) for address in dict.fromkeys(named) if address not in own]
            # Of those that servers have named only the last ones are remembered.
            kept = [dialer for dialer in self._order if dialer in self.dialers]
            self._order = [*random.sample(new, len(new)), *kept]
            self._several.intersection_update([*self._order, place.dialer])
            self._doubted.intersection_update(self._order)
        if place.dialer in self._order:
            self._order.remove(place.dialer)
            self._order.append(place.dialer)
        self._home = None
        shared = place.dialer.server.control in named and place.dialer not in self._several
        self._returns = place if shared else None
        return shared or len(self._order) > 1 or place.dialer in self._several

    def ended(self, place: Place, problem: PeerError, *, final: bool) -> bool:
        """Note why there is no session there (any more); return whether another server is left, although that is `final` for this one.

        A server that does not want us comes last from now on, as does one of the addresses of a name, and one for which that is final is not tried any more,
        while others are left. Behind one address another process or node may want us, so no route is asked for.
        """
        if (
            not isinstance(problem, RefusedError | SessionOverError)
            or problem.code in _COMES_BACK
            or place.dialer not in self._order
        ):
            return False
        place.dialer.route = None
        place.dialer.put_last(place.host)
        if isinstance(problem, RefusedError) and problem.servers:
            self.stops(place, list(map(parse_tcp_address, problem.servers)))
            return False
        if self._home == place:
            self._home = None
        self._order.remove(place.dialer)
        if final and self._order and problem.code not in _SENT_AWAY:
            log.warning(
                "this server is not tried any more; others are left",
                server=str(place.dialer.server.control),
                reason=str(problem),
            )
            return True
        self._order.append(place.dialer)
        return False

    def _tell_doubts(self, problems: list[tuple[ServerDialer, PeerError]]) -> None:
        """Log once what is wrong with a server for whom another one may stand in."""
        for dialer, problem in problems:
            if isinstance(problem, IdentityError) and dialer not in self._doubted:
                self._doubted.add(dialer)
                log.warning(
                    "a server cannot be used; others are tried",
                    server=str(dialer.server.control),
                    reason=str(problem),
                )


def _sum_up(problems: list[tuple[ServerDialer, PeerError]]) -> PeerError:
    """Return one reason for all: a wrong server is the reason only where there was no other one."""
    if not problems:
        return ConnectionLostError("there is no other server")
    lost = [(dialer, error) for dialer, error in problems if not isinstance(error, IdentityError)]
    first: dict[ServerDialer, PeerError] = {}
    for dialer, error in lost or problems:
        first.setdefault(dialer, error)
    reasons = list(first.values())
    if not lost or len({dialer for dialer, _ in problems}) == 1:
        return reasons[0]
    for dialer, error in problems:
        first.setdefault(dialer, error)
    return ConnectionLostError(f"no server can be used: {'; '.join(map(str, first.values()))}")


@attrs.define(eq=False)
class _Race:
    """One round of attempts, of all servers but the one that it goes `besides`. `close` has to be called in the end, `run` once.

    `several` gets those whose name has several addresses.
    """

    order: tuple[ServerDialer, ...]
    several: set[ServerDialer]
    home: Place | None
    besides: Place | None = None
    problems: list[tuple[ServerDialer, PeerError]] = attrs.field(init=False, factory=lambda: [])
    _pending: deque[ServerDialer | Place] = attrs.field(init=False, factory=lambda: deque())
    _begun: set[Place] = attrs.field(init=False, factory=lambda: set())
    _running: int = attrs.field(init=False, default=0)
    _next_at: float = attrs.field(init=False, default=float("-inf"))
    _won: tuple[Place, TLSEndpoint] | None = attrs.field(init=False, default=None)
    _changed: Signal = attrs.field(init=False, factory=Signal)

    def __attrs_post_init__(self) -> None:
        for dialer in self.order:
            host = dialer.server.control.host
            if is_numeric(host) or is_localhost(host):
                self._pending.append(Place(dialer, host))
                continue
            self._pending.append(dialer)
            if self.home is not None and dialer is self.home.dialer:
                self._pending.append(self.home)  # in case no name server answers

    async def run(self) -> tuple[Place, TLSEndpoint] | None:
        """Return the connection that is to be used, and whose it is; None: there is none, and `problems` has the reasons."""
        async with trio.open_nursery() as nursery:
            await self._ask(nursery)
            if self._waits_for_home and self.home is not None:
                # Once more: TCP may be about to repeat the first attempt in some seconds only.
                self._begin(self.home, nursery, again=True)
                with trio.move_on_after(_FOR_HOME):  # noqa: ASYNC912 - only while it is not there
                    while self._waits_for_home:
                        await self._changed.wait()
            nursery.cancel_scope.cancel("one has answered, or none will")
        won, self._won = self._won, None
        return won

    def close(self) -> None:
        """Close the connection that nobody has taken."""
        if self._won is not None:
            self._won[1].close()
            self._won = None

    @property
    def _waits_for_home(self) -> bool:
        return self._won is not None and self.home not in (None, self._won[0])

    async def _ask(self, nursery: trio.Nursery) -> None:
        """Begin one attempt after another, until one has succeeded or all have failed."""
        while self._won is None and (self._pending or self._running):
            if self._pending and trio.current_time() >= self._next_at:
                self._begin(self._pending.popleft(), nursery)
            else:
                with trio.CancelScope(deadline=self._next_at if self._pending else float("inf")):
                    await self._changed.wait()

    def _begin(
        self, what: ServerDialer | Place, nursery: trio.Nursery, *, again: bool = False
    ) -> None:
        if isinstance(what, Place):
            if what == self.besides or (what in self._begun and not again):
                return
            self._begun.add(what)
        self._running += 1
        self._next_at = trio.current_time() + _STAGGER
        nursery.start_soon(self._try, what, name="connect to a server")

    async def _try(self, what: ServerDialer | Place) -> None:
        try:
            if isinstance(what, Place):
                await self._connect(what)
            else:
                await self._look_up(what)
        except PeerError as error:
            self.problems.append((what.dialer if isinstance(what, Place) else what, error))
            if what == self.home:
                self.home = None  # it has had its chance
        finally:
            self._running -= 1
            self._changed.notify()

    async def _look_up(self, dialer: ServerDialer) -> None:
        """Let the addresses of a name come next."""
        try:
            places = [Place(dialer, host) for host in dialer.in_order(await dialer.look_up())]
            if len(places) > 1:
                self.several.add(dialer)
            else:
                self.several.discard(dialer)
            if self.home is not None and self.home.dialer is dialer:
                if self.home in places:
                    places.remove(self.home)
                    places.insert(0, self.home)
                else:  # the name leads elsewhere now
                    self._pending = deque(each for each in self._pending if each != self.home)
                    self.home = None
            self._pending.extendleft(reversed(places))
        finally:
            self._next_at = trio.current_time()

    async def _connect(self, place: Place) -> None:
        control, answered = place.dialer.server.control, False

        def note_answer() -> None:
            nonlocal answered
            answered = True
            self._note_answer()

        try:
            endpoint = await place.dialer.connect(
                control, place.host_of(control), place.dialer.route, note_answer
            )
        except BaseException as error:
            self._next_at = trio.current_time()
            if answered and isinstance(error, PeerError):
                # Whoever is in front of the server is there, and what the route leads to is not, or hangs: any other may do.
                place.dialer.route = None
            raise
        if self._won is None or place == self.home:
            self.close()
            self._won = (place, endpoint)
        else:
            endpoint.close()

    def _note_answer(self) -> None:
        """Somebody is there, so leave time for TLS before others are asked as well."""
        self._next_at = max(self._next_at, trio.current_time() + _HANDSHAKE)

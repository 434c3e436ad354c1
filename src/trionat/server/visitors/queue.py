"""Visitors and the line in which they wait for a tunnel. No checkpoint anywhere but in `VisitorQueue.next`, hence no lock."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import get_logger
from trionat.server.refusals import Bound, RefusalCounters

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.address import TCPAddress
    from trionat.server.accounts.limits import UserLimits
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)


@attrs.define(eq=False)
class Visitor:
    """An outside connection to a visit port. Whoever holds it closes its endpoint.

    `number` is unique on this server and stands on both sides' log lines. `early` are bytes of the visitor that were read and
    given to a tunnel which turned out to be dead; they are counted, and the next tunnel gets them first. `since` is when it
    began to wait, `tries` how many tunnels it was given. `gone` is called once, when it has left.
    """

    number: int
    endpoint: Endpoint
    address: TCPAddress
    service: int
    visited: TCPAddress
    arrived: float = attrs.field(factory=trio.current_time)
    since: float = attrs.field(factory=trio.current_time)
    early: bytes = attrs.field(default=b"", repr=False)
    tries: int = 0
    gone: Callable[[], None] = lambda: None


@attrs.define(eq=False)
class _Place:
    """An idle tunnel's place: woken with a visitor, or without one when the tunnel is not needed any more."""

    woken: trio.Event = attrs.field(factory=trio.Event)
    visitor: Visitor | None = None


@attrs.define(eq=False)
class VisitorQueue:
    """Joins visitors to idle tunnels: who has waited longest goes first, to the tunnel that was used last.

    Belongs to a lease, so it outlives a lost session: visitors wait for the client to come back. At most `most_waiting` wait
    and at most `most_present` are there, waiting or served; `user_limits` has what its user may have on all lines together.
    `arrivals` is how many have begun to wait so far, `refusals` counts those who may not. `session` (the uid, or None while there is none) is for the log.
    """

    most_waiting: int
    most_present: int
    user_limits: UserLimits
    refusals: RefusalCounters = attrs.field(factory=RefusalCounters)
    session: int | None = attrs.field(init=False, default=None)
    open: bool = attrs.field(init=False, default=True)
    present: int = attrs.field(init=False, default=0)
    least_idle: int = attrs.field(init=False, default=0)
    arrivals: int = attrs.field(init=False, default=0)
    wanted: trio.Event = attrs.field(init=False, factory=trio.Event)
    _empty: trio.Event = attrs.field(init=False, factory=trio.Event)
    _waiting: deque[Visitor] = attrs.field(init=False, factory=lambda: deque())
    _idle: dict[_Place, None] = attrs.field(init=False, factory=lambda: {})

    @property
    def waiting(self) -> int:
        """How many visitors wait."""
        return len(self._waiting)

    @property
    def waiting_visitors(self) -> tuple[Visitor, ...]:
        """Those who wait, in their order."""
        return tuple(self._waiting)

    @property
    def idle(self) -> int:
        """How many tunnels wait."""
        return len(self._idle)

    def admit(self, visitor: Visitor) -> None:
        """Take a visitor over: to an idle tunnel, into the line, or out of the door at once."""
        most, user_limits = self.user_limits.limits.visitors, self.user_limits
        if not self.open:
            bound, refusal = Bound.LEAVING, "the client is leaving"
        elif most is not None and user_limits.visitors >= most:
            bound = Bound.ACCOUNT_VISITORS
            refusal = f"this user has all the visitors that it may have at once ({most})"
        elif self.present >= self.most_present:
            bound = Bound.VISITORS
            refusal = f"{self.most_present} visitors are here already (MaxVisitors)"
        elif not self._idle and len(self._waiting) >= self.most_waiting:
            bound = Bound.WAITING_VISITORS
            refusal = f"{self.most_waiting} visitors wait already (MaxWaitingVisitors)"
        else:
            self.present += 1
            user_limits.visitors += 1
            if self._idle:
                self._give(visitor)
            else:
                self.least_idle = 0
                self.arrivals += 1
                self._waiting.append(visitor)
                self.wanted.set()
            return
        visitor.endpoint.close()
        visitor.gone()
        values = self._values(visitor, refusal)  # as they are now, not when it is told
        self.refusals.count(
            bound,
            lambda count: log.info("visitor refused", refused=count, **values),
            user=user_limits.user,
        )

    def put_back(self, visitor: Visitor) -> None:
        """Take a visitor back to the head of the line: its tunnel was dead."""
        visitor.since = trio.current_time()
        if not self.open:
            visitor.endpoint.reset()
            self.refusals.counts[Bound.LEAVING] += 1
            self.leave(visitor)
            reason = "the tunnel was lost, and there will be no other"
            log.info("visitor closed", **self._values(visitor, reason))
        elif self._idle:
            self._give(visitor)
        else:
            self._waiting.appendleft(visitor)
            self.wanted.set()

    def _give(self, visitor: Visitor) -> None:
        place, _ = self._idle.popitem()
        self.least_idle = min(self.least_idle, len(self._idle))
        place.visitor = visitor
        place.woken.set()

    def leave(self, visitor: Visitor) -> None:
        """A visitor that `next` or `take` gave out is done with."""
        visitor.gone()
        self.present -= 1
        self.user_limits.visitors -= 1
        if not self.present:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until no visitor is there, neither waiting nor served."""
        while self.present:
            if self._empty.is_set():
                self._empty = trio.Event()
            await self._empty.wait()

    def take(self) -> Visitor | None:
        """Return the visitor that has waited longest, or None where nobody waits."""
        while self._waiting:
            visitor = self._waiting.popleft()
            if not visitor.endpoint.is_lost():
                return visitor
            self._dismiss(visitor, "the visitor reset its connection while it waited")
        return None

    async def next(self) -> Visitor | None:
        """Return the visitor that has waited longest, or wait for one as an idle tunnel; None: retire.

        Cancelling it loses no visitor.
        """
        if self._waiting:
            # Else one tunnel could serve them all before anybody else runs.
            await trio.lowlevel.checkpoint()
            if (visitor := self.take()) is not None:
                return visitor
        place = _Place()
        self._idle[place] = None
        try:
            await place.woken.wait()
        except BaseException:
            self._idle.pop(place, None)
            if place.visitor is not None:
                self.put_back(place.visitor)
            raise
        return place.visitor

    def retire(self, count: int) -> None:
        """Send home the `count` tunnels that have been idle longest."""
        for place in list(self._idle)[:count]:
            del self._idle[place]
            place.woken.set()

    def expire(self, before: float) -> None:
        """Dismiss visitors that have waited since before that moment."""
        late = [visitor for visitor in self._waiting if visitor.since < before]
        for visitor in late:  # not only from the head: one that was put back there waits anew
            self._waiting.remove(visitor)
            if not visitor.endpoint.is_lost():
                self.refusals.counts[Bound.WAIT] += 1
            self._dismiss(visitor, "no tunnel for it in time")

    def kick(self, number: int, reason: str) -> bool:
        """Reset the visitor of that number; tell whether it waits here."""
        for visitor in self._waiting:
            if visitor.number == number:
                self._waiting.remove(visitor)
                visitor.endpoint.reset()
                self._dismiss(visitor, reason)
                return True
        return False

    def close(self, reason: str) -> None:
        """Admit nobody any more and dismiss those who wait."""
        self.open = False
        while self._waiting:
            self.refusals.counts[Bound.LEAVING] += 1
            self._dismiss(self._waiting.popleft(), reason)

    def _dismiss(self, visitor: Visitor, reason: str) -> None:
        self.leave(visitor)
        visitor.endpoint.close()
        log.info("visitor closed", **self._values(visitor, reason))

    def _values(self, visitor: Visitor, reason: str) -> dict[str, object]:
        return {
            "visitor": visitor.number,
            "address": str(visitor.address),
            "port": visitor.visited.port,
            "reason": reason,
            "seconds": round(trio.current_time() - visitor.arrived, 3),
            "user": self.user_limits.user,
            "session": self.session,
        }

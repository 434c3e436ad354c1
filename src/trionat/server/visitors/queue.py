"""The queue in which visitors wait for a tunnel, and tunnels for visitors.

No checkpoint anywhere but in `VisitorQueue.next` and the waits, hence no lock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.log import get_logger
from trionat.protocol.tunnel_frames import AbortReason
from trionat.server.refusals import Bound, RefusalCounters
from trionat.signals import Signal

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from trionat.server.accounts.limits import UserLimits
    from trionat.server.visitors.visitor import Visitor

log = get_logger(__name__)


@attrs.define(eq=False)
class Place:
    """Where a tunnel waits: it is woken with a visitor, or without one when it is not needed any more."""

    woken: trio.Event = attrs.field(init=False, factory=trio.Event)
    visitor: Visitor | None = attrs.field(init=False, default=None)


@attrs.define(eq=False)
class VisitorQueue:
    """Joins visitors to idle tunnels: who has waited longest goes first, to the tunnel that was used last.

    Belongs to a lease, so it outlives a lost session: visitors wait for the client to come back, those who had a tunnel as well. At most `most_waiting` wait
    and at most `most_present` are there, waiting or served; `user_limits` has what its user may have on all leases together. All three bound memory, so they
    count those as well that have left, or were reset, and keep a place because the client is still to be told.
    `arrivals` is how many have begun to wait so far, and `arrived` is notified when another one does; `refusals` counts those who
    may not. `down` are the services that its client cannot reach. `session` (the uid, or None while there is none) is for the log. `open` says that new visitors
    are taken, `ended` that nobody waits any more, `why` is the reason for either.
    """

    most_waiting: int
    most_present: int
    user_limits: UserLimits
    refusals: RefusalCounters = attrs.field(factory=RefusalCounters)
    down: frozenset[int] = attrs.field(init=False, default=frozenset())
    session: int | None = attrs.field(init=False, default=None)
    open: bool = attrs.field(init=False, default=True)
    ended: bool = attrs.field(init=False, default=False)
    why: str = attrs.field(init=False, default="")
    present: int = attrs.field(init=False, default=0)
    least_idle: int = attrs.field(init=False, default=0)
    arrivals: int = attrs.field(init=False, default=0)
    arrived: Signal = attrs.field(init=False, factory=Signal)
    _left: Signal = attrs.field(init=False, factory=Signal)
    _waiting: deque[Visitor] = attrs.field(init=False, factory=lambda: deque())
    _idle: dict[Place, None] = attrs.field(init=False, factory=lambda: {})
    _withheld: set[Place] = attrs.field(init=False, factory=lambda: set())

    @property
    def waiting(self) -> int:
        """How many places are taken: so many tunnels are wanted."""
        return len(self._waiting)

    @property
    def waiting_visitors(self) -> tuple[Visitor, ...]:
        """Those who really wait, in their order: without those of whom only the client is to be told."""
        return tuple(visitor for visitor in self._waiting if not visitor.is_over)

    @property
    def all_waiting(self) -> tuple[Visitor, ...]:
        """The same, with those of whom only the client is to be told."""
        return tuple(self._waiting)

    @property
    def idle(self) -> int:
        """How many tunnels wait, and can have a visitor."""
        return len(self._idle)

    def put(self, visitor: Visitor) -> None:
        """Take a new visitor over: give it to an idle tunnel, let it wait, or close it at once where a limit is reached."""
        most, user_limits = self.user_limits.share.visitors, self.user_limits
        if not self.open:
            bound, refusal = Bound.LEAVING, self.why
        elif most is not None and user_limits.visitors >= most:
            bound = Bound.ACCOUNT_VISITORS
            user_limits.refused += 1
            refusal = f"this user has all the visitors that it may have at once ({user_limits.limits.visitors})"
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
                log.debug("visitor waits for a tunnel", visitor=visitor.number)
                self.arrivals += 1
                self._waiting.append(visitor)
                self.arrived.notify()
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
        """Take a visitor back, ahead of all others: its tunnel is lost.

        One that has left may come back too, because the client may not have heard its last words.
        """
        if not visitor.present:
            visitor.present = True
            self.present += 1
            self.user_limits.visitors += 1
        if self.ended or not (self.open or visitor.stream is not None):
            visitor.endpoint.reset()
            self._send_off(visitor)
        elif self._idle:
            self._give(visitor)
        else:
            self._waiting.appendleft(visitor)
            self.arrived.notify()

    def _give(self, visitor: Visitor) -> None:
        tunnel, _ = self._idle.popitem()
        self.least_idle = min(self.least_idle, len(self._idle))
        tunnel.visitor = visitor
        tunnel.woken.set()

    def leave(self, visitor: Visitor) -> None:
        """A visitor that `next` or `take` gave out is done with."""
        visitor.leave()
        visitor.present = False
        self.present -= 1
        self.user_limits.visitors -= 1
        if not self.present:
            self._left.notify()

    def withdraw(self, visitor: Visitor) -> None:
        """Let go of a visitor that waits here, since another queue takes it."""
        self._waiting.remove(visitor)
        self.present -= 1
        self.user_limits.visitors -= 1
        if not self.present:
            self._left.notify()

    async def wait_empty(self) -> None:
        """Wait until no visitor is there, neither waiting nor served."""
        while self.present:
            await self._left.wait()

    def take(self) -> Visitor | None:
        """Return the visitor that has waited longest, or None where nobody waits."""
        while self._waiting:
            visitor = self._waiting.popleft()
            if visitor.stream is not None or not visitor.endpoint.is_lost():
                return visitor  # of one that had a tunnel the client has to be told
            self._dismiss(visitor, "the visitor reset its connection while it waited")
        return None

    async def next(self, place: Place | None = None) -> Visitor | None:
        """Return the visitor that has waited longest, or wait for one as an idle tunnel; None: retire.

        A tunnel that may be withheld has a `place` of its own.

        Cancelling it loses no visitor.
        """
        if self._waiting:
            # Else one tunnel could serve them all before anybody else runs.
            await trio.lowlevel.checkpoint()
            if (visitor := self.take()) is not None:
                return visitor
        if place is None:
            place = Place()
        place.woken = trio.Event()
        self._idle[place] = None
        try:
            await place.woken.wait()
        except BaseException:
            self._idle.pop(place, None)
            self._withheld.discard(place)
            if place.visitor is not None:
                self.put_back(place.visitor)
            raise
        else:
            return place.visitor
        finally:
            place.visitor = None

    def withhold(self, place: Place) -> None:
        """The tunnel that waits there may be dead: it gets no visitor until it is restored. Nothing is done where none waits there."""
        if place in self._idle:
            del self._idle[place]
            self._withheld.add(place)
            self.least_idle = min(self.least_idle, len(self._idle))

    def restore(self, place: Place) -> None:
        """The tunnel is not dead: if it was withheld, it may have a visitor again."""
        if place in self._withheld:
            self._withheld.remove(place)
            self._idle[place] = None
            if (visitor := self.take()) is not None:
                self._give(visitor)

    def retire(self, count: int) -> None:
        """Send home the `count` tunnels that have been idle longest."""
        for tunnel in list(self._idle)[:count]:
            del self._idle[tunnel]
            tunnel.woken.set()

    def expire(self, *, wait: float, resume_wait: float) -> None:
        """Dismiss visitors that have waited for longer than so many seconds; the second is for those who had a tunnel, or an answer without one."""
        now = trio.current_time()
        for visitor in tuple(
            self._waiting
        ):  # not only from the head: one that was put back there waits anew
            if now - visitor.since > (resume_wait if visitor.was_served else wait):
                self._expire(visitor)

    def expire_all(self) -> None:
        """The client has not come back in time for any of them."""
        for visitor in tuple(self._waiting):
            self._expire(visitor)

    def _expire(self, visitor: Visitor) -> None:
        self._waiting.remove(visitor)
        if visitor.was_served:
            reason = "its tunnel was lost, and no other came in time"
        else:
            reason = "no tunnel for it in time"
            if not visitor.is_over and not visitor.endpoint.is_lost():
                self.refusals.counts[Bound.WAIT] += 1
        self._dismiss(visitor, reason)

    def drop_service(self, number: int, reason: str) -> None:
        """Dismiss those who wait for a service of the client, and have not begun: it is not there any more."""
        for visitor in tuple(self._waiting):
            if visitor.service == number and visitor.stream is None and not visitor.is_over:
                self._waiting.remove(visitor)
                self._dismiss(visitor, reason)

    def renumber(self, numbers: Mapping[int, int]) -> None:
        """The client calls its services by other numbers from now on."""
        for visitor in self._waiting:
            visitor.service = numbers.get(visitor.service, visitor.service)

    def reset_streams(self, reason: str) -> None:
        """Reset visitors with whom a client has begun that has gone for good; those of whom it can have got nothing begin anew."""
        for visitor in tuple(self._waiting):
            if (stream := visitor.stream) is None:
                continue
            if stream.taken or stream.received or stream.failure:
                self._waiting.remove(visitor)
                self._dismiss(visitor, reason)
            else:
                visitor.stream = None

    def kick(self, number: int, reason: str) -> bool:
        """Reset the visitor of that number; tell whether it waits here.

        Where the client has begun with it, it keeps its place: the next tunnel tells the client, which would keep its end otherwise. It has left,
        so it cannot be kicked for a second time.
        """
        for visitor in self._waiting:
            if visitor.number == number and not visitor.is_over:
                visitor.endpoint.reset()
                if visitor.stream is None:
                    self._waiting.remove(visitor)
                    self._dismiss(visitor, reason)
                else:
                    visitor.stream.fail(AbortReason.OTHER, reason)
                    visitor.leave()
                    self._log_end(visitor, reason)
                return True
        return False

    def take_new(self) -> list[Visitor]:
        """Take out those who wait and have not begun; they are the caller's."""
        taken = [visitor for visitor in self._waiting if visitor.stream is None]
        for visitor in taken:
            self._waiting.remove(visitor)
            visitor.present = False
            self.present -= 1
            self.user_limits.visitors -= 1
        if not self.present:
            self._left.notify()
        return taken

    def let_go(self, kept: Container[int] = ()) -> None:
        """Let go of all who wait: another process has them by now. Their connections are closed here only, and stay open there; those of visitors with the `kept` numbers are not."""
        while self._waiting:
            visitor = self._waiting.popleft()
            if visitor.number not in kept:
                visitor.endpoint.close()
            if visitor.stream is not None:
                visitor.stream.release()
            self.leave(visitor)

    def drain(self, reason: str) -> None:
        """Take nobody new any more, and dismiss those who wait and have not begun; those who have go on over another tunnel."""
        self.open, self.why = False, reason
        for visitor in tuple(self._waiting):
            if visitor.stream is None:
                self._waiting.remove(visitor)
                self._send_off(visitor)

    def close(self, reason: str) -> None:
        """Take nobody any more, and dismiss those who wait. Once it is closed, another reason changes nothing."""
        if not self.ended:
            self.open, self.ended, self.why = False, True, reason
            while self._waiting:
                self._send_off(self._waiting.popleft())

    def _send_off(self, visitor: Visitor) -> None:
        """Nobody takes it any more; who was not served counts as refused."""
        if not (visitor.was_served or visitor.is_over or visitor.endpoint.is_lost()):
            self.refusals.counts[Bound.LEAVING] += 1
        self._dismiss(visitor, self.why)

    def _dismiss(self, visitor: Visitor, reason: str) -> None:
        """Be done with one that waited. The reason does not count for one that was reset before, for another."""
        stream, told = visitor.stream, visitor.has_left
        if stream is None:
            visitor.endpoint.close()
        else:
            visitor.endpoint.reset()  # what it got may not be all
            stream.release()
            if stream.failure is not None:
                reason = stream.failure.text
        self.leave(visitor)
        if not told:
            self._log_end(visitor, reason)

    def _log_end(self, visitor: Visitor, reason: str) -> None:
        stream = visitor.stream
        received, sent = (0, 0) if stream is None else (stream.taken, stream.given)
        log.info("visitor closed", **self._values(visitor, reason, received=received, sent=sent))

    def _values(self, visitor: Visitor, reason: str, **moved: int) -> dict[str, object]:
        return {
            "visitor": visitor.number,
            "address": str(visitor.address),
            "port": visitor.visited.port,
            **({} if visitor.name is None else {"name": visitor.name}),
            "reason": reason,
            **moved,
            "seconds": round(trio.current_time() - visitor.arrived, 3),
            "user": self.user_limits.user,
            "session": self.session,
        }

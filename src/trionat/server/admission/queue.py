"""From an authenticated client to a lease: the queue, the slots, and the way back to a lease that is still there.

The queue is a memory channel of `MaxConnNum` places. Each of the `TaskQueueNum` dispatchers first takes a slot, then the next
client, then its ports: so a client stands in the queue until there really is a slot for it, and the queue has exactly the
places that it says. Slot and ports belong to the lease from then on, and are given back by the task that keeps it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.config.values import PORTS
from trionat.errors import RefusedError
from trionat.log import get_logger
from trionat.protocol.messages import QUEUE_INTERVAL, CloseCode, RefusalCode
from trionat.server.accounts.limits import LiveLimits
from trionat.server.admission.lease import Lease
from trionat.server.refusals import Bound, RefusalCounters
from trionat.server.visitors.queue import VisitorQueue

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.config.sections import ServerConfig
    from trionat.protocol.messages import ServiceRequest
    from trionat.server.visitors.ports import LeaseKey, PortPool, VisitPort
    from trionat.store.base import Limits

log = get_logger(__name__)

# A client is told that it is queued only after this, in seconds: most are let in within a few scheduling steps.
_QUEUED_AFTER = 0.05


@attrs.define(eq=False, kw_only=True)
class QueuedClient(ABC):
    """An authenticated client that wants a lease since a moment; `key` says whose that would be, `limits` are its user's.

    `position` counts from 1. `waiting_scope` is round whatever somebody waits for on its behalf; leaving cancels it.
    """

    key: LeaseKey
    client_name: str
    address: TCPAddress
    services: tuple[ServiceRequest, ...]
    limits: Limits
    since: float = attrs.field(init=False, factory=trio.current_time)
    lease: Lease | None = attrs.field(init=False, default=None)
    refusal: RefusedError | None = attrs.field(init=False, default=None)
    position: int = attrs.field(init=False, default=0)
    left: bool = attrs.field(init=False, default=False)
    waiting_scope: trio.CancelScope | None = attrs.field(init=False, default=None)
    _news: trio.Event = attrs.field(init=False, factory=trio.Event)

    @abstractmethod
    async def say_position(self) -> None:
        """Tell the client where it stands; called again and again, also when nothing has changed.

        Raises:
            PeerError: the client is gone, or does not read.
        """

    @abstractmethod
    async def listen(self) -> None:
        """Listen to the waiting client for ever.

        Raises:
            PeerError: it has left, or said what it must not.
        """

    def tell(self) -> None:
        """Wake the client's own task: something about it has changed."""
        self._news.set()
        self._news = trio.Event()

    def has_left(self) -> bool:
        """Tell whether it wants a lease no more; may change at every checkpoint."""
        return self.left

    @property
    def answered(self) -> bool:
        """Whether it has a lease, or a refusal."""
        return self.lease is not None or self.refusal is not None

    async def wait_answer(self) -> None:
        """Wait for a lease or a refusal."""
        while not self.answered:
            await self.wait_news()

    async def wait_news(self) -> None:
        """Wait for the next `tell`."""
        await self._news.wait()


@attrs.define(eq=False)
class Admission:
    """Who may run a session. `refusals` counts whom the server does not let in, visitors and strangers as well.

    Its tasks are started by the server's app; all its state changes between two checkpoints.
    """

    config: ServerConfig
    ports: PortPool
    leases: dict[LeaseKey, Lease] = attrs.field(init=False, factory=lambda: {})
    live_limits: LiveLimits = attrs.field(init=False, factory=LiveLimits)
    refusals: RefusalCounters = attrs.field(init=False, factory=RefusalCounters)
    slots: trio.CapacityLimiter = attrs.field(init=False)
    _queue_end: trio.MemorySendChannel[QueuedClient] = attrs.field(init=False)
    _queue_head: trio.MemoryReceiveChannel[QueuedClient] = attrs.field(init=False)
    _queued: dict[LeaseKey, QueuedClient] = attrs.field(init=False, factory=lambda: {})

    def __attrs_post_init__(self) -> None:
        self.slots = trio.CapacityLimiter(self.config.session_limit)
        self._queue_end, self._queue_head = trio.open_memory_channel[QueuedClient](
            self.config.queue_places
        )

    @property
    def queued(self) -> int:
        """How many clients wait."""
        return self._queue_head.statistics().current_buffer_used

    @property
    def waiting(self) -> list[QueuedClient]:
        """Those who have no lease yet, in their order: at the head those who have a slot and wait for ports, then the queue."""
        waiting = [each for each in self._queued.values() if not each.answered]
        return sorted(waiting, key=lambda client: client.position)

    def is_awaited(self, key: LeaseKey) -> bool:
        """Tell whether a client waits for the lease of this key."""
        return key in self._queued

    # -- the client's side, in its connection's own task -------------------------------------------------------------

    async def admit(self, client: QueuedClient) -> Lease:
        """Return a lease that no session uses: the client's own that is still there, or a new one by way of the queue.

        While it waits it is told its position again and again, and listened to.

        Raises:
            RefusedError: the queue is full, the ports cannot be had, or the user has too many sessions.
            PeerError: the client has left, or broke the protocol.
        """
        self.ports.check(client.services, client.limits.visit_ports)
        if len(client.services) > self.config.max_services:
            raise RefusedError(
                RefusalCode.TOO_MANY_SERVICES,
                f"{len(client.services)} services asked for, {self.config.max_services} allowed (MaxServices)",
            )
        self._make_room(client)
        if (rival := self._queued.get(client.key)) is not None:
            self._refuse(
                rival,
                RefusedError(CloseCode.EVICTED, "another connection of this client took its place"),
            )
            self._leave(rival)  # at once: the newcomer may need just that place
        self._queued[client.key] = client
        try:
            lease: Lease | None = None
            with trio.CancelScope() as client.waiting_scope:
                lease = await self._reclaim(client)
            if client.refusal is not None:  # a rival has come meanwhile
                raise client.refusal
            if lease is None:
                lease = await self._wait_in_queue(client)
            lease.services = client.services
            return lease
        except BaseException:
            if client.lease is not None:
                client.lease.give_up()
            raise
        finally:
            self._leave(client)

    def _make_room(self, client: QueuedClient) -> None:
        """See to it that the user has not too many sessions; leases that only stand reserved for it are given up first.

        Raises:
            RefusedError: they are up, or wait in the queue.
        """
        if (most := client.limits.sessions) is None:
            return
        others = {
            key: self.leases.get(key)
            for key in (*self.leases, *self._queued)
            if key[0] == client.key[0] and key != client.key
        }
        vacant = [
            lease
            for key, lease in others.items()
            if lease is not None and not lease.occupied and not self.is_awaited(key)
        ]
        present = len(others) - len(vacant)
        if present >= most:
            raise RefusedError(
                RefusalCode.TOO_MANY_SESSIONS,
                f"this account has all the sessions that it may have at once ({most})",
            )
        reserved = [lease for lease in vacant if not lease.given_up]
        for lease in reserved[: max(0, present + len(reserved) + 1 - most)]:
            lease.give_up()

    async def _reclaim(self, client: QueuedClient) -> Lease | None:
        """Evict the client's session that is still up, if any, and return its lease; None where there is none for it."""
        newcomer = f"a new connection of the same client ({client.client_name})"
        while (lease := self.leases.get(client.key)) is not None:
            allowed = client.limits.visit_ports
            if lease.given_up or not lease.serves(client.services, allowed):
                lease.give_up()
                await lease.wait_vacant(newcomer)
                await trio.lowlevel.checkpoint()  # its keeper gives the ports back
                continue
            await lease.wait_vacant(newcomer)
            if not lease.released and not lease.given_up:
                return lease
        return None

    async def _wait_in_queue(self, client: QueuedClient) -> Lease:
        try:
            self._queue_end.send_nowait(client)
        except trio.WouldBlock:
            self.refusals.counts[Bound.QUEUE] += 1
            raise RefusedError(
                RefusalCode.FULL,
                f"all {self.config.session_limit} sessions are taken and {self.config.queue_places} clients wait already",
            ) from None
        self._renumber()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.listen, name="listen to the queued client")
            with trio.move_on_after(_QUEUED_AFTER):
                await client.wait_answer()
            told = 0
            while not client.answered:
                if client.position != told:
                    told = client.position
                    log.info("client queued", position=told)
                await client.say_position()
                with trio.move_on_after(QUEUE_INTERVAL):
                    await client.wait_news()
            nursery.cancel_scope.cancel("the client has its answer")
        if client.refusal is not None:
            raise client.refusal
        assert client.lease is not None  # noqa: S101 - the loops above end with one of the two
        return client.lease

    def _leave(self, client: QueuedClient) -> None:
        """Out of the queue, wherever in it."""
        client.left = True
        if self._queued.get(client.key) is client:
            del self._queued[client.key]
        if client.waiting_scope is not None:
            client.waiting_scope.cancel("the client has left")
        self._renumber()

    def _renumber(self) -> None:
        """Take the queue apart and put it together again without those who left; tell the others where they stand now.

        There is no checkpoint in it, so nobody sees the queue apart.
        """
        waiting: list[QueuedClient] = []
        with suppress(trio.WouldBlock):
            while True:
                waiting.append(self._queue_head.receive_nowait())
        position = 0
        for client in waiting:
            if not client.left:
                position += 1
                self._queue_end.send_nowait(client)
                if client.position != position:
                    client.position = position
                    client.tell()

    # -- the server's side -------------------------------------------------------------------------------------------

    async def dispatch(self, keepers: trio.Nursery) -> None:
        """Let clients in, one after another, for ever; the tasks that keep the leases run in `keepers`."""
        while True:
            slot = object()
            await self.slots.acquire_on_behalf_of(slot)
            try:
                client = await self._queue_head.receive()
                self._renumber()
                lease = await self._lend_ports(client)
            except BaseException:
                self.slots.release_on_behalf_of(slot)
                raise
            if lease is None:
                self.slots.release_on_behalf_of(slot)
                continue
            self.leases[lease.key] = lease
            keepers.start_soon(
                self._keep, lease, slot, name=f"lease {PORTS.write(lease.port_numbers)}"
            )
            client.lease = lease
            client.tell()

    async def _lend_ports(self, client: QueuedClient) -> Lease | None:
        if client.has_left():
            return None
        ports: tuple[VisitPort, ...] = ()
        try:
            with trio.CancelScope() as client.waiting_scope:
                ports = await self.ports.take(
                    client.services, client.key, client.limits.visit_ports
                )
        except RefusedError as refusal:
            self._refuse(client, refusal)
        if client.has_left():  # perhaps in the very moment in which the ports became free
            self.ports.give_back(ports)
            return None
        user_limits = self.live_limits.take(client.key[0], client.limits)
        queue = VisitorQueue(
            self.config.max_waiting_visitors, self.config.max_visitors, user_limits, self.refusals
        )
        return Lease(client.key, ports, queue)

    def _refuse(self, client: QueuedClient, refusal: RefusedError) -> None:
        client.refusal = refusal
        client.lease = None  # one that was granted in this very moment is its rival's
        client.left = True
        client.tell()

    async def _keep(self, lease: Lease, slot: object) -> None:
        """Hold slot and ports as long as the lease lasts."""
        try:
            await lease.wait_end(self.config.port_reservation)
        finally:
            lease.released = True
            lease.visitors.close("the port was given back")
            self.live_limits.give_back(lease.visitors.user_limits)
            self.ports.give_back(lease.ports)
            self.slots.release_on_behalf_of(slot)
            del self.leases[lease.key]
            log.info("ports are free again", ports=lease.port_numbers, user=lease.key[0])

    async def expire_visitors(self) -> None:
        """Dismiss visitors that waited too long, for ever."""
        while True:
            await trio.sleep(min(0.5, self.config.visitor_wait / 4))
            for lease in self.leases.values():
                lease.visitors.expire(trio.current_time() - self.config.visitor_wait)

    def send_away(self, user: str, refusal: RefusedError) -> tuple[int, tuple[int, ...]]:
        """Refuse a user's clients that wait, and keep no ports for it; return how many waited, and which ports those were."""
        waiting = [each for key, each in self._queued.items() if key[0] == user]
        for client in waiting:
            self._refuse(client, refusal)
        reserved: list[int] = []
        for key, lease in self.leases.items():
            if key[0] == user and not lease.occupied:
                if lease.vacant_since is not None:
                    reserved += lease.port_numbers
                lease.give_up()
        return len(waiting), tuple(reserved)

    def drain(self) -> None:
        """The server stops: nobody waits any more, and a lease ends with its session."""
        refusal = RefusedError(RefusalCode.DRAINING, "the server stops")
        for client in list(self._queued.values()):
            self._refuse(client, refusal)
        for lease in self.leases.values():
            if not lease.occupied:
                lease.give_up()

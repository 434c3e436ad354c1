"""From an authenticated client to a lease: the queue, and the way back to a lease that is still there.

Who is next: the client that has waited longest, if there is a slot and as many free ports as it has services. One with more services
than ports are free may be overtaken by those behind it. So that this cannot go on for ever, it is overtaken for
`OVERTAKEN_FOR` seconds only; for as long again, ports that become free are kept for it; then it may be overtaken again,
since the ports that it still lacks may be in use for days.

Everything about the queue is decided in one function, `_assign`, in one task, which has no checkpoint where the registry is in this process. Where it is
not, one client at a time is claimed for, so that nobody is overtaken meanwhile; all others hear where they stand, and are heard when they leave.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import RefusedError
from trionat.log import get_logger
from trionat.protocol.messages import QUEUE_INTERVAL, RefusalCode
from trionat.server.refusals import Bound
from trionat.server.registry.claim import TakenError, group_key

if TYPE_CHECKING:
    from trionat.address import TCPAddress
    from trionat.config.server import ServerConfig
    from trionat.server.admission.lease import Lease
    from trionat.server.admission.leases import Leases
    from trionat.server.admission.queued_client import QueuedClient
    from trionat.server.visitors.ports import LeaseKey, PointId

log = get_logger(__name__)

QUEUED_AFTER: Final = 0.05
"""Seconds after which a client is told that it is queued: most are let in within a few scheduling steps."""

OVERTAKEN_FOR: Final = 60.0
"""Seconds for which a client that wants more ports than are free is overtaken, and then is not. Chosen, not measured."""

_LOOK_AGAIN: Final = 1.0
"""Seconds between two looks at whose turn it is, while anybody waits."""


def others_than(own: TCPAddress, config: ServerConfig) -> tuple[TCPAddress, ...]:
    """Return the servers that clients of this one may go to; it may be configured with the same list as the others."""
    return tuple(address for address in config.other_servers if address != own)


@attrs.define(eq=False)
class Admission:
    """Who may run a session. `run` has to run. `draining` is set by `drain`, `is_closed` by `close`.

    `elsewhere` are the other servers that are named to those who are not let in, or have to go.
    """

    config: ServerConfig
    leases: Leases
    draining: trio.Event = attrs.field(init=False, factory=trio.Event)
    elsewhere: tuple[TCPAddress, ...] = ()
    is_closed: bool = attrs.field(init=False, default=False)
    _present: dict[LeaseKey, QueuedClient] = attrs.field(init=False, factory=lambda: {})
    _queue: list[QueuedClient] = attrs.field(init=False, factory=lambda: [])

    def take_config(self, config: ServerConfig, elsewhere: tuple[TCPAddress, ...]) -> None:
        """These count from now on."""
        self.config, self.elsewhere = config, elsewhere
        self.leases.changed.notify()

    @property
    def queue(self) -> tuple[QueuedClient, ...]:
        """Those who wait, in their order."""
        return tuple(self._queue)

    def is_awaited(self, key: LeaseKey) -> bool:
        """Tell whether a client is here for the lease of this key."""
        return key in self._present

    # -- the client's side, in its connection's own task -------------------------------------------------------------

    async def admit(self, client: QueuedClient) -> Lease:
        """Return a lease that no session uses: the client's own that is still there, or a new one by way of the queue.

        While it waits it is told its position again and again, and listened to. The caller occupies the lease before its next
        checkpoint, or gives it up.

        Raises:
            RefusedError: the queue is full, the ports cannot be had, the user has too many sessions, or the group says otherwise who may visit.
            PeerError: the client has left, or broke the protocol.
        """
        try:
            return await self._admit(client)
        except BaseException:
            await self.leases.take_back(client)  # noqa: ASYNC102 - shielded there, for a while
            raise

    async def _admit(self, client: QueuedClient) -> Lease:
        if self.is_closed:
            await self._check_back(client)
        self._check(client)
        if (rival := self._present.get(client.key)) is not None:
            self._leave(rival)  # at once: the newcomer may need just that place
            text = "another connection of this client took its place"
            rival.refuse(RefusedError(RefusalCode.EVICTED, text))
        self._present[client.key] = client
        try:
            lease: Lease | None = None
            with client.reclaiming:
                lease = await self.leases.reclaim(client)
                if lease is None and client.refusal is None:
                    await self._come_over(client)
            if lease is None and client.refusal is None:
                if self.is_closed:  # by now
                    raise self._drained()
                lease = await self._wait_in_queue(client)
                while lease is not None and lease.given_up:
                    # In the moment in which it was granted: its port was taken away, or another process has it.
                    client.lease = None
                    if self.is_closed:
                        raise self._drained()
                    self._check(client)
                    lease = await self._wait_in_queue(client)
                await self.leases.take_back(client)  # what it was about to have instead
            if client.refusal is not None:  # perhaps a rival has come meanwhile
                raise client.refusal
            assert lease is not None  # noqa: S101 - a client is answered by a lease or a refusal
            lease.check_services(client.services)
            lease.take_services(client.services)
            return lease
        except BaseException:
            if client.lease is not None:
                client.lease.give_up("the client has left")
            raise
        finally:
            self._leave(client)

    async def _come_over(self, client: QueuedClient) -> None:
        """Send the client to the process that has its lease, and the visitors that wait there, or its group, if another one does.

        Where it cannot be sent, that process has to give up the lease; a group stays where it is.

        Raises:
            RefusedError: it is sent there, or nobody can be asked now.
        """
        registry = self.leases.registry
        holder = await registry.holder(client.key)
        if holder is not None:
            self._send_over(client, holder)
        await self._come_to_group(client)
        if holder is not None:
            reason = f"the same client has come to another process ({client.client_name})"
            await registry.evict(client.key, reason)

    async def _come_to_group(self, client: QueuedClient) -> None:
        """Send the client to the process that has its group, if another one does.

        Raises:
            RefusedError: it is sent there or has to go there by itself, or nobody can be asked now.
        """
        user, registry = client.key[0], self.leases.registry
        if client.group is None or self.leases.groups.find(user, client.group) is not None:
            return
        if (holder := await registry.holder(group_key(user, client.group))) is None:
            return
        if not await registry.is_there(holder):
            return  # it waits for what that one has left
        if not registry.is_route(holder):
            text = f"the group {client.group} is at another node of this cluster ({holder})"
            raise RefusedError(RefusalCode.PORT_TAKEN, text)
        text = f"another process of this server has the group {client.group}"
        if client.follows_routes:
            raise RefusedError(RefusalCode.MOVED, text, route=holder)
        text += ", and this client cannot be sent there: update it"
        raise RefusedError(RefusalCode.PORT_TAKEN, text)

    def _send_over(self, client: QueuedClient, holder: str) -> None:
        """Raise the refusal that sends the client to another process of this server, if `holder` is one and the client can be sent."""
        if client.follows_routes and self.leases.registry.is_route(holder):
            text = "another process of this server has what is kept for this client"
            raise RefusedError(RefusalCode.MOVED, text, route=holder)

    async def _check_back(self, client: QueuedClient) -> None:
        """This server is drained: only a client comes back that was lost, and has something here. One that is up here is to be up elsewhere.

        Raises:
            RefusedError: anybody else; one that has something at another process of this server is sent there, and that one decides.
        """
        lease = self.leases.by_key.get(client.key)
        if lease is not None and not lease.occupied and not lease.given_up:
            return
        if lease is None:
            try:
                holder = await self.leases.registry.holder(client.key)
            except RefusedError:  # nobody can be asked now
                holder = None
            if holder is not None:
                self._send_over(client, holder)
        raise self._drained()

    def _drained(self) -> RefusedError:
        text = "the server is drained: go to another one"
        return RefusedError(RefusalCode.DRAINING, text, servers=self.elsewhere)

    def _check(self, client: QueuedClient) -> None:
        """Refuse what waiting would not help, and give up leases that only stand reserved for a user who has too many.

        Raises:
            RefusedError: the client asks for what this server does not have, or what its user may not have (now).
        """
        client.services = self.leases.check_services(client, client.services)
        if (most := client.limits.sessions) is None:
            return
        user = client.key[0]
        present = {key for key in self._present if key[0] == user}
        reserved: list[Lease] = []
        for lease in self.leases.of_user(user):
            if lease.occupied or lease.key in present:
                present.add(lease.key)
            else:
                reserved.append(lease)
        present.discard(client.key)
        if len(present) >= most:
            raise RefusedError(
                RefusalCode.TOO_MANY_SESSIONS,
                f"this account has all the sessions that it may have at once ({most})",
            )
        others = [lease for lease in reserved if lease.key != client.key]
        for lease in others[: max(0, len(present) + len(others) + 1 - most)]:
            lease.give_up("this user has another session instead")

    async def _wait_in_queue(self, client: QueuedClient) -> Lease | None:
        """Wait until the client is answered; return its lease, or None where it was refused."""
        self._queue.append(client)
        self._renumber()
        self.leases.changed.notify()  # so that `run` looks whose turn it is
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.listen, name="listen to the queued client")
            with trio.move_on_after(QUEUED_AFTER):
                await client.wait_answer()
            told = 0
            while not client.answered:
                if client.position != told:
                    told = client.position
                    log.info("client queued", position=told)
                await client.send_position()
                with trio.move_on_after(QUEUE_INTERVAL):
                    await client.wait_news(told)
            nursery.cancel_scope.cancel("the client has its answer")
        return client.lease

    def _leave(self, client: QueuedClient) -> None:
        if self._present.get(client.key) is client:
            del self._present[client.key]
        if client in self._queue:
            self._queue.remove(client)
            self._renumber()
        self.leases.changed.notify()

    # -- the server's side -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Let clients in as slots and ports become free, and release leases that nobody came back for; for ever.

        When it is cancelled, all leases end. Those at rest are let go of: another process may go on with them.
        """
        try:
            while True:
                for lease in self.leases:
                    if not self.is_awaited(lease.key):
                        self.leases.expire(lease)
                await self._assign()
                with trio.CancelScope(deadline=self._next_moment()):
                    await self.leases.changed.wait()
        finally:
            if self.leases.is_at_rest:
                self.leases.let_go()
            for lease in self.leases:
                self.leases.release(lease, "the server stops")

    def _next_moment(self) -> float:
        """Return when a lease expires, or whose turn it is may change, without anything else happening."""
        moments = [
            self.leases.expires_at(lease) for lease in self.leases if not self.is_awaited(lease.key)
        ]
        if self._queue:
            moments.append(trio.current_time() + _LOOK_AGAIN)
        return min(moments, default=float("inf"))

    async def _assign(self) -> None:
        """Give leases to those whose turn it is, and refuse those for whom there is no place to wait; see the module."""
        looked_at = self.queue
        try:
            kept = False  # the ports that are free, for a client that needs more
            for client in looked_at:
                may_take = not kept and self.leases.has_room(client.key)
                if (may_take or client.group is not None) and not await self._assign_to(
                    client, may_take=may_take
                ):
                    kept = True
        finally:
            self._queue = [client for client in self._queue if not client.answered]
            self._renumber()
        for client in looked_at:
            if self._waits(client) and client.position > self.config.queue_places:
                self._refuse_full(client)

    def _refuse_full(self, client: QueuedClient) -> None:
        self.leases.refusals.counts[Bound.QUEUE] += 1
        text = f"all {self.config.session_limit} sessions are taken and {self.config.queue_places} clients wait already"
        client.refuse(RefusedError(RefusalCode.FULL, text))

    async def _assign_to(self, client: QueuedClient, *, may_take: bool) -> bool:
        """Give the client its lease, if it can have one now; tell whether it is the turn of those behind it as well.

        Unless it `may_take` a slot and ports, it can have those of its group only.
        """
        if not self._waits(client):
            return True
        try:
            if not (may_take or await self.leases.joins(client)):
                return True
            lease = await self._grant(client)
        except RefusedError as refusal:
            client.refuse(refusal)
            return True
        finally:
            # It has left, and does not do it itself.
            if self._present.get(client.key) is not client:
                await self.leases.take_back(client)  # noqa: ASYNC102 - shielded there, for a while
        if lease is None:
            # Every other time, the ports that are free are kept for it.
            return not (trio.current_time() - client.since) // OVERTAKEN_FOR % 2
        if self._waits(client):
            client.grant(lease)
        else:  # it has left meanwhile
            lease.give_up("the client has left")
        return True

    async def _grant(self, client: QueuedClient) -> Lease | None:
        try:
            return await self.leases.grant(client)
        except TakenError:
            await self._come_over(client)
            return None

    def _waits(self, client: QueuedClient) -> bool:
        return self._present.get(client.key) is client and not client.answered

    def _renumber(self) -> None:
        for position, client in enumerate(self._queue, 1):
            if client.position != position:
                client.position = position
                client.changed.notify()

    def send_away(self, user: str, refusal: RefusedError) -> tuple[int, tuple[PointId, ...]]:
        """Refuse a user's clients that wait, and keep no ports and names for it; return how many waited, and which ones those were."""
        waiting = [client for key, client in self._present.items() if key[0] == user]
        for client in waiting:
            client.refuse(refusal)
        reserved: dict[PointId, None] = {}
        for lease in self.leases.of_user(user):
            if not lease.occupied:
                reserved |= dict.fromkeys(lease.point_ids)
                lease.give_up(refusal.text)
        return len(waiting), tuple(reserved)

    def close(self) -> None:
        """The server is drained: nobody new is let in, and who waits is refused, and told of other servers. Sessions go on. Idempotent."""
        self.is_closed = True
        for client in self.queue:
            client.refuse(self._drained())

    def drain(self) -> None:
        """The server stops, and its visit ports are closed: nobody waits any more, a lease ends with its session, and sessions are told."""
        self.draining.set()
        for client in list(self._present.values()):
            client.refuse(
                RefusedError(RefusalCode.DRAINING, "the server stops", servers=self.elsewhere)
            )
        for lease in self.leases:
            if not lease.occupied:
                lease.give_up("the server stops")

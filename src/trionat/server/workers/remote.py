"""What a worker asks its parent: the registry, and whether a login is valid; and what it tells of its sessions."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import RefusedError
from trionat.log import get_logger
from trionat.protocol.messages import RefusalCode
from trionat.server.accounts.credential import write_credential
from trionat.server.admission.authenticator import Authenticator
from trionat.server.registry.claim import TakenError
from trionat.server.registry.registry import Registry
from trionat.server.registry.values import read_claim, write_wish
from trionat.server.visitors.acceptor import Elsewhere
from trionat.server.workers.link import LinkLostError
from trionat.server.workers.purpose import HANDED_BACK
from trionat.server.workers.values import (
    read_identity,
    read_reservation,
    write_addresses,
    write_reservation,
)
from trionat.transport.endpoint import SocketEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Generator, Sequence

    from trionat.server.accounts.name_owners import Reservation
    from trionat.server.admission.authenticator import Identity
    from trionat.server.events.event import Happening
    from trionat.server.registry.claim import Claim, Wish
    from trionat.server.sessions.session import Session
    from trionat.server.visitors.ports import LeaseKey
    from trionat.server.visitors.visitor import Visitor
    from trionat.server.workers.link import Link, Values

log = get_logger(__name__)


async def _ask(
    link: Link, question: Values, late: Callable[[Values], None] = lambda _: None
) -> Values:
    """Ask the parent; one that is gone is a refusal for now: this process is about to end as well."""
    try:
        return await link.ask(question, late)
    except LinkLostError as error:
        raise RefusedError(RefusalCode.STORE_UNAVAILABLE, "the server restarts") from error


@attrs.define(eq=False)
class RemoteRegistry(Registry):
    """See `Registry`. `free_slots` and `free_ports` are what the parent has told last.

    `on_claimed` and `on_released` are called with the claims that begin and end here. `ports` are the visit ports that this process knows of.
    """

    link: Link
    word: str
    on_claimed: Callable[[Claim], None] = attrs.field(kw_only=True, default=lambda _: None)
    on_released: Callable[[Claim], None] = attrs.field(kw_only=True, default=lambda _: None)
    ports: Container[int] = attrs.field(kw_only=True)
    _free_slots: int = attrs.field(init=False, default=0)
    _free_ports: int = attrs.field(init=False, default=0)
    _routes: set[str] = attrs.field(init=False, factory=lambda: set())

    @property
    def free_slots(self) -> int:
        """See `Registry`."""
        return self._free_slots

    def is_route(self, holder: str) -> bool:
        """See `Registry`."""
        return holder in self._routes

    def note_room(self, slots: int, ports: int, *, again: bool = False) -> None:
        """The parent has told how much is free by now; with `again`, what was refused may succeed, however much that is."""
        more = again or slots > self._free_slots or ports > self._free_ports
        self._free_slots, self._free_ports = slots, ports
        if more:
            self.on_free()

    async def holder(self, key: LeaseKey) -> str | None:
        """See `Registry`."""
        answer = await _ask(self.link, {"what": "holder", "key": key})
        holder: str | None = answer["holder"]
        if answer["is_route"] and holder is not None:
            self._routes.add(holder)  # one of the other workers
        return holder

    async def is_there(self, holder: str) -> bool:
        """See `Registry`."""
        if self.is_route(holder):
            return True  # else the parent would not have named it
        answer = await _ask(self.link, {"what": "is there", "holder": holder})
        return bool(answer["is_there"])

    async def claim(self, wish: Wish) -> Claim | None:
        """See `Registry`. Where too few ports are free for it, nobody is asked, unless it may share those of a group."""
        if wish.group is None and self._free_ports < wish.ports_wanted:
            await trio.lowlevel.checkpoint()
            return None
        answer = await _ask(self.link, {"what": "claim", "wish": write_wish(wish)}, self._too_late)
        if (holder := answer.get("taken")) is not None:
            raise TakenError(holder)
        if answer["claim"] is None:
            return None
        claim = read_claim(answer["claim"])
        self.on_claimed(claim)
        if not all(port in self.ports for port in claim.ports):
            self.release(claim)  # it was granted before a port was taken away, and read behind that
            return None
        return claim

    def _too_late(self, answer: Values) -> None:
        if answer.get("claim") is not None:
            claim = read_claim(answer["claim"])
            self.on_claimed(claim)
            self.release(claim)

    def release(self, claim: Claim) -> None:
        """See `Registry`."""
        self.on_released(claim)
        self.link.post({"what": "release", "key": claim.key, "fence": claim.fence})

    def occupy(self, claim: Claim, *, occupied: bool) -> None:
        """See `Registry`."""
        self.link.post(
            {"what": "occupy", "key": claim.key, "fence": claim.fence, "occupied": occupied}
        )

    async def evict(self, key: LeaseKey, reason: str) -> None:
        """See `Registry`."""
        await _ask(self.link, {"what": "evict", "key": key, "reason": reason})


@attrs.define(eq=False)
class RemoteNameOwners:
    """Has the parent ask whose names are; see `NameOwners`."""

    link: Link

    async def reserve(self, user: str, account_id: int, names: Sequence[str]) -> Reservation:
        """See `NameOwners`."""
        question = {"user": user, "account_id": account_id, "names": list(names)}
        answer = await _ask(self.link, {"what": "reserve names", **question})
        return read_reservation(answer["reservation"])

    async def take_back(self, reservation: Reservation) -> None:
        """See `NameOwners`."""
        question = {"what": "take back names", "reservation": write_reservation(reservation)}
        with suppress(RefusedError):  # the parent is gone
            await _ask(self.link, question)


@attrs.define(eq=False)
class HandBack(Elsewhere):
    """Hands visitors back to the parent, which is a node and knows who has their port by now."""

    link: Link

    def takes(self, point: int | str) -> bool:
        """See `Elsewhere`. The parent finds out."""
        return True

    def forward(self, visitor: Visitor) -> None:
        """See `Elsewhere`."""
        assert isinstance(visitor.endpoint, SocketEndpoint), "a worker has no others"  # noqa: S101 - for type checkers
        about = write_addresses(visitor.address, visitor.visited)
        self.link.pass_on(HANDED_BACK, visitor.endpoint.detach(), about)
        visitor.gone()


@attrs.define(eq=False)
class RemoteAuthenticator(Authenticator):
    """Has the parent check logins: it has the accounts, and knows who has failed where."""

    link: Link

    async def authenticate(
        self,
        host: str,
        username: str,
        *,
        password: str | None,
        token: bytes | None,
        caveats: tuple[str, ...] = (),
    ) -> Identity:
        """See `Authenticator`."""
        answer = await _ask(
            self.link,
            {
                "what": "authenticate",
                "host": host,
                "username": username,
                "password": password,
                "token": None if token is None else token.hex(),
                "caveats": caveats,
            },
        )
        return read_identity(answer["identity"])


@attrs.define(eq=False)
class SessionReports:
    """Tells the parent of sessions that begin and end, and how much they have relayed."""

    link: Link

    @contextmanager
    def accounted(self, session: Session) -> Generator[None]:
        """See `Sessions.accounted`."""
        self.link.post(
            {
                "what": "up",
                "uid": session.uid,
                "username": session.username,
                "account_id": session.account_id,
                "credential": write_credential(session.credential),
                "host": session.address.host,
                "key": session.lease.key,
            }
        )
        try:
            yield
        finally:
            relayed = session.tunnels.relayed
            self.link.post({"what": "down", "uid": session.uid, "relayed": relayed})


@attrs.define(eq=False)
class EventReports:
    """Tells the parent what happens here."""

    link: Link

    def tell(self, happening: Happening) -> None:
        """See `Hub.forward`."""
        type_, data = happening
        self.link.post({"what": "event", "type": type_, "data": data})

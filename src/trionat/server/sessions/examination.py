"""Visiting a client's service as somebody from outside would, because the client asks (`trionat doctor`).

Only the server's own public address is dialled, and there only the visit ports of the client's own services. Of what answers the client is
told no more than whether it is its service. Whether other services would be let in is told as well, and nobody gets anything.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.protocol.fields import NAME_CHARACTERS
from trionat.protocol.messages import Examine, Examined
from trionat.signals import Signal
from trionat.transport.visit import visit
from trionat.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from trionat.protocol.messages import ServiceRequest
    from trionat.server.visitors.ports import VisitPoint

PATIENCE: Final = 5.0
"""Seconds for one visit, from the lookup of the name to the token. Chosen: TCP has asked three times by then."""

_PAUSE: Final = 1.0
"""Seconds between two visits for one client."""

_NO_PORT: Final = "the service is at a name, and has no visit port"
_IS_GONE: Final = "the service was taken away"

_SOFTWARE: Final = f"trionat {VERSION}"


@attrs.define(eq=False)
class Examination:
    """Visits services of one client, one at a time, while `run` runs; asked again for one that waits, it takes the newer token.

    `client` is the address at which the client is seen, `expires_at` (aware) when its login is void; None: never. `find` tells where a service
    is, just before it is visited: None where it has been taken away meanwhile, and its port may be somebody else's. `refusal_of` tells why
    services would be refused, if they would.
    """

    public_host: str
    client: TCPAddress
    find: Callable[[int], VisitPoint | None]
    expires_at: datetime | None = None
    refusal_of: Callable[[tuple[ServiceRequest, ...]], str] = lambda _: ""
    _waiting: dict[int, Examine] = attrs.field(init=False, factory=lambda: {})
    _wanted: Examine | None = attrs.field(init=False, default=None)  # one alone: it may be large
    _asked: Signal = attrs.field(init=False, factory=Signal)

    def ask(self, question: Examine) -> None:
        """Visit a service soon."""
        if question.wanted:
            self._wanted = question
        self._waiting[question.service] = attrs.evolve(question, wanted=())
        self._asked.notify()

    async def run(self, tell: Callable[[Examined, int], None]) -> None:
        """Visit, and `tell` what came of it and of which service, until cancelled."""
        while True:
            while not self._waiting:
                await self._asked.wait()
            question = self._waiting.pop(next(iter(self._waiting)))
            refusal: str | None = None
            if self._wanted is not None and self._wanted.service == question.service:
                refusal, self._wanted = self.refusal_of(self._wanted.wanted), None
            point = self.find(question.service)
            if point is None:
                address, failure = TCPAddress(self.public_host, 0), _IS_GONE
            elif isinstance(point.id, int):
                address = TCPAddress(self.public_host, point.id)
                failure = await visit(address, question.token.encode(), PATIENCE)
            else:  # where a name leads is its client's to choose: nobody is to be dialled for that
                address, failure = TCPAddress(self.public_host, 0), _NO_PORT
            answer = Examined(
                service=question.service,
                dialled=str(address),
                answered=not failure,
                failure=failure[:NAME_CHARACTERS],
                time=time.time(),
                client=str(self.client),
                software=_SOFTWARE,
                expires=None if self.expires_at is None else self.expires_at.timestamp(),
                refusal=refusal,
            )
            tell(answer, question.service)
            await trio.sleep(_PAUSE)

"""A connection that no session has yet, from its first message on; what is the same in all dialects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs
import trio

from trionat.errors import PeerError, RefusedError
from trionat.log import bind_context, get_logger
from trionat.protocol.messages import RefusalCode
from trionat.transport.deadline import deadline
from trionat.transport.endpoint import close_after_last_words
from trionat.transport.isolation import leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from trionat.address import TCPAddress
    from trionat.server.admission.authenticator import Identity
    from trionat.server.admission.lease import Lease
    from trionat.server.admission.queued_client import QueuedClient
    from trionat.server.control.context import ServerContext
    from trionat.server.sessions.session import Session
    from trionat.transport.endpoint import Endpoint

log = get_logger(__name__)

# How long a peer that we are done with may take to read our last words.
_LAST_WORDS = 1.0


@attrs.define(eq=False)
class Login(ABC):
    """Finds out whose connection it is. Owns the endpoint until a session has taken it over.

    `identified` is called as soon as that is clear and all is said that a client has to say: until then it counts as a handshake,
    which may be ended to make room for others. That cancels `scope`, and the endpoint is closed at once then, without last words:
    nothing was said yet, and the others need its descriptor.
    """

    context: ServerContext
    endpoint: Endpoint
    address: TCPAddress
    identified: Callable[[], None]
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def serve(self) -> None:
        """Serve a control connection until it ends, a tunnel until its session has it.

        Raises:
            PeerError: as a group or bare; what the peer did.
        """
        taken_over = False
        refusals: list[RefusedError] = []
        try:
            taken_over = await self._hear()
        except* RefusedError as group:
            refusals = [error for error in leaves(group) if isinstance(error, RefusedError)]
            raise
        finally:
            if not taken_over and self.scope.cancel_called:
                self.endpoint.close()
            elif not taken_over:
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await self._tell(refusals)
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await close_after_last_words(self.endpoint)

    @abstractmethod
    async def _hear(self) -> bool:
        """Do what the first message asks for; tell whether a session has taken the endpoint over, as a tunnel."""

    @abstractmethod
    async def _refuse(self, refusal: RefusedError) -> None:
        """Tell the peer why it is sent away."""

    async def _tell(self, refusals: Iterable[RefusedError]) -> None:
        try:
            for refusal in refusals:
                await self._refuse(refusal)
        except PeerError:
            log.debug("the peer did not hear the refusal")

    def _deadline(self, what: str) -> AbstractContextManager[None]:
        seconds = self.context.config.handshake_timeout
        return deadline(seconds, f"the peer did not finish {what} within {seconds:g} s")

    async def _log_in(
        self,
        username: str,
        *,
        password: str | None,
        token: bytes | None = None,
        caveats: tuple[str, ...] = (),
    ) -> Identity:
        """Return as whom a client is to be let in.

        Raises:
            RefusedError: the credentials open no account, or are not tried, or the server stops.
        """
        bind_context(user=username)
        identity = await self.context.authenticator.authenticate(
            self.address.host, username, password=password, token=token, caveats=caveats
        )
        log.debug(
            "login accepted",
            address=str(self.address),
            credential="ticket" if token is not None else "password",
        )
        bind_context(user=identity.username)
        if self.context.stopping.is_set():
            elsewhere = self.context.admission.elsewhere
            raise RefusedError(RefusalCode.DRAINING, "the server stops", servers=elsewhere)
        return identity

    async def _run_session(
        self, client: QueuedClient, open_session: Callable[[int, Lease], Session]
    ) -> None:
        """Let an authenticated client in when it is its turn, and run its session, made from a uid and a lease, to the end.

        Raises:
            RefusedError: it cannot be let in.
            PeerError: it has left the queue, or broke the protocol there.
        """
        self.identified()
        lease = await self.context.admission.admit(client)
        # No checkpoint in between: the lease must not look vacant to anybody else.
        with self.context.bans.in_use(self.address.host):
            await self.context.sessions.run(lease, open_session)

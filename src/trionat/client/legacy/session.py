"""A client's session at an original server: a control connection on which only the server speaks, and a task for each visitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.client.legacy.visitors import Visitors
from trionat.client.session import Session
from trionat.errors import ConnectionLostError, RefusedError, RemoteProtocolError
from trionat.events import Queued
from trionat.log import get_logger
from trionat.protocol.legacy import (
    AuthFail,
    ConnectionFull,
    LegacyMessage,
    NewConnection,
    Reason,
    Refusal,
    UnknownMessageError,
    UserInformation,
)
from trionat.protocol.messages import RefusalCode
from trionat.transport.deadline import deadline
from trionat.transport.descriptors import room_for_visitors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trionat.client.legacy.dialer import LegacyDialer
    from trionat.relay.stream import VisitorStream
    from trionat.transport.channel import LegacyChannel

log = get_logger(__name__)

# A server with a free slot answers at once; one without says nothing, so this long, in seconds, tells them apart.
_ANSWERS_WITHIN: Final = 2.0

# KEEP_ALIVE comes every second (specification); so many seconds of silence are a server that is gone.
_SILENCE: Final = 8.0


@attrs.define(eq=False, kw_only=True)
class LegacySession(Session):
    """A session without encryption, with one service, and with a new connection for each visitor."""

    server: LegacyDialer
    _visitors: Visitors | None = attrs.field(init=False, default=None)

    def visitors(self) -> Iterator[tuple[int, str, VisitorStream]]:
        """See `Session`."""
        if self._visitors is not None:
            for stream in self._visitors.streams():
                yield 0, "", stream

    async def run(self) -> None:
        """See `Session`."""
        channel = await self.server.log_in()
        try:
            information = await self._wait_until_let_in(channel)
            self._come_up(
                uid=information.uid,
                ports=(information.port,),
                host=self.server.control.host,
                server=self.server.control,
                tunnel=self.server.tunnel,
                username=self.server.credentials.username,
                encrypted=False,
            )
            await self._serve(channel, information)
        finally:
            channel.endpoint.close()

    async def _wait_until_let_in(self, channel: LegacyChannel) -> UserInformation:
        """Wait for a slot, for as long as it takes.

        An original server says nothing to those in its queue, for hours if need be, so there is no deadline: that the server is
        still there is left to the kernel's keepalive (`set_stream_options`), which notices within two minutes.
        """
        try:
            with trio.move_on_after(_ANSWERS_WITHIN):
                return await self._user_information(channel)
            self.tell(Queued(None))
            return await self._user_information(channel)
        except (ConnectionLostError, RemoteProtocolError) as error:
            hint = f"{error}, before the server let us in: does it speak {self.config.dialect}?"
            raise type(error)(hint) from error

    async def _user_information(self, channel: LegacyChannel) -> UserInformation:
        while not isinstance(message := await self._hear(channel), UserInformation):
            log.debug("waiting for a slot", message=type(message).__name__)
        return message

    async def _serve(self, channel: LegacyChannel, information: UserInformation) -> None:
        limit = max(1, room_for_visitors(self.config.max_tunnels))
        visitors = Visitors(self.server, information, self.forwarder, limit)
        self._visitors = visitors
        async with trio.open_nursery() as nursery:
            nursery.start_soon(visitors.sweep, name="sweep")
            nursery.start_soon(self._read, channel, visitors, nursery, name="control reader")
            nursery.start_soon(self.forwarder.check, name="check services")
            if self.looks_after:
                nursery.start_soon(self.forwarder.look_after, name="look after services")
            await self.stopping.wait()
            with trio.move_on_after(self.config.drain_grace):
                await visitors.wait_none()
            nursery.cancel_scope.cancel("the client stops")

    async def _read(
        self, channel: LegacyChannel, visitors: Visitors, nursery: trio.Nursery
    ) -> None:
        while True:
            with deadline(_SILENCE, f"nothing heard from the server for {_SILENCE:g} s"):
                message = await self._hear(channel)
            # The dialect has no word for a planned stop: who comes now waits at the server until that closes the visitor.
            if isinstance(message, NewConnection) and not self.stopping.is_set():
                visitors.admit(nursery)

    async def _hear(self, channel: LegacyChannel) -> LegacyMessage | None:
        """Return the server's next message, or None for one that is not known here.

        Unknown ones are passed over: a frame tells its own length, and the dialect has no version by which a build that sends
        more than others could say so.

        Raises:
            RefusedError: the server does not want us.
            ConnectionLostError, RemoteProtocolError: as `LegacyChannel.receive`.
        """
        try:
            message = await channel.receive()
        except UnknownMessageError as error:
            log.debug("message passed over", reason=str(error))
            return None
        match message:
            case AuthFail():
                text = "authentication failed: wrong user or password, or the account has expired"
                raise RefusedError(RefusalCode.AUTH_FAILED, text)
            case Refusal(reason, text):
                expired = reason is Reason.USER_EXPIRED
                code = RefusalCode.ACCOUNT_EXPIRED if expired else RefusalCode.AUTH_FAILED
                raise RefusedError(code, f"the server refused us: {text} ({reason.name})")
            case ConnectionFull():
                raise RefusedError(RefusalCode.FULL, f"the server is full: {message.TEXT}")
            case _:
                return message

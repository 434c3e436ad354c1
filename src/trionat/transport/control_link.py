"""A control connection in a session, the same at both ends: an outbox, pings, and silence that is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import PeerError
from trionat.log import get_logger
from trionat.protocol.messages import Early, Message, Ping, Pong
from trionat.signals import Signal
from trionat.transport.deadline import deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.transport.channel import Channel

log = get_logger(__name__)

# How long the last message may take; the peer hears the same from the end of the connection.
_LAST_WORD: Final = 1.0

# Messages that leave together, and bytes of visitors in them; a PING waits for no more.
_TOGETHER: Final = 64
_TOGETHER_BYTES: Final = 16 * 1024


@attrs.define(eq=False)
class ControlLink:
    """Sends and receives a session's messages while `run` runs; does not own the channel.

    `peer` is how the log and errors call the other side. Both sides send a PING every `ping_interval` seconds, and whoever
    hears nothing at all for `peer_timeout` seconds gives the other one up. `round_trip` is that of the last PING, in seconds.
    """

    channel: Channel
    peer: str
    ping_interval: float
    peer_timeout: float
    round_trip: float | None = attrs.field(init=False, default=None)
    _ping: Ping = attrs.field(init=False, factory=lambda: Ping(0))
    _ping_sent: float = attrs.field(init=False, default=0.0)
    _outbox: dict[tuple[type[Message], object], Callable[[], Message | None]] = attrs.field(
        init=False, factory=lambda: {}
    )
    _posted: Signal = attrs.field(init=False, factory=Signal)

    async def run(self) -> None:
        """Write what is posted, and ping, until cancelled.

        Raises:
            ConnectionLostError: the connection is gone.
            PeerTimeoutError: the peer does not read: one message took longer than `peer_timeout`.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, name="control writer")
            while True:
                await trio.sleep(self.ping_interval)
                self._ping = Ping(self._ping.number + 1)
                self._ping_sent = trio.current_time()
                self.post(self._ping)

    async def _write(self) -> None:
        complaint = f"{self.peer} does not read its control connection"
        while True:
            while messages := self._take_posted():
                with deadline(self.peer_timeout, complaint):
                    await self.channel.send(*messages)
            await self._posted.wait()

    def _take_posted(self) -> list[Message]:
        messages: list[Message] = []
        count = 0
        while self._outbox and len(messages) < _TOGETHER and count < _TOGETHER_BYTES:
            message = self._outbox.pop(next(iter(self._outbox)))()
            if message is not None:
                messages.append(message)
                count += len(message.data) if isinstance(message, Early) else 0
        return messages

    def post(self, message: Message, about: object = None) -> None:
        """Send a message soon; never blocks.

        Of each kind only the latest waits, so nothing can pile up: an older PONG or DEMAND has nothing to say any more, and
        of the others there is only one. Of those of which there are several, one waits for each thing that they are `about`: whoever
        posts them sees to it that those are few.
        """
        self._outbox[type(message), about] = lambda: message
        self._posted.notify()

    def ask(self, kind: type[Message], make: Callable[[], Message | None]) -> None:
        """Send a message that is made when its turn has come, so that it says all that there is to say then; None: nothing any more."""
        self._outbox[kind, None] = make
        self._posted.notify()

    async def receive(self) -> Message:
        """Return the next message that is neither PING nor PONG.

        Raises:
            PeerTimeoutError: nothing at all was heard for `peer_timeout`.
            ConnectionLostError: the connection is gone.
            RemoteProtocolError: the peer broke the protocol.
        """
        while True:
            with deadline(
                self.peer_timeout, f"nothing heard from {self.peer} for {self.peer_timeout:g} s"
            ):
                message = await self.channel.receive()
            match message:
                case Ping(number):
                    self.post(Pong(number))
                case Pong(number):
                    if number == self._ping.number:
                        self.round_trip = trio.current_time() - self._ping_sent
                case _:
                    return message

    async def say_last(self, message: Message) -> None:
        """Send one more message after `run` has ended, even when cancelled; gives up after a second."""
        if self.channel.cut_short:
            return
        try:
            with trio.move_on_after(_LAST_WORD, shield=True):
                await self.channel.send(message)
        except PeerError:
            log.debug("the last word was not heard", word=message)

"""Control messages over an endpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import attrs
import trio

from trionat.errors import ConnectionLostError
from trionat.log import get_logger
from trionat.protocol import legacy
from trionat.protocol.frames import CONTROL_FRAME_BYTES, Frame, FrameReader
from trionat.protocol.messages import Message, decode_message, encode_message
from trionat.transport.endpoint import TLS_RECORD_BYTES, Endpoint, lost, send_all
from trionat.transport.scratch import scratch

if TYPE_CHECKING:
    from trionat.protocol.dialect import Dialect

AnyMessage = TypeVar("AnyMessage")

log = get_logger(__name__)

# Messages that have come together and are taken before the others get their turn.
_TURN: Final = 16


@attrs.define(eq=False)
class MessageChannel(ABC, Generic[AnyMessage]):
    """One message after another, both ways. Does not own the endpoint: whoever made it closes it.

    One task may send and one receive at a time. Cancelling `receive` loses nothing; cancelling `send` may leave half a frame
    on the wire: then `cut_short` is true, and nothing more may be sent.
    """

    endpoint: Endpoint
    cut_short: bool = attrs.field(init=False, default=False)
    _reader: FrameReader = attrs.field(init=False, factory=FrameReader)
    _in_a_row: int = attrs.field(init=False, default=0)

    @abstractmethod
    def _encode(self, message: AnyMessage) -> bytes:
        """Return the whole frame."""

    @abstractmethod
    def _decode(self, frame: Frame) -> AnyMessage:
        """Return the message in a frame, or raise `RemoteProtocolError`."""

    @property
    def trailing(self) -> bytes:
        """What has arrived behind the last message."""
        return self._reader.trailing

    async def send(self, *messages: AnyMessage) -> None:
        """Send messages, in one piece; where that takes no waiting, they are sent even when cancelled.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        self.cut_short = True
        try:
            await send_all(self.endpoint, b"".join(map(self._encode, messages)))
            self.cut_short = False
        except OSError as error:
            raise lost(error) from error
        for message in messages:  # its kind alone: it may hold a secret
            log.debug("frame sent", frame=type(message).__name__)
        await trio.lowlevel.checkpoint()

    async def receive(self) -> AnyMessage:
        """Return the next message.

        Raises:
            ConnectionLostError: the connection ended, with or without half a frame.
            RemoteProtocolError: the peer broke the protocol; the connection is of no more use.
        """
        self._in_a_row += 1
        if self._in_a_row < _TURN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:  # one chatty peer must not starve the rest
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        # No more than one record at a time: what an unknown peer sends is fed before its frame's bound is looked at.
        room = scratch().incoming[:TLS_RECORD_BYTES]
        while (frame := self._reader.next_frame()) is None:
            try:
                count = self.endpoint.recv_into(room)
            except BlockingIOError:
                await self.endpoint.readable.wait()
            except OSError as error:
                raise lost(error) from error
            else:
                if not count:
                    raise ConnectionLostError("the peer closed the connection")
                self._reader.feed(room[:count])
        message = self._decode(frame)
        log.debug("frame received", frame=type(message).__name__)
        return message


class Channel(MessageChannel[Message]):
    """The messages of the native dialect."""

    def allow_control_frames(self) -> None:
        """Raise the bound of a frame from 4 KiB to 64 KiB, now that the peer is known."""
        self._reader.limit = CONTROL_FRAME_BYTES

    def _encode(self, message: Message) -> bytes:
        return encode_message(message)

    def _decode(self, frame: Frame) -> Message:
        return decode_message(frame)


class LegacyChannel(MessageChannel[legacy.LegacyMessage]):
    """The messages of a legacy dialect, none of which needs more than the 4 KiB of a first frame."""

    def __init__(self, endpoint: Endpoint, dialect: Dialect) -> None:
        super().__init__(endpoint)
        self._dialect = dialect
        self._reader.header = legacy.HEADERS[dialect]

    def _encode(self, message: legacy.LegacyMessage) -> bytes:
        return legacy.encode(message, self._dialect)

    def _decode(self, frame: Frame) -> legacy.LegacyMessage:
        return legacy.decode(frame, self._dialect)

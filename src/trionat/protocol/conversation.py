"""The rules of a tunnel: who may send what, and when a visitor is done with. `protocol.tunnel_frames` has the frames."""

from __future__ import annotations

import enum

import attrs

from trionat.errors import LocalProtocolError, RemoteProtocolError


class Side(enum.Enum):
    """Which end of the tunnel we are: only the server opens and probes."""

    SERVER = "server"
    CLIENT = "client"


@attrs.define(eq=False)
class Conversation:
    """The rules of a tunnel, as seen from one side.

    Knows nothing of bytes or sockets. `open` is called before OPEN is sent, `sent_end` and `sent_abort` when the last byte of
    END or ABORT has left (until then nobody else may write); they raise `LocalProtocolError` where we break the protocol.
    `receive_*` are called when the peer's frame arrives, and raise `RemoteProtocolError` where it broke it.

    A stream that is resumed begins with what both sides have of it already: an END that the peer has is not said again. Nobody says anything else
    about it while it is `resuming`: between RESUME and its answer.
    """

    side: Side
    visitor: int | None = attrs.field(init=False, default=None)
    sent_last: bool = attrs.field(init=False, default=False)
    received_last: bool = attrs.field(init=False, default=False)
    aborted: bool = attrs.field(init=False, default=False)
    resuming: bool = attrs.field(init=False, default=False)
    _previous: int | None = attrs.field(init=False, default=None)

    @property
    def idle(self) -> bool:
        """Whether there is no visitor."""
        return self.visitor is None

    @property
    def unused(self) -> bool:
        """Whether there was never any visitor."""
        return self.visitor is None and self._previous is None

    @property
    def over(self) -> bool:
        """Whether both sides have said their last word about the current visitor, so that `finish` must be called."""
        return self.visitor is not None and self.sent_last and self.received_last

    @property
    def may_abort(self) -> bool:
        """Whether an ABORT of ours would still tell the peer something: the first one, or the answer to its own."""
        return (
            self.visitor is not None
            and not self.over
            and not self.resuming
            and not (self.aborted and self.sent_last)
        )

    @property
    def previous(self) -> int | None:
        """The visitor before the current one."""
        return self._previous

    def _begin(self, visitor: int) -> None:
        self.visitor = visitor
        self.sent_last = self.received_last = self.aborted = self.resuming = False

    def finish(self) -> None:
        """Be idle again."""
        if not self.over:
            raise LocalProtocolError("a conversation was finished before it was over")
        self._previous, self.visitor = self.visitor, None

    def open(self, visitor: int) -> None:
        """Start with a visitor; only a server, only when idle."""
        if self.side is not Side.SERVER or not self.idle:
            raise LocalProtocolError("OPEN on a tunnel that cannot be opened now")
        self._begin(visitor)

    def resume(self, visitor: int, *, received_last: bool) -> None:
        """Go on with a visitor of another tunnel; only a server, only when idle. `received_last` says that its END has arrived there."""
        self.open(visitor)
        self.received_last = received_last
        self.resuming = True

    def sent_end(self) -> None:
        """Our direction has ended."""
        if self.idle or self.sent_last or self.resuming:
            raise LocalProtocolError("END without a visitor or for the second time")
        self.sent_last = True

    def sent_abort(self) -> None:
        """Both directions have ended as far as we are concerned; what still arrives until the peer's last word is dropped."""
        if not self.may_abort:
            raise LocalProtocolError("ABORT without a visitor or for the second time")
        self.sent_last = self.aborted = True

    def receive_open(self, visitor: int) -> None:
        """Take the peer's OPEN."""
        if self.side is not Side.CLIENT:
            raise RemoteProtocolError("OPEN from a client")
        if not self.idle:
            raise RemoteProtocolError(
                f"OPEN for visitor {visitor} on a tunnel that is busy with {self.visitor}"
            )
        self._begin(visitor)

    def receive_resume(self, visitor: int, *, sent_last: bool, received_last: bool) -> None:
        """Take the peer's RESUME; the other two say which END has arrived already: ours there, and the peer's here."""
        self.receive_open(visitor)
        self.sent_last, self.received_last = sent_last, received_last
        self.resuming = True

    def sent_resumed(self) -> None:
        """Our answer to RESUME has left."""
        self.resuming = False

    def receive_resumed(self, *, sent_last: bool) -> None:
        """Take the peer's answer to RESUME; `sent_last` says that our END has arrived there."""
        if not self.resuming:
            raise RemoteProtocolError("RESUMED without a RESUME")
        self.resuming = False
        self.sent_last = sent_last

    def receive_data(self) -> None:
        """Take the peer's bytes."""
        if self.idle or self.received_last or self.resuming:
            raise RemoteProtocolError("DATA after END, before RESUMED or without a visitor")

    def receive_end(self) -> None:
        """Take the peer's END."""
        if self.idle or self.received_last or self.resuming:
            raise RemoteProtocolError("END for the second time or without a visitor")
        self.received_last = True

    def receive_abort(self, visitor: int) -> bool:
        """Take the peer's ABORT; return False where it is late, about the visitor before."""
        if visitor != self.visitor:
            if visitor != self._previous:
                raise RemoteProtocolError(f"ABORT for visitor {visitor}, who is not here")
            return False
        self.received_last = self.aborted = True
        self.resuming = False
        return True

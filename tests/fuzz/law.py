"""The law of a tunnel, written down a second time: from `docs/protocol.md`, and from what stands on the wire alone.

`Witness` sees what one side says and hears, frame by frame, and objects. It is the model that `Tunnel` and `Conversation` are
held against, so it shares nothing with them but the reader of frames.
"""

from __future__ import annotations

import attrs

from trionat.protocol.conversation import Side
from trionat.protocol.tunnel_frames import (
    Abort,
    Ack,
    End,
    Open,
    Probe,
    Probed,
    Resume,
    Resumed,
    TunnelFrame,
    TunnelReader,
)


class BreachError(AssertionError):
    """Somebody broke the law."""


def breach(ok: bool, complaint: str) -> None:
    if not ok:
        raise BreachError(complaint)


@attrs.define(eq=False)
class Record:
    """One direction of visitors' streams, as one side has seen it on all tunnels together: the bytes, and who has ended."""

    bytes_: dict[int, bytearray] = attrs.field(factory=dict)
    ended: set[int] = attrs.field(factory=set)

    def position(self, visitor: int) -> int:
        return len(self.bytes_[visitor]) + (visitor in self.ended)

    def add(self, visitor: int, at: int, piece: bytes) -> int:
        """Bytes from a position on, some of them maybe for the second time; return the position behind them."""
        breach(at <= len(self.bytes_[visitor]), "bytes are left out")
        old = self.bytes_[visitor][at : at + len(piece)]
        breach(piece[: len(old)] == old, "other bytes than before")
        breach(len(piece) == len(old) or visitor not in self.ended, "bytes behind the end")
        self.bytes_[visitor] += piece[len(old) :]
        return at + len(piece)


@attrs.define(eq=False)
class Witness:
    """One side of a tunnel, as its wire shows it. Witnesses of tunnels that go on with each other's streams share `said` and `heard`.

    What has arrived counts as heard, although the side may be busy with what came before: so it may say END behind an ABORT that it
    has heard, and ABORT for a visitor with whom, by what is on the wire, it is done.
    """

    side: Side
    said: Record = attrs.field(factory=Record)
    heard: Record = attrs.field(factory=Record)
    visitor: int | None = None
    previous: int | None = None
    ended: bool = False
    aborted: bool = False
    heard_last: bool = False
    unanswered: bool = False
    resuming: bool = False
    probes: int = 0
    aborts: set[int] = attrs.field(factory=set)
    _said_to: int = 0
    _heard_to: int = 0
    _saying: TunnelReader = attrs.field(factory=TunnelReader)
    _hearing: TunnelReader = attrs.field(factory=TunnelReader)

    @property
    def quiet(self) -> bool:
        """Whether nobody owes anybody anything, as far as this side knows."""
        return self.visitor is None and not self.unanswered and not self.probes

    def says(self, data: bytes) -> None:
        """Bytes leave."""
        for event in events(self._saying, data):
            self._says(event)

    def hears(self, data: bytes) -> None:
        """Bytes arrive."""
        for event in events(self._hearing, data):
            self._hears(event)

    def _says(self, event: TunnelFrame | bytes) -> None:
        match event:
            case bytes():
                visitor = self._current("DATA")
                self._said_to = self.said.add(visitor, self._said_to, event)
            case End():
                visitor = self._current("END")
                breach(self._said_to == len(self.said.bytes_[visitor]), "END before the last byte")
                self.said.ended.add(visitor)
                self.ended = True
                self.unanswered = False
            case Abort(visitor):
                breach(visitor in (self.visitor, self.previous), f"ABORT for {visitor}")
                breach(visitor not in self.aborts, f"a second ABORT for {visitor}")
                breach(self.side is Side.CLIENT or not self.resuming, "ABORT before RESUMED")
                self.aborts.add(visitor)
                if visitor == self.visitor:
                    self.aborted = True
                    self.resuming = False
                    self.unanswered = False
            case Open(visitor=visitor):
                breach(self.side is Side.SERVER, "OPEN from a client")
                breach(self.visitor is None, f"OPEN while {self.visitor} is there")
                breach(visitor not in self.said.bytes_, f"OPEN of {visitor} for the second time")
                self._begin(visitor)
            case Resume():
                visitor = event.open.visitor
                breach(self.side is Side.SERVER, "RESUME from a client")
                breach(self.visitor is None, f"RESUME while {self.visitor} is there")
                self._begin(visitor)
                self.resuming = True
                self._goes_on_hearing(visitor, event.received)
                breach(event.kept <= self.said.position(visitor), "kept what was never sent")
            case Resumed(received):
                breach(self.side is Side.CLIENT and self.resuming, "RESUMED")
                assert self.visitor is not None
                self.resuming = False
                self._goes_on_hearing(self.visitor, received)
            case Ack(visitor, received):
                breach(visitor in (self.visitor, self.previous), f"ACK for {visitor}")
                breach(visitor != self.visitor or not self.resuming, "ACK before RESUMED")
                breach(received <= self.heard.position(visitor), "ACK of what has not come")
            case Probe():
                breach(self.side is Side.SERVER and self.visitor is None, "PROBE")
                self.probes += 1
            case Probed():
                breach(self.side is Side.CLIENT and self.probes > 0, "PROBED")
                self.probes -= 1
        self._settle()

    def _hears(self, event: TunnelFrame | bytes) -> None:
        match event:
            case bytes():
                assert self.visitor is not None
                self._heard_to = self.heard.add(self.visitor, self._heard_to, event)
            case Open(visitor=visitor):
                self._begin(visitor)
            case Resume():
                self._begin(event.open.visitor)
                self.resuming = True
                self._goes_on_saying(event.open.visitor, event.received)
            case Resumed(received):
                assert self.visitor is not None
                self.resuming = False
                self._goes_on_saying(self.visitor, received)
            case End():
                assert self.visitor is not None
                self.heard.ended.add(self.visitor)
                self.heard_last = True
            case Abort(visitor):
                if visitor == self.visitor:
                    self.heard_last = True
                    self.resuming = False
                    self.unanswered = not self.ended and not self.aborted
            case Probe():
                self.probes += 1
            case Probed():
                self.probes -= 1
            case Ack():
                pass
        self._settle()

    def _begin(self, visitor: int) -> None:
        self.visitor = visitor
        self.ended = self.aborted = self.heard_last = self.resuming = False
        self._said_to = self._heard_to = 0
        for record in (self.said, self.heard):
            record.bytes_.setdefault(visitor, bytearray())

    def _goes_on_hearing(self, visitor: int, position: int) -> None:
        breach(position <= self.heard.position(visitor), "received what never came")
        self.heard_last = position > len(self.heard.bytes_[visitor])
        self._heard_to = position

    def _goes_on_saying(self, visitor: int, position: int) -> None:
        self.ended = position > len(self.said.bytes_[visitor])
        self._said_to = position

    def _current(self, what: str) -> int:
        breach(self.visitor is not None, f"{what} without a visitor")
        breach(not self.ended and not self.aborted, f"{what} behind the last word")
        breach(not self.resuming, f"{what} before RESUMED")
        assert self.visitor is not None
        return self.visitor

    def _settle(self) -> None:
        if self.heard_last and (self.ended or self.aborted) and not self.resuming:
            self.previous, self.visitor = self.visitor, None
            self.heard_last = False


def events(reader: TunnelReader, data: bytes) -> list[TunnelFrame | bytes]:
    """Read frames and bytes out of a piece of a stream."""
    found: list[TunnelFrame | bytes] = []
    reader.feed(memoryview(data))
    while (event := reader.next()) is not None:
        found.append(bytes(event) if isinstance(event, memoryview) else event)
    return found

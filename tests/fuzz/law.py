"""The law of a tunnel, written down a second time: from `docs/protocol.md`, and from what stands on the wire alone.

`Witness` sees what one side says and hears, frame by frame, and objects. It is the model that `Tunnel` and `Conversation` are
held against, so it shares nothing with them but the reader of frames.
"""

from __future__ import annotations

import attrs

from trionat.protocol.conversation import Side
from trionat.protocol.tunnel_frames import (
    Abort,
    End,
    Open,
    Probe,
    Probed,
    TunnelFrame,
    TunnelReader,
)


class BreachError(AssertionError):
    """Somebody broke the law."""


def breach(ok: bool, complaint: str) -> None:
    if not ok:
        raise BreachError(complaint)


@attrs.define(eq=False)
class Witness:
    """One side of a tunnel, as its wire shows it. `said` and `heard` are visitors' bytes by visitor.

    What has arrived counts as heard, although the side may be busy with what came before: so it may say END behind an ABORT that it
    has heard, and ABORT for a visitor with whom, by what is on the wire, it is done.
    """

    side: Side
    visitor: int | None = None
    previous: int | None = None
    ended: bool = False
    aborted: bool = False
    heard_last: bool = False
    unanswered: bool = False
    probes: int = 0
    said: dict[int, bytearray] = attrs.field(factory=dict)
    heard: dict[int, bytearray] = attrs.field(factory=dict)
    aborts: set[int] = attrs.field(factory=set)
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
                self.said[visitor] += event
            case End():
                self._current("END")
                self.ended = True
                self.unanswered = False
            case Abort(visitor):
                breach(visitor in (self.visitor, self.previous), f"ABORT for {visitor}")
                breach(visitor not in self.aborts, f"a second ABORT for {visitor}")
                self.aborts.add(visitor)
                if visitor == self.visitor:
                    self.aborted = True
                    self.unanswered = False
            case Open(visitor=visitor):
                breach(self.side is Side.SERVER, "OPEN from a client")
                breach(self.visitor is None, f"OPEN while {self.visitor} is there")
                self._begin(visitor)
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
                self.heard[self.visitor] += event
            case Open(visitor=visitor):
                self._begin(visitor)
            case End():
                self.heard_last = True
            case Abort(visitor):
                if visitor == self.visitor:
                    self.heard_last = True
                    self.unanswered = not self.ended and not self.aborted
            case Probe():
                self.probes += 1
            case Probed():
                self.probes -= 1
        self._settle()

    def _begin(self, visitor: int) -> None:
        self.visitor = visitor
        self.ended = self.aborted = self.heard_last = False
        self.said[visitor], self.heard[visitor] = bytearray(), bytearray()

    def _current(self, what: str) -> int:
        breach(self.visitor is not None, f"{what} without a visitor")
        breach(not self.ended and not self.aborted, f"{what} behind the last word")
        assert self.visitor is not None
        return self.visitor

    def _settle(self) -> None:
        if self.heard_last and (self.ended or self.aborted):
            self.previous, self.visitor = self.visitor, None
            self.heard_last = False


def events(reader: TunnelReader, data: bytes) -> list[TunnelFrame | bytes]:
    """Read frames and bytes out of a piece of a stream."""
    found: list[TunnelFrame | bytes] = []
    reader.feed(memoryview(data))
    while (event := reader.next()) is not None:
        found.append(bytes(event) if isinstance(event, memoryview) else event)
    return found

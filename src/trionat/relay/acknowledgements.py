"""Acknowledgements over the control connection, once in a while, for streams whose ACK on the tunnel would wait behind what nobody reads."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from trionat.protocol.messages import MAX_STREAMS, Acks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trionat.relay.stream import VisitorStream


def are_owed(streams: Iterable[VisitorStream]) -> bool:
    """Tell whether the peer may not know how far we are with any of these streams."""
    return any(stream.is_unconfirmed for stream in streams)


def acks_of(streams: Iterable[VisitorStream]) -> Acks | None:
    """Return how far those streams are of which the peer may not know it, None: there are none. They count as told from now on."""
    owing = list(islice((stream for stream in streams if stream.is_unconfirmed), MAX_STREAMS))
    for stream in owing:
        stream.note_confirmed()
    return Acks(tuple((stream.visitor, stream.received) for stream in owing)) if owing else None


def take_acks(acks: Acks, streams: Iterable[VisitorStream]) -> None:
    """Take the peer's word for how far it is with these streams; others are gone meanwhile.

    Raises:
        RemoteProtocolError: it cannot be so far.
    """
    by_visitor = {stream.visitor: stream for stream in streams}
    for visitor, position in acks.streams:
        if (stream := by_visitor.get(visitor)) is not None:
            stream.acknowledge(position)

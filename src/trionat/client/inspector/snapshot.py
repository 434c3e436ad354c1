"""What is known of a visitor at one moment, as values: for a thread that reads HTTP out of it while more bytes come."""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, Final

import attrs

from trionat.client.inspector.http_view import read_conversation

if TYPE_CHECKING:
    from trionat.client.inspector.http_view import Conversation, Exchange, Message
    from trionat.client.inspector.recording import Recording, Track

_HOST: Final = re.compile(
    r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", re.ASCII
)
_SCHEMES: Final = ("http", "https")


@attrs.frozen(kw_only=True)
class Times:
    """When a request began and had come, and when its answer began and had come, in seconds since the visitor came; None: not yet."""

    asked: float
    sent: float
    answered: float | None
    ended: float | None


@attrs.frozen
class _Stamps:
    starts: tuple[int, ...]
    times: tuple[float, ...]

    @classmethod
    def of(cls, track: Track, began: float) -> _Stamps:
        return cls(tuple(track.starts), tuple(time - began for time in track.times))

    def time_of(self, position: int) -> float:
        """Return when the byte at that position came; of one behind the end, when the last came."""
        if not self.times:
            return 0.0
        return self.times[max(0, bisect_right(self.starts, position) - 1)]


@attrs.define(eq=False, slots=False, kw_only=True)
class Snapshot:
    """A copy of what a recording has."""

    number: int
    replay_of: int | None
    local: str
    began_at: float
    received: bytes
    sent: bytes
    is_cut: bool
    sent_ended: bool
    received_ended: bool
    stamps: dict[str, _Stamps]

    @classmethod
    def of(cls, recording: Recording) -> Snapshot:
        """Take it. Copies the bytes: two MiB, unless told otherwise."""
        received, sent, began = recording.received, recording.sent, recording.began
        return cls(
            number=recording.number,
            replay_of=recording.replay_of,
            local=recording.local,
            began_at=recording.began_at,
            received=bytes(received.data),
            sent=bytes(sent.data),
            is_cut=not sent.is_whole,
            sent_ended=sent.ended is not None or recording.ended is not None,
            received_ended=received.ended is not None,
            stamps={"received": _Stamps.of(received, began), "sent": _Stamps.of(sent, began)},
        )

    @cached_property
    def conversation(self) -> Conversation:
        """The HTTP in it."""
        return read_conversation(
            self.received, self.sent, sent_ended=self.sent_ended, is_cut=self.is_cut
        )

    def time_of(self, direction: str, position: int) -> float:
        """Return when the byte at that position came, in seconds since the visitor came."""
        return self.stamps[direction].time_of(position)

    def times_of(self, exchange: Exchange) -> Times:
        """Return when it happened."""
        request, answer = exchange.request, exchange.answer
        return Times(
            asked=self.time_of("received", request.start),
            sent=self.time_of("received", max(request.start, request.end - 1)),
            answered=None if answer is None else self.time_of("sent", answer.start),
            ended=None
            if answer is None or not answer.is_whole
            else self.time_of("sent", max(answer.start, answer.end - 1)),
        )

    def url_of(self, request: Message) -> str:
        """Return where a request was meant to go, as far as it tells; else to the local service."""
        target = request.first[1]
        if target.startswith(("http://", "https://")):
            return target
        hosts = [host for host in request.values("host") if _HOST.fullmatch(host)]
        host = hosts[0] if hosts else self.local
        said = "".join(request.values("x-forwarded-proto")[:1]).lower()
        scheme = said if said in _SCHEMES else "http"
        return f"{scheme}://{host}{target if target.startswith('/') else '/'}"

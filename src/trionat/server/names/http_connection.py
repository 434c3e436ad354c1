"""A visitor's connection that speaks HTTP/1: one request after another, each perhaps for another service.

Whoever has accepted it owns it, and goes round::

    said = await connection.next_request()
    while isinstance(said, RequestHead):
        ...  # an `HttpEndpoint` for that request, which a tunnel serves until `on_over` is called with what is said next
    await connection.finish(b"" if said is None else PAGE)
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs
import trio

from trionat.protocol.http.fields import MOST_FIELDS, MOST_HEAD_BYTES, HeadReader, HttpError
from trionat.protocol.http.head import RequestHead, check_request_line, parse_request
from trionat.transport.endpoint import MORE_LIKELY_BYTES, close_after_last_words, send_all
from trionat.transport.scratch import scratch

if TYPE_CHECKING:
    from trionat.protocol.http.head import Origin
    from trionat.transport.endpoint import Endpoint

READ_BYTES: Final = 64 * 1024
"""What is read at once where heads are looked for; so at most as much waits here that nobody has asked for."""

_LAST_WORDS: Final = 5.0
"""Seconds for a visitor to take the last answer, and to end."""


@attrs.frozen
class HttpLimits:
    """What a visitor may do.

    `head_timeout` and `idle_timeout` are in seconds: for a head from its first byte on (of the first request: from the beginning), and between an
    answer and the next request, or two pieces of a body.
    """

    head_bytes: int = MOST_HEAD_BYTES
    fields: int = MOST_FIELDS
    head_timeout: float = 10.0
    idle_timeout: float = 60.0


@attrs.frozen
class Refusal:
    """What the visitor has said is not passed on, or has got no answer; `status` is that of the page which says so, `text` is for the log.

    `request` is the one that has got no answer, after so many `seconds`; None where it was refused before anybody could read it.
    """

    status: int
    text: str
    request: RequestHead | None = None
    seconds: float = 0.0


Said: TypeAlias = RequestHead | Refusal | None
"""What comes next on a connection. None: nothing, and nothing is to be said any more."""


@attrs.define(eq=False)
class HttpConnection:
    """See the module. Owns `endpoint`, the visitor's, with TLS or without.

    `ahead` are bytes of the visitor's that were read and not used, `unsent` some for it that have not left; `ended` says that it has ended its
    direction. `since` is when the wait for a head began, or the head itself. `more` says that the last read most likely has not taken all.
    """

    endpoint: Endpoint
    origin: Origin
    limits: HttpLimits = HttpLimits()
    ahead: bytes = attrs.field(default=b"", repr=False)
    unsent: bytes = attrs.field(init=False, default=b"", repr=False)
    ended: bool = attrs.field(init=False, default=False)
    more: bool = attrs.field(init=False, default=False)
    since: float = attrs.field(init=False, factory=trio.current_time)
    _reader: HeadReader = attrs.field(init=False)
    _first: bool = attrs.field(init=False, default=True)

    def __attrs_post_init__(self) -> None:
        self._reader = HeadReader(self.limits.head_bytes)

    def take(self, room: memoryview) -> int:
        """Read into the room what is ahead, or what the kernel has; 0: the visitor has ended. Raises as an endpoint does."""
        if ahead := self.ahead:
            count = min(len(ahead), len(room))
            room[:count] = ahead[:count]
            self.ahead = ahead[count:]
            return count
        try:
            count = self.endpoint.recv_into(room)
        except BlockingIOError:
            self.more = False
            raise
        self.more = count >= MORE_LIKELY_BYTES
        self.ended = not count
        return count

    def read_head(self, room: memoryview) -> Said:
        """Read the next head. BlockingIOError: there has to be more; `OSError` is the endpoint's."""
        reader = self._reader
        while True:
            data, self.ahead = self.ahead, b""
            if not data:
                data = bytes(room[: self.take(room)])
                if not data:
                    return None
            if not reader.begun and not self._first:
                self.since = trio.current_time()
            try:
                head, self.ahead = reader.feed(data)
                if head is not None:
                    self._first = False
                    return parse_request(head, most_fields=self.limits.fields)
                if (line := reader.first_line) is not None:
                    check_request_line(line)  # what is wrong there is told at once
            except HttpError as error:
                return Refusal(error.status, str(error))

    @property
    def head_begun(self) -> bool:
        """Whether a part of the next head is here."""
        return bool(self.ahead) or self._reader.begun

    @property
    def deadline(self) -> float:
        """When the next head has to be here, on Trio's clock."""
        waits = self._first or self._reader.begun
        return self.since + (self.limits.head_timeout if waits else self.limits.idle_timeout)

    def timed_out(self) -> Refusal | None:
        """Return what follows from it that the deadline has passed. Who has said nothing is told nothing: browsers connect ahead, and would take it for the answer to their next request."""
        if self._reader.begun:
            return Refusal(408, f"no request within {self.limits.head_timeout:g} s")
        return None

    async def next_request(self) -> Said:
        """Wait for the next head, within its deadline. None as well where the connection is lost."""
        while True:  # noqa: ASYNC913 - ends where a head is there
            try:
                return self.read_head(scratch().incoming[:READ_BYTES])
            except BlockingIOError:
                pass
            except OSError:
                return None
            try:
                with trio.move_on_at(self.deadline) as scope:
                    await self.endpoint.readable.wait()
            except trio.ClosedResourceError:
                return None
            if scope.cancelled_caught:
                return self.timed_out()

    async def finish(self, last_words: bytes = b"") -> None:
        """Send them, close so that they arrive, and return within seconds. Closes under cancellation as well."""
        try:
            with trio.move_on_after(_LAST_WORDS), suppress(OSError, trio.ClosedResourceError):
                await send_all(self.endpoint, self.unsent + last_words)
                await close_after_last_words(self.endpoint)
        finally:
            self.endpoint.close()

"""A visitor: an outside connection to a visit port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

from trionat.protocol.tunnel_frames import Open
from trionat.relay.stream import VisitorStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.address import TCPAddress
    from trionat.relay.send_buffer import SendBuffer
    from trionat.server.tally import Tally
    from trionat.transport.endpoint import Endpoint


@attrs.define(eq=False)
class Visitor:
    """An outside connection to a visit port. Whoever holds it closes its endpoint.

    `number` is unique on this server and stands on both sides' log lines. `since` is when it began to wait. `stream` is there once it has had a
    tunnel; if it waits nevertheless, it waits for another one to go on with it. `tries` is how many tunnels it was given before one took
    anything of it. `session` is the one that has served it last, 0 before the first. `gone` is called once, when it has left; it is `present`
    while it waits or is served. `name` is that which it asked for, where it came by one; `with_tls` says of one on its way to another process that
    what it has said begins with TLS. With a `tally`, how long it waits for an answer and stays is counted there.
    """

    number: int
    endpoint: Endpoint
    address: TCPAddress
    service: int
    visited: TCPAddress
    name: str | None = None
    with_tls: bool = False
    arrived: float = attrs.field(factory=trio.current_time)
    since: float = attrs.field(factory=trio.current_time)
    stream: VisitorStream | None = attrs.field(default=None, repr=False)
    tries: int = 0
    session: int | None = 0
    gone: Callable[[], None] = lambda: None
    tally: Tally | None = attrs.field(default=None, repr=False)
    present: bool = attrs.field(init=False, default=True)
    has_left: bool = attrs.field(init=False, default=False)

    @property
    def point(self) -> int | str:
        """The visit port or the name that it visits."""
        return self.name or self.visited.port

    @property
    def was_served(self) -> bool:
        """Whether it has had a tunnel, or an answer without one."""
        return self.stream is not None and (self.tries > 0 or self.stream.received > 0)

    @property
    def is_over(self) -> bool:
        """Whether it has left or was reset. It may still be here for what the client is to be told of it."""
        return self.has_left or (self.stream is not None and self.stream.failure is not None)

    def new_stream(self, send_buffer: SendBuffer | None = None) -> VisitorStream:
        """Return what a tunnel moves its bytes by."""
        stream = VisitorStream(self.number, self.endpoint, send_buffer)
        if self.tally is not None:
            stream.on_answer = self._note_answer
        return stream

    def _note_answer(self) -> None:
        if self.tally is not None:
            self.tally.first_byte.note(trio.current_time() - self.arrived)

    def leave(self) -> None:
        """It is not here any more, but perhaps for what the client is to be told of it. Idempotent."""
        if not self.has_left:
            self.has_left = True
            if self.tally is not None:
                self.tally.visitor_duration.note(trio.current_time() - self.arrived)
            self.gone()

    @property
    def opening(self) -> Open:
        """Who comes and what for, as the client is told."""
        return Open(
            visitor=self.number,
            service=self.service,
            host=self.address.host,
            port=self.address.port,
            visit_host=self.visited.host,
            visit_port=self.visited.port,
        )

"""A visitor: an outside connection to a visit port."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionat.address import TCPAddress
    from trionat.transport.endpoint import Endpoint


@attrs.define(eq=False)
class Visitor:
    """An outside connection to a visit port. Whoever holds it closes its endpoint.

    `number` is unique on this server and stands on both sides' log lines. `early` are bytes of the visitor that were read and
    given to a tunnel which turned out to be dead; they are counted, and the next tunnel gets them first. `since` is when it
    began to wait, `tries` how many tunnels it was given. `gone` is called once, when it has left.
    """

    number: int
    endpoint: Endpoint
    address: TCPAddress
    service: int
    visited: TCPAddress
    arrived: float = attrs.field(factory=trio.current_time)
    since: float = attrs.field(factory=trio.current_time)
    early: bytes = attrs.field(default=b"", repr=False)
    tries: int = 0
    gone: Callable[[], None] = lambda: None

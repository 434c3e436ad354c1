"""What a client is doing at one moment, as values: nothing in them refers to anything that lives, so any thread may have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from trionat.config.service import Service


@attrs.frozen(kw_only=True)
class VisitorView:
    """A visitor that is there.

    `number` is the server's number of it, and `service` the place of its service in `Client.services`, from 0; None where that was taken away. `received` and `sent` are bytes from and to the
    visitor, `seconds` is how long it is there. `address` is empty where the server does not tell; `waiting` says that its tunnel was lost, and that another one is to go on with it.
    """

    number: int
    service: int | None
    address: str
    seconds: float
    received: int
    sent: int
    waiting: bool = False


@attrs.frozen(kw_only=True)
class ClientSnapshot:
    """What a client is doing at one moment. Any thread may have it.

    `visitors` are the newest ones, the newest first, of `present`. `round_trip` is in seconds, None where it is not known, or not yet.

    `services` are those of the configuration, in the order of `Client.services`; `down` has the places of those that could not be reached when they were tried last.
    """

    visitors: tuple[VisitorView, ...] = ()
    present: int = 0
    round_trip: float | None = None
    services: tuple[Service, ...] = ()
    down: tuple[int, ...] = ()

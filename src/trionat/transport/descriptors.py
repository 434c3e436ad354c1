"""Descriptors when they are short: who waits, who is refused, and how that is told."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.log import get_logger

if TYPE_CHECKING:
    from trionat.address import TCPAddress

log = get_logger(__name__)

LOG_INTERVAL: Final = 1.0  # seconds between two log lines, of all listeners together
REFUSED_AT_ONCE: Final = 64


def _limit() -> int | None:
    """Return how many descriptors this process may have; None where there is no limit, or the system does not tell."""
    try:
        import resource  # noqa: PLC0415 - POSIX only
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit


def _for_visitors() -> int | None:
    """Return how many descriptors may be in use when another visitor is let in; None where the system does not tell.

    A quarter is left for what visitors need (tunnels), for clients that come back, and for files. Chosen, not measured.
    """
    limit = _limit()
    return None if limit is None else limit * 3 // 4


def is_for_control(descriptor: int) -> bool:
    """Tell whether a new descriptor is one of the last sixteenth, which tunnels leave to control connections.

    Without that, tunnels for waiting visitors would take all that visitors leave. Chosen, not measured. Numbers tell as in
    `Descriptors.is_room`.
    """
    limit = _limit()
    return limit is not None and descriptor >= limit * 15 // 16


@attrs.define(eq=False)
class Descriptors:
    """What a server's listeners share of it: the limit, a spare descriptor, and one log line a second.

    `for_visitors` is how many may be in use when another visitor is let in. The spare is given up for a moment to accept and
    close a connection, since a peer in the kernel's queue hears nothing otherwise; `refused` counts those. `close` gives it back.
    """

    for_visitors: int | None = attrs.field(factory=_for_visitors)
    refused: int = attrs.field(init=False, default=0)
    _spare: socket.socket = attrs.field(init=False, factory=socket.socket)
    _told: float = attrs.field(init=False, default=float("-inf"))
    _refused_until_told: int = attrs.field(init=False, default=0)

    def is_room(self, most: int | None) -> bool:
        """Tell whether there is a descriptor, and fewer than `most` are in use.

        The kernel gives the lowest number that is free (socket(2), by way of open(2)), so a number tells how many there are.
        """
        try:
            with socket.socket() as probe:
                return most is None or probe.fileno() < most
        except OSError:
            return False

    def refuse(self, listening: socket.socket) -> None:
        """Close those at the head of the kernel's queue."""
        self._spare.close()
        with suppress(OSError):  # BlockingIOError: that was all
            for _ in range(REFUSED_AT_ONCE):
                listening.accept()[0].close()
                self.refused += 1
        with suppress(OSError):  # next time, then
            self._spare = socket.socket()

    def tell(self, address: TCPAddress, error: str) -> None:
        """Log the shortage, unless that was done a moment ago."""
        now = trio.current_time()
        if now - self._told >= LOG_INTERVAL:
            log.warning(
                "descriptors are short: connections wait in the kernel's queue, and are closed after a while",
                address=str(address),
                error=error,
                refused=self.refused - self._refused_until_told,
            )
            self._told, self._refused_until_told = now, self.refused

    def tell_rest(self, address: TCPAddress) -> None:
        """The shortage is over at this address: log how many were refused since the last line."""
        if refused := self.refused - self._refused_until_told:
            log.warning("descriptors were short", address=str(address), refused=refused)
            self._refused_until_told = self.refused

    def close(self) -> None:
        """Give up the spare."""
        self._spare.close()

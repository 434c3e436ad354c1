"""Descriptors: how many there are, who waits and who is refused when they are short, and how that is told."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.system import duplicate_from, find_descriptor_limit

if TYPE_CHECKING:
    from trionat.address import TCPAddress

log = get_logger(__name__)

# What accept(), socket() and open() raise when descriptors or memory are short (accept(2)); to be waited out, not died of.
SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

LOG_INTERVAL: Final = (
    60.0  # seconds between two log lines of one shortage, of all listeners together
)
TOLD_AGAIN_AFTER: Final = 10.0  # seconds between two shortages that are told; one that comes and goes must not fill the log
REFUSED_AT_ONCE: Final = 64

# Neither visitors nor tunnels: a control connection, a name server's, files that are written. Chosen.
_SPARE: Final = 4


def _in_use() -> int:
    """Return how many are in use: the kernel gives the lowest number that is free (socket(2), by way of open(2)).

    Raises:
        OSError: there is none any more.
    """
    with socket.socket() as probe:
        return probe.fileno()


def left() -> int:
    """Return how many more descriptors this process may have, as far as the system tells.

    Looks at all that are open, since a library's host may have closed some of low numbers: not for every visitor.
    """
    try:
        in_use = _in_use()
    except OSError:
        return 0
    limit = find_descriptor_limit()
    if limit is None:
        return sys.maxsize
    # FreeBSD without fdescfs lists the first three only.
    with suppress(OSError):
        in_use = max(
            in_use, len(list(Path("/dev/fd").iterdir())) - 1
        )  # without that of the listing itself
    return max(0, limit - in_use)


def room_for_visitors(most: int, *, idle: int = 0) -> int:
    """Return for how many visitors there is room at a client, at most `most`: each takes a tunnel and a connection to a service.

    `idle` tunnels are there already.
    """
    return max(0, min(most, (left() + idle - _SPARE) // 2))


def require(needed: int, what: str) -> None:
    """Check that this process may have so many more descriptors, and those beside them that visitors leave free.

    Raises:
        StartupError: it may not; the message has the limit that is needed.
    """
    limit = find_descriptor_limit()
    if limit is None:
        return
    enough = (limit - left() + needed) * 8 // 7 + 1
    if limit < enough:
        raise StartupError(
            f"{enough} descriptors are needed for {what}, and this process may have {limit}:"
            " raise the limit (ulimit -n, under systemd LimitNOFILE)"
        )


def warn_if_short(needed: int, what: str) -> None:
    """Log what would not fit, where this process may not have so many more descriptors."""
    if (missing := needed - left()) > 0 and (limit := find_descriptor_limit()) is not None:
        log.warning(
            "descriptors are too few for what is configured: raise the limit (ulimit -n, under systemd LimitNOFILE)",
            limit=limit,
            needed=limit + missing,
            configured=what,
        )


def _for_visitors() -> int | None:
    """Return how many descriptors may be in use when another visitor is let in; None where the system does not tell.

    Of those that are free when all listeners are open, a quarter is left for what visitors need (tunnels), for clients that come
    back, and for files; at least an eighth of all. Chosen, not measured.
    """
    limit = find_descriptor_limit()
    return None if limit is None else limit - max(left() // 4, limit // 8)


def is_for_control(descriptor: int) -> bool:
    """Tell whether a new descriptor is one of the last sixteenth, which tunnels leave to control connections.

    Without that, tunnels for waiting visitors would take all that visitors leave. Chosen, not measured.
    """
    limit = find_descriptor_limit()
    return limit is not None and descriptor >= limit * 15 // 16


@attrs.define(eq=False)
class Descriptors:
    """What a server's listeners share of it: the limit, a spare descriptor, and the log lines of a shortage.

    `for_visitors` is how many may be in use when another visitor is let in. The spare is given up for a moment to accept and
    close a connection, since a peer in the kernel's queue hears nothing otherwise; `refused` counts those. `close` gives it back.
    """

    for_visitors: int | None = attrs.field(factory=_for_visitors)
    refused: int = attrs.field(init=False, default=0)
    _spare: socket.socket = attrs.field(init=False, factory=socket.socket)
    _short: set[TCPAddress] = attrs.field(init=False, factory=lambda: set())
    _told_at: float | None = attrs.field(init=False, default=None)
    _quiet_until: float = attrs.field(init=False, default=float("-inf"))
    _refused_until_told: int = attrs.field(init=False, default=0)

    def is_room(self, most: int | None) -> bool:
        """Tell whether there is a descriptor, and fewer than `most` are in use."""
        try:
            in_use = _in_use()
        except OSError:
            return False
        return most is None or in_use < most

    def beside_visitors(self, most: int) -> int:
        """Return how many may be set aside, at most `most`: half of what visitors leave free, but for what is for control connections."""
        limit = find_descriptor_limit()
        if limit is None or self.for_visitors is None:
            return most
        return max(1, min(most, (limit * 15 // 16 - self.for_visitors) // 2))

    def set_aside(self, sock: socket.socket) -> socket.socket:
        """Return a socket, which is given away, with a number above those that visitors may have, so that it takes none from them.

        Where that cannot be, it stays as it is.
        """
        if self.for_visitors is None:
            return sock
        number = duplicate_from(sock.fileno(), self.for_visitors)
        if number is None:
            return sock
        sock.close()
        aside = socket.socket(fileno=number)
        aside.setblocking(False)
        return aside

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
        """Note a shortage at this address. Log that it begins, and once a minute that it lasts."""
        self._short.add(address)
        now = trio.current_time()
        if now >= (self._quiet_until if self._told_at is None else self._told_at + LOG_INTERVAL):
            log.warning(
                "descriptors are short: connections wait in the kernel's queue, and are closed after a while",
                address=str(address),
                error=error,
                refused=self._count_untold(),
            )
            self._told_at, self._quiet_until = now, now + TOLD_AGAIN_AFTER

    def tell_rest(self, address: TCPAddress) -> None:
        """The shortage is over at this address; where it is over at all, log that, and how many were refused since the last line."""
        self._short.discard(address)
        if not self._short and self._told_at is not None:
            self._told_at = None
            log.warning("there are enough descriptors again", refused=self._count_untold())

    def _count_untold(self) -> int:
        untold, self._refused_until_told = self.refused - self._refused_until_told, self.refused
        return untold

    def close(self) -> None:
        """Give up the spare."""
        self._spare.close()

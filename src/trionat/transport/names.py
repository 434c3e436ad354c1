"""Looking up names, in threads of their own: a name server that hangs must not take those that everything else needs."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any, Final

import attrs
import trio

_MOST_LOOKUPS: Final = 4
"""Threads for one name. A lookup that nobody waits for any more goes on in its thread, for as long as the resolver's own patience
(resolv.conf(5): 10 s for each server), so a name that hangs takes these and no more; other names have their own."""


@attrs.define(eq=False)
class NameResolver(trio.abc.HostnameResolver):
    """For `trio.socket.set_custom_hostname_resolver`, which a program of ours does; a library leaves that to its host.

    Cancelling a lookup returns at once. The names are those of a configuration, so there are few.
    """

    _limiters: dict[object, trio.CapacityLimiter] = attrs.field(init=False, factory=lambda: {})

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the name that Trio has
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """See `socket.getaddrinfo`."""
        limiter = self._limiters.setdefault(host, trio.CapacityLimiter(_MOST_LOOKUPS))
        ask = partial(socket.getaddrinfo, host, port, family, type, proto, flags)
        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=limiter)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        """See `socket.getnameinfo`; nobody of ours asks."""
        return await trio.to_thread.run_sync(
            socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True
        )

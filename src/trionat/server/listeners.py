"""What a server listens at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from trionat.address import TCPAddress
from trionat.config.server import REQUIRE
from trionat.config.values import PORTS
from trionat.errors import StartupError
from trionat.log import get_logger
from trionat.transport.listener import Listener, look_up

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Container, Iterable, Iterator, Sequence
    from contextlib import AsyncExitStack, ExitStack

    from trionat.config.server import ServerConfig

log = get_logger(__name__)

_AT_ONCE: Final = 64
"""Visit ports that are opened before other tasks get their turn: some 5 ms."""

CONTROL: Final = "control"
TUNNEL: Final = "tunnel"
PROXY_CONTROL: Final = "proxy control"
PROXY_VISIT: Final = "proxy visit"
HTTP: Final = "http"
HTTPS: Final = "https"
VISIT: Final = "visit"
CONSOLE: Final = "console"

_OF_NAMES: Final = {
    HTTP: "another one is --http-addr (HttpAddr), to which something has to bring what comes to port 80 from outside",
    HTTPS: "another one is --https-addr (HttpsAddr), with --public-https-port where something brings what comes to port 443 from outside",
}
"""What to do where a port of names cannot be opened: visitors and authorities look nowhere else."""


@attrs.define(eq=False)
class GivenListeners:
    """Sockets at which another process has listened so far, each with its role and address; who takes one owns it, and `close` closes the others."""

    _given: dict[tuple[str, TCPAddress], socket.socket] = attrs.field(
        init=False, factory=lambda: {}
    )

    def add(self, role: str, address: TCPAddress, sock: socket.socket) -> None:
        """Here is one."""
        self._given[role, address] = sock

    def take(self, role: str, wanted: TCPAddress) -> Listener | None:
        """Return the one at that address; None: there is none. Port 0 means any of that role, at that host."""
        for its, address in self._given:
            if address == wanted or (
                not wanted.port and its == role and address.host == wanted.host
            ):
                return Listener(self._given.pop((its, address)), address)
        return None

    def close(self) -> None:
        """Close what nobody has taken."""
        while self._given:
            self._given.popitem()[1].close()


@attrs.frozen(kw_only=True)
class Listeners:
    """`visits` are the visit ports; `http` and `https` are there where services have names, and those for proxies where there are any."""

    control: Listener
    tunnel: Listener
    visits: tuple[Listener, ...]
    proxy_control: Listener | None = None
    proxy_visit: Listener | None = None
    http: Listener | None = None
    https: Listener | None = None

    def by_role(self) -> Iterator[tuple[str, Listener]]:
        """Go through all of them, each with what it is for."""
        one = {
            CONTROL: self.control,
            TUNNEL: self.tunnel,
            PROXY_CONTROL: self.proxy_control,
            PROXY_VISIT: self.proxy_visit,
            HTTP: self.http,
            HTTPS: self.https,
        }
        yield from ((role, listener) for role, listener in one.items() if listener is not None)
        yield from ((VISIT, listener) for listener in self.visits)

    def with_visits(self, added: Iterable[Listener], removed: Container[int]) -> Listeners:
        """Return these with more visit ports, and without those that are `removed`, which are closed."""
        kept: list[Listener] = []
        for listener in self.visits:
            if listener.address.port in removed:
                listener.close()
            else:
                kept.append(listener)
        return attrs.evolve(self, visits=(*kept, *added))

    @property
    def all(self) -> tuple[Listener, ...]:
        """All of them."""
        besides = (self.control, self.tunnel, self.proxy_control, self.proxy_visit)
        return (*(each for each in besides if each is not None), *self.of_visitors)

    @property
    def of_visitors(self) -> tuple[Listener, ...]:
        """Where visitors come without a proxy."""
        return (*self.visits, *(each for each in (self.http, self.https) if each is not None))


async def open_listeners(
    config: ServerConfig, resources: AsyncExitStack, given: GivenListeners | None = None
) -> Listeners:
    """Bind all addresses of a server, but for those of which a socket is `given`; `resources` closes them.

    Raises:
        StartupError: one cannot be bound, and is not one of many visit ports of which some may be left out.
    """
    own: list[tuple[TCPAddress, str]] = []
    visit_host = TCPAddress(config.effective_visit_host, next(iter(config.visit_port), 0))
    others = {
        PROXY_CONTROL: config.proxy_control_addr,
        PROXY_VISIT: config.proxy_visit_addr,
        HTTP: config.effective_http_addr,
        HTTPS: config.effective_https_addr,
    }
    wanted = (
        config.controller_addr,
        config.tunnel_addr,
        visit_host,
        *filter(None, others.values()),
    )
    numbers = {address.host: await look_up(address) for address in wanted}

    def listen(address: TCPAddress, what: str) -> Listener:
        listener = None if given is None else given.take(what, address)
        try:
            listener = listener or Listener.open(address, host=numbers[address.host])
        except StartupError as error:
            for other, its in own:
                if _is_same(address, other):
                    text = f"cannot listen on {address}: that is this server's own {its} port: choose another {what} port"
                    raise StartupError(text) from error
            if what in _OF_NAMES:
                raise StartupError(f"{error}; {_OF_NAMES[what]}") from error
            raise
        own.append((listener.address, what))
        resources.callback(listener.close)
        return listener

    control = listen(config.controller_addr, CONTROL)
    tunnel = listen(config.tunnel_addr, TUNNEL)
    proxy_control, proxy_visit, http, https = (
        None if address is None else listen(address, what) for what, address in others.items()
    )
    visits: list[Listener] = []
    failures: list[tuple[int, StartupError]] = []
    for number, port in enumerate(config.visit_port):
        if (
            number % _AT_ONCE == 0
        ):  # thousands take a while: a signal, or whoever shares the loop, need not wait for it
            await trio.lowlevel.checkpoint()
        try:
            visits.append(listen(TCPAddress(config.effective_visit_host, port), VISIT))
        except StartupError as error:
            if config.visit_port_policy == REQUIRE:
                raise
            failures.append((port, error))
    if failures:
        if not visits:
            raise failures[0][1]
        _tell_left_out(failures)
    return Listeners(
        control=control,
        tunnel=tunnel,
        visits=tuple(visits),
        proxy_control=proxy_control,
        proxy_visit=proxy_visit,
        http=http,
        https=https,
    )


async def open_visit_ports(
    config: ServerConfig, ports: Collection[int], others: Iterable[Listener], resources: ExitStack
) -> tuple[tuple[Listener, ...], str | None]:
    """Bind more visit ports of a server that runs, beside `others`; `resources` closes them. Those that cannot be opened are left out where `VisitPortPolicy` says so; which, the text says for people.

    Raises:
        StartupError: one cannot be bound.
    """
    host = TCPAddress(config.effective_visit_host, next(iter(ports), 0))
    number = await look_up(host)
    opened: list[Listener] = []
    failures: list[tuple[int, StartupError]] = []
    for count, port in enumerate(ports):
        if count % _AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        address = TCPAddress(config.effective_visit_host, port)
        try:
            listener = Listener.open(address, host=number)
        except StartupError as error:
            if any(_is_same(address, other.address) for other in others):
                text = f"cannot listen on {address}: that is one of this server's own ports: choose another visit port"
                raise StartupError(text) from error
            if config.visit_port_policy == REQUIRE:
                raise
            failures.append((port, error))
            continue
        resources.callback(listener.close)
        opened.append(listener)
    if not failures:
        return tuple(opened), None
    missing, reason = _tell_left_out(failures)
    return tuple(opened), f"visit ports are left out (VisitPortPolicy): {missing}: {reason}"


def _tell_left_out(failures: Sequence[tuple[int, StartupError]]) -> tuple[str, str]:
    """Tell the log which visit ports are left out, and why the first one is; return both for people."""
    missing, reason = PORTS.write([port for port, _ in failures]), str(failures[0][1])
    log.warning("visit ports are left out (VisitPortPolicy)", ports=missing, reason=reason)
    return missing, reason


def _is_same(one: TCPAddress, other: TCPAddress) -> bool:
    """Tell whether not both can be listened on."""
    return one.port == other.port and (
        one.host == other.host or one.is_any_host or other.is_any_host
    )
